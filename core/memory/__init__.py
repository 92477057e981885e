"""Reads the machine, plans memory, loads models by the plan.

What loads models needs ComfyUI running and is loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .pool import PoolLimits, PoolSettings, made_settings, read_settings, write_settings
from .residency import ModelPool, PoolState, pool_report
from .resources import (
    Device,
    FreeMemory,
    Machine,
    MachineSource,
    Resources,
    human_bytes,
    ram_limit,
    read_free,
    read_machine,
    read_ram,
    read_resources,
)
from .strategy import OWN_MEMORY, plan_memory, report, report_resources

if TYPE_CHECKING:
    from .loading import (
        OWN_PATCHES,
        LoadedModel,
        ModelChoice,
        choose_fetched,
        choose_model,
        describe_model,
        info_of,
        load_model,
        missing_parts,
    )
    from .placing import Placed, is_auto, place, told

__all__ = [
    "OWN_MEMORY",
    "OWN_PATCHES",
    "Device",
    "FreeMemory",
    "LoadedModel",
    "Machine",
    "MachineSource",
    "ModelChoice",
    "ModelPool",
    "Placed",
    "PoolLimits",
    "PoolSettings",
    "PoolState",
    "Resources",
    "choose_fetched",
    "choose_model",
    "describe_model",
    "human_bytes",
    "info_of",
    "is_auto",
    "load_model",
    "made_settings",
    "missing_parts",
    "place",
    "plan_memory",
    "pool_report",
    "ram_limit",
    "read_free",
    "read_machine",
    "read_ram",
    "read_resources",
    "read_settings",
    "report",
    "report_resources",
    "told",
    "write_settings",
]


_PLACING = {"Placed", "is_auto", "place", "told"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = ".placing" if name in _PLACING else ".loading"
    return getattr(import_module(module, __name__), name)
