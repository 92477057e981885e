"""How fast the machine is, and what a run takes of its memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import comfy.model_management as model_management
import psutil
import torch


class DeviceSpeed(NamedTuple):
    """What `measure_speed` measured."""

    flops: float
    """Floating-point operations a second, multiplying matrices."""
    bandwidth: float
    """Bytes a second, reading and writing memory."""
    value_bytes: int
    """Size of a value of the data type that is computed in."""


def measure_speed(stored: str) -> DeviceSpeed:
    """How fast the device computes with weights stored in a data type, e.g. `float16`.

    Takes a fifth of a second on a processor, less on a graphics card: the best of a few matrix
    products and copies.
    """
    device = model_management.get_torch_device()
    weights = getattr(torch, stored, torch.float32)
    dtype = model_management.unet_manual_cast(weights, device) or weights
    if not dtype.is_floating_point or dtype.itemsize < 2:
        dtype = torch.float16
    side = 1024 if device.type == "cpu" else 4096
    matrix = torch.ones((side, side), dtype=dtype, device=device)
    product = _best_seconds(lambda: matrix @ matrix, device)
    source = torch.ones(_COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_seconds = _best_seconds(lambda: target.copy_(source), device)
    return DeviceSpeed(
        flops=2 * side**3 / product,
        bandwidth=2 * _COPIED_BYTES / copy_seconds,  # read once, written once
        value_bytes=dtype.itemsize,
    )


_COPIED_BYTES = 64 * 1024**2

_MEASURED_TIMES = 4


def _best_seconds(work: Callable[[], Any], device: torch.device) -> float:
    backend = getattr(torch, device.type, None)
    wait = getattr(backend, "synchronize", lambda: None)
    best = float("inf")
    for _ in range(_MEASURED_TIMES):
        wait()
        start = time.perf_counter()
        work()
        wait()
        best = min(best, time.perf_counter() - start)
    return max(best, 1e-9)


class PeakMemory:
    """Measures the memory that a run needs on the device that samples, as a context manager.

    That is what its own models held there already, and the most that came on top while it ran;
    what others hold or give back meanwhile does not count. On a processor the RAM of the process
    is read every few milliseconds, as no system keeps a peak that can be set back; on CUDA and
    ROCm, torch keeps it. Elsewhere the peak is unknown.
    """

    def __init__(self, *patchers: Any) -> None:
        self._patchers = [patcher for patcher in patchers if patcher is not None]
        self._device = model_management.get_torch_device()
        self._ended = threading.Event()
        self._watcher: threading.Thread | None = None
        self._start = self._held_before = self._rise = 0
        self.bytes: int | None = None
        """Known after the end; None where it cannot be read."""

    def __enter__(self) -> PeakMemory:
        self._held_before = self._held()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._start = torch.cuda.memory_allocated(self._device)
        elif self._device.type == "cpu":
            self._watcher = threading.Thread(target=self._watch, daemon=True)
            self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._device.type == "cuda":
            self.bytes = self._on_cuda()
        elif self._watcher is not None:
            self._ended.set()
            self._watcher.join()
            self.bytes = self._held_before + self._rise

    def _on_cuda(self) -> int:
        peak = torch.cuda.max_memory_allocated(self._device)
        if any(getattr(patcher, "is_dynamic", bool)() for patcher in self._patchers):
            # Weights that are streamed in (dynamic VRAM) are outside of torch's count.
            return self._held() + peak - self._start
        end = torch.cuda.memory_allocated(self._device)
        others = min(self._start - self._held_before, end - self._held())
        return peak - max(0, others)

    def _held(self) -> int:
        if self._device.type == "cpu":
            return sum(int(patcher.model_size()) for patcher in self._patchers)
        return sum(
            int(patcher.loaded_size())
            for patcher in self._patchers
            if patcher.load_device == self._device
        )

    def _watch(self) -> None:
        # A rise counts from the lowest point before it, where an earlier model was let go of.
        lowest = _process_bytes()
        while not self._ended.wait(_WATCH_SECONDS):
            now = _process_bytes()
            lowest = min(lowest, now)
            self._rise = max(self._rise, now - lowest)


_WATCH_SECONDS = 0.005


def _process_bytes() -> int:
    return int(psutil.Process().memory_info().rss)
