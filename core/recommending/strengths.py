"""How strong each recommended LoRA is applied.

Requirement 2.10 multiplies the author's strength, else 0.7, by relevance and complexity. Measured
on what people use (strengths.json) that is far too weak: a LoRA is used at its author's strength
however well it fits. So its bounds are kept, and its factors are not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

MIN_STRENGTH, MAX_STRENGTH = 0.3, 1.2
"""Of requirement 2.10."""


class Chosen(NamedTuple):
    """A strength and how it came about."""

    strength: float
    why: str


def default_strength(loras: int) -> float:
    """The strength of a LoRA whose author states none, where `loras` (1 or more) go together.

    Source: strengths.json.
    """
    table = _defaults()
    return table[min(max(loras, 1), max(table))]


def strength_for(recommended: float | None, loras: int) -> Chosen:
    """The author's strength, else the default for so many LoRAs, kept within 0.3 and 1.2.

    Args:
        recommended: the author's strength, if any; 0 and below (sliders that work both ways) says
            no direction, so the default stands in and the reason says so.
        loras: how many go together, this one included.
    """
    if recommended is not None and recommended > 0:
        strength = min(max(recommended, MIN_STRENGTH), MAX_STRENGTH)
        why = "its author's strength"
        if strength != recommended:
            why += f" {recommended:g}, kept within {MIN_STRENGTH} and {MAX_STRENGTH}"
        return Chosen(round(strength, 2), why)
    together = "one LoRA" if loras <= 1 else f"{loras} LoRAs together"
    why = f"what people use for {together}"
    if recommended is not None:
        why += f", as its author's {recommended:g} gives no direction"
    return Chosen(default_strength(loras), why)


@cache
def _defaults() -> dict[int, float]:
    data = json.loads(Path(__file__).with_name("strengths.json").read_text("utf-8"))
    return {row["loras"]: row["strength"] for row in data["defaults"]}


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
