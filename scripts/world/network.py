"""The networks of the small world, with the parameter names that ComfyUI's own classes use.

The denoiser is Stable Diffusion 3's transformer (MMDiT), whose size its depth decides. The
autoencoder is a TAESD with SD 3's 16 latent channels.
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

DEPTH = 4
WIDTH = 64 * DEPTH
"""ComfyUI takes the depth from the width: one block and one attention head for each 64 channels."""
PATCH, LATENT, CONTEXT, CONTEXT_INPUTS = 2, 16, 768, 4096
"""Side of a patch in latent pixels; channels of SD 3's latents, of CLIP-L, and of SD 3's context,
where what CLIP-L does not fill is zero."""
GRID = 16
"""Side of the table of position embeddings, in patches: images up to 256 pixels wide and high."""
TIME_INPUTS = 256


Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


class SelfAttention(nn.Module):
    """What one stream brings into the joint attention, and how it takes the answer."""

    def __init__(self, *, last: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.ln_q, self.ln_k = (nn.RMSNorm(WIDTH // DEPTH, eps=1e-6) for _ in range(2))
        if not last:
            self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = self.qkv(x).unflatten(-1, (3, DEPTH, -1)).unbind(2)
        return self.ln_q(query), self.ln_k(key), value


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x), approximate="tanh"))


class StreamBlock(nn.Module):
    """One stream's half of a joint block. The last context half only gives, and takes nothing."""

    def __init__(self, *, last: bool = False) -> None:
        super().__init__()
        self.last = last
        self.attn = SelfAttention(last=last)
        if not last:
            self.mlp = FeedForward()
        outputs = (2 if last else 6) * WIDTH
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), _zeroed(nn.Linear(WIDTH, outputs)))


class JointBlock(nn.Module):
    def __init__(self, *, last: bool) -> None:
        super().__init__()
        self.context_block, self.x_block = StreamBlock(last=last), StreamBlock()

    def forward(
        self, context: Tensor, x: Tensor, time: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        streams = ((self.context_block, context), (self.x_block, x))
        scales = [
            block.adaLN_modulation(time)[:, None].chunk(2 if block.last else 6, -1)
            for block, _ in streams
        ]
        parts = [
            block.attn(_modulate(values, shift, scale))
            for (block, values), (shift, scale, *_) in zip(streams, scales, strict=True)
        ]
        joint = (torch.cat(pair, dim=1) for pair in zip(*parts, strict=True))
        query, key, value = (values.transpose(1, 2) for values in joint)
        joined = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        answers = joined.transpose(1, 2).flatten(2).split([context.shape[1], x.shape[1]], dim=1)
        out = []
        for (block, values), answer, modulation in zip(streams, answers, scales, strict=True):
            if not block.last:
                _, _, gate, shift, scale, gate_mlp = modulation
                values = values + gate * block.attn.proj(answer)
                values = values + gate_mlp * block.mlp(_modulate(values, shift, scale))
            out.append(values)
        return out[0], out[1]


class FinalLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = _zeroed(nn.Linear(WIDTH, PATCH * PATCH * LATENT))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), _zeroed(nn.Linear(WIDTH, 2 * WIDTH)))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(time)[:, None].chunk(2, dim=-1)
        return self.linear(_modulate(x, shift, scale))


class TimeEmbedder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_INPUTS, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, timestep: Tensor) -> Tensor:
        half = TIME_INPUTS // 2
        rates = torch.exp(-math.log(10000) / half * torch.arange(half, device=timestep.device))
        angles = timestep.float()[:, None] * rates
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))


class PatchEmbedder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(LATENT, WIDTH, PATCH, stride=PATCH)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class Denoiser(nn.Module):
    """Predicts the velocity from a latent to noise. 10.0 M parameters."""

    pos_embed: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.x_embedder, self.t_embedder = PatchEmbedder(), TimeEmbedder()
        self.context_embedder = nn.Linear(CONTEXT_INPUTS, WIDTH)
        self.pos_embed = nn.Parameter(_positions()[None])
        self.joint_blocks = nn.ModuleList(
            JointBlock(last=number == DEPTH - 1) for number in range(DEPTH)
        )
        self.final_layer = FinalLayer()
        with torch.no_grad():
            # Only CLIP-L's channels are ever filled.
            self.context_embedder.weight[:, CONTEXT:] = 0
            nn.init.normal_(self.context_embedder.weight[:, :CONTEXT], std=CONTEXT**-0.5)

    def forward(
        self, x: Tensor, timestep: Tensor, context: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """The velocity, noise less image, at `x`.

        Args:
            x: latents (batch, 16, height, width), even height and width up to 32.
            timestep: (batch,), 1000 times sigma: 0 for an image, 1000 for noise.
            context: (batch, tokens, 768).
            bias: (tokens,), added to the attention's logits; see `text.Prompts`.
        """
        height, width = x.shape[-2] // PATCH, x.shape[-1] // PATCH
        if bias is not None:
            bias = functional.pad(bias, (0, height * width))[None]
        top, left = (GRID - height) // 2, (GRID - width) // 2
        positions = self.pos_embed.view(GRID, GRID, WIDTH)
        positions = positions[top : top + height, left : left + width].reshape(-1, WIDTH)
        hidden, time = self.x_embedder(x) + positions, self.t_embedder(timestep)
        words = functional.linear(
            context, self.context_embedder.weight[:, :CONTEXT], self.context_embedder.bias
        )
        for block in self.joint_blocks:
            words, hidden = block(words, hidden, time, bias)
        patches = self.final_layer(hidden, time).unflatten(1, (height, width))
        patches = patches.unflatten(3, (PATCH, PATCH, LATENT))
        return patches.permute(0, 5, 1, 3, 2, 4).reshape(x.shape)


def _zeroed(layer: Layer) -> Layer:
    # A residual block that starts as the identity trains faster.
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def _positions() -> Tensor:
    """Sines and cosines of the row and the column: (GRID * GRID, WIDTH)."""
    quarter = WIDTH // 4
    rates = torch.exp(-math.log(100) / quarter * torch.arange(quarter))
    angles = torch.arange(GRID)[:, None] * rates
    line = torch.cat([angles.sin(), angles.cos()], dim=-1)
    rows = line[:, None].expand(-1, GRID, -1)
    columns = line[None].expand(GRID, -1, -1)
    return torch.cat([rows, columns], dim=-1).reshape(GRID * GRID, WIDTH)


class Block(nn.Module):
    """TAESD's residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(_conv(), nn.ReLU(), _conv(), nn.ReLU(), _zeroed(_conv()))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.conv(x) + x)


class Clamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class Autoencoder(nn.Module):
    """TAESD: RGB in [0, 1] to latents an eighth as wide and high, and back. 2.5 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        encoder: list[nn.Module] = [_conv(3), Block()]
        for _ in range(3):
            encoder += [_conv(stride=2, bias=False), Block(), Block(), Block()]
        self.taesd_encoder = nn.Sequential(*encoder, _conv(outputs=LATENT))
        decoder: list[nn.Module] = [Clamp(), _conv(LATENT), nn.ReLU()]
        for _ in range(3):
            decoder += [Block(), Block(), Block(), nn.Upsample(scale_factor=2), _conv(bias=False)]
        self.taesd_decoder = nn.Sequential(*decoder, Block(), _conv(outputs=3))

    def encode(self, images: Tensor) -> Tensor:
        """(batch, 3, height, width) in [0, 1] to (batch, 16, height / 8, width / 8)."""
        return self.taesd_encoder(images)

    def decode(self, latents: Tensor) -> Tensor:
        """Back to images; values may leave [0, 1] a little."""
        return self.taesd_decoder(latents)


def _conv(inputs: int = 64, outputs: int = 64, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=bias)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
