"""How strong each recommended LoRA is applied (REQUIREMENTS 2.10 and 2.12)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

DEFAULT_WEIGHT = 0.7
"""Base strength where the author recommends none (requirement 2.10)."""
MIN_STRENGTH, MAX_STRENGTH = 0.3, 1.2
_COMPLEX = 0.7


class Chosen(NamedTuple):
    """A strength and how it came about."""

    strength: float
    why: str


def strength_for(recommended: float | None, relevance: float, complexity: float) -> Chosen:
    """clip(base * (0.5 + 0.5 * relevance) * (0.9 if complexity > 0.7), 0.3, 1.2).

    `recommended` is the author's strength, if any; 0 and below (sliders that work both ways)
    says no direction, so the default stands in and the reason says so. `relevance` and
    `complexity` are in [0, 1]. Source: requirement 2.10.
    """
    base, source = DEFAULT_WEIGHT, "default"
    if recommended is not None and recommended > 0:
        base, source = recommended, "author's strength"
    elif recommended is not None:
        source = f"default, its author's {recommended:g} gives no direction"
    strength = base * (0.5 + 0.5 * relevance)
    why = f"{base:.2f} ({source}) × (0.5 + 0.5 × {relevance:.2f})"
    if complexity > _COMPLEX:
        strength *= 0.9
        why += " × 0.9 for a complex prompt"
    clipped = min(max(strength, MIN_STRENGTH), MAX_STRENGTH)
    if clipped != strength:
        why += f", kept within {MIN_STRENGTH} and {MAX_STRENGTH}"
    return Chosen(round(clipped, 2), why)


def balance(strengths: Sequence[float], room: float) -> tuple[float, ...]:
    """The strengths, all multiplied by one factor so that they sum to at most `room`.

    Ordered by preference: where scaling would push one below 0.3, the last is given up and the
    rest is scaled again, so the answer may be shorter. Source: requirement 2.12; the lower
    bound is requirement 2.10's.
    """
    kept = list(strengths)
    while kept and sum(kept) > room + 1e-9:
        factor = room / sum(kept)
        # Down to whole hundredths, so that rounding cannot lift the sum over the room again.
        scaled = [math.floor(value * factor * 100 + 1e-9) / 100 for value in kept]
        if min(scaled) >= MIN_STRENGTH:
            return tuple(scaled)
        kept.pop()
    return tuple(kept)
