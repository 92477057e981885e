"""The plan text of MANUAL: a whole plan, or only the fields to change."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import PlanError
from ..plan import FileRef, GenerationPlan, ModelInfo, Notice


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


def with_real_model(
    plan: GenerationPlan, info: ModelInfo, *, sha256: Callable[[FileRef], str]
) -> GenerationPlan:
    """The plan with the model that is wired in; a notice if it was made with another.

    Args:
        sha256: the hash of a file that is wired in.
    """
    notices = list(info.notices)
    for part in plan.model.parts:
        planned = [file for file in part.files if file.sha256]
        now = info.part(part.role)
        if not planned or now is None:
            continue
        names = ", ".join(file.name for file in planned)
        role = part.role.replace("_", " ")
        if not now.files:
            message = (
                f"The plan was made with the {role} {names}; whether that is what is wired in "
                "cannot be told, as another node loaded it."
            )
        elif [file.sha256 for file in planned] != [sha256(file) for file in now.files]:
            present = ", ".join(file.name for file in now.files)
            message = (
                f"The plan was made with the {role} {names}, and {present} is wired in, which "
                "is another. The image will differ."
            )
        else:
            continue
        notices.append(Notice(level="warning", code="other_model_than_planned", message=message))
    if info.files and plan.model.weight_dtype != info.weight_dtype:
        message = (
            f"The plan was made with weights in {plan.model.weight_dtype}, and they are in "
            f"{info.weight_dtype} now. The image will differ slightly. Set weight_dtype in "
            "MemoryStrategy to change that."
        )
        notices.append(Notice(level="warning", code="other_weight_dtype", message=message))
    info = info.model_copy(update={"notices": tuple(notices)})
    return plan.model_copy(update={"model": info})


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
