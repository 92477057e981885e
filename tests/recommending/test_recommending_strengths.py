from __future__ import annotations

import pytest
from intelligent_generation.core.recommending.strengths import balance, strength_for


@pytest.mark.parametrize(
    ("recommended", "relevance", "complexity", "expected"),
    [
        (None, 1.0, 0.2, 0.70),
        (None, 0.0, 0.2, 0.35),
        (0.8, 0.5, 0.2, 0.60),
        (0.8, 0.5, 0.7, 0.60),
        (0.8, 0.5, 0.71, 0.54),
        (0.3, 0.0, 0.9, 0.30),
        (2.0, 1.0, 0.1, 1.20),
    ],
)
def test_strength_formula(
    recommended: float | None, relevance: float, complexity: float, expected: float
) -> None:
    assert strength_for(recommended, relevance, complexity).strength == pytest.approx(expected)


def test_a_strength_without_direction_is_said() -> None:
    chosen = strength_for(-1.0, 1.0, 0.1)
    assert chosen.strength == 0.7
    assert "-1" in chosen.why


def test_within_room_nothing_changes() -> None:
    assert balance([0.7, 0.7, 0.7], 3.0) == (0.7, 0.7, 0.7)


def test_over_the_room_all_are_scaled_alike_and_never_sum_above_it() -> None:
    scaled = balance([1.2, 1.2, 1.2], 3.0)
    assert scaled == (1.0, 1.0, 1.0)
    uneven = balance([1.13, 0.97, 0.71], 2.0)
    assert sum(uneven) <= 2.0
    assert uneven[0] / uneven[2] == pytest.approx(1.13 / 0.71, abs=0.03)


def test_the_last_is_given_up_rather_than_made_too_weak() -> None:
    assert balance([0.7, 0.7, 0.7], 0.8) == (0.4, 0.4)
    assert balance([0.7], 0.1) == ()
    assert balance([], 0.0) == ()
