"""What the machine has, as ComfyUI sees it."""

from __future__ import annotations

from typing import NamedTuple, Protocol

_KIB = 1024


class MachineSource(Protocol):
    """What is asked of the host. All sizes in bytes."""

    @property
    def device_name(self) -> str:
        """Name of the device that ComfyUI computes on, for people."""
        ...

    @property
    def device_kind(self) -> str:
        """cuda, rocm, mps, xpu, directml, cpu, or anything else."""
        ...

    def total_vram(self) -> int:
        """Memory of the device; of a device without its own (CPU, MPS), the RAM."""
        ...

    def free_vram(self) -> int:
        """Device memory that can be had now, other processes counted."""
        ...

    def total_ram(self) -> int: ...

    def free_ram(self) -> int:
        """RAM that can be had now without swapping."""
        ...

    def dynamic_vram(self) -> bool:
        """Whether this ComfyUI streams weights into VRAM by itself."""
        ...

    def vram_state(self) -> str:
        """Name of ComfyUI's memory mode, e.g. `NORMAL_VRAM`."""
        ...


class Machine(NamedTuple):
    """Totals and modes: what stays the same while ComfyUI runs. Sizes in bytes."""

    device_name: str
    device_kind: str
    total_vram: int
    total_ram: int
    dynamic_vram: bool
    vram_state: str


class FreeMemory(NamedTuple):
    """What is free at one moment, in bytes. Never part of a plan."""

    vram: int
    ram: int


def read_machine(host: MachineSource) -> Machine:
    """The machine's totals and modes."""
    return Machine(
        device_name=host.device_name,
        device_kind=host.device_kind,
        total_vram=host.total_vram(),
        total_ram=host.total_ram(),
        dynamic_vram=host.dynamic_vram(),
        vram_state=host.vram_state(),
    )


def read_free(host: MachineSource, *, evictable: int = 0) -> FreeMemory:
    """What is free now; VRAM with `evictable` bytes of weights that can be put back into RAM."""
    return FreeMemory(vram=host.free_vram() + evictable, ram=host.free_ram())


def human_bytes(count: int) -> str:
    """A number of bytes for people, in binary units: `0 B`, `512.0 MiB`, `11.6 GiB`."""
    if count < _KIB:
        return f"{count} B"
    size = float(count)
    for unit in ("KiB", "MiB", "GiB"):
        size /= _KIB
        # Compared as shown, so that no size reads "1024.0".
        if round(size, 1) < _KIB:
            return f"{size:.1f} {unit}"
    return f"{size / _KIB:.1f} TiB"
