"""Safetensors headers: what a model file says of itself, without reading its weights."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from pydantic_core import from_json

from ..errors import ModelFileError

MAX_HEADER_BYTES = 100_000_000
"""Longest header that is read; the safetensors library's own limit. (huggingface_hub stops at
25 MB, which no LoRA or checkpoint is known to reach.)"""

_FIRST_READ = 32_768  # holds most LoRA headers whole, so that one read is enough
_DTYPE_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
# First bytes of what is often saved under a model's name by mistake.
_IMPOSTORS = (
    (b"version https://git-lfs", "is a git-lfs pointer, not the model: run `git lfs pull`"),
    (b"<", "is a web page, not a model: the download failed, often for want of a login"),
    (b"{", "is a server's JSON reply, not a model: download it again"),
    (b"PK\x03\x04", "is a pickle checkpoint (.ckpt or .pt); pickle files are not loaded"),
    (b"\x80\x02", "is a pickle checkpoint (.ckpt or .pt); pickle files are not loaded"),
    (b"GGUF", "is a GGUF file, not safetensors"),
)


class TensorInfo(NamedTuple):
    """One tensor of a file, without its values."""

    dtype: str
    """As safetensors names it: F16, BF16, F32, F8_E4M3 ..."""
    shape: tuple[int, ...]
    bytes: int


class SafetensorsHeader(NamedTuple):
    """The header of one safetensors file."""

    metadata: Mapping[str, str]
    """The `__metadata__` table; empty when there is none."""
    tensors: Mapping[str, TensorInfo]
    """By name, in the order of the file."""
    fingerprint: str = ""
    """Hash of the header's text; the same only for files that say the same of themselves."""


class HeaderError(Exception):
    """Why a file cannot be read; the message is a sentence part that follows the file's name."""

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing
        """The file itself may be good: the system refused to open it this time."""


def read_header(path: str | os.PathLike[str]) -> SafetensorsHeader:
    """The header of a safetensors file, checked against the file's length.

    Reads only the header. Tensors must lie one after the other from the first data byte to the
    last, as the format demands (https://huggingface.co/docs/safetensors).

    Raises:
        ModelFileError: the file is missing, cannot be opened, is not safetensors (and what it
            seems to be), is truncated (with the byte counts), or its header is corrupt.
    """
    try:
        return load_header(path)
    except HeaderError as problem:
        raise ModelFileError(f"{Path(path)} {problem}.") from problem


def load_header(path: str | os.PathLike[str]) -> SafetensorsHeader:
    """As `read_header`, but raises HeaderError, which tells a passing fault from a bad file."""
    try:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        try:
            size = os.fstat(file).st_size
            start = os.read(file, _FIRST_READ)
            length = _header_length(start, size)
            text = start[8 : 8 + length]
            while len(text) < length and (more := os.read(file, length - len(text))):
                text += more
        finally:
            os.close(file)
    except FileNotFoundError as error:
        raise HeaderError("does not exist", passing=True) from error
    except OSError as error:
        raise HeaderError(f"cannot be opened: {error.strerror or error}", passing=True) from error
    fingerprint = hashlib.blake2b(text, digest_size=16).hexdigest()
    return _parse(text, size - 8 - length)._replace(fingerprint=fingerprint)


def _header_length(start: bytes, size: int) -> int:
    if size == 0:
        raise HeaderError("is empty: download it again")
    head = start.lstrip()[:64].lower() if start[:1].isspace() else start[:64]
    for magic, meaning in _IMPOSTORS:
        # A "<" or "{" is also a possible first byte of a header length; then byte 8 is "{".
        if head.startswith(magic) and start[8:9] != b"{":
            raise HeaderError(meaning)
    if size < 10:
        raise HeaderError(f"is not safetensors: it has only {size} bytes; download it again")
    length = int.from_bytes(start[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise HeaderError(
            f"is not safetensors: it announces a header of {length:,} bytes, more than the "
            f"{MAX_HEADER_BYTES:,} that the format allows"
        )
    if start[8:9] != b"{":
        raise HeaderError("is not safetensors: no header follows the first eight bytes")
    if 8 + length > size:
        raise HeaderError(
            f"is truncated within its header: {size:,} of at least {8 + length:,} bytes are "
            "there; download it again"
        )
    return length


def _parse(text: bytes, data_bytes: int) -> SafetensorsHeader:
    try:
        table = from_json(text)
    except ValueError as error:
        raise HeaderError(f"has a corrupt header: {error}; download it again") from error
    if not isinstance(table, dict):
        raise HeaderError("has a corrupt header: it is not a JSON object; download it again")
    metadata = table.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(type(v) is str for v in metadata.values()):
        raise HeaderError("has a corrupt header: its __metadata__ is not a table of texts")
    try:  # column by column, as one header in thousands has 800 rows or more
        dtypes = [row["dtype"] for row in table.values()]
        shapes = [tuple(row["shape"]) for row in table.values()]
        spans = [tuple(row["data_offsets"]) for row in table.values()]
        sizes = [end - begin for begin, end in spans]
        numbers = [*chain.from_iterable(shapes), *chain.from_iterable(spans), *sizes]
        if not (
            {*map(type, numbers)} <= {int}
            and min(numbers, default=0) >= 0
            and all(map(_agree, dtypes, shapes, sizes))
        ):
            raise ValueError
    except (KeyError, TypeError, ValueError) as error:
        raise HeaderError(
            "has a corrupt header: type, shape and offsets of a tensor do not agree; "
            "download it again"
        ) from error
    spans.sort()
    cursor = 0
    for begin, end in spans:
        if begin != cursor:
            fault = "overlap" if begin < cursor else "leave a gap"
            raise HeaderError(
                f"has a corrupt header: tensor data {fault} at byte {min(begin, cursor):,}; "
                "download it again"
            )
        cursor = end
    if cursor > data_bytes:
        raise HeaderError(
            f"is truncated: {data_bytes:,} of {cursor:,} bytes of weights are there; "
            "download it again"
        )
    if cursor < data_bytes:
        raise HeaderError(
            f"has {data_bytes - cursor:,} bytes more than its header describes; download it again"
        )
    tensors = map(_tensor, zip(dtypes, shapes, sizes, strict=True))
    return SafetensorsHeader(metadata, dict(zip(table, tensors, strict=True)))


def _agree(dtype: str, shape: tuple[int, ...], size: int) -> bool:
    bits = _DTYPE_BITS.get(dtype)
    return math.prod(shape) * bits == size * 8 if bits else type(dtype) is str


_tensor = partial(tuple.__new__, TensorInfo)  # half the time of TensorInfo(): there are many
