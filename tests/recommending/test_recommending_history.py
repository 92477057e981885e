from __future__ import annotations

import pytest
from intelligent_generation.core.catalog.entries import LoraEntry
from intelligent_generation.core.plan import Concept, FileRef, Intent, PromptAnalysis
from intelligent_generation.core.recommending import RatedLora, history_of


def analysis(*concepts: str, style: str = "ANIME") -> PromptAnalysis:
    return PromptAnalysis(
        prompt="x",
        segments=("x",),
        negative_segments=("",),
        spans=(),
        clauses=(),
        concepts=tuple(Concept(category="content", text=c, weight=1.0) for c in concepts),
        intent=Intent.model_validate(
            {"style": style, "content": "SCENE", "quality": "MEDIUM", "confidence": 0.5}
        ),
        complexity=0.4,
        complexity_band="MODERATE",
    )


def entry(name: str) -> LoraEntry:
    return LoraEntry(FileRef(folder="loras", name=name), name, "sdxl", None, 1.0, "test")


def rated(rating: int, *concepts: str, name: str = "ink", style: str = "ANIME", together: int = 1):
    return RatedLora(name, frozenset(concepts), style, rating, together)


def value(*ratings: RatedLora, style: str = "ANIME") -> float:
    return history_of(ratings, analysis("castle", "hill", style=style))(entry("ink"))


def test_good_ratings_speak_for_it_and_bad_ones_against_it() -> None:
    assert value(rated(5, "castle", "hill")) > 0 > value(rated(1, "castle", "hill"))
    assert value(rated(5, "castle")) == pytest.approx(-value(rated(1, "castle")))


def test_what_says_nothing_changes_nothing() -> None:
    assert value() == 0
    assert value(*[rated(3, "castle")] * 9) == 0
    assert value(rated(5, "castle", name="other")) == 0
    mixed = value(rated(5, "castle"))
    assert value(rated(5, "castle"), *[rated(3, "castle")] * 9) == mixed


def test_likeness_of_the_prompts_counts() -> None:
    same = value(rated(5, "castle", "hill"))
    part = value(rated(5, "castle", "robot"))
    none = value(rated(5, "robot", "car"))
    assert same > part > none > 0
    assert value(rated(5, "castle", "hill"), style="PHOTOREAL") < same


def test_one_image_moves_little_and_many_more() -> None:
    values = [value(*[rated(5, "castle", "hill")] * count) for count in (1, 3, 30)]
    assert values[0] < 0.4 < values[1] < 0.7 < values[2] < 1
    assert values == sorted(values)


def test_loras_share_the_rating_of_an_image() -> None:
    assert value(rated(5, "castle", together=3)) < value(rated(5, "castle"))
