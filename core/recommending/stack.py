"""LoRA plans to and from `LORA_STACK`, the list of tuples that other packs pass around."""

from __future__ import annotations

from collections.abc import Sequence

from ..plan import LoraPlan, PlannedLora
from .recommender import UserLora

Stack = list[tuple[str, float, float]]


def to_stack(plan: LoraPlan) -> Stack:
    """The plan's LoRAs as (name, model strength, clip strength), in order of application."""
    return [(lora.file.name, lora.model_strength, lora.clip_strength) for lora in plan.loras]


def with_user_loras(plan: LoraPlan, loras: Sequence[UserLora]) -> LoraPlan:
    """The plan with the user's LoRAs after its own; nothing else of it changes.

    One that the plan has already is taken out of the plan's own: the user's strength counts.
    """
    names = {lora.entry.file.name for lora in loras}
    kept = tuple(lora for lora in plan.loras if lora.file.name not in names)
    added = tuple(
        PlannedLora(
            file=lora.entry.file,
            title=lora.entry.title,
            model_strength=lora.model_strength,
            clip_strength=lora.clip_strength,
            origin=lora.origin,
            reason="Your own choice, used at the strength you gave.",
        )
        for lora in loras
    )
    return plan.model_copy(update={"loras": kept + added})
