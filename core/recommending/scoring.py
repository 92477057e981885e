"""How well each LoRA of a library fits a prompt: named factors, combined by ranking.json.

ranking.json holds regression trees and small networks fitted on public pairs of prompt and LoRA;
their answer is shared out among the factors that they ask about. The score is the sum over the
factors, in logits, and the confidence is its logistic.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..catalog.entries import LoraEntry
from ..plan import Factor
from .evidence import Search, compare
from .index import STYLE, Floats, Index, Indices
from .matching import captions_value
from .networks import Networks
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


class Models(NamedTuple):
    """Trees and networks, whose answers are summed."""

    trees: Trees
    networks: Networks
    """Asked about the columns of the trees."""

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Models:
        """From JSON: `trees` and `networks`, as these read themselves."""
        return cls(Trees.read(data["trees"]), Networks.read(data["networks"]))

    @property
    def columns(self) -> tuple[str, ...]:
        """What is asked about."""
        return self.trees.columns

    def answer(self, table: Floats) -> np.ndarray:
        """float64 [rows], for float32 [rows, columns]."""
        return self.trees.answer(table) + self.networks.answer(table)

    def shares(self, row: Floats, of: Sequence[str]) -> tuple[float, dict[str, float]]:
        """The answer before anything is known of a candidate, and what each group of columns adds
        to it for one row. All together give `answer`.

        Args:
            of: the group of each column.
        """
        expected, paths = self.trees.shares(row)
        found = dict.fromkeys(of, 0.0)
        for group, share in zip(of, paths.tolist(), strict=True):
            found[group] += share
        names = np.array(of)
        start, shares = self.networks.shares(row, [names == group for group in found])
        for group, share in zip(found, shares.tolist(), strict=True):
            found[group] += share
        return expected + start, found


class Ranking(NamedTuple):
    """ranking.json."""

    models: Models
    factors: tuple[str, ...]
    """The factor of each column of the models."""
    scale: float
    offset: float
    """The models' answer times `scale` plus `offset` is a calibrated logit."""
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
    models = Models.read(data)
    return Ranking(
        models,
        tuple(factor_of[column.rstrip("#").removesuffix("/best")] for column in models.columns),
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
    """What the models were asked about, [rows, columns]."""
    ranking: Ranking

    def resembles(self, row: int) -> bool:
        """Whether one row is near a clause of the prompt in meaning or in spelling."""
        values = dict(zip(self.ranking.models.columns, self.columns[row].tolist(), strict=True))
        return any(values.get(column, 0.0) >= least for column, least in _RESEMBLES.items())

    def explain(self, row: int, details: Mapping[str, str]) -> tuple[Factor, ...]:
        """The factors of one row, the heaviest first. `details` says what matched."""
        ranking = self.ranking
        start, found = ranking.models.shares(self.columns[row], ranking.factors)
        shares = {factor: ranking.scale * share for factor, share in found.items()}
        shares["prior"] = ranking.scale * start + ranking.offset
        factors = [
            Factor(name=name, value=round(value, 4), weight=1.0, detail=details.get(name, ""))
            for name, value in shares.items()
        ]
        factors += [
            Factor(
                name=name,
                value=round(float(values[row]), 4),
                weight=ranking.judged[name],
                detail=details.get(name, ""),
            )
            for name, values in self.judged.items()
        ]
        return tuple(sorted(factors, key=lambda factor: -abs(factor.value * factor.weight)))


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
            tables.append(_table(columns, ranking.models.columns))
    if not tables:
        none = np.zeros(0, np.float32)
        return Scores(np.zeros(0, np.int32), none, {}, np.zeros((0, 0), np.float32), ranking)
    positions = np.concatenate([part.positions for part in parts])
    table = np.concatenate(tables)
    logit = ranking.scale * ranking.models.answer(table) + ranking.offset
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
