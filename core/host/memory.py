"""What ComfyUI has in memory, and being out of it."""

from __future__ import annotations

import ctypes
import gc
import sys
from typing import NamedTuple

import comfy.model_management as model_management
import torch

_SHORT = (
    "can't allocate memory",  # torch's allocator for processors, on Linux and macOS
    "not enough memory",  # the same on Windows
    "out of memory",  # CUDA, ROCm, XPU, MPS
    "bad_alloc",  # C++
    "cannot allocate memory",  # the system's ENOMEM, as of mapping a file
    "could not create a memory",  # oneDNN
    "could not create a primitive",  # oneDNN too, for its scratch memory
)
"""What errors of no type of their own say when memory is short."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is that memory was short, of a device or of RAM."""
    known = getattr(model_management, "is_oom", None)
    while error is not None:
        if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
            return True
        if known is not None and known(error):
            return True
        if isinstance(error, (RuntimeError, OSError)):
            text = str(error).lower()
            if any(short in text for short in _SHORT):
                return True
        error = error.__cause__
    return False


def raise_out_of_memory(error: Exception) -> None:
    """Let running out of memory be seen as what it is."""
    if is_out_of_memory(error):
        raise error


def unload_others() -> int:
    """Put all models back into RAM; the bytes of device memory that this gave back."""
    before = evictable_vram()
    model_management.unload_all_models()
    gc.collect()
    give_back_memory()
    on_cpu = model_management.get_torch_device().type == "cpu"
    return 0 if on_cpu else before - evictable_vram()


def evictable_vram() -> int:
    """Bytes of device memory that hold models which ComfyUI puts back into RAM when others need
    the room."""
    device = model_management.get_torch_device()
    loaded = [one.model for one in list(model_management.current_loaded_models)]
    return sum(
        int(patcher.loaded_size())
        for patcher in loaded
        if patcher is not None and patcher.load_device == device
    )


def give_back_memory() -> None:
    """Give memory that nothing uses back to the device and the system."""
    model_management.soft_empty_cache()
    if sys.platform == "linux":
        # glibc keeps what was freed in small pieces; other C libraries have no such function.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


class Residency(NamedTuple):
    """A model that ComfyUI has loaded for computing."""

    name: str
    """Its class in ComfyUI, e.g. `SDXL`."""
    device: str
    bytes: int
    loaded_bytes: int
    """On the device; the rest is streamed or offloaded."""
    in_use: bool
    """Whether the last thing that was computed used it."""


def residency() -> list[Residency]:
    """The models on ComfyUI's list of loaded ones, the latest first. From any thread."""
    rows = []
    for one in list(model_management.current_loaded_models):
        patcher = one.model
        if patcher is not None:
            rows.append(
                Residency(
                    type(patcher.model).__name__,
                    str(patcher.load_device),
                    int(patcher.model_size()),
                    int(patcher.loaded_size()),
                    bool(one.currently_used),
                )
            )
    return rows
