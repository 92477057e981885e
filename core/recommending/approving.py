"""The LoRA plan that a person approved, from its text."""

from __future__ import annotations

import json

from ..errors import PlanError, SettingError
from ..plan import Generation, GenerationPlan, LoraPlan


def approved_plan(mode: str, text: str) -> LoraPlan | None:
    """The LoRA plan that a person approved; None when there is no text.

    Args:
        mode: CivitAILoRAFetcher's.
        text: a LoraPlan, GenerationPlan or Generation as JSON.

    Raises:
        PlanError: it is none, or mode is AUTO, which does not read it.
        SettingError: there is no such mode.
    """
    if mode not in ("AUTO", "ASSISTED"):
        raise SettingError(f"mode must be AUTO or ASSISTED, not {mode!r}.")
    if not text.strip():
        return None
    if mode == "AUTO":
        raise PlanError(
            "There is a plan text, but mode is AUTO, which does not read it. Set mode to "
            "ASSISTED, or clear the plan text."
        )
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PlanError(f"The plan text is not JSON: {error}. Paste the whole text.") from error
    kind = data.get("kind") if isinstance(data, dict) else None
    if kind == "Generation":
        return Generation.from_data(data).plan.loras
    if kind == "GenerationPlan":
        return GenerationPlan.from_data(data).loras
    return LoraPlan.from_data(data)
