"""Formats of quantized weights, and weights made in them."""

from __future__ import annotations

import functools
import json
import logging
from typing import Any

import comfy.model_management as model_management
import comfy.quant_ops
import comfy.utils
import torch

from ..errors import ModelFileError

log = logging.getLogger(__name__)


def quantized_formats(*, in_tensors: bool = True) -> frozenset[str]:
    """Formats of quantized weights that this ComfyUI loads, as its `comfy_quant` marks name them,
    e.g. `float8_e4m3fn`, `nvfp4`.

    Args:
        in_tensors: of files that have the marks as tensors, which it reads since 0.4; before,
            only those in the header.
    """
    if in_tensors and not hasattr(comfy.utils, "convert_old_quants"):
        return frozenset()
    return frozenset(getattr(comfy.quant_ops, "QUANT_ALGOS", {}))


INT8 = "int8_tensorwise"


def has_int8_format() -> bool:
    """Whether this ComfyUI computes with int8 weights by itself; since 0.27."""
    return INT8 in quantized_formats()


NVFP4 = "nvfp4"


@functools.cache
def int4_format() -> str | None:
    """The format that full weights can be made 4 bits in here; None where there is none.

    ComfyUI has nvfp4 since 0.8: two E2M1 numbers a byte, an E4M3 scale for each 16, and one for
    all. Whether its library for that works is tried out on a small weight.
    """
    if NVFP4 not in quantized_formats() or model_management.get_torch_device().type == "mps":
        return None  # its scales are float8, which PyTorch has not on Apple's GPU
    try:
        pack_int4(torch.eye(32))
    except Exception:  # whatever a library raises that is not there, or for another processor
        log.info("Intelligent Generation: ComfyUI knows nvfp4, but cannot make it", exc_info=True)
        return None
    return NVFP4


_INT4_ROWS = 128
"""Scales of nvfp4 are stored in blocks of so many rows (cuBLAS's layout of block scales), so that
pieces of whole blocks are packed as they are in one."""

_INT4_CHUNK = 500_000
"""Numbers packed at a time. The library works in several copies of them as float32: with eight
times as many, some 150 MB stayed with the process after a model was packed."""


def pack_int4(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """A floating-point weight [N, K] as nvfp4, by ComfyUI's own code, piece by piece.

    Returns:
        `weight` uint8 [N, K / 2], sides rounded up to 16 before; `weight_scale` float8_e4m3fn, one
        for each 16 numbers of a row; `weight_scale_2` float32 [].

    Raises:
        ModelFileError: the weight holds NaN or infinity.
    """
    quant: Any = comfy.quant_ops
    algorithm = quant.QUANT_ALGOS[NVFP4]
    layout = quant.get_layout_class(algorithm["comfy_tensor_layout"])
    rows = weight.shape[0]
    step = max(1, _INT4_CHUNK // (weight.shape[1] * _INT4_ROWS)) * _INT4_ROWS
    pieces = [weight[start : start + step] for start in range(0, rows, step)]
    largest = torch.stack([piece.abs().amax().to("cpu", torch.float32) for piece in pieces]).amax()
    if not torch.isfinite(largest):
        raise ModelFileError(
            "A weight holds NaN or infinity, so the file is damaged. Download it again."
        )
    # The greatest numbers of E4M3 and E2M1. A weight of zeros has no scale of its own.
    scale = largest / (448 * 6) if largest > 1e-30 else torch.ones(())
    packed = [layout.quantize(piece.to("cpu", torch.float32), scale=scale) for piece in pieces]
    return {
        "weight": torch.cat([codes for codes, _ in packed]),
        "weight_scale": torch.cat([made.block_scale for _, made in packed]),
        "weight_scale_2": scale,
    }


def mark(format_: str) -> torch.Tensor:
    """How files tell ComfyUI the format of a layer."""
    return torch.tensor(list(json.dumps({"format": format_}).encode()), dtype=torch.uint8)
