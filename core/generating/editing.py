"""The plan text of MANUAL: a whole plan, or only the fields to change."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..errors import PlanError
from ..plan import GenerationPlan


def edit_plan(base: Mapping[str, Any], text: str) -> GenerationPlan:
    """`base` changed by the user's plan text, which is merged in as a JSON Merge Patch (RFC 7396):
    objects merge field by field, everything else replaces, null puts a field back to its default.

    Args:
        base: the JSON form of what AUTO would run; fields may be missing where no node gave them.
        text: a GenerationPlan, a whole Generation (its plan is taken), or a part of a plan such
            as `{"sampling": {"steps": 35}}`.

    Raises:
        PlanError: not JSON, not an object, or what results is not a complete, valid plan.
    """
    try:
        patch = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PlanError(
            f"The plan text is not JSON: {error}. Paste a whole plan, or write only the fields to "
            'change, for example {"sampling": {"steps": 35}}.'
        ) from error
    if isinstance(patch, dict) and patch.get("kind") == "Generation":
        patch = patch.get("plan")
    if not isinstance(patch, dict):
        raise PlanError(f"The plan text must be a JSON object, not a {type(patch).__name__}.")
    _refuse_idle_edits(base, patch)
    merged = _merge(dict(base), patch)
    missing = [name for name in ("analysis", "model", "loras", "sampling") if name not in merged]
    if missing:
        raise PlanError(
            f"The plan text has no {' and no '.join(missing)}, and no wired node gives it. Paste a "
            "whole plan, or wire PromptAnalyzer in."
        )
    return GenerationPlan.from_data(merged)


_COUNTS_INSTEAD = {
    ("analysis", "prompt"): ("loras", "segments"),
    ("analysis", "segments"): ("loras", "segments"),
    ("analysis", "negative_prompt"): ("analysis", "negative_segments"),
}
"""Fields that say what was typed or read, and those that are encoded."""


def _refuse_idle_edits(base: Mapping[str, Any], patch: Mapping[str, Any]) -> None:
    def read(tree: Any, path: tuple[str, str]) -> Any:
        part = tree.get(path[0])
        return part.get(path[1]) if isinstance(part, dict) else None

    for edited, counts in _COUNTS_INSTEAD.items():
        value = read(patch, edited)
        if value is None or value == read(base, edited) or read(patch, counts) is not None:
            continue
        raise PlanError(
            f"Changing {'.'.join(edited)} in the plan changes nothing: what is encoded is "
            f"{'.'.join(counts)}. Change that, or change the prompt in PromptAnalyzer."
        )


def names_seed(text: str) -> bool:
    """Whether a plan text sets the seed; False for a text that is no plan."""
    try:
        patch = json.loads(text)
    except (ValueError, RecursionError):
        return False
    if isinstance(patch, dict) and patch.get("kind") == "Generation":
        patch = patch.get("plan")
    return isinstance(patch, dict) and patch.get("seed") is not None


def _merge(target: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merge(result.get(key), value)
    return result
