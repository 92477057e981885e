from __future__ import annotations

import numpy as np
import pytest
from intelligent_generation.core.recommending.trees import Trees

# Two trees: "is a at most 1? then is b at most 0?" and one leaf alone.
TREES = Trees.read(
    {
        "columns": ["a", "b"],
        "roots": [0, 5],
        "column": [0, 1, 0, 0, 0, 0],
        "threshold": [1.0, 0.0, 3e38, 3e38, 3e38, 3e38],
        "left": [1, 3, 2, 3, 4, 5],
        "missing_left": [0, 1, 1, 1, 1, 1],
        "value": [0.5, -1.0, 2.0, -3.0, 1.0, 0.25],
        "depth": 2,
    }
)
NAN = float("nan")


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ((1.0, 0.0), -3.0),
        ((1.0, 0.1), 1.0),
        ((1.1, 0.0), 2.0),
        ((NAN, 0.0), 2.0),  # a missing a goes right, a missing b left
        ((0.0, NAN), -3.0),
    ],
)
def test_a_row_takes_its_path(row: tuple[float, float], answer: float) -> None:
    table = np.array([row, row], np.float32)
    assert TREES.answer(table).tolist() == [answer + 0.25] * 2


def test_shares_add_up_and_go_to_the_columns_that_were_asked() -> None:
    mean, shares = TREES.shares(np.array((1.0, 0.1), np.float32))
    assert mean == 0.75
    assert shares.tolist() == [-1.5, 2.0]
