"""Makes the autoencoder: an encoder by principal components, and a decoder trained against it.

The encoder is the 16 principal components of 8x8 blocks of pixels, written as weights of TAESD's
encoder. That takes seconds, not hours, and is exact; all training goes into the decoder.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.random import RandomState
from torch import Tensor, nn
from torch.nn import functional

from . import training
from .network import LATENT, Autoencoder
from .scenes import NEW_SUBJECTS, SUBJECTS, Scene, random_scene

STEPS = 1200
BATCH = 16
SIZE = 128
CELL = 8
"""Pixels of a picture's side, and of a latent pixel's."""
CROP = 6
"""Latent pixels of a crop's side: the decoder looks at its surroundings only."""
SCENES = 3000
NOISE = 0.2
"""Largest standard deviation of the noise that the decoder learns to overlook in latents."""
FLATTENING = 0.4
"""Latent channels have their component's standard deviation to this power: 1 would leave the fine
ones too small to be kept by a denoiser, 0 make them as loud as the coarse ones."""


def training_scenes(count: int = SCENES) -> list[Scene]:
    """Scenes of every subject and style."""
    random = RandomState(11)
    subjects = SUBJECTS + NEW_SUBJECTS
    return [
        random_scene(random, subject=subjects[random.randint(len(subjects))]) for _ in range(count)
    ]


class Components(NamedTuple):
    """A linear code of 8x8 blocks of pixels."""

    mean: np.ndarray
    """(192,): the mean block, rows of pixels of RGB in [0, 1]."""
    directions: np.ndarray
    """(192, 16): the principal components, most powerful first."""
    scale: np.ndarray
    """(16,): what a projection is multiplied by to become a latent."""

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 pixels (n, height, width, 3) to latents (n, 16, height / 8, width / 8), float32.

        The same, but for rounding, as the network that `write` wrote into.
        """
        grid = _blocks(pixels).astype(np.float32) / 255 - self.mean.astype(np.float32)
        code = grid @ (self.directions * self.scale).astype(np.float32)
        return np.ascontiguousarray(code.transpose(0, 3, 1, 2))

    @torch.no_grad()
    def write(self, encoder: nn.Sequential) -> None:
        """Make a TAESD encoder compute this code.

        Its first layers gather a block's 192 values, the third strided one projects them. Blocks
        pass on what is not negative, so a projection travels as its positive and its negative part.
        """
        for parameter in encoder.parameters():
            nn.init.zeros_(parameter)
        first, *strided, last = [layer for layer in encoder if isinstance(layer, nn.Conv2d)]
        first.weight[range(3), range(3), 1, 1] = 1
        for number, layer in enumerate(strided[:2]):
            inputs = 3 * 4**number
            for tap in range(4):
                row, column = divmod(tap, 2)
                for channel in range(inputs):
                    layer.weight[tap * inputs + channel, channel, 1 + row, 1 + column] = 1
        for channel in range(48):
            second, rest = divmod(channel, 12)
            inner, colour = divmod(rest, 3)
            for tap in range(4):
                # Where in the block the channel's pixel lies, a binary digit from each layer.
                taps = (tap, second, inner)
                row = sum((part // 2) << shift for part, shift in zip(taps, (2, 1, 0), strict=True))
                column = sum(
                    (part % 2) << shift for part, shift in zip(taps, (2, 1, 0), strict=True)
                )
                weight = torch.from_numpy(self.directions[(row * CELL + column) * 3 + colour])
                target = strided[2].weight[:, channel, 1 + tap // 2, 1 + tap % 2]
                target[:LATENT], target[LATENT : 2 * LATENT] = weight, -weight
        scales = torch.diag(torch.from_numpy(self.scale)).float()
        last.weight[:, :LATENT, 1, 1] = scales
        last.weight[:, LATENT : 2 * LATENT, 1, 1] = -scales
        assert last.bias is not None
        last.bias.copy_(torch.from_numpy(-self.scale * (self.mean @ self.directions)))


def training_pictures(count: int = SCENES) -> np.ndarray:
    """The pixels of the training scenes, uint8 (count, 128, 128, 3)."""
    return training.pictures(f"autoencoder-{SIZE}", training_scenes(count), SIZE)


def principal_components(pixels: np.ndarray) -> Components:
    """The 16 principal components of the 8x8 blocks of uint8 pixels (n, height, width, 3).

    All latents together get mean square 1, as the noise schedule expects.
    """
    values = _blocks(pixels).reshape(-1, CELL * CELL * 3)
    values = values[RandomState(0).permutation(len(values))[:200_000]] / 255.0
    mean = values.mean(axis=0)
    power, directions = np.linalg.eigh(np.cov((values - mean).T))
    order = np.argsort(power)[::-1][:LATENT]
    deviation, directions = np.sqrt(power[order]), directions[:, order]
    # The sign of an eigenvector is arbitrary; its largest entry is made positive.
    directions = directions * np.sign(directions[np.abs(directions).argmax(axis=0), range(LATENT)])
    scale = deviation ** (FLATTENING - 1)
    return Components(mean, directions, scale / np.sqrt(np.mean((deviation * scale) ** 2)))


def train(network: Autoencoder, pixels: np.ndarray, *, steps: int = STEPS) -> float:
    """Make the encoder of uint8 pictures (n, 128, 128, 3) and train the decoder on them.

    Gives the seconds; see `training.train`.
    """
    components = principal_components(pixels)
    components.write(network.taesd_encoder)
    latents = torch.from_numpy(components.encode(pixels)).to(training.device())

    def loss_of(random: RandomState) -> Tensor:
        coded, images = _crops(latents, pixels, random)
        strength = random.uniform(0, NOISE, (BATCH, 1, 1, 1))
        noise = strength * random.standard_normal(tuple(coded.shape))
        decoded = network.decode(coded + torch.from_numpy(noise).to(coded))
        return reconstruction_loss(decoded, images)

    return training.train(
        "decoder", list(network.taesd_decoder.parameters()), loss_of, steps=steps, rate=1.5e-3
    )


def reconstruction_loss(decoded: Tensor, images: Tensor) -> Tensor:
    """How far decoded images are from images (batch, 3, height, width), and their edges."""
    across = functional.l1_loss(decoded.diff(dim=3), images.diff(dim=3))
    down = functional.l1_loss(decoded.diff(dim=2), images.diff(dim=2))
    pixels = functional.l1_loss(decoded, images) + functional.mse_loss(decoded, images)
    return pixels + 0.5 * (across + down)


def _blocks(pixels: np.ndarray) -> np.ndarray:
    """(n, height, width, 3) to (n, height / 8, width / 8, 192)."""
    images, height, width, _ = pixels.shape
    blocks = pixels.reshape(images, height // CELL, CELL, width // CELL, CELL, 3)
    return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(images, height // CELL, width // CELL, -1)


def _crops(latents: Tensor, pixels: np.ndarray, random: RandomState) -> tuple[Tensor, Tensor]:
    cells = latents.shape[-1]
    rows = random.randint(len(pixels), size=BATCH)
    corners = random.randint(cells - CROP + 1, size=(BATCH, 2))
    coded, images = [], []
    for row, (top, left) in zip(rows, corners, strict=True):
        coded.append(latents[row, :, top : top + CROP, left : left + CROP])
        y, x, side = top * CELL, left * CELL, CROP * CELL
        images.append(pixels[row, y : y + side, x : x + side])
    return torch.stack(coded), training.to_tensor(np.stack(images))
