"""How well each LoRA of a library fits a prompt: named factors, combined by ranking.json.

ranking.json holds regression trees fitted on public pairs of prompt and LoRA; a tree's answer is
shared out along its path among the factors that its splits ask about. The score is the sum over
the factors, in logits, and the confidence is its logistic.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..catalog.entries import LoraEntry
from ..plan import Factor
from .evidence import Search, compare
from .index import STYLE, Floats, Index, Indices
from .matching import captions_value
from .query import Query
from .trees import Trees
from .vectors import Similarity

_HOPELESS = -4.0
"""Score (a logit, confidence 0.02) below which no single factor makes a recommendation."""
_OTHERS = 0.4
"""Of the usual number of candidates, how many are looked for among LoRAs of other base models. A
few are named, so that one learns what the model cost; none is recommended."""
_RESEMBLES = {"similarity_clause": 0.45, "spelling_name": 0.5, "spelling_trigger": 0.5}
"""From which cosine on a LoRA without a word of the prompt can still be meant by it. Judged."""


class Ranking(NamedTuple):
    """ranking.json."""

    trees: Trees
    factors: tuple[str, ...]
    """The factor of each column of the trees."""
    scale: float
    offset: float
    """The trees' answer times `scale` plus `offset` is a calibrated logit."""
    judged: Mapping[str, float]
    """Weights of the factors that no pairs tell: base_model, captions, intent, history."""


RANKING = Path(__file__).with_name("ranking.json")


@cache
def load_ranking(path: Path = RANKING) -> Ranking:
    """What ranking.json, or another file of its form, says."""
    data = json.loads(path.read_text("utf-8"))
    factor_of = {
        column: row["factor"] for row in data["factors"] for column in row.get("columns", ())
    }
    trees = Trees.read(data["trees"])
    return Ranking(
        trees,
        tuple(factor_of[column.rstrip("#").removesuffix("/best")] for column in trees.columns),
        data["calibration"]["scale"],
        data["calibration"]["offset"],
        {row["factor"]: row["weight"] for row in data["factors"] if "weight" in row},
    )


class Scores(NamedTuple):
    """The candidates, the best first."""

    positions: Indices
    """Positions in the index; equal scores stand in the library's order."""
    confidence: Floats
    """In [0, 1]: the share of LoRAs with this confidence that fit."""
    judged: dict[str, Floats]
    """Value of each judged factor; rows as in `positions`."""
    columns: Floats
    """What the trees were asked about, [rows, columns]."""
    ranking: Ranking

    def resembles(self, row: int) -> bool:
        """Whether one row is near a clause of the prompt in meaning or in spelling."""
        values = dict(zip(self.ranking.trees.columns, self.columns[row].tolist(), strict=True))
        return any(values.get(column, 0.0) >= least for column, least in _RESEMBLES.items())

    def explain(self, row: int, details: Mapping[str, str]) -> tuple[Factor, ...]:
        """The factors of one row, the heaviest first. `details` says what matched."""
        ranking = self.ranking
        shares = dict.fromkeys(ranking.factors, 0.0)
        expected, paths = ranking.trees.shares(self.columns[row])
        for factor, share in zip(ranking.factors, paths, strict=True):
            shares[factor] += ranking.scale * float(share)
        shares["prior"] = ranking.scale * expected + ranking.offset
        found = [
            Factor(name=name, value=round(value, 4), weight=1.0, detail=details.get(name, ""))
            for name, value in shares.items()
        ]
        found += [
            Factor(
                name=name,
                value=round(float(values[row]), 4),
                weight=ranking.judged[name],
                detail=details.get(name, ""),
            )
            for name, values in self.judged.items()
        ]
        return tuple(sorted(found, key=lambda factor: -abs(factor.value * factor.weight)))


def score(
    index: Index,
    query: Query,
    fits: Mapping[str, float],
    intent: Callable[[LoraEntry], float] = lambda _: 0.0,
    *,
    similarity: Similarity | None = None,
    history: Callable[[LoraEntry], float] = lambda _: 0.0,
    ranking: Ranking | None = None,
) -> Scores:
    """Scores of the LoRAs that may fit the prompt, whatever their base model.

    Args:
        fits: for each family of the library its fit to the model in [0, 1]; 0 is scored as if it
            fitted, so that the caller can tell what another base model cost.
        intent: the factor of that name for one style LoRA, in [0, 1]; slow, so only LoRAs that it
            could lift are asked.
        similarity: of meaning, in the index's order.
        history: the factor of that name, in [-1, 1].
        ranking: how the factors are weighed; None for ranking.json.
    """
    ranking = ranking or load_ranking()
    fit = np.array([fits[family] for family in index.families], np.float32)[index.family]
    parts, tables = [], []
    search = Search(index, query, fit > 0, similarity)
    for some, share in ((fit > 0, 1.0), (fit <= 0, _OTHERS)):
        if some.any():
            parts.append(part := search.among(some, share=share))
            columns = compare(part.columns, float(some.sum()))
            tables.append(_table(columns, ranking.trees.columns))
    if not tables:
        none = np.zeros(0, np.float32)
        return Scores(np.zeros(0, np.int32), none, {}, np.zeros((0, 0), np.float32), ranking)
    positions = np.concatenate([part.positions for part in parts])
    table = np.concatenate(tables)
    logit = ranking.scale * ranking.trees.answer(table) + ranking.offset
    judged = {
        "base_model": np.where(fit[positions] > 0, fit[positions] - 1.0, 0.0).astype(np.float32),
        "captions": np.zeros(len(positions), np.float32),
        "intent": np.zeros(len(positions), np.float32),
        "history": np.zeros(len(positions), np.float32),
    }
    for row in np.flatnonzero(logit > _HOPELESS):
        entry = index.entries[positions[row]]
        judged["captions"][row] = captions_value(entry, query, index.rarity)
        if index.kind[positions[row]] == STYLE:
            judged["intent"][row] = intent(entry)
        judged["history"][row] = history(entry)
    for name, values in judged.items():
        logit = logit + ranking.judged[name] * values.astype(np.float64)
    confidence = 1.0 / (1.0 + np.exp(-np.clip(logit, -50.0, 50.0)))
    order = np.lexsort((positions, -confidence))
    return Scores(
        positions[order],
        confidence[order].astype(np.float32),
        {name: values[order] for name, values in judged.items()},
        table[order],
        ranking,
    )


def _table(columns: Mapping[str, Floats], wanted: tuple[str, ...]) -> Floats:
    return np.stack([columns[each] for each in wanted], axis=1).astype(np.float32)
