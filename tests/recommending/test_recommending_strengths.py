from __future__ import annotations

import pytest
from intelligent_generation.core.recommending.strengths import balance, strength_for


@pytest.mark.parametrize(
    ("recommended", "loras", "expected"),
    [
        (0.75, 1, 0.75),
        (0.75, 3, 0.75),
        (0.1, 1, 0.3),
        (2.0, 1, 1.2),
    ],
)
def test_the_authors_strength_is_used_within_bounds(
    recommended: float, loras: int, expected: float
) -> None:
    assert strength_for(recommended, loras).strength == expected


def test_without_one_the_more_loras_the_weaker_each() -> None:
    alone, two, three, ten = (strength_for(None, loras).strength for loras in (1, 2, 3, 10))
    assert alone > two > three == ten >= 0.3


def test_a_strength_without_direction_is_said() -> None:
    chosen = strength_for(-1.0, 1)
    assert chosen.strength == strength_for(None, 1).strength
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
