"""How much a prompt asks for, in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ..plan import ComplexityBand
from .concepts import Found

WORD_WEIGHTS = {
    "character": 1.0,
    "content": 1.0,
    "mood": 1.0,
    "setting": 1.25,
    "style": 1.25,
    "lighting": 1.5,
    "camera": 1.5,
    "technical": 1.5,
}
"""How much one distinct word of detail counts, by the category of its phrase: terms of
photography and rendering are the more specific."""

CATEGORY_BONUS = 0.4
"""What each category counts that is present at all: diverse prompts ask for more."""

QUALITY_BONUS = 0.4
"""What quality words count together: they ask for care, not for more things."""

SCALE = 0.072
"""Fitted with the weights so that four prompts come within .05 of their targets: "cat" .1,
"anime girl, blue eyes" .3, a magical girl in six clauses .6, a Victorian portrait with lens and
aperture .9."""

WORDS_WITHOUT_DETAIL = frozenset({"style"})
SINGLE_CHARACTER_WEIGHT = 0.5
"""A Chinese or Japanese character is about half a word."""

MODERATE_FROM = 0.3
COMPLEX_FROM = 0.7


def complexity(found: Iterable[Found]) -> float:
    """Complexity of a prompt from the phrases found in it.

    1 - exp(-SCALE * detail), where detail is the sum, over distinct words, of the largest
    WORD_WEIGHTS entry among the phrases the word stands in, plus CATEGORY_BONUS for each category
    present, plus QUALITY_BONUS when any quality word is there. So it does not depend on order,
    case, punctuation, function words or repetition, and another phrase never lowers it.
    """
    weights: dict[str, float] = {}
    categories: set[str] = set()
    bonus = 0.0
    for phrase in found:
        if phrase.category == "quality":
            bonus = QUALITY_BONUS
            continue
        categories.add(phrase.category)
        for word in phrase.words:
            weight = WORD_WEIGHTS[phrase.category]
            if len(word) == 1 and not word.isascii():
                weight *= SINGLE_CHARACTER_WEIGHT
            if word not in WORDS_WITHOUT_DETAIL:
                weights[word] = max(weights.get(word, 0.0), weight)
    # Sorted, because the sum of floats depends on their order in the last digit.
    detail = math.fsum(sorted(weights.values())) + CATEGORY_BONUS * len(categories) + bonus
    return 1.0 - math.exp(-SCALE * detail)


def band(value: float) -> ComplexityBand:
    """Below .3 SIMPLE, below .7 MODERATE, else COMPLEX."""
    if value < MODERATE_FROM:
        return "SIMPLE"
    return "MODERATE" if value < COMPLEX_FROM else "COMPLEX"
