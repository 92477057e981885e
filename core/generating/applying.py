"""LoraPlan -> MODEL and CLIP with its LoRAs applied.

What the user named and cannot be applied is an error; what the pack chose is skipped and told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .. import host
from ..errors import LoraError, ModelFileError
from ..memory import OWN_PATCHES
from ..plan import AppliedLora, FileRef, Notice, PlannedLora, SkippedLora

APPLIED = "applied_loras"
"""Attachment key on MODEL: which planned LoRAs it already carries."""


class AppliedLoras(NamedTuple):
    """MODEL and CLIP with LoRAs, and what became of each."""

    model: Any
    clip: Any
    applied: tuple[AppliedLora, ...]
    skipped: tuple[SkippedLora, ...]
    notices: tuple[Notice, ...]


class _Key(NamedTuple):
    name: str
    stamp: tuple[int, int]
    model_strength: float
    clip_strength: float


def apply_loras(
    model: Any,
    clip: Any,
    loras: Sequence[PlannedLora],
    *,
    locate: Callable[[FileRef], FileRef],
) -> AppliedLoras:
    """Apply the plan's LoRAs in order, as a chain of stock LoraLoader nodes would.

    LoRAs that MODEL carries from an earlier call (CivitAILoRAFetcher's) are not applied twice.
    The result is kept with MODEL, for as long as ComfyUI keeps MODEL itself: the stock graph
    caches its LoraLoader too, and patching a large model anew for each seed takes seconds.

    Args:
        locate: finds a planned file on disk, by hash before name, and returns it as it is
            called now.

    Raises:
        LoraError: a LoRA the user named is missing, unreadable, or fits no weight of the model.
    """
    carried: frozenset[_Key] = host.attached(model, APPLIED) or frozenset()
    located: list[tuple[PlannedLora, FileRef]] = []
    skipped: list[SkippedLora] = []
    for lora in loras:
        try:
            located.append((lora, locate(lora.file)))
        except ModelFileError as error:
            skipped.append(_skip_or_raise(lora, "unreadable", str(error)))
    wanted = [(lora, file, _key(lora, file)) for lora, file in located]
    wanted = [item for item in wanted if item[2] not in carried]

    keys = [key for _, _, key in wanted]
    cached = getattr(model, "_intelligent_generation_applied", None)
    if cached is not None and cached[0] == keys and cached[1] is clip:
        result: AppliedLoras = cached[2]
    else:
        result = _apply(model, clip, wanted, carried)
        # On the patcher itself, not as an attachment: clones must not take it along. The cycle
        # model -> result -> model is freed by the garbage collector once ComfyUI drops MODEL.
        model._intelligent_generation_applied = (keys, clip, result)
    return result._replace(skipped=(*skipped, *result.skipped))


def _apply(
    model: Any,
    clip: Any,
    wanted: Sequence[tuple[PlannedLora, FileRef, _Key]],
    carried: frozenset[_Key],
) -> AppliedLoras:
    applied: list[AppliedLora] = []
    skipped: list[SkippedLora] = []
    notices: list[Notice] = []
    done = set(carried)
    own_model_patches: int = host.attached(model, OWN_PATCHES) or 0
    own_clip_patches: int = 0 if clip is None else host.attached(clip.patcher, OWN_PATCHES) or 0
    for lora, file, key in wanted:
        host.check_interrupt()
        if lora.model_strength == 0 and lora.clip_strength == 0:
            notices.append(
                Notice(
                    level="info",
                    code="lora_strength_zero",
                    message=f"LoRA {lora.title} has strength 0 and changes nothing.",
                )
            )
            continue
        try:
            effect = host.apply_lora(
                model, clip, file.name, lora.model_strength, lora.clip_strength
            )
        except ModelFileError as error:
            skipped.append(_skip_or_raise(lora, "unreadable", str(error)))
            continue
        fitting = effect.model_weights + effect.clip_weights - effect.misshapen
        if fitting <= 0:
            why = "its weights have other shapes" if effect.misshapen else "no key matches"
            skipped.append(
                _skip_or_raise(
                    lora,
                    "keys_unmatched",
                    f"LoRA {file.name} does not fit this model: {why}. It was made for another "
                    "base model or in an unknown format.",
                )
            )
            continue
        if effect.misshapen:
            notices.append(
                Notice(
                    level="warning",
                    code="lora_partly_misshapen",
                    message=f"LoRA {file.name}: {effect.misshapen} of its "
                    f"{effect.model_weights + effect.clip_weights} patches do not fit the "
                    "model's weights and have no effect.",
                )
            )
        model, clip = effect.model, effect.clip
        done.add(key)
        applied.append(
            AppliedLora(
                file=file, model_weights=effect.model_weights, clip_weights=effect.clip_weights
            )
        )
        own_model_patches += effect.model_weights
        own_clip_patches += effect.clip_weights
    if applied:
        host.attach(model, APPLIED, frozenset(done))
        host.attach(model, OWN_PATCHES, own_model_patches)
        if clip is not None:
            host.attach(clip.patcher, OWN_PATCHES, own_clip_patches)
    return AppliedLoras(model, clip, tuple(applied), tuple(skipped), tuple(notices))


def _key(lora: PlannedLora, file: FileRef) -> _Key:
    stamp = host.file_stamp(file.folder, file.name)
    return _Key(file.name, stamp, lora.model_strength, lora.clip_strength)


def _skip_or_raise(lora: PlannedLora, code: str, problem: str) -> SkippedLora:
    if lora.by_user:
        raise LoraError(f"{problem} You asked for it: correct its name or take it out.")
    return SkippedLora(name=lora.file.name, code=code, reason=problem)
