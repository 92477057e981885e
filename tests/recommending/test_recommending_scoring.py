from __future__ import annotations

import numpy as np
import pytest
from intelligent_generation.core.recommending.scoring import load_ranking

NAN = float("nan")


def test_shares_of_the_ranking_add_up_for_any_row() -> None:
    ranking = load_ranking()
    models = ranking.models
    table = np.random.RandomState(0).rand(50, len(models.columns)).astype(np.float32) * 3
    table[::3, ::2] = NAN
    for row, answer in zip(table, models.answer(table), strict=True):
        start, shares = models.shares(row, ranking.factors)
        assert set(shares) == set(ranking.factors)
        assert start + sum(shares.values()) == pytest.approx(answer, abs=1e-4)


def test_every_column_of_the_ranking_belongs_to_a_factor() -> None:
    ranking = load_ranking()
    assert (
        len(ranking.factors)
        == len(ranking.models.columns)
        == len(ranking.models.networks.scale.mean)
    )
    assert {"trigger", "name", "tags", "semantic", "popularity", "rarity"} <= set(ranking.factors)
    assert set(ranking.judged) == {"base_model", "captions", "intent", "history"}
    assert 0 < ranking.scale < 2
