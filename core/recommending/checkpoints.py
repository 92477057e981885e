"""Which installed checkpoint to make a picture with, and why. Pure.

A checkpoint's score is the sum of named factors: whether it is made for the style that is asked
for, how well the LoRAs of its family fit the prompt, whether it fits into memory, how well its
text encoder reads prompts like this one, and what ratings of its images say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ..catalog.entries import ModelEntry, UnreadableFile
from ..catalog.families import family
from ..errors import ModelFileError
from ..plan import ChosenModel, Factor, FileRef, PromptAnalysis, SkippedModel, StyleIntent

STYLES: tuple[StyleIntent, ...] = ("ANIME", "PHOTOREAL", "ARTISTIC")
MOST_NAMED = 5
"""Checkpoints named among those not taken, the best first."""

WORKING_BYTES = 2 * 2**30
"""What sampling an image takes beside the weights, roughly: judgement, as the size of the image
is not known yet."""

OTHER_STYLE = 0.25
"""How much a rating says of a picture in another style: what is bad for anime need not be bad
for landscapes."""

PRIOR_RATINGS = 2.0
"""Neutral ratings that every checkpoint starts with, so that one rating is no verdict."""

_HALVED = frozenset({"F32"})  # ComfyUI loads it in half precision where it can


class LoraSupport(NamedTuple):
    """What the LoRA library has for a prompt and one family."""

    confidences: tuple[float, ...] = ()
    """Of the LoRAs that would be recommended."""
    titles: tuple[str, ...] = ()
    problem: str = ""
    """Why a LoRA that the user named cannot be used with the family; empty when there is none."""


class RatedModel(NamedTuple):
    """A rated image: which model made it, what was asked for, how it was liked."""

    name: str
    """`FileRef.name` of the checkpoint."""
    sha256: str | None
    style: StyleIntent
    rating: int
    """1 to 5."""


class MemoryLimits(NamedTuple):
    """What the machine has, in bytes."""

    device_bytes: int
    ram_bytes: int
    own_memory: bool
    """Whether the device has memory apart from RAM."""


def choose_checkpoint(
    entries: Sequence[ModelEntry],
    analysis: PromptAnalysis | None,
    *,
    loras: Callable[[str], LoraSupport],
    memory: MemoryLimits,
    ratings: Sequence[RatedModel] = (),
    unreadable: Sequence[UnreadableFile] = (),
    problem: Callable[[ModelEntry], str] = lambda _: "",
) -> ChosenModel:
    """The checkpoint for a prompt. Deterministic; equal scores go to the first name.

    Args:
        entries: the readable checkpoints there are.
        analysis: what the prompt says; None chooses one for any prompt.
        loras: `loras(family)`, asked once for each family; not asked without an analysis.
        memory: the machine's.
        ratings: of earlier images, whatever made them.
        unreadable: files of the same folders that cannot be read, to be told.
        problem: `problem(entry)` says why a file cannot be used after all, empty when it can;
            asked of the best ones only, as it may read the file.

    Raises:
        ModelFileError: there is no checkpoint, or none that can be used; the message says why.
    """
    if not entries and not unreadable:
        raise ModelFileError(
            "model is auto, but there is no checkpoint to choose from. Put a .safetensors "
            "checkpoint into ComfyUI's models/checkpoints folder, or choose a diffusion model "
            "with its text encoders and VAE yourself."
        )
    skipped = [
        SkippedModel(name=file.name, code="unreadable", reason=f"It {file.problem}.")
        for file in unreadable
    ]
    support: dict[str, LoraSupport] = {}
    scored: list[tuple[float, ModelEntry, tuple[Factor, ...]]] = []
    for entry in sorted(entries, key=lambda entry: entry.file.name):
        if analysis is not None and entry.family not in support:
            support[entry.family] = loras(entry.family)
        own = support.get(entry.family, LoraSupport())
        reason = _unusable(entry, memory) or (
            ("other_base_model", own.problem) if own.problem else None
        )
        if reason:
            skipped.append(SkippedModel(name=entry.file.name, code=reason[0], reason=reason[1]))
            continue
        factors = _factors(entry, analysis, own, memory, ratings)
        score = sum(factor.value * factor.weight for factor in factors)
        scored.append((score, entry, factors))
    scored.sort(key=lambda row: -row[0])  # stable: names stay in order
    while scored:
        score, best, factors = scored.pop(0)
        why = problem(best)
        if why:
            skipped.append(SkippedModel(name=best.file.name, code="incomplete", reason=why))
            continue
        lost = [_lost(row, score, best, factors) for row in scored]
        return ChosenModel(
            file=best.file,
            score=round(score, 4),
            factors=factors,
            reason=_reason(best, analysis, factors),
            alternatives=tuple([*lost, *skipped][:MOST_NAMED]),
            candidates=len(entries),
        )
    listed = " ".join(f"{item.name}: {item.reason}" for item in skipped[:MOST_NAMED])
    raise ModelFileError(
        f"model is auto, but none of the {len(entries) + len(unreadable)} checkpoints can be used. "
        f"{listed} Choose a model yourself."
    )


def style_profile(entry: ModelEntry) -> dict[StyleIntent, float]:
    """How far a checkpoint is made for each style, in [0, 1], by its name, tags, description and
    family; all 0 for one that nothing says anything of."""
    facts = _facts()
    name = _plain(f"{PurePosixPath(entry.file.name).stem} {entry.title}")
    text = f"{' , '.join(entry.tags)} . {entry.description}".lower()
    doubt = dict.fromkeys(STYLES, 1.0)
    for sign in facts["signs"]:
        if _pattern(sign["regex"]).search(name if sign["where"] == "name" else text):
            doubt[sign["style"]] *= 1.0 - min(sign["strength"], 0.98)
    for row in facts["families"]:
        if row["family"] == entry.family:
            doubt[row["style"]] *= 1.0 - row["strength"]
    return {style: round(1.0 - value, 4) for style, value in doubt.items()}


# --------------------------------------------------------------------------- factors


def _factors(
    entry: ModelEntry,
    analysis: PromptAnalysis | None,
    loras: LoraSupport,
    memory: MemoryLimits,
    ratings: Sequence[RatedModel],
) -> tuple[Factor, ...]:
    values = {"memory": _memory(entry, memory)}
    style: StyleIntent = analysis.intent.style if analysis else "GENERAL"
    values["style"] = _style(entry, style)
    if analysis is not None:
        values["loras"] = _loras(loras)
        values["understanding"] = _understanding(entry, analysis)
    rated = _ratings(entry, style, ratings)
    if rated[1]:
        values["ratings"] = rated
    weights: Mapping[str, Any] = _facts()["weights"]
    return tuple(
        Factor(name=name, value=round(values[name][0], 4), weight=weights[name],
               detail=values[name][1])
        for name in weights
        if name in values
    )  # fmt: skip


def _style(entry: ModelEntry, asked: StyleIntent) -> tuple[float, str]:
    profile = style_profile(entry)
    known = {style: value for style, value in profile.items() if value}
    made = ", ".join(f"{style} {value:.2f}" for style, value in known.items())
    if asked == "GENERAL":
        # A model for one style can do others, and worse.
        return 1.0 - 0.5 * max(profile.values()), made or "made for no style in particular"
    others = max(value for style, value in profile.items() if style != asked)
    value = 0.5 + 0.5 * (profile[asked] - others)
    return value, made or "made for no style in particular"


def _loras(support: LoraSupport) -> tuple[float, str]:
    doubt = 1.0
    for confidence in support.confidences:
        doubt *= 1.0 - confidence
    return 1.0 - doubt, ", ".join(support.titles[:3]) or "none"


def _memory(entry: ModelEntry, memory: MemoryLimits) -> tuple[float, str]:
    size = _loaded_bytes(entry)
    if size is None:
        return 0.5, "size not known"
    shown = f"{size / 2**30:.1f} GiB"
    if size + WORKING_BYTES <= memory.device_bytes:
        return 1.0, f"{shown} fit"
    if size / 2 + WORKING_BYTES <= memory.device_bytes:
        return 0.6, f"{shown} fit in part, or at int8"
    return 0.2, f"{shown} are more than the device holds: slow"


def _understanding(entry: ModelEntry, analysis: PromptAnalysis) -> tuple[float, str]:
    """How well the text encoder reads this prompt: what is simple, any reads."""
    encoders = set(family(entry.family).text_encoders)
    rows = _facts()["readers"]
    strength = next(
        row["strength"] for row in rows if set(row["encoders"]) == encoders or not row["encoders"]
    )
    value = 1.0 - (1.0 - strength) * analysis.complexity
    return value, f"{' and '.join(sorted(encoders)) or 'its own encoder'}"


def _ratings(
    entry: ModelEntry, style: StyleIntent, ratings: Sequence[RatedModel]
) -> tuple[float, str]:
    """In [-1, 1]: the mean of its ratings around 3, shrunk to 0, those of other styles less."""
    total, weight, count = 0.0, 0.0, 0
    for one in ratings:
        if not _same_file(one, entry.file):
            continue
        counts = 1.0 if one.style == style else OTHER_STYLE
        total += counts * (one.rating - 3) / 2
        weight += counts
        count += 1
    if not count:
        return 0.0, ""
    return total / (weight + PRIOR_RATINGS), f"{count} rated image{'s' if count > 1 else ''}"


def _same_file(rated: RatedModel, file: FileRef) -> bool:
    if rated.sha256 and file.sha256:
        return rated.sha256 == file.sha256
    return rated.name == file.name


# --------------------------------------------------------------------------- what is left out


def _unusable(entry: ModelEntry, memory: MemoryLimits) -> tuple[str, str] | None:
    facts = _facts()["not_text_to_image"]
    name = _plain(f"{PurePosixPath(entry.file.name).stem} {entry.title}")
    if entry.family in facts["families"] or _pattern(facts["regex"]).search(name):
        return "not_text_to_image", "It is not made for pictures from text alone."
    if entry.family == "unknown":
        return "unknown_family", "Its family is not known, so neither are its settings."
    if entry.minor_unsafe:
        return "unsafe", "A hub marks it as showing minors."
    if entry.nsfw:
        return "nsfw", "A hub marks it as adult content; choose it yourself if you want it."
    size = _loaded_bytes(entry)
    room = memory.ram_bytes + (memory.device_bytes if memory.own_memory else 0)
    if size is not None and size / 2 > room:
        return "too_large", (
            f"It takes {size / 2**30:.1f} GiB, at int8 half of that, and this machine has "
            f"{room / 2**30:.1f} GiB."
        )
    return None


def _loaded_bytes(entry: ModelEntry) -> float | None:
    size = entry.file.size
    return None if size is None else size / 2 if entry.precision in _HALVED else size


def _lost(
    row: tuple[float, ModelEntry, tuple[Factor, ...]],
    score: float,
    best: ModelEntry,
    factors: Sequence[Factor],
) -> SkippedModel:
    """Why a checkpoint lost to the best: the factor that set it back most."""
    own = {factor.name: factor.value * factor.weight for factor in row[2]}
    behind = [
        (factor.value * factor.weight - own.get(factor.name, 0.0), factor) for factor in factors
    ]
    # What only the loser has can set it back too: bad ratings.
    named = {factor.name for factor in factors}
    behind += [(-f.value * f.weight, f) for f in row[2] if f.name not in named]
    difference, most = max(behind, key=lambda item: item[0])
    if score - row[0] < 1e-9:
        why = f"As good as {best.file.name}, which comes first by name."
    elif difference <= 0:
        why = f"{row[0]:.2f} against {score:.2f}."
    else:
        mine = next((f.detail for f in row[2] if f.name == most.name), "") or "nothing known"
        why = f"{row[0]:.2f} against {score:.2f}, most of it by {_LABELS[most.name]} ({mine})."
    return SkippedModel(name=row[1].file.name, code="lower_score", reason=why)


_LABELS = {
    "style": "what it is made for",
    "loras": "the LoRAs that fit",
    "memory": "memory",
    "understanding": "how it reads long prompts",
    "ratings": "your ratings",
}


def _reason(entry: ModelEntry, analysis: PromptAnalysis | None, factors: Sequence[Factor]) -> str:
    asked = f"{analysis.intent.style} was read in the prompt" if analysis else "for any prompt"
    said = "; ".join(f"{_LABELS[factor.name]}: {factor.detail}" for factor in factors)
    return f"Chosen by the pack, {asked}. Its family is {entry.family}; {said}."


def _plain(name: str) -> str:
    """A name in lower case with its words set apart, also at capitals."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return f"{name} {apart}".lower().replace("_", " ")


@cache
def _facts() -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("checkpoints.json").read_text("utf-8"))


@cache
def _pattern(regex: str) -> re.Pattern[str]:
    return re.compile(regex)
