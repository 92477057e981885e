"""Reads the machine, plans memory, loads models by the plan.

What loads models needs ComfyUI running and is loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .pool import PoolLimits, PoolSettings, made_settings, read_settings, write_settings
from .residency import ModelPool, PoolState, pool_report
from .resources import FreeMemory, Machine, MachineSource, human_bytes, read_free, read_machine
from .strategy import OWN_MEMORY, plan_memory, report

if TYPE_CHECKING:
    from .loading import (
        OWN_PATCHES,
        LoadedModel,
        ModelChoice,
        choose_fetched,
        choose_model,
        describe_model,
        load_model,
        missing_parts,
    )

__all__ = [
    "OWN_MEMORY",
    "OWN_PATCHES",
    "FreeMemory",
    "LoadedModel",
    "Machine",
    "MachineSource",
    "ModelChoice",
    "ModelPool",
    "PoolLimits",
    "PoolSettings",
    "PoolState",
    "choose_fetched",
    "choose_model",
    "describe_model",
    "human_bytes",
    "load_model",
    "made_settings",
    "missing_parts",
    "plan_memory",
    "pool_report",
    "read_free",
    "read_machine",
    "read_settings",
    "report",
    "write_settings",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".loading", __name__), name)
