"""Which shape of picture the prompt asks for (data: aspects.json)."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..plan import PromptAnalysis

_RATIO = re.compile(
    r"(?<![\w:.])(\d{1,2}(?:\.\d{1,2})?)\s?([:x×])\s?(\d{1,2}(?:\.\d{1,2})?)(?!\w|:|\.\d)",
    re.IGNORECASE,
)
_SIZE = re.compile(r"(?<!\w)(\d{3,5})\s?[x×]\s?(\d{3,5})(?!\d)", re.IGNORECASE)
_SCREEN = 16
_WIDEST = 4.0
"""Beyond 1:4 and 4:1 two numbers are not taken for a picture's size."""


class Aspect(NamedTuple):
    """A shape that the prompt asks for."""

    ratio: float
    """Width / height."""
    evidence: str
    """What in the prompt says so."""


def wanted_aspect(analysis: PromptAnalysis) -> Aspect | None:
    """The shape the prompt asks for, or None where it does not say.

    In this order: numbers (`16:9`, `1920x1080`), words that name a format (`phone wallpaper`),
    words that name a subject of usual shape (`landscape`), and the composition that the
    analysis is sure of.
    """
    return _by_number(analysis) or _by_word(analysis) or _by_composition(analysis)


def nearest_size(sizes: Sequence[Sequence[int]], ratio: float) -> tuple[int, int]:
    """The (width, height) whose shape is nearest to `ratio` = width / height.

    Nearest in log ratio, so that too wide and too tall count alike; the earlier size wins a tie.
    """
    width, height = min(sizes, key=lambda s: round(abs(math.log(s[0] / s[1] / ratio)), 6))
    return width, height


def _by_number(analysis: PromptAnalysis) -> Aspect | None:
    text = "".join(span.text for span in analysis.spans)
    for match in _SIZE.finditer(text):
        ratio = int(match[1]) / max(int(match[2]), 1)
        if 1 / _WIDEST <= ratio <= _WIDEST:
            return Aspect(ratio, f"{match[0]!r} in the prompt")
    for match in _RATIO.finditer(text):
        width, sign, height = match.groups()
        # `16x9` is a screen; `2x1` and `5x7` are more often bricks and grids.
        meant = sign == ":" or max(float(width), float(height)) >= _SCREEN
        if meant and f"{width}:{height}" in _data().ratios:
            return Aspect(float(width) / float(height), f"{match[0]!r} in the prompt")
    return None


def _by_word(analysis: PromptAnalysis) -> Aspect | None:
    found = []
    for index, clause in enumerate(analysis.clauses):
        text = " ".join(clause.text.lower().split())
        for row in _data().words:
            if row.content and analysis.intent.content not in row.content:
                continue
            match = row.pattern.search(text)
            if match:
                order = (row.kind != "format", index, match.start(), -len(match[0]))
                found.append((order, Aspect(row.ratio, f"{match[0]!r} in the prompt")))
    return min(found, key=lambda item: item[0])[1] if found else None


def _by_composition(analysis: PromptAnalysis) -> Aspect | None:
    intent = analysis.intent
    ratio = _data().composition.get(intent.content)
    if ratio is None or intent.confidence < _data().min_confidence:
        return None
    return Aspect(ratio, f"the prompt's content, {intent.content}")


class _Words(NamedTuple):
    kind: str
    ratio: float
    content: tuple[str, ...]
    pattern: re.Pattern[str]


class _Data(NamedTuple):
    ratios: frozenset[str]
    words: tuple[_Words, ...]
    composition: dict[str, float]
    min_confidence: float


@functools.cache
def _data() -> _Data:
    data = json.loads(Path(__file__).with_name("aspects.json").read_text(encoding="utf-8"))
    return _Data(
        ratios=frozenset(data["ratios"]),
        words=tuple(
            _Words(
                row["kind"],
                row["ratio"],
                tuple(row.get("content", ())),
                _pattern(row["words"], whole=row["how"] == "clause"),
            )
            for row in data["words"]
        ),
        composition=data["composition"]["ratios"],
        min_confidence=data["composition"]["min_confidence"],
    )


def _pattern(words: Sequence[str], *, whole: bool) -> re.Pattern[str]:
    # Longest first: an alternation takes the first branch that matches.
    either = "|".join(re.escape(w) for w in sorted(words, key=len, reverse=True))
    return re.compile(rf"^(?:{either})$" if whole else rf"(?<!\w)(?:{either})(?!\w)")
