"""Machine -> MemoryPlan, and the plan in words. So far AUTO alone: ComfyUI's own management."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, cast, get_args

from ..errors import NotAvailableYetError, SettingError
from ..plan import DeviceMemory, MemoryPlan, Notice, WeightDtype
from .resources import FreeMemory, Machine, human_bytes

_KINDS = get_args(DeviceMemory.model_fields["kind"].annotation)
_DTYPES = get_args(WeightDtype)
OWN_MEMORY = frozenset({"cuda", "rocm", "xpu", "directml", "other"})
"""Device kinds with memory apart from RAM."""


def plan_memory(
    machine: Machine, *, strategy: str = "AUTO", weight_dtype: str = "auto"
) -> MemoryPlan:
    """The memory policy for a machine. Pure, and the same whatever is free at the moment.

    Raises:
        NotAvailableYetError: a strategy that comes with a later version.
        SettingError: no such strategy or weight_dtype.
    """
    facts = _facts()
    if strategy in facts["later_strategies"]:
        raise NotAvailableYetError(
            f"Memory strategy {strategy} is not available in this version. Use AUTO, which leaves "
            "ComfyUI's own memory management at work; its options --lowvram and --novram save more."
        )
    if strategy != "AUTO":
        raise SettingError(f"There is no memory strategy {strategy!r}. Use AUTO.")
    if weight_dtype not in _DTYPES:
        known = ", ".join(_DTYPES)
        raise SettingError(f"There is no weight_dtype {weight_dtype!r}. Use one of {known}.")
    device = DeviceMemory.model_validate(
        {
            "name": machine.device_name,
            "kind": machine.device_kind if machine.device_kind in _KINDS else "other",
            "total_bytes": machine.total_vram,
        }
    )
    return MemoryPlan(
        weight_dtype=cast(WeightDtype, weight_dtype),
        device=device,
        ram_total_bytes=machine.total_ram,
        dynamic_vram=machine.dynamic_vram,
        vram_state=machine.vram_state,
        notices=tuple(
            Notice(
                level=row["level"],
                code=row["code"],
                message=row["message"].format(total=human_bytes(device.total_bytes)),
            )
            for row in facts["notices"]
            if device.kind in row["kinds"]
            and device.total_bytes < row.get("small_below", float("inf"))
        ),
    )


def report(plan: MemoryPlan, free: FreeMemory) -> str:
    """The plan and the moment's free memory in a few lines for people."""
    device = plan.device
    lines = [f"Device: {device.name} ({device.kind})"]
    if device.kind in OWN_MEMORY:
        lines.append(_line("VRAM", device.total_bytes, free.vram))
    lines.append(_line("RAM", plan.ram_total_bytes, free.ram))
    lines.append(f"Strategy: {plan.strategy}, ComfyUI's own memory management is left alone.")
    state = _facts()["vram_states"].get(plan.vram_state)
    lines.append(f"ComfyUI runs in mode {plan.vram_state}" + (f": {state}." if state else "."))
    if plan.dynamic_vram:
        lines.append(f"{_facts()['dynamic_vram']}.")
    lines.append(f"Weights: {_facts()['weight_dtypes'][plan.weight_dtype]}.")
    lines += [f"{notice.level.capitalize()}: {notice.message}" for notice in plan.notices]
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
        "later_strategies": data["later_strategies"],
    }
