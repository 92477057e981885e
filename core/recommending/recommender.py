"""From what the prompt says to which LoRAs to apply, how strong, and why."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

from ..catalog.entries import LoraEntry, LoraLibrary
from ..errors import LoraError, SettingError
from ..limits import MAX_LORAS, MIN_CONFIDENCE
from ..plan import (
    FileRef,
    Intent,
    LoraPlan,
    Notice,
    PlannedLora,
    PromptAnalysis,
    RemoteLora,
    SkippedLora,
)
from .assignment import Candidate, Loss, assign
from .index import Index, index_of
from .matching import Match, intent_value, match, side_of_intent
from .query import Query, read_query
from .safety import blocked_by, minors_in_sexual_context
from .scoring import Ranking, Scores, score
from .strengths import Chosen, balance, strength_for
from .text import words
from .triggers import append, needed
from .vectors import Similarity

_UNKNOWN = "unknown"
_MOST_FITTING = 100
"""How many of the best are compared with one another. Three or so of them are taken."""
_MOST_NAMED = {
    "unreadable": 10,
    "conflict": 10,
    "not_asked": 5,
    "over_limit": 5,
    "blocked": 5,
    "other_base_model": 5,
    "acceleration": 3,
    "below_confidence": 3,
}
"""Skipped LoRAs named for each code, the best fitting first."""
_MOST_UNSURE = 10
"""LoRAs below the least confidence that are looked at as alternatives."""
_MOST_SERVED = 5
"""Clauses named as served by one LoRA."""
_WORTH_NAMING = 0.1
"""Confidence below which a LoRA is not worth a word to say it was not taken."""


@dataclass(frozen=True)
class RecommendSettings:
    """The user's limits.

    Raises:
        SettingError: a value out of range.
    """

    max_loras: int = MAX_LORAS
    """LoRAs in the plan at most; the user's own count but are never left out."""
    min_confidence: float = MIN_CONFIDENCE
    """In [0, 1]."""
    allow_style_mixing: bool = True
    """Whether two style LoRAs may be used together."""
    blocked_tags: tuple[str, ...] = ()
    """Words or phrases, compared whole, that no recommended LoRA may have."""
    allow_nsfw: bool = False
    max_total_strength: float = 3.0
    """Sum of the model strengths (requirement 2.12)."""

    def __post_init__(self) -> None:
        if self.max_loras < 0:
            raise SettingError(f"max_loras is {self.max_loras}; use 0 or more.")
        if not 0.0 <= self.min_confidence <= 1.0:
            raise SettingError(f"min_confidence is {self.min_confidence}; use 0 to 1.")
        if not self.max_total_strength >= 0.0:
            raise SettingError(f"max_total_strength is {self.max_total_strength}; use 0 or more.")


_DEFAULTS = RecommendSettings()
_ALL_LOCAL: Mapping[FileRef, RemoteLora] = {}


class UserLora(NamedTuple):
    """A LoRA that the user named: in the prompt, in a LoRA stack, or by a hub's address."""

    entry: LoraEntry
    model_strength: float
    clip_strength: float
    origin: Literal["prompt_tag", "stack", "reference"]
    remote: RemoteLora | None = None
    """Where to get it, when it is not on this machine."""


def recommend(
    analysis: PromptAnalysis,
    library: LoraLibrary,
    *,
    family: str,
    fit: Callable[[str, str], float],
    checkpoint: str = "",
    settings: RecommendSettings = _DEFAULTS,
    user_loras: Sequence[UserLora] = (),
    remote: Mapping[FileRef, RemoteLora] = _ALL_LOCAL,
    similarity: Similarity | None = None,
    history: Callable[[LoraEntry], float] = lambda _: 0.0,
    ranking: Ranking | None = None,
) -> LoraPlan:
    """Which LoRAs to apply to the prompt, at which strengths, and the text that goes with them.

    Pure and deterministic. The user's own LoRAs come first and keep their strengths; what they
    serve gets no second LoRA. When nothing fits, nothing is recommended.

    Args:
        analysis: what the prompt says.
        library: the LoRA files there are.
        family: the model's family id. For `unknown` nothing is recommended.
        fit: `fit(lora_family, model_family)` in [0, 1]; 0 means it cannot be applied.
        checkpoint: the stem of the file that the model was loaded from; empty where it is not
            known.
        settings: the user's limits.
        user_loras: the user's own choices, in order.
        remote: the entries of the library that are not on this machine, by their file, with where
            to get them. They are chosen for what no LoRA on disk serves, and are pending.
        similarity: of meaning, in the order of the library's entries; None compares words alone.
        history: what ratings taught of one LoRA for such a prompt, in [-1, 1].
        ranking: how the factors are weighed; None for ranking.json.

    Raises:
        LoraError: a LoRA the user named is of another base model, or would put minors into a
            sexual context.
    """
    index = index_of(library)
    query = read_query(analysis.clauses).on(checkpoint)
    fits = {each: min(1.0, max(0.0, fit(each, family))) for each in index.families}
    users = [_user_candidate(lora, family, fit, query, index) for lora in user_loras]
    report = _Report()
    for file in library.unreadable:
        report.skip(file.name, "unreadable", file.problem)

    chosen: list[Candidate] = []
    losses: list[Loss] = []
    candidates = 0
    if family == _UNKNOWN:
        report.tell(
            "warning",
            "model_family_unknown",
            "The model's family is unknown, so no LoRA was recommended: one of another base model "
            "would do nothing or harm. Name the LoRAs you want yourself.",
        )
    else:
        candidates = sum(count for each, count in index.family_counts().items() if fits[each] > 0)
        scores = score(
            index,
            query,
            fits,
            intent_factor(analysis.intent),
            similarity=similarity,
            history=history,
            ranking=ranking,
        )
        fitting, too_low = _sift(scores, index, query, family, fits, settings, users, report)
        fitting.sort(key=lambda candidate: candidate.entry.file in remote)
        chosen, losses = assign(
            analysis, fitting, users, allow_style_mixing=settings.allow_style_mixing
        )
        for loss in losses:
            report.skip(loss.candidate.entry.file.name, loss.code, f"Left out: {loss.reason}.")
        losses += too_low
        _tell_if_none(library, family, chosen, users, report)
    recommended = _with_strengths(chosen, settings, user_loras, report)

    prompt = words("".join(span.text for span in analysis.spans))
    loras: list[PlannedLora] = []
    added: list[str] = []
    for lora, candidate in zip(user_loras, users, strict=True):
        triggers = _needed(candidate, prompt, index, added)
        loras.append(_planned_user(lora, candidate.match, triggers, analysis))
        if triggers:
            report.tell(
                "info",
                "trigger_words_added",
                f'Added to the prompt for "{lora.entry.title}", which you chose: '
                f"{', '.join(triggers)}. Write one of its trigger words yourself to stop that.",
            )
    for candidate, chosen_strength in recommended:
        triggers = _needed(candidate, prompt, index, added)
        place = remote.get(candidate.entry.file)
        planned = _planned(candidate, chosen_strength, triggers, analysis, family, place)
        if other := _nearest(candidate, losses):
            planned = planned.model_copy(update={"reason": f"{planned.reason} {other}"})
        loras.append(planned)
    report.tell_counts()
    return LoraPlan(
        family=family,
        loras=tuple(loras),
        segments=append(analysis.segments, added),
        skipped=tuple(report.skipped),
        candidates=candidates,
        notices=tuple(report.notices),
    )


class _Report:
    """What was left out, so many of each kind, and what else is to be said."""

    def __init__(self) -> None:
        self.skipped: list[SkippedLora] = []
        self.notices: list[Notice] = []
        self._counts: Counter[str] = Counter()

    def skip(self, name: str, code: str, reason: str) -> None:
        self._counts[code] += 1
        if self._counts[code] <= _MOST_NAMED[code]:
            self.skipped.append(SkippedLora(name=name, code=code, reason=reason))

    def tell(self, level: Literal["info", "warning"], code: str, message: str) -> None:
        self.notices.append(Notice(level=level, code=code, message=message))

    def tell_counts(self) -> None:
        if (more := self._counts["unreadable"] - _MOST_NAMED["unreadable"]) > 0:
            self.tell(
                "warning",
                "more_unreadable",
                f"{more} more files in the LoRA folders cannot be read. Delete them or download "
                "them again.",
            )


def _user_candidate(
    lora: UserLora, family: str, fit: Callable[[str, str], float], query: Query, index: Index
) -> Candidate:
    entry = lora.entry
    where = "named in the prompt" if lora.origin == "prompt_tag" else "in the LoRA stack"
    if _UNKNOWN not in (entry.family, family) and fit(entry.family, family) <= 0:
        raise LoraError(
            f'The LoRA "{entry.file.name}" ({where}) is made for {entry.family}, but the model is '
            f"{family}: it cannot be applied. Take it out, or load a {entry.family} model."
        )
    if minors_in_sexual_context(entry, query.clauses):
        raise LoraError(
            f'The LoRA "{entry.file.name}" ({where}) would put minors into a sexual context. '
            "That is never made. Take it out or change the prompt."
        )
    return Candidate(entry, 1.0, match(entry, query, index.rarity), by_user=True)


def intent_factor(intent: Intent) -> Callable[[LoraEntry], float]:
    """The `intent` factor of a LoRA, in [0, 1], for a prompt of this intent."""
    side = side_of_intent(intent.style)
    return lambda entry: intent_value(entry, side, intent.confidence) if side else 0.0


def _sift(
    scores: Scores,
    index: Index,
    query: Query,
    family: str,
    fits: Mapping[str, float],
    settings: RecommendSettings,
    users: Sequence[Candidate],
    report: _Report,
) -> tuple[list[Candidate], list[Loss]]:
    """The LoRAs that fit prompt, model and limits, best first, and the best of those that would
    if they were surer; the others are reported."""
    own = {(user.entry.file.folder, user.entry.file.name) for user in users}
    fitting: list[Candidate] = []
    unsure: list[Loss] = []
    for row, position in enumerate(scores.positions):
        confidence = float(scores.confidence[row])
        too_low = confidence < settings.min_confidence
        if (too_low and confidence < _WORTH_NAMING) or len(fitting) >= _MOST_FITTING:
            break
        entry = index.entries[position]
        name = entry.file.name
        if (entry.file.folder, name) in own:
            continue
        if too_low:
            if fits[entry.family] > 0:
                least = f"the least confidence {settings.min_confidence:g}"
                why = f"{_shown(confidence)} is below {least}"
                report.skip(name, "below_confidence", f"Its confidence {why}.")
                if len(unsure) < _MOST_UNSURE:
                    loser = Candidate(entry, confidence, match(entry, query, index.rarity))
                    unsure.append(Loss(loser, "below_confidence", "that is not sure enough"))
        elif fits[entry.family] <= 0:
            why = f"Made for {entry.family}; the model is {family}."
            if entry.family == _UNKNOWN:
                why = "Its base model cannot be told; name it yourself to try it."
            report.skip(name, "other_base_model", why)
        elif entry.variant is not None:
            why = "changes how to sample, not what to paint: load it yourself if you want it"
            report.skip(name, "acceleration", f"A {entry.variant} LoRA {why}.")
        elif why := blocked_by(
            entry, query.clauses, allow_nsfw=settings.allow_nsfw, tags=settings.blocked_tags
        ):
            report.skip(name, "blocked", f"Not recommended: {why}.")
        else:
            found = match(entry, query, index.rarity)
            if not found.worth and not scores.resembles(row):
                continue  # well known, perhaps, but it has nothing to do with the prompt
            explain = partial(scores.explain, row, found.details)
            fitting.append(Candidate(entry, confidence, found, explain))
    return fitting, unsure


def _shown(confidence: float) -> str:
    # Rounded down: 0.499 must not read as 0.50 where that is the limit.
    return f"{math.floor(confidence * 100) / 100:.2f}"


def _nearest(chosen: Candidate, losses: Sequence[Loss]) -> str:
    """The best LoRA that lost and serves one of the same clauses, and why it lost, in words."""
    clauses = set(chosen.match.clauses)
    rivals = [loss for loss in losses if clauses & set(loss.candidate.match.clauses)]
    if not rivals:
        return ""
    best = max(rivals, key=lambda loss: loss.candidate.confidence)
    loser = best.candidate
    return (
        f'The nearest alternative, "{loser.entry.title}", has confidence '
        f"{_shown(loser.confidence)}: {best.reason}."
    )


def _tell_if_none(
    library: LoraLibrary,
    family: str,
    chosen: Sequence[Candidate],
    users: Sequence[Candidate],
    report: _Report,
) -> None:
    if chosen or users:
        return
    if not library.entries:
        message = "There are no LoRA files in the LoRA folders, so none is used."
        report.tell("info", "no_loras", message)
    else:
        message = f"No LoRA for {family} fits this prompt well enough, so none is used."
        report.tell("info", "no_lora_fits", message)


def _with_strengths(
    chosen: Sequence[Candidate],
    settings: RecommendSettings,
    user_loras: Sequence[UserLora],
    report: _Report,
) -> list[tuple[Candidate, Chosen]]:
    """The candidates there is room for, by number and by strength, with their strengths."""
    most = max(0, settings.max_loras - len(user_loras))
    for candidate in chosen[most:]:
        why = f"There are {settings.max_loras} LoRAs already, the most that max_loras allows."
        report.skip(candidate.entry.file.name, "over_limit", why)
    chosen = chosen[:most]
    wanted = [
        strength_for(candidate.entry.recommended_weight, len(chosen) + len(user_loras))
        for candidate in chosen
    ]
    limit = settings.max_total_strength
    room = max(0.0, limit - sum(abs(lora.model_strength) for lora in user_loras))
    given = balance([each.strength for each in wanted], room)
    for candidate in chosen[len(given) :]:
        why = f"The strengths would sum to more than max_total_strength, {limit:g}."
        report.skip(candidate.entry.file.name, "over_limit", why)
    fitted = []
    for candidate, want, strength in zip(chosen, wanted, given, strict=False):
        why = want.why
        if strength < want.strength:
            why += f", scaled so that all strengths sum to at most {limit:g}"
        fitted.append((candidate, Chosen(strength, why)))
    return fitted


def _needed(
    candidate: Candidate, prompt: tuple[str, ...], index: Index, added: list[str]
) -> tuple[str, ...]:
    """The trigger words to add for one LoRA; they are put into `added` too."""
    there = (*prompt, *(word for phrase in added for word in ("", *words(phrase))))
    found = needed(candidate.match.text, there, index.rarity, sure_tags=not candidate.by_user)
    added += found
    return found


def _planned_user(
    lora: UserLora, found: Match, triggers: tuple[str, ...], analysis: PromptAnalysis
) -> PlannedLora:
    where = "you wrote it into the prompt" if lora.origin == "prompt_tag" else "your LoRA stack"
    return PlannedLora(
        file=lora.entry.file,
        title=lora.entry.title,
        model_strength=lora.model_strength,
        clip_strength=lora.clip_strength,
        origin=lora.origin,
        trigger_words=triggers,
        serves=_clauses(found, analysis),
        reason=f"Your own choice ({where}), used at the strength you gave.",
    )


def _planned(
    candidate: Candidate,
    chosen: Chosen,
    triggers: tuple[str, ...],
    analysis: PromptAnalysis,
    family: str,
    place: RemoteLora | None,
) -> PlannedLora:
    entry, found = candidate.entry, candidate.match
    serves = _clauses(found, analysis)
    matched = next(
        (
            f"{label} ({found.details[factor]})"
            for factor, label in _FIELDS.items()
            if factor in found.details
        ),
        "description",
    )
    asked = " and ".join(f'"{clause}"' for clause in serves[:3]) or "the prompt"
    if entry.family == family:
        base = f"it is made for {family} like the model"
    elif entry.family == _UNKNOWN:
        base = "its base model is unknown"
    else:
        base = f"it is made for {entry.family}, which works on {family}"
    reason = (
        f"Fits {asked} by its {matched}, confidence {candidate.confidence:.2f}; {base}; "
        f"strength {chosen.strength:.2f}, {chosen.why}."
    )
    return PlannedLora(
        file=entry.file,
        title=entry.title,
        model_strength=chosen.strength,
        clip_strength=chosen.strength,
        origin="recommended",
        trigger_words=triggers,
        serves=serves,
        confidence=round(candidate.confidence, 4),
        factors=candidate.explain(),
        reason=reason,
        remote=place,
        pending=place is not None,
    )


_FIELDS = {
    "trigger": "trigger word",
    "name": "name",
    "trigger_share": "trigger words",
    "tags": "tags",
}


def _clauses(found: Match, analysis: PromptAnalysis) -> tuple[str, ...]:
    return tuple(dict.fromkeys(analysis.clauses[at].text for at in found.clauses))[:_MOST_SERVED]
