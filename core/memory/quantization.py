"""Weight-only int8: which weights, and how. Pure; needs torch, so loaded when first used.

A weight W of N output channels becomes int8 codes and N scales, W ~ codes * scale, with
scale = max |W| of the channel / 127: symmetric quantization per output channel, as in
Krishnamoorthi's whitepaper, arXiv:1806.08342, section 2.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import mmap
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from ..errors import ModelFileError

_LEVELS = 127
_CHUNK = 1_000_000
"""Numbers worked on at a time, so that no float copy of a weight is held."""
_RANKS = (2, 4)  # Linear and Conv2d
_RULES = Path(__file__).with_name("quantization.json")


class Int8Weight(NamedTuple):
    """A weight of any shape [N, ...] as int8."""

    codes: torch.Tensor
    """int8, [N, ...], in [-127, 127]."""
    scale: torch.Tensor
    """float32, [N, 1, ...] with as many dimensions as `codes`; never 0."""


def kept_because(part: str, name: str, shape: tuple[int, ...]) -> str | None:
    """Why a weight stays as it is when its model is loaded at int8; None if it becomes int8.

    Args:
        part: `diffusion_model` or `text_encoder`.
        name: of the weight within its part, as ComfyUI names it, e.g. `input_blocks.0.0.weight`.
    """
    if not name.endswith(".weight") or len(shape) not in _RANKS:
        return "Only the weights of Linear and Conv2d layers become int8."
    rules = _rules()
    if math.prod(shape) < rules.least_elements:
        return rules.reason
    for rule in rules.keep:
        if rule.part == part and rule.pattern.match(name):
            return rule.reason
    return None


def quantize(part: str, name: str, weight: torch.Tensor) -> Int8Weight | None:
    """The weight as int8, or None where `kept_because` says why not.

    Raises:
        ModelFileError: the weight holds NaN or infinity.
    """
    if kept_because(part, name, tuple(weight.shape)) is not None:
        return None
    if not weight.dtype.is_floating_point or weight.dtype.itemsize < 2:
        return None
    return quantize_rows(weight, name)


def quantize_rows(weight: torch.Tensor, name: str = "the weight") -> Int8Weight:
    """Any floating-point weight [N, ...] as int8 with a scale for each of its N rows.

    Works through the weight in pieces, all in one small buffer: beside the result nothing of
    size is allocated, so that a model's worth of weights leaves no holes behind.

    Raises:
        ModelFileError: the weight holds NaN or infinity.
    """
    flat = weight.reshape(len(weight), -1)
    rows, columns = flat.shape
    step = max(1, _CHUNK // max(1, columns))
    codes = torch.empty((rows, columns), dtype=torch.int8)
    scale = torch.empty((rows, 1), dtype=torch.float32)
    buffer = _buffer(min(step, rows) * columns)
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        piece = buffer[: (part.stop - start) * columns].view(-1, columns)
        piece.copy_(flat[part])
        low, high = piece.aminmax(dim=1, keepdim=True)
        largest = torch.maximum(-low, high)
        if not torch.isfinite(largest).all():
            raise ModelFileError(
                f"{name} holds NaN or infinity, so the file is damaged. Download it again."
            )
        # A row of zeros has no scale of its own; the smallest float has no inverse.
        scale[part] = torch.where(largest > 1e-30, largest / _LEVELS, 1.0)
        codes[part] = piece.div_(scale[part]).round_().clamp_(-_LEVELS, _LEVELS)
    return Int8Weight(
        codes.reshape(weight.shape), scale.reshape(rows, *(1 for _ in weight.shape[1:]))
    )


def _buffer(numbers: int) -> torch.Tensor:
    """Float32, to work in; the system has it back once it is no longer used. A block of malloc's
    stays with the process where a weight that is kept comes to lie above it."""
    return torch.frombuffer(mmap.mmap(-1, max(1, 4 * numbers)), dtype=torch.float32)


def int8_bytes(part: str, tensors: Iterable[tuple[str, tuple[int, ...], int]]) -> int:
    """Bytes that a part's tensors take at int8, from the file's header alone.

    Args:
        tensors: name within the part, shape, and bytes as stored.
    """
    return sum(
        stored
        if kept_because(part, _as_loaded(name), shape) is not None
        else math.prod(shape) + 4 * shape[0]
        for name, shape, stored in tensors
    )


def _as_loaded(name: str) -> str:
    """OpenCLIP's files hold the weights of queries, keys and values in one; ComfyUI takes them
    apart before its layers load them."""
    return name.replace(".in_proj_weight", ".in_proj.weight")


INT4_FORMAT = "nvfp4"
"""The format that weight_dtype int4 means."""


def becomes_int4(part: str, name: str, shape: tuple[int, ...]) -> bool:
    """Whether a weight is packed in 4 bits when its model is loaded at int4: of a Linear layer of
    the diffusion model, that int8 would take too. The others are as at int8."""
    matrix = part == "diffusion_model" and len(shape) == 2
    return matrix and kept_because(part, name, shape) is None


def int4_bytes(part: str, tensors: Iterable[tuple[str, tuple[int, ...], int]]) -> int:
    """Bytes that a part's tensors take at int4; arguments as `int8_bytes`'.

    nvfp4 has half a byte a number, and one byte of scale for each 16 of a row, in blocks of
    128 rows and 4 scales (cuBLAS's layout of block scales).
    """
    rest, packed = [], 0
    for name, shape, stored in tensors:
        if becomes_int4(part, name, shape):
            rows, columns = (-(-side // 16) * 16 for side in shape)
            scales = -(-rows // 128) * 128 * (-(-columns // 64) * 4)
            packed += rows * columns // 2 + scales + 4
        else:
            rest.append((name, shape, stored))
    return packed + int8_bytes(part, rest)


def rules_digest() -> str:
    """Changes when other weights would become int8, or int4."""
    return hashlib.sha256(_RULES.read_bytes()).hexdigest()


class _Rule(NamedTuple):
    part: str
    pattern: re.Pattern[str]
    reason: str


class _Rules(NamedTuple):
    least_elements: int
    reason: str
    keep: tuple[_Rule, ...]


@functools.cache
def _rules() -> _Rules:
    data = json.loads(_RULES.read_text(encoding="utf-8"))
    least = data["least_elements"]
    return _Rules(
        least["value"],
        least["reason"],
        tuple(_Rule(r["part"], re.compile(r["pattern"]), r["reason"]) for r in data["keep"]),
    )
