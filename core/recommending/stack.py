"""LoRA plans to and from `LORA_STACK`, the list of tuples that other packs pass around."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import LoraError
from ..plan import LoraPlan, Notice, PlannedLora, SkippedLora
from .recommender import UserLora
from .triggers import append

Stack = list[tuple[str, float, float]]

_GIVEN = "Your own choice, used at the strength you gave."
_REASONS = {
    "prompt_tag": _GIVEN,
    "stack": _GIVEN,
    "reference": "You named it by its address or id; its strength is the one you wrote, else its "
    "author's or a middling one.",
}


def to_stack(plan: LoraPlan) -> Stack:
    """The plan's LoRAs as (name, model strength, clip strength), in order of application; without
    pending ones, whose files other packs would not find."""
    return [
        (lora.file.name, lora.model_strength, lora.clip_strength)
        for lora in plan.loras
        if not lora.pending
    ]


def with_user_loras(plan: LoraPlan, loras: Sequence[UserLora]) -> LoraPlan:
    """The plan with the user's LoRAs after its own.

    One that was recommended at another strength gives way, and a notice says so.

    Raises:
        LoraError: the plan has one of them as the user's own already, at another strength.
    """
    asked = {lora.entry.file.name: lora for lora in loras}
    kept: list[PlannedLora] = []
    notices = list(plan.notices)
    for planned in plan.loras:
        lora = asked.get(planned.file.name)
        if lora is None:
            kept.append(planned)
        elif (planned.model_strength, planned.clip_strength) == lora[1:3]:
            kept.append(planned)
            del asked[planned.file.name]
        elif planned.by_user:
            raise LoraError(
                f"LoRA {planned.file.name} is named twice, at {planned.model_strength:g} and at "
                f"{lora.model_strength:g}. Take one out."
            )
        else:
            message = (
                f"LoRA {planned.title} was recommended at {planned.model_strength:g}; you have it "
                f"at {lora.model_strength:g}, which counts."
            )
            notices.append(Notice(level="info", code="stack_beats_plan", message=message))
    added = tuple(
        PlannedLora(
            file=lora.entry.file,
            title=lora.entry.title,
            model_strength=lora.model_strength,
            clip_strength=lora.clip_strength,
            origin=lora.origin,
            reason=_REASONS[lora.origin],
            remote=lora.remote,
            pending=lora.remote is not None,
        )
        for lora in asked.values()
    )
    return plan.model_copy(update={"loras": (*kept, *added), "notices": tuple(notices)})


NOT_FETCHED = (
    "It is not on this machine. CivitAILoRAFetcher, wired in with allow_download on, fetches it."
)


def without_pending(plan: LoraPlan, segments: Sequence[str]) -> LoraPlan:
    """The plan less the recommended LoRAs that are pending, which are told as skipped, and less
    the trigger words they added. The user's own stay.

    Args:
        segments: of the analysis that the plan was made from. Where the plan's text is not these
            with trigger words behind, it was edited, and is left as it is.
    """
    gone = [lora for lora in plan.pending if not lora.by_user]
    if not gone:
        return plan
    kept = [lora for lora in plan.loras if lora not in gone]

    def text(loras: Sequence[PlannedLora]) -> tuple[str, ...]:
        return append(segments, [word for lora in loras for word in lora.trigger_words])

    skipped = (SkippedLora(name=lora.title, code="not_fetched", reason=NOT_FETCHED)
               for lora in gone)  # fmt: skip
    return plan.model_copy(
        update={
            "loras": tuple(kept),
            "segments": text(kept) if plan.segments == text(plan.loras) else plan.segments,
            "skipped": (*plan.skipped, *skipped),
        }
    )


def once_each(loras: Sequence[UserLora]) -> list[UserLora]:
    """The same LoRAs; one named twice alike counts once. Raises LoraError for two strengths."""
    by_name: dict[str, UserLora] = {}
    for lora in loras:
        name = lora.entry.file.name
        other = by_name.setdefault(name, lora)
        if (other.model_strength, other.clip_strength) != (
            lora.model_strength,
            lora.clip_strength,
        ):
            raise LoraError(
                f"LoRA {name} is named twice, at {other.model_strength:g} and at "
                f"{lora.model_strength:g}. Take one out."
            )
    return list(by_name.values())


def made_for(planned: tuple[str, ...], segments: tuple[str, ...]) -> bool:
    """Whether the segments are these, but for trigger words added at the end."""
    return (
        len(planned) == len(segments)
        and planned[:-1] == segments[:-1]
        and planned[-1].startswith(segments[-1].rstrip(", "))
    )
