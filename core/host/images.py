"""Latents and images: made, scaled, cut, encoded, decoded."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ..errors import SettingError
from .memory import give_back_memory
from .stock import stock_nodes


def empty_latent(width: int, height: int, batch_size: int, vae: Any) -> dict[str, Any]:
    """LATENT of zeros for an image of this size, as EmptyLatentImage makes it."""
    latent = stock_nodes.EmptyLatentImage().generate(width, height, batch_size)[0]
    pixels = vae.spacial_compression_encode()
    # Newer hosts fit the size to the model while sampling; older ones take 8 pixels for granted.
    if pixels != 8 and "downscale_ratio_spacial" not in latent:
        zeros = latent["samples"]
        latent["samples"] = zeros.new_zeros((*zeros.shape[:2], height // pixels, width // pixels))
    return latent


def in_parts(latent: dict[str, Any], size: int) -> Iterator[dict[str, Any]]:
    """A LATENT in parts of so many images at most, as LatentFromBatch cuts it: each image keeps
    its noise."""
    count = latent["samples"].shape[0]
    if size >= count:
        yield latent
        return
    for start in range(0, count, size):
        if start:
            give_back_memory()  # what one part left in pieces is in the way of the next
        yield stock_nodes.LatentFromBatch().frombatch(latent, start, size)[0]


def joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The LATENT that `in_parts` cut."""
    if len(parts) == 1:
        return parts[0]
    whole = {key: value for key, value in parts[0].items() if key != "batch_index"}
    return whole | {"samples": torch.cat([part["samples"] for part in parts])}


def upscale_latent(latent: dict[str, Any], width: int, height: int, method: str) -> dict[str, Any]:
    """LATENT scaled to an image size in pixels, as LatentUpscale does without cropping.

    Raises:
        SettingError: no such method.
    """
    _check_method(method, "LatentUpscale")
    return stock_nodes.LatentUpscale().upscale(latent, method, width, height, "disabled")[0]


def upscale_image(image: torch.Tensor, width: int, height: int, method: str) -> torch.Tensor:
    """IMAGE scaled to a size in pixels, as ImageScale does without cropping. SettingError."""
    _check_method(method, "ImageScale")
    return stock_nodes.ImageScale().upscale(image, method, width, height, "disabled")[0]


def _check_method(method: str, node: str) -> None:
    known = stock_nodes.NODE_CLASS_MAPPINGS[node].upscale_methods
    if method not in known:
        raise SettingError(
            f"This ComfyUI's {node} has no method {method!r}. Set second_pass.method to one of: "
            f"{', '.join(known)}."
        )


def encode_image(vae: Any, image: torch.Tensor) -> dict[str, Any]:
    """LATENT of an IMAGE, as VAEEncode makes it."""
    return stock_nodes.VAEEncode().encode(vae, image)[0]


TILE = 512
"""Pixels along the side of a tile of a tiled decode."""

_TILE_OVERLAP = 128
"""With it VAEDecodeTiled does what ComfyUI does by itself where CUDA is out of memory."""


class Decoded(NamedTuple):
    """What decoding gave."""

    image: torch.Tensor
    """IMAGE [batch, height, width, 3] in [0, 1]."""
    tiled: bool
    """Whether it was decoded in tiles, as told or because ComfyUI ran out of memory."""


def decode(vae: Any, latent: dict[str, Any], *, tiled: bool = False) -> Decoded:
    """IMAGE as VAEDecode makes it; tiled, as VAEDecodeTiled does."""
    if tiled:
        node = stock_nodes.VAEDecodeTiled()
        return Decoded(node.decode(vae, latent, TILE, _TILE_OVERLAP)[0], True)
    # ComfyUI tells nobody but the log when it falls back to tiles.
    watched = copy.copy(vae)
    fell_back: list[str] = []
    for name in ("decode_tiled_", "decode_tiled_1d", "decode_tiled_3d"):
        if hasattr(watched, name):
            setattr(watched, name, _noting(getattr(watched, name), fell_back))
    return Decoded(stock_nodes.VAEDecode().decode(watched, latent)[0], bool(fell_back))


def _noting(call: Callable[..., Any], calls: list[str]) -> Callable[..., Any]:
    def noted(*arguments: Any, **options: Any) -> Any:
        calls.append(call.__name__)
        return call(*arguments, **options)

    return noted


def to_pixels(image: torch.Tensor) -> list[np.ndarray]:
    """IMAGE [batch, height, width, 3] in [0, 1] as uint8 arrays, rounded as SaveImage does."""
    return [np.clip(255.0 * one.cpu().numpy(), 0, 255).astype(np.uint8) for one in image]
