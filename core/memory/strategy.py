"""Machine and wishes -> MemoryPlan, and the plan in words."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any, cast, get_args

from ..errors import SettingError
from ..plan import DeviceMemory, MemoryPlan, Notice, Strategy, WeightDtype
from .resources import FreeMemory, Machine, Resources, human_bytes

_KINDS = get_args(DeviceMemory.model_fields["kind"].annotation)
_DTYPES = get_args(WeightDtype)
_STRATEGIES = get_args(Strategy)
_GIB = 2**30
OWN_MEMORY = frozenset({"cuda", "rocm", "xpu", "directml", "other"})
"""Device kinds with memory apart from RAM."""


def makes_room(plan: MemoryPlan) -> bool:
    """Whether AUTO makes room on the device by itself: not where there is no other memory to go
    to, where ComfyUI streams weights by itself or was told to keep models on the device, nor where
    it cannot tell how much is free (DirectML)."""
    device = plan.device.kind
    managed = plan.dynamic_vram or plan.vram_state == "HIGH_VRAM" or device == "directml"
    return device in OWN_MEMORY and not managed


def plan_memory(
    machine: Machine,
    *,
    strategy: str = "AUTO",
    weight_dtype: str = "auto",
    max_vram_gb: float = 0.0,
) -> MemoryPlan:
    """The memory policy for a machine. Pure, and the same whatever is free at the moment.

    Args:
        max_vram_gb: what a run may take of the device's memory, in GiB; 0 sets no limit.

    Raises:
        SettingError: no such strategy or weight_dtype, or max_vram_gb is no size.
    """
    if strategy not in _STRATEGIES:
        known = ", ".join(_STRATEGIES)
        raise SettingError(f"There is no memory strategy {strategy!r}. Use one of {known}.")
    if weight_dtype not in _DTYPES:
        known = ", ".join(_DTYPES)
        raise SettingError(f"There is no weight_dtype {weight_dtype!r}. Use one of {known}.")
    if not (math.isfinite(max_vram_gb) and max_vram_gb >= 0):
        raise SettingError(
            f"max_vram_gb must be 0 (no limit) or a size in GB, not {max_vram_gb!r}."
        )
    cap = int(max_vram_gb * _GIB) or None
    device = DeviceMemory.model_validate(
        {
            "name": machine.device_name,
            "kind": machine.device_kind if machine.device_kind in _KINDS else "other",
            "total_bytes": machine.total_vram,
        }
    )
    plan = MemoryPlan(
        strategy=cast(Strategy, strategy),
        max_vram_bytes=cap,
        weight_dtype=cast(WeightDtype, weight_dtype),
        device=device,
        ram_total_bytes=machine.total_ram,
        dynamic_vram=machine.dynamic_vram,
        vram_state=machine.vram_state,
    )
    return plan.model_copy(update={"notices": _notices(plan)})


def _notices(plan: MemoryPlan) -> tuple[Notice, ...]:
    device = plan.device
    figures = {
        "total": human_bytes(device.total_bytes),
        "cap": human_bytes(plan.max_vram_bytes or 0),
        "strategy": plan.strategy,
    }
    told = {
        "small_vram": True,
        "nothing_to_move": plan.strategy in ("FULL_GPU", "CPU_OFFLOAD", "SEQUENTIAL"),
        "cap_above_total": (plan.max_vram_bytes or 0) > device.total_bytes,
    }
    return tuple(
        Notice(level=row["level"], code=row["code"], message=row["message"].format(**figures))
        for row in _facts()["notices"]
        if device.kind in row["kinds"]
        and device.total_bytes < row.get("small_below", float("inf"))
        and told.get(row["code"], True)
    )


def report(plan: MemoryPlan, free: FreeMemory) -> str:
    """The plan and the moment's free memory in a few lines for people."""
    device = plan.device
    lines = [f"Device: {device.name} ({device.kind})"]
    if device.kind in OWN_MEMORY:
        lines.append(_line("VRAM", device.total_bytes, free.vram))
    lines.append(_line("RAM", plan.ram_total_bytes, free.ram))
    lines.append(f"Strategy: {plan.strategy}, {_facts()['strategies'][plan.strategy]}.")
    if plan.max_vram_bytes is not None:
        lines.append(f"Limit: a run takes {human_bytes(plan.max_vram_bytes)} of it at most.")
    state = _facts()["vram_states"].get(plan.vram_state)
    lines.append(f"ComfyUI runs in mode {plan.vram_state}" + (f": {state}." if state else "."))
    if plan.dynamic_vram:
        lines.append(f"{_facts()['dynamic_vram']}.")
    lines.append(f"Weights: {_facts()['weight_dtypes'][plan.weight_dtype]}.")
    lines += [f"{notice.level.capitalize()}: {notice.message}" for notice in plan.notices]
    return "\n".join(lines)


def report_resources(resources: Resources) -> str:
    """Further devices, what they can do, and how attention is computed, in a few lines."""
    first, *others = resources.devices
    lines = [f"Compute capability: {first.capability}"] if first.capability else []
    lines += [
        f"Also there: {device.name} ({device.kind}), {human_bytes(device.total)}, "
        f"{human_bytes(device.free)} free now"
        for device in others
    ]
    unused = [name for name in resources.attention if name != resources.attention_used]
    there = f"; also there: {', '.join(unused)}" if unused else ""
    lines.append(f"Attention: {resources.attention_used}{there}.")
    return "\n".join(lines)


def _line(name: str, total: int, free: int) -> str:
    return f"{name}: {human_bytes(total)}, {human_bytes(free)} free now"


@functools.cache
def _facts() -> dict[str, Any]:
    data = json.loads(Path(__file__).with_name("facts.json").read_text(encoding="utf-8"))
    return {
        "vram_states": {row["state"]: row["text"] for row in data["vram_states"]},
        "dynamic_vram": data["dynamic_vram"]["text"],
        "weight_dtypes": {row["weight_dtype"]: row["text"] for row in data["weight_dtypes"]},
        "notices": data["notices"],
        "strategies": {row["strategy"]: row["text"] for row in data["strategies"]},
    }
