"""What ratings of images say of the LoRAs that made them, for a prompt like theirs. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..catalog.entries import LoraEntry
from ..plan import PromptAnalysis

NEUTRAL = 3
_FURTHEST = 2.0
"""Of a rating from NEUTRAL."""
_SHRINK = 2.0
"""Ratings of like prompts that a LoRA is taken to have without being liked or disliked; with it,
one image alone moves little."""
_OTHER_STYLE = 0.3
"""What a rating under another style of picture counts: bad for anime is not bad for landscapes."""
_NOTHING_SHARED = 0.2
"""What a rating counts whose prompt shares no concept with this one."""


class RatedLora(NamedTuple):
    """One LoRA in one rated image."""

    name: str
    """File name in the LoRA folders."""
    concepts: frozenset[str]
    """Of the image's prompt, in lower case."""
    style: str
    """The image's style intent."""
    rating: int
    """1 to 5."""
    together: int
    """How many LoRAs made the image; each takes its share of the rating."""


def history_of(
    rated: Sequence[RatedLora], analysis: PromptAnalysis
) -> Callable[[LoraEntry], float]:
    """The `history` factor: for one LoRA how its images were rated, in [-1, 1], 0 where nothing
    is known. Neutral ratings change nothing.

    The mean distance from a neutral rating, over ratings weighed by how like their prompts are
    (share of common concepts, same style), shrunk towards 0.
    """
    concepts = {concept.text.lower() for concept in analysis.concepts}
    sums: defaultdict[str, float] = defaultdict(float)
    weights: defaultdict[str, float] = defaultdict(float)
    for one in rated:
        if one.rating == NEUTRAL:
            continue
        either = len(concepts | one.concepts)
        like = len(concepts & one.concepts) / either if either else 0.0
        weight = _NOTHING_SHARED + (1.0 - _NOTHING_SHARED) * like
        weight *= 1.0 if one.style == analysis.intent.style else _OTHER_STYLE
        weight /= max(1, one.together)
        sums[one.name] += weight * (one.rating - NEUTRAL) / _FURTHEST
        weights[one.name] += weight
    values = {name: sums[name] / (weights[name] + _SHRINK) for name in sums}
    return lambda entry: values.get(entry.file.name, 0.0)
