from __future__ import annotations

import math

import numpy as np
import pytest
from intelligent_generation.core.recommending.networks import Networks

# Two networks of one hidden output each, asked about a and b; the second is told that b is unknown.
NETWORKS = Networks.read(
    {
        "mean": [0.0, math.log1p(4.0)],
        "spread": [math.log1p(4.0), math.log1p(4.0)],
        "unknown": [1],
        "weights": [[[[1.0], [1.0], [0.0]], [[0.0], [0.0], [2.0]]], [[[3.0]], [[0.5]]]],
        "offsets": [[[[0.0]], [[-1.0]]], [[[0.25]], [[0.0]]]],
    }
)
NAN = float("nan")


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ((1.0, 1.0), 3.25),  # a is one spread above its mean, b at its own
        ((0.0, 0.0), 0.25),  # one below: nothing goes on
        ((1.0, NAN), 3.25 + 0.5),
        ((NAN, 1.0), 0.25),  # of a nothing is said where it is unknown
        ((1e9, 1.0), 15.25),  # five spreads at most
        ((-1e9, 1.0), 0.25),
    ],
)
def test_a_row_is_answered_by_all_networks(row: tuple[float, float], answer: float) -> None:
    table = np.array([row, row], np.float32)
    assert NETWORKS.answer(table) == pytest.approx([answer] * 2)


def test_no_row_has_no_answer() -> None:
    assert NETWORKS.answer(np.zeros((0, 2), np.float32)).shape == (0,)


def test_what_only_two_columns_together_say_is_shared_between_them() -> None:
    groups = [np.array([True, False]), np.array([False, True])]
    # b alone lies below its mean and takes nothing; it takes away what a alone says.
    start, shares = NETWORKS.shares(np.array([1.0, 0.0], np.float32), groups)
    assert start == 0.25
    assert shares == pytest.approx([1.5, -1.5])


def test_that_a_value_is_unknown_belongs_to_its_group() -> None:
    groups = [np.array([True, False]), np.array([False, True])]
    start, shares = NETWORKS.shares(np.array([1.0, NAN], np.float32), groups)
    assert start == 0.25
    assert shares == pytest.approx([3.0, 0.5])
