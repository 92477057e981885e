"""Small models with seeded random weights that ComfyUI loads as the real thing.

They have the shapes that ComfyUI's detection forces and as little else as it accepts: an
SD 1.5 UNet of one level without a middle block (18.7 M parameters), the full CLIP-L text encoder
(123 M, its size is fixed by ComfyUI), a TAESD autoencoder (2.5 M), an SD 3 transformer of one
block (0.4 M), and an SDXL UNet of one level (50 M, without text encoders). Weights come from
integers of numpy's RandomState and exact arithmetic, so that a file has the same bytes on every
machine.

The random UNet is built around a path that predicts the noise as what it was given less its
blur, so sampling converges to bounded, smooth, coloured clouds that the prompt tints; images
are never constant or out of range, however many steps.

Files are made when first asked for and kept in `.cache/models` (or `$IG_CACHE/models`).
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

Tensors = dict[str, np.ndarray]

REVISION = 1
"""Raise it when the bytes of any model change; models of another revision are made anew."""
WIDTH, TIME, CONTEXT = 320, 1280, 768
"""Channels of the SD 1.5 UNet's first level, of its time embedding, and of CLIP-L."""
LATENT = 4
SMALL_MODEL = "small-sd15.safetensors"
"""The one that tests and benchmarks use where any will do."""
DTYPES = {"float16": "F16", "float32": "F32"}

Fill = Callable[..., np.ndarray]
"""fill(*shape, std=...) gives the next random tensor, float32."""


class SampleModel(NamedTuple):
    """One of the small models."""

    folder: str
    """The ComfyUI model folder it belongs into."""
    make: Callable[[], Tensors]
    metadata: dict[str, str]


def random_fill(seed: int) -> Fill:
    """A source of uniform random tensors with mean 0 and the standard deviation asked for.

    Without `std` it is 1 / sqrt(inputs), which keeps the size of a signal through a layer; the
    inputs are all dimensions but the first.
    """
    state = np.random.RandomState(seed)

    def fill(*shape: int, std: float | None = None) -> np.ndarray:
        count = int(np.prod(shape))
        spread = 1 / math.sqrt(np.prod(shape[1:])) if std is None else std
        integers = np.frombuffer(state.bytes(2 * count), dtype="<i2").astype(np.float32)
        return (integers * np.float32(spread * math.sqrt(3) / 2**15)).reshape(shape)

    return fill


def _linear(out: Tensors, name: str, weight: np.ndarray, *, bias: bool = True) -> None:
    out[f"{name}.weight"] = weight
    if bias:
        out[f"{name}.bias"] = np.zeros(weight.shape[0], np.float32)


def _norm(out: Tensors, name: str, width: int) -> None:
    out[f"{name}.weight"] = np.ones(width, np.float32)
    out[f"{name}.bias"] = np.zeros(width, np.float32)


def _res_block(out: Tensors, name: str, inputs: int, fill: Fill) -> None:
    _norm(out, f"{name}.in_layers.0", inputs)
    _linear(out, f"{name}.in_layers.2", fill(WIDTH, inputs, 3, 3))
    _linear(out, f"{name}.emb_layers.1", fill(WIDTH, TIME))
    _norm(out, f"{name}.out_layers.0", WIDTH)
    _linear(out, f"{name}.out_layers.3", 0.5 * fill(WIDTH, WIDTH, 3, 3))
    if inputs != WIDTH:
        _linear(out, f"{name}.skip_connection", fill(WIDTH, inputs, 1, 1))


def _transformer(out: Tensors, name: str, fill: Fill) -> None:
    _norm(out, f"{name}.norm", WIDTH)
    _linear(out, f"{name}.proj_in", fill(WIDTH, WIDTH, 1, 1))
    _transformer_block(out, f"{name}.transformer_blocks.0", CONTEXT, fill)
    _linear(out, f"{name}.proj_out", 0.5 * fill(WIDTH, WIDTH, 1, 1))


def _transformer_block(out: Tensors, block: str, text: int, fill: Fill) -> None:
    for attention, context in (("attn1", WIDTH), ("attn2", text)):
        _linear(out, f"{block}.{attention}.to_q", fill(WIDTH, WIDTH), bias=False)
        _linear(out, f"{block}.{attention}.to_k", fill(WIDTH, context), bias=False)
        _linear(out, f"{block}.{attention}.to_v", fill(WIDTH, context), bias=False)
        _linear(out, f"{block}.{attention}.to_out.0", fill(WIDTH, WIDTH))
    for number in (1, 2, 3):
        _norm(out, f"{block}.norm{number}", WIDTH)
    _linear(out, f"{block}.ff.net.0.proj", fill(8 * WIDTH, WIDTH))
    _linear(out, f"{block}.ff.net.2", fill(WIDTH, 4 * WIDTH))


def sd15_unet(seed: int = 0) -> Tensors:
    """An SD 1.5 diffusion model, 18.7 M parameters, float16, without a key prefix."""
    fill = random_fill(seed)
    out: Tensors = {}
    _linear(out, "time_embed.0", fill(TIME, WIDTH))
    _linear(out, "time_embed.2", fill(TIME, TIME))
    _linear(out, "input_blocks.0.0", fill(WIDTH, LATENT, 3, 3))
    _res_block(out, "input_blocks.1.0", WIDTH, fill)
    _transformer(out, "input_blocks.1.1", fill)
    for number in (0, 1):
        _res_block(out, f"output_blocks.{number}.0", 2 * WIDTH, fill)
        _transformer(out, f"output_blocks.{number}.1", fill)
    _norm(out, "out.0", WIDTH)
    _linear(out, "out.2", fill(LATENT, WIDTH, 3, 3, std=0.004))

    # The path of the noise: +x and -x travel in the first eight channels from the input to the
    # last block's skip connection and meet again at the end, where silu(x) - silu(-x) = x.
    first, skip, last = (
        out[f"{name}.weight"]
        for name in ("input_blocks.0.0", "output_blocks.1.0.skip_connection", "out.2")
    )
    signs = np.concatenate([np.eye(LATENT), -np.eye(LATENT)]).astype(np.float32)
    first[: 2 * LATENT] = 0
    first[: 2 * LATENT, :, 1, 1] = signs
    skip[: 2 * LATENT] = 0
    skip[: 2 * LATENT, WIDTH : WIDTH + 2 * LATENT, 0, 0] = np.eye(2 * LATENT)
    keep = np.full((3, 3), -0.6 / 9, np.float32)
    keep[1, 1] += 1
    last[:, : 2 * LATENT] = signs.T[:, :, None, None] * keep
    return _half(out)


def clip_l(seed: int = 0) -> Tensors:
    """CLIP-L's text encoder, 123 M parameters, float16, named as in clip_l.safetensors."""
    fill = random_fill(seed)
    out: Tensors = {
        "text_model.embeddings.token_embedding.weight": fill(49408, CONTEXT, std=0.02),
        "text_model.embeddings.position_embedding.weight": fill(77, CONTEXT, std=0.01),
    }
    for number in range(12):
        layer = f"text_model.encoder.layers.{number}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            _linear(out, f"{layer}.self_attn.{name}", fill(CONTEXT, CONTEXT, std=0.02))
        _norm(out, f"{layer}.layer_norm1", CONTEXT)
        _linear(out, f"{layer}.mlp.fc1", fill(4 * CONTEXT, CONTEXT, std=0.02))
        _linear(out, f"{layer}.mlp.fc2", fill(CONTEXT, 4 * CONTEXT, std=0.01))
        _norm(out, f"{layer}.layer_norm2", CONTEXT)
    _norm(out, "text_model.final_layer_norm", CONTEXT)
    return _half(out)


def taesd(seed: int = 0, *, latent_channels: int = LATENT, scale: float = 0.18215) -> Tensors:
    """A TAESD autoencoder, 2.5 M parameters, float16, as in ComfyUI's VAE files.

    It decodes a latent to a picture of it, eight times as large and smooth: colours are a
    random linear function of the latent's channels. `scale` is the model family's latent
    scaling factor (SD 1.5's is 0.18215).
    """
    fill = random_fill(seed)
    width = 64
    out: Tensors = {}
    identity = np.eye(width, dtype=np.float32)[:, :, None, None]
    blur = np.outer([1, 2, 1], [1, 2, 1]).astype(np.float32) / 16

    def convolution(name: str, weight: np.ndarray, *, bias: bool = True) -> None:
        _linear(out, name, weight, bias=bias)

    def block(name: str) -> None:
        for part in (0, 2, 4):
            convolution(f"{name}.conv.{part}", 0.3 * fill(width, width, 3, 3))

    def mirrored(weight: np.ndarray, axis: int) -> np.ndarray:
        # With w and -w on both sides of it, a ReLU passes the whole signal.
        return np.concatenate([weight, -weight], axis=axis)

    convolution("taesd_encoder.0", fill(width, 3, 3, 3))
    number = 1
    for blocks in (1, 3, 3, 3):
        if number > 1:
            convolution(f"taesd_encoder.{number}", identity * blur, bias=False)
            number += 1
        for _ in range(blocks):
            block(f"taesd_encoder.{number}")
            number += 1
    convolution(f"taesd_encoder.{number}", fill(latent_channels, width, 3, 3))

    first = np.zeros((width, latent_channels, 3, 3), np.float32)
    first[:, :, 1, 1] = mirrored(fill(width // 2, latent_channels), axis=0)
    convolution("taesd_decoder.1", first)
    number = 3
    for blocks in (3, 3, 3):
        for _ in range(blocks):
            block(f"taesd_decoder.{number}")
            number += 1
        number += 1  # the upsampling between has no weights
        convolution(f"taesd_decoder.{number}", identity * blur, bias=False)
        number += 1
    block(f"taesd_decoder.{number}")
    number += 1
    last = np.zeros((3, width, 3, 3), np.float32)
    last[:, :, 1, 1] = mirrored(fill(3, width // 2, std=0.035), axis=1)
    convolution(f"taesd_decoder.{number}", last)
    out[f"taesd_decoder.{number}.bias"][:] = 0.5
    out["vae_scale"] = np.array(scale, np.float32)
    out["vae_shift"] = np.array(0, np.float32)
    return _half(out)


def sd15_checkpoint(seed: int = 0) -> Tensors:
    """A whole SD 1.5 checkpoint in the original layout: 144 M parameters, 288 MB."""
    parts = (
        ("model.diffusion_model.", sd15_unet(3 * seed)),
        ("cond_stage_model.transformer.", clip_l(3 * seed + 1)),
        ("first_stage_model.", taesd(3 * seed + 2)),
    )
    return {prefix + name: tensor for prefix, part in parts for name, tensor in part.items()}


def sd3_transformer(seed: int = 0) -> Tensors:
    """An SD 3 diffusion model of one block, 0.4 M parameters, float16, without a key prefix."""
    fill = random_fill(seed)
    width, channels, context = 64, 16, 4096
    out: Tensors = {}
    shapes = {
        "x_embedder.proj": (width, channels, 2, 2),
        "t_embedder.mlp.0": (width, 256),
        "t_embedder.mlp.2": (width, width),
        "context_embedder": (width, context),
        "joint_blocks.0.context_block.attn.qkv": (3 * width, width),
        "joint_blocks.0.context_block.adaLN_modulation.1": (2 * width, width),
        "joint_blocks.0.x_block.attn.qkv": (3 * width, width),
        "joint_blocks.0.x_block.attn.proj": (width, width),
        "joint_blocks.0.x_block.mlp.fc1": (4 * width, width),
        "joint_blocks.0.x_block.mlp.fc2": (width, 4 * width),
        "joint_blocks.0.x_block.adaLN_modulation.1": (6 * width, width),
        "final_layer.linear": (4 * channels, width),
        "final_layer.adaLN_modulation.1": (2 * width, width),
    }
    for name, shape in shapes.items():
        _linear(out, name, fill(*shape))
    return _half(out)


def sdxl_unet(seed: int = 0) -> Tensors:
    """An SDXL diffusion model, 50 M parameters, float16, without a key prefix.

    One level with transformers of depth 0, 2 and 5, as ComfyUI knows KOALA 700M.
    """
    fill = random_fill(seed)
    text, pooled_and_sizes = 2048, 2816
    out: Tensors = {}
    for embedding, inputs in (("time_embed", WIDTH), ("label_emb.0", pooled_and_sizes)):
        _linear(out, f"{embedding}.0", fill(TIME, inputs))
        _linear(out, f"{embedding}.2", fill(TIME, TIME))
    _linear(out, "input_blocks.0.0", fill(WIDTH, LATENT, 3, 3))
    for number, depth in ((1, 0), (2, 2), (3, 5)):
        _res_block(out, f"input_blocks.{number}.0", WIDTH, fill)
        if depth:
            name = f"input_blocks.{number}.1"
            _norm(out, f"{name}.norm", WIDTH)
            _linear(out, f"{name}.proj_in", fill(WIDTH, WIDTH))
            for block in range(depth):
                _transformer_block(out, f"{name}.transformer_blocks.{block}", text, fill)
            _linear(out, f"{name}.proj_out", 0.5 * fill(WIDTH, WIDTH))
    for number in range(4):
        _res_block(out, f"output_blocks.{number}.0", 2 * WIDTH, fill)
    _norm(out, "out.0", WIDTH)
    _linear(out, "out.2", fill(LATENT, WIDTH, 3, 3))
    return _half(out)


def _half(tensors: Tensors) -> Tensors:
    return {name: tensor.astype(np.float16) for name, tensor in tensors.items()}


def _checkpoint_metadata(title: str) -> dict[str, str]:
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": title,
        "modelspec.resolution": "512x512",
        "modelspec.prediction_type": "epsilon",
    }


MODELS: dict[str, SampleModel] = {
    "small-sd15.safetensors": SampleModel(
        "checkpoints", sd15_checkpoint, _checkpoint_metadata("Small SD 1.5, random weights")
    ),
    "small-sd15-b.safetensors": SampleModel(
        "checkpoints", lambda: sd15_checkpoint(1), _checkpoint_metadata("Small SD 1.5 B")
    ),
    "small-sd15-unet.safetensors": SampleModel("diffusion_models", sd15_unet, {}),
    "small-clip-l.safetensors": SampleModel("text_encoders", lambda: clip_l(1), {}),
    "small-taesd.safetensors": SampleModel("vae", lambda: taesd(2), {}),
    "small-sd3.safetensors": SampleModel("diffusion_models", sd3_transformer, {}),
    "small-taesd3.safetensors": SampleModel(
        "vae", lambda: taesd(2, latent_channels=16, scale=1.5305), {}
    ),
    "small-sdxl-unet.safetensors": SampleModel("diffusion_models", sdxl_unet, {}),
}
"""The sample models by file name. The parts (unet, clip-l, taesd) are those of small-sd15.
1.5305 is SD 3's latent scaling factor."""


def sample_model(name: str) -> Path:
    """The file of one of `MODELS`, made now if it is not there yet.

    Raises:
        OSError: the cache cannot be written; nothing half-written stays.
    """
    path = cache_directory() / "models" / f"r{REVISION}" / name
    if not path.is_file():
        model = MODELS[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_safetensors(path, model.make(), model.metadata)
    return path


def cache_directory() -> Path:
    """Where generated files are kept between runs: `$IG_CACHE`, or `.cache` in the repository."""
    own = os.environ.get("IG_CACHE")
    return Path(own) if own else Path(__file__).resolve().parent.parent / ".cache"


def write_safetensors(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file whose bytes depend on nothing but the arguments.

    The safetensors package writes its header in an order that varies from run to run. Written
    under a temporary name beside `path` and renamed when complete.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            _write(file, tensors, metadata)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _write(file: IO[bytes], tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.nbytes
        header[name] = {
            "dtype": DTYPES[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors.values():
        file.write(np.ascontiguousarray(tensor, tensor.dtype.newbyteorder("<")).tobytes())
