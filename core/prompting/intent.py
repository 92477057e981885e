"""What kind of picture a prompt asks for, by weighing all evidence in it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar, get_args

from ..plan import ContentIntent, Intent, QualityIntent, StyleIntent
from .concepts import Found

STYLE_THRESHOLD = 0.3
"""Evidence that a style needs; below it the style is GENERAL."""

QUALITY_THRESHOLD = 0.4
"""Evidence that HIGH or LOW needs; below it the quality is MEDIUM."""

FIRST_SUBJECT_POWER = 1.25
"""The first subject named counts a quarter more: it is mostly what the picture is of."""

STRONGEST_EMPHASIS = 1.5
STRONGEST_EVIDENCE = 0.98
LEAST_DOUBT = 1e-3
"""Doubt below which more evidence adds nothing for a model that reads it."""

DEFAULT_CONTENT: Mapping[str, Mapping[str, float]] = {
    "character": {"CHARACTER": 0.3},
    "content": {"OBJECT": 0.15},
    "setting": {"SCENE": 0.2},
}
"""Evidence of a phrase whose words the lexicon gives no content for, by its category."""

MOST_UNKNOWN = 3
"""Phrases whose words the lexicon gives no content for that count, of each category: hundreds of
them are no more telling than a few."""

_Label = TypeVar("_Label", bound=str)


class Weighted(NamedTuple):
    """A phrase and the emphasis of the clause it stands in."""

    found: Found
    weight: float


Evidence = Mapping[ContentIntent, float]
"""By content: -log of the doubt left, which is product(1 - strength) over the hints at it."""

ContentReader = Callable[[Evidence], tuple[ContentIntent, float]]
"""Says what the picture is mainly of, and the lead of that over the next, from the evidence."""


def intent(phrases: Iterable[Weighted], read_content: ContentReader | None = None) -> Intent:
    """The intent that most evidence points to.

    Each phrase is evidence of the strength that lexicon.json gives, times its emphasis; strengths
    combine as 1 - product(1 - strength), so that no number of faint hints makes a certainty.
    Confidence is the mean over style and content of the lead of the first over the second.
    Ties go to the label named first in plan.py.

    Args:
        read_content: decides the content in place of the evidence alone.
    """
    style = dict.fromkeys(get_args(StyleIntent), 1.0)
    content: dict[ContentIntent, float] = dict.fromkeys(get_args(ContentIntent), 1.0)
    quality = dict.fromkeys(get_args(QualityIntent), 1.0)
    subject_seen = False
    unknown: Counter[str] = Counter()
    for phrase, weight in phrases:
        emphasis = min(max(weight, 0.0), STRONGEST_EMPHASIS)
        of_content = _merged(entry.content for entry in phrase.entries)
        if not of_content and unknown[phrase.category] < MOST_UNKNOWN:
            unknown[phrase.category] += 1
            of_content = DEFAULT_CONTENT.get(phrase.category, {})
        subject = bool(of_content) and phrase.category in DEFAULT_CONTENT
        power = 1.0 if subject_seen or not subject else FIRST_SUBJECT_POWER
        subject_seen = subject_seen or subject
        _weigh(style, _merged(entry.style for entry in phrase.entries), emphasis, 1.0)
        _weigh(content, of_content, emphasis, power)
        _weigh(quality, _merged(entry.quality for entry in phrase.entries), emphasis, 1.0)
    best_style, style_evidence, style_lead = _first(style)
    best_content, content_evidence, content_lead = _first(content)
    best_quality, quality_evidence, _ = _first(quality)
    if content_evidence <= 0:
        best_content = "OBJECT"
    if read_content is not None:
        best_content, content_lead = read_content(
            {label: -math.log(max(doubt, LEAST_DOUBT)) for label, doubt in content.items()}
        )
    return Intent(
        style=best_style if style_evidence >= STYLE_THRESHOLD else "GENERAL",
        content=best_content,
        quality=best_quality if quality_evidence >= QUALITY_THRESHOLD else "MEDIUM",
        confidence=round((style_lead + content_lead) / 2, 4),
    )


def _merged(hints: Iterable[Mapping[str, float]]) -> dict[str, float]:
    merged: dict[str, float] = {}
    for hint in hints:
        for label, strength in hint.items():
            merged[label] = max(merged.get(label, 0.0), strength)
    return merged


def _weigh(
    doubt: dict[Any, float], hints: Mapping[Any, float], emphasis: float, power: float
) -> None:
    for label, strength in hints.items():
        evidence = min(strength * emphasis, STRONGEST_EVIDENCE)
        doubt[label] *= (1.0 - evidence) ** power


def _first(doubt: dict[_Label, float]) -> tuple[_Label, float, float]:
    """The label with most evidence, its evidence, and its lead over the second."""
    ranked = sorted(doubt, key=doubt.__getitem__)
    first, second = ranked[:2]
    return first, 1.0 - doubt[first], doubt[second] - doubt[first]
