"""What the machine has, as ComfyUI sees it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

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


class ResourceSource(MachineSource, Protocol):
    """What is asked of the host for all that it has."""

    def devices(self) -> Iterable[Sequence[Any]]:
        """Each device that ComfyUI can compute on, the one it uses first: the fields of Device."""
        ...

    def attention_backends(self) -> tuple[str, ...]:
        """Names of the attention functions that this ComfyUI can use here."""
        ...

    def attention_backend(self) -> str:
        """Name of the one it uses."""
        ...


class Device(NamedTuple):
    """A device that computes."""

    name: str
    kind: str
    """As MachineSource.device_kind."""
    total: int
    """Bytes."""
    free: int
    """Bytes that can be had now, other processes counted."""
    capability: str | None
    """Compute capability of an NVIDIA card, e.g. `8.9`; name of an AMD chip, e.g. `gfx1100`."""


class Resources(NamedTuple):
    """All that the machine has, at one moment."""

    devices: tuple[Device, ...]
    ram_total: int
    ram_free: int
    attention: tuple[str, ...]
    attention_used: str


def read_resources(host: ResourceSource) -> Resources:
    """Every device, RAM, and the attention functions that are there."""
    ram = read_ram(host)
    return Resources(
        devices=tuple(Device(*row) for row in host.devices()),
        ram_total=ram.total,
        ram_free=ram.free,
        attention=host.attention_backends(),
        attention_used=host.attention_backend(),
    )


class RamLimit(NamedTuple):
    """What a container may take of the machine's RAM, in bytes."""

    total: int
    free: int


_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")
_NO_LIMIT = 1 << 60  # version 1 writes a huge number where there is none


def ram_limit(root: Path = _CGROUPS, own: Path = _OWN_CGROUP) -> RamLimit | None:
    """The limit of this process's control group (Docker, systemd, Slurm); None without one.

    Files in memory that can be given back do not count as taken. Systems without control groups
    have no such limit.
    """
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory") and "memory" not in controllers.split(","):
            continue
        base = root / "memory" if controllers else root
        limit, used, cache = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            if controllers
            else ("memory.max", "memory.current", "inactive_file")
        )
        # Any group above may set the limit; inside a container its own is the root.
        inner = base / path.lstrip("/")
        for group in (inner, *inner.parents):
            if (total := _number(group / limit)) is not None and total < _NO_LIMIT:
                taken = (_number(group / used) or 0) - _statistic(group / "memory.stat", cache)
                found.append(RamLimit(total, max(0, total - taken)))
            if group == base:
                break
    return min(found, key=lambda one: one.free, default=None)


def read_ram(host: MachineSource, root: Path = _CGROUPS, own: Path = _OWN_CGROUP) -> RamLimit:
    """RAM that this process may take at all, and can have now: the machine's, or a container's
    limit where that is less.

    Args:
        root, own: as `ram_limit`'s.
    """
    limit = ram_limit(root, own)
    own_ram = RamLimit(host.total_ram(), host.free_ram())
    if limit is None:
        return own_ram
    return RamLimit(min(own_ram.total, limit.total), min(own_ram.free, limit.free))


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # `max`: no limit
        return None


def _statistic(path: Path, name: str) -> int:
    try:
        rows = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
        return next((int(row[1]) for row in rows if row[0] == name), 0)
    except (OSError, ValueError):
        return 0


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
    """The machine's totals and modes; a container's limit of RAM is all that it has."""
    return Machine(
        device_name=host.device_name,
        device_kind=host.device_kind,
        total_vram=host.total_vram(),
        total_ram=read_ram(host).total,
        dynamic_vram=host.dynamic_vram(),
        vram_state=host.vram_state(),
    )


def read_free(host: MachineSource, *, evictable: int = 0) -> FreeMemory:
    """What is free now; VRAM with `evictable` bytes of weights that can be put back into RAM."""
    return FreeMemory(vram=host.free_vram() + evictable, ram=read_ram(host).free)


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
