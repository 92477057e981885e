"""A safetensors file as tensors whose memory is given back one by one."""

from __future__ import annotations

import json
import mmap
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from ..catalog import read_header
from ..errors import ModelFileError

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


class StreamedFile(NamedTuple):
    """The tensors of a file, mapped and not yet read."""

    tensors: dict[str, torch.Tensor]
    metadata: Mapping[str, str]
    mapping: mmap.mmap
    address: int
    """Where the mapping begins."""

    def release(self, tensor: torch.Tensor) -> None:
        """Give back the memory that holds a tensor of the file, or a piece of one.

        The tensor stays usable and is then read from the file again. Does nothing for other
        tensors, and where the system has no such call (Windows trims by itself).
        """
        start = tensor.data_ptr() - self.address
        if not 0 <= start < len(self.mapping) or not hasattr(self.mapping, "madvise"):
            return
        # Whole pages only: the first and last may hold a neighbour's end.
        page = mmap.PAGESIZE
        first = -(-start // page) * page
        length = (start + tensor.nbytes) // page * page - first
        if length > 0:
            self.mapping.madvise(mmap.MADV_DONTNEED, first, length)


def stream(path: Path) -> StreamedFile:
    """Map a safetensors file; nothing but its header is read.

    Raises:
        ModelFileError: the file cannot be read, is not whole, or holds a data type other
            than those that models are computed in and the usual ones of 8 bits.
    """
    header = read_header(path)
    if sys.byteorder != "little":
        raise ModelFileError(
            f"{path.name} cannot be used from where it lies on a big-endian machine. Set strategy "
            "to AUTO and weight_dtype to auto in MemoryStrategy."
        )
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            table = json.loads(file.read(length))
            # Private, so that what something changes in place is a copy of ours, not the file.
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be opened: {error.strerror or error}.") from error
    whole = torch.frombuffer(mapping, dtype=torch.uint8)
    tensors = {}
    for name, info in header.tensors.items():
        dtype = _DTYPES.get(info.dtype)
        if dtype is None:
            raise ModelFileError(
                f"{path.name} holds {name} as {info.dtype}, which can neither be quantized nor "
                "stay in its file. Set strategy to AUTO and weight_dtype to auto in MemoryStrategy."
            )
        begin, end = (8 + length + offset for offset in table[name]["data_offsets"])
        raw = whole[begin:end]
        aligned = raw if begin % dtype.itemsize == 0 else raw.clone()
        tensors[name] = aligned.view(dtype).reshape(info.shape)
    return StreamedFile(tensors, header.metadata, mapping, whole.data_ptr())
