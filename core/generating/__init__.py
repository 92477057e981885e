"""Plans -> images, records and explanations.

Each name is loaded when first used: some need ComfyUI running, some the database.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .applying import AppliedLoras, apply_loras
    from .editing import edit_plan, names_seed, with_real_model
    from .explanation import describe_loras, describe_model_choice, difference, explain
    from .records import SaveLocation, load_generation, recent, recover, save_generation
    from .replay import generation_from_png, replay_prompt
    from .sampling import Progress, Sampled, run

__all__ = [
    "AppliedLoras",
    "Progress",
    "Sampled",
    "SaveLocation",
    "apply_loras",
    "describe_loras",
    "describe_model_choice",
    "difference",
    "edit_plan",
    "explain",
    "generation_from_png",
    "load_generation",
    "names_seed",
    "recent",
    "recover",
    "replay_prompt",
    "run",
    "save_generation",
    "with_real_model",
]

_HOMES = {
    "AppliedLoras": "applying",
    "Progress": "sampling",
    "Sampled": "sampling",
    "SaveLocation": "records",
    "apply_loras": "applying",
    "describe_loras": "explanation",
    "describe_model_choice": "explanation",
    "difference": "explanation",
    "edit_plan": "editing",
    "explain": "explanation",
    "generation_from_png": "replay",
    "load_generation": "records",
    "names_seed": "editing",
    "recent": "records",
    "recover": "records",
    "replay_prompt": "replay",
    "run": "sampling",
    "save_generation": "records",
    "with_real_model": "editing",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
