"""Which of the fitting LoRAs go together: one for each thing asked for, none against another."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..catalog.entries import LoraEntry
from ..plan import Factor, PromptAnalysis
from .matching import Match, opposed, side_of_intent, sides_of
from .text import COUNTING, name_words, words

_SAME = 0.5
"""Share of a LoRA's matched words, by worth, that another one covers, from which both serve
the same thing."""
_CLEAR_INTENT = 0.5
MAX_STYLES = 2
_PEOPLE = frozenset(COUNTING["people"])
_COUNT_TAG = re.compile(r"(\d{1,2})\+?(?:girl|boy|woman|man|other|people)s?")
_NUMBERS: dict[str, int] = COUNTING["numbers"]
_GROUPS: dict[str, int] = COUNTING["groups"]


class Candidate(NamedTuple):
    """A LoRA that may be chosen, or that the user chose."""

    entry: LoraEntry
    confidence: float
    match: Match
    explain: Callable[[], tuple[Factor, ...]] = tuple
    """The factors of its confidence; none for the user's own. Takes time, so only of those that
    are used it is asked."""
    by_user: bool = False


class Loss(NamedTuple):
    """A candidate that was not chosen, and why."""

    candidate: Candidate
    code: str
    reason: str


def assign(
    analysis: PromptAnalysis,
    candidates: Sequence[Candidate],
    users: Sequence[Candidate],
    *,
    allow_style_mixing: bool,
) -> tuple[list[Candidate], list[Loss]]:
    """The candidates that go together and with the user's own, best first, and the others.

    Greedy by confidence, so whenever two exclude each other the lower loses; the user's own
    never lose. How many are used in the end is the caller's business.
    """
    characters = characters_asked(analysis)
    styles = MAX_STYLES if allow_style_mixing else 1
    chosen: list[Candidate] = []
    losses: list[Loss] = []
    for candidate in candidates:
        against = [*users, *chosen]
        if reason := _unasked(analysis, candidate.match):
            losses.append(Loss(candidate, "not_asked", reason))
        elif reason := _conflict(candidate, against) or _too_many(
            candidate, against, characters, styles
        ):
            losses.append(Loss(candidate, "conflict", reason))
        else:
            chosen.append(candidate)
    return chosen, losses


def characters_asked(analysis: PromptAnalysis) -> int:
    """How many different characters the prompt asks for, at least 1.

    Counted people (`2girls`, `1boy`, `two women`, `a couple`) decide; without any, the
    characters that the analysis found.
    """
    counted = 0
    for clause in analysis.clauses:
        run = words(clause.text)
        for at, word in enumerate(run):
            if tag := _COUNT_TAG.fullmatch(word):
                counted += int(tag.group(1))
            elif word in _NUMBERS and any(w in _PEOPLE for w in run[at + 1 : at + 3]):
                counted += _NUMBERS[word]
            elif word in _GROUPS:
                counted = max(counted, _GROUPS[word])
    return max(1, counted or len(set(analysis.concepts_in("character"))))


def _unasked(analysis: PromptAnalysis, found: Match) -> str | None:
    if found.kind == "character" and not found.named:
        return "a character that the prompt does not name"
    intent = analysis.intent
    side = side_of_intent(intent.style) if intent.confidence >= _CLEAR_INTENT else None
    pair = opposed(found.sides, {side}) if side and side not in found.sides else None
    # A prompt may itself ask for both: a photo of an anime figure.
    if pair and pair[0] not in sides_of(words(clause.text) for clause in analysis.clauses):
        return f"its {pair[0]} style goes against the {side} style that the prompt asks for"
    return None


def _conflict(candidate: Candidate, against: Sequence[Candidate]) -> str | None:
    mine = candidate.match
    for winner in against:
        theirs = winner.match
        title = f'"{winner.entry.title}"'
        how = "your own choice" if winner.by_user else f"confidence {winner.confidence:.2f}"
        if _duplicates(candidate, winner):
            return f"another version of {title} ({how})"
        if not (mine.sides & theirs.sides) and (pair := opposed(mine.sides, theirs.sides)):
            return (
                f"its {pair[0]} style and the {pair[1]} style of {title} ({how}) exclude each other"
            )
        whole = sum(mine.worth.values())
        if whole and sum(v for w, v in mine.worth.items() if w in theirs.worth) > _SAME * whole:
            served = ", ".join(word for word in mine.worth if word in theirs.worth)
            return f"{title} ({how}) already serves: {served}"
    return None


def _too_many(
    candidate: Candidate, against: Sequence[Candidate], characters: int, styles: int
) -> str | None:
    limit = {"character": characters, "style": styles}.get(candidate.match.kind or "")
    same = [other for other in against if other.match.kind == candidate.match.kind]
    if limit is None or len(same) < limit:
        return None
    titles = ", ".join(f'"{other.entry.title}"' for other in same)
    noun = f"{candidate.match.kind} LoRA" + ("s" if limit > 1 else "")
    return f"at most {limit} {noun} for this prompt, taken by {titles}"


def _duplicates(a: Candidate, b: Candidate) -> bool:
    if a.entry.file == b.entry.file:
        return True
    name = name_words(a.entry.title, a.entry.family)
    if name and name == name_words(b.entry.title, b.entry.family):
        return True
    return bool(a.match.identity) and a.match.identity == b.match.identity
