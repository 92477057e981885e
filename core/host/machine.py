"""The machine as ComfyUI uses it."""

from __future__ import annotations

import platform

import comfy.ldm.modules.attention as attention
import comfy.model_management as model_management
import psutil
import torch


class HostMachine:
    """The machine as ComfyUI uses it: what `core.memory.read_machine` asks for."""

    @property
    def device_name(self) -> str:
        return str(model_management.get_torch_device_name(model_management.get_torch_device()))

    @property
    def device_kind(self) -> str:
        return _kind(model_management.get_torch_device())

    def total_vram(self) -> int:
        """Bytes of device memory; on a CPU, of RAM."""
        return int(model_management.get_total_memory(model_management.get_torch_device()))

    def free_vram(self) -> int:
        """Bytes of device memory that can be had now, other processes counted."""
        return int(model_management.get_free_memory(model_management.get_torch_device()))

    def total_ram(self) -> int:
        return int(psutil.virtual_memory().total)

    def free_ram(self) -> int:
        """Bytes of RAM that can be had now, other processes counted."""
        return int(psutil.virtual_memory().available)

    def devices(self) -> list[tuple[str, str, int, int, str | None]]:
        """Name, kind, total and free bytes and capability of each device, ComfyUI's own first."""
        own = model_management.get_torch_device()
        rows = []
        for device in [own, *(one for one in _all_devices() if one != own)]:
            name = str(model_management.get_torch_device_name(device))
            total = int(model_management.get_total_memory(device))
            free = int(model_management.get_free_memory(device))
            rows.append((name, _kind(device), total, free, _capability(device)))
        return rows

    def attention_backends(self) -> tuple[str, ...]:
        """Attention functions of this ComfyUI whose library is there: pytorch (its
        scaled_dot_product_attention), sub_quad, split; xformers, flash and sage if installed."""
        return tuple(attention.REGISTERED_ATTENTION_FUNCTIONS)

    def attention_backend(self) -> str:
        """The one that ComfyUI computes with."""
        used = attention.optimized_attention
        used = getattr(used, "__wrapped__", used)
        return used.__name__.removeprefix("attention_")

    def dynamic_vram(self) -> bool:
        """Whether this ComfyUI streams weights into VRAM by itself (its `aimdo`)."""
        import comfy

        module = getattr(comfy, "memory_management", None)
        return bool(getattr(module, "aimdo_enabled", False))

    def vram_state(self) -> str:
        return model_management.vram_state.name


def _kind(device: torch.device) -> str:
    if device.type == "cuda":
        return "rocm" if getattr(torch.version, "hip", None) else "cuda"
    if device.type == "privateuseone":
        return "directml"
    return device.type if device.type in ("mps", "xpu", "cpu") else "other"


def _all_devices() -> list[torch.device]:
    if hasattr(model_management, "get_all_torch_devices"):  # since 0.23
        return list(model_management.get_all_torch_devices())
    own = model_management.get_torch_device()
    backend = getattr(torch, own.type, None)
    if own.type not in ("cuda", "xpu") or backend is None:
        return [own]
    return [torch.device(own.type, number) for number in range(backend.device_count())]


def _capability(device: torch.device) -> str | None:
    if device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    chip = getattr(properties, "gcnArchName", None) if _kind(device) == "rocm" else None
    return chip or f"{properties.major}.{properties.minor}"


def machine_key() -> str:
    """The machine as far as speed goes: device, torch, and on a CPU its threads."""
    device = model_management.get_torch_device()
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    cpu = platform.processor() or platform.machine()
    name = cpu if device.type == "cpu" else HostMachine().device_name
    return f"{name}{threads}, torch {torch.__version__}"[:255]


def describe() -> str:
    """ComfyUI and torch versions and the device, for the record of a generation."""
    try:
        from comfyui_version import __version__ as version
    except ImportError:
        version = "unknown"
    return f"ComfyUI {version}, torch {torch.__version__}, {HostMachine().device_name}"
