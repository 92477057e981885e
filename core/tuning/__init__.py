"""PromptAnalysis + ModelInfo -> SamplingPlan, from a sourced table of model families, and what
runs cost.

What keeps costs needs the database and is loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .candidates import Limits, RatedSettings
from .cost import Costs, Measured, Speed, Work, measured, model_key, work_of
from .optimizer import NO_LIMITS, SamplingOverrides, optimize
from .passes import SecondPassWish
from .report import front_table, report

if TYPE_CHECKING:
    from .runs import add_run, cost_revision, machine_speed, measured_runs

__all__ = [
    "NO_LIMITS",
    "Costs",
    "Limits",
    "Measured",
    "RatedSettings",
    "SamplingOverrides",
    "SecondPassWish",
    "Speed",
    "Work",
    "add_run",
    "cost_revision",
    "front_table",
    "machine_speed",
    "measured",
    "measured_runs",
    "model_key",
    "optimize",
    "report",
    "work_of",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".runs", __name__), name)
