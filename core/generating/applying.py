"""LoraPlan -> MODEL and CLIP with its LoRAs applied.

What the user named and cannot be applied is an error; what the pack chose is skipped and told.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .. import host
from ..errors import LoraError, ModelFileError, SettingError
from ..hubs.wording import where_to_get
from ..memory import OWN_PATCHES
from ..plan import AppliedLora, FileRef, Notice, PlannedLora, SkippedLora
from ..recommending import NOT_FETCHED

CARRIED = "carried_loras"
"""Attachment key on the patchers of MODEL and CLIP: the `_Outcome` of LoRAs they carry already."""

_KEPT = "_intelligent_generation_loras"
"""Attribute on the patcher of MODEL: the latest `_Kept`. Not an attachment, as clones must not
take it along."""


class AppliedLoras(NamedTuple):
    """MODEL and CLIP with LoRAs, and what became of each."""

    model: Any
    clip: Any
    applied: tuple[AppliedLora, ...]
    skipped: tuple[SkippedLora, ...]
    notices: tuple[Notice, ...]


class _Key(NamedTuple):
    """A LoRA as it was asked for; the same key has the same effect."""

    name: str
    stamp: tuple[int, int]
    model_strength: float
    clip_strength: float
    by_user: bool


class _Outcome(NamedTuple):
    """What applying LoRAs did; holds no model."""

    keys: tuple[_Key, ...] = ()
    applied: tuple[AppliedLora, ...] = ()
    skipped: tuple[SkippedLora, ...] = ()
    notices: tuple[Notice, ...] = ()
    model_patches: int = 0
    clip_patches: int = 0


class _Kept(NamedTuple):
    """Patches to be put on MODEL and CLIP again. It refers to neither, so keeps neither alive."""

    keys: tuple[_Key, ...]
    clip: weakref.ref[Any]
    outcome: _Outcome
    model_patches: host.Patches
    clip_patches: host.Patches | None


def apply_loras(
    model: Any,
    clip: Any,
    loras: Sequence[PlannedLora],
    *,
    locate: Callable[[FileRef], FileRef],
    add: bool = False,
) -> AppliedLoras:
    """Apply the plan's LoRAs in order, as a chain of stock LoraLoader nodes would.

    The patches are kept with MODEL for as long as ComfyUI keeps MODEL: the stock graph caches its
    LoraLoader too, and patching a large model anew for each seed takes seconds.

    Args:
        clip: None applies to MODEL alone.
        locate: finds a planned file on disk, by hash before name, and returns it as it is
            called now.
        add: MODEL and CLIP may carry LoRAs of an earlier call that are not in this plan
            (CivitAILoRAFetcher after another one). Without it, what they carry must be the plan's
            own first LoRAs, which are then not applied a second time.

    Raises:
        LoraError: a LoRA the user named is missing, unreadable, or fits no weight of the model;
            or MODEL and CLIP carry other LoRAs of an earlier call than the plan says.
        SettingError: there is CLIP but no MODEL.
    """
    if model is None:
        raise SettingError("LoRAs cannot be applied to CLIP alone. Wire MODEL in as well.")
    missing: list[SkippedLora] = []
    wanted: list[tuple[PlannedLora, FileRef, _Key]] = []
    for lora in loras:
        try:
            file = _located(lora, locate)
        except ModelFileError as error:
            code, problem = "unreadable", str(error)
            if lora.pending:
                code, problem = "not_fetched", f"LoRA {lora.title}: {NOT_FETCHED}"
            if lora.remote is not None:
                problem += f" {where_to_get(lora.remote)}"
            missing.append(_skip_or_raise(lora, code, problem))
        else:
            wanted.append((lora, file, _key(lora, file)))

    before: _Outcome = host.attached(model, CARRIED) or _Outcome()
    on_clip = before if clip is None else host.attached(clip.patcher, CARRIED) or _Outcome()
    keys = tuple(key for _, _, key in wanted)
    same = before.keys == on_clip.keys
    if same and keys[: len(before.keys)] == before.keys:
        wanted = wanted[len(before.keys) :]
    elif not (same and add):
        raise _carries_others(before, on_clip)

    outcome, model, clip = _apply_or_restore(model, clip, wanted, before)
    return AppliedLoras(model, clip, outcome.applied, (*missing, *outcome.skipped), outcome.notices)


def _apply_or_restore(
    model: Any,
    clip: Any,
    wanted: Sequence[tuple[PlannedLora, FileRef, _Key]],
    before: _Outcome,
) -> tuple[_Outcome, Any, Any]:
    if not wanted:
        return before, model, clip
    keys = tuple(key for _, _, key in wanted)
    kept: _Kept | None = getattr(model, _KEPT, None)
    if kept is not None and kept.keys == keys and kept.clip() is clip:
        new_model = host.with_patches(model, kept.model_patches)
        new_clip = clip
        if kept.clip_patches is not None:
            new_clip = host.clip_with_patches(clip, kept.clip_patches)
        outcome = kept.outcome
    else:
        outcome, new_model, new_clip = _apply(model, clip, wanted, before)
        if clip is not None:
            clip_patches = host.patches_of(new_clip.patcher)
            kept = _Kept(keys, weakref.ref(clip), outcome, host.patches_of(new_model), clip_patches)
            setattr(model, _KEPT, kept)
    if new_model is not model:
        host.attach(new_model, CARRIED, outcome)
        host.attach(new_model, OWN_PATCHES, outcome.model_patches)
    if new_clip is not clip:
        host.attach(new_clip.patcher, CARRIED, outcome)
        host.attach(new_clip.patcher, OWN_PATCHES, outcome.clip_patches)
    return outcome, new_model, new_clip


def _apply(
    model: Any,
    clip: Any,
    wanted: Sequence[tuple[PlannedLora, FileRef, _Key]],
    before: _Outcome,
) -> tuple[_Outcome, Any, Any]:
    applied, skipped = list(before.applied), list(before.skipped)
    notices = list(before.notices)
    model_patches, clip_patches = before.model_patches, before.clip_patches
    for lora, file, _ in wanted:
        host.check_interrupt()
        if lora.model_strength == 0 and lora.clip_strength == 0:
            message = f"LoRA {lora.title} has strength 0 and changes nothing."
            notices.append(Notice(level="info", code="lora_strength_zero", message=message))
            continue
        try:
            effect = host.apply_lora(
                model, clip, file.name, lora.model_strength, lora.clip_strength
            )
        except ModelFileError as error:
            skipped.append(_skip_or_raise(lora, "unreadable", str(error)))
            continue
        patches = effect.model_weights + effect.clip_weights
        if patches <= effect.misshapen:
            why = "its weights have other shapes" if effect.misshapen else "no key matches"
            problem = (
                f"LoRA {file.name} does not fit this model: {why}. It was made for another base "
                "model or in an unknown format."
            )
            skipped.append(_skip_or_raise(lora, "keys_unmatched", problem))
            continue
        if effect.misshapen:
            message = (
                f"LoRA {file.name}: {effect.misshapen} of its {patches} patches do not fit the "
                "model's weights and have no effect."
            )
            notices.append(Notice(level="warning", code="lora_partly_misshapen", message=message))
        model, clip = effect.model, effect.clip
        model_patches += effect.model_weights
        clip_patches += effect.clip_weights
        applied.append(
            AppliedLora(
                file=file, model_weights=effect.model_weights, clip_weights=effect.clip_weights
            )
        )
    outcome = _Outcome(
        (*before.keys, *(key for _, _, key in wanted)),
        tuple(applied),
        tuple(skipped),
        tuple(notices),
        model_patches,
        clip_patches,
    )
    return outcome, model, clip


def _located(lora: PlannedLora, locate: Callable[[FileRef], FileRef]) -> FileRef:
    if lora.file.folder != "loras":
        raise LoraError(
            f"The plan takes {lora.file.name} from the folder {lora.file.folder!r}; LoRAs are "
            "taken from loras alone. Correct the plan."
        )
    return locate(lora.file)


def _key(lora: PlannedLora, file: FileRef) -> _Key:
    stamp = host.file_stamp(file.folder, file.name)
    return _Key(file.name, stamp, lora.model_strength, lora.clip_strength, lora.by_user)


def _skip_or_raise(lora: PlannedLora, code: str, problem: str) -> SkippedLora:
    if lora.by_user:
        raise LoraError(f"{problem} You asked for it: correct its name or take it out.")
    return SkippedLora(name=lora.file.name, code=code, reason=problem)


def _carries_others(on_model: _Outcome, on_clip: _Outcome) -> LoraError:
    def listed(outcome: _Outcome) -> str:
        names = (f"{key.name} at {key.model_strength:g}" for key in outcome.keys)
        return ", ".join(names) or "none"

    return LoraError(
        f"CivitAILoRAFetcher has applied LoRAs to MODEL ({listed(on_model)}) and CLIP "
        f"({listed(on_clip)}), and the plan here says otherwise. Wire the MODEL, CLIP and LoRA "
        "plan of one CivitAILoRAFetcher on together, or take MODEL and CLIP from the loader."
    )
