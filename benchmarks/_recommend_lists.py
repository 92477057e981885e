"""What the trees and the networks are fitted on: lists of candidates, each for one prompt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from ..core.recommending.evidence import compare
from ..core.recommending.vectors import Halves
from ._recommend_examples import Data, Example

WRONG = 3
"""One wrong answer of so many is fitted on, and counts for all of them: as good, measured, and in a
third of the time."""
LACKING = {"meaning": 0.15, "popularity": 0.25, "texts": 0.15, "answers": 0.15}
"""How often a prompt is shown without vectors, without what hubs count, without tags and
descriptions, and without the LoRAs that were used, so that it needs none."""
OF_MEANING = ("similarity", "similarity_clause")
OF_POPULARITY = ("downloads", "likes")
OF_TEXTS = (
    "tags", "tag_share", "tag_top", "tag_phrases", "description", "description_top", "tag_count",
    "description_length",
)  # fmt: skip
OF_CHECKPOINT = ("checkpoint", "checkpoint_top")


class Lists(NamedTuple):
    """The candidates of each prompt in each library that it is asked of."""

    columns: tuple[str, ...]
    tables: Sequence[Halves]
    """[candidates, columns] each; one candidate or more."""
    used: Sequence[np.ndarray]
    """bool [candidates] each; none where nothing that was used is among them."""

    @classmethod
    def of(cls, data: Data, seen: Iterable[Example], left_out: int | None) -> Lists:
        """Of all folds but one: no LoRA of that is among them, and no prompt it was used with."""
        chance = np.random.RandomState(0)
        names: tuple[str, ...] = ()
        tables: list[Halves] = []
        used: list[np.ndarray] = []
        for example in seen:
            prompt = example.prompt
            if not example.columns or left_out == prompt.fold or left_out in prompt.folds:
                continue
            example = _varied(example, chance)
            # What is much like an answer is neither right nor wrong.
            keep = (data.folds[example.models] != left_out) & (example.used | ~example.near)
            if not keep.any():
                continue
            columns = compare(example.columns, example.library)
            names = tuple(columns)
            table = np.stack(list(columns.values()), axis=1)[keep]
            tables.append(table.astype(np.float16))
            used.append(example.used[keep])
        return cls(names, tables, used)


def _varied(example: Example, chance: np.random.RandomState) -> Example:
    """The example with less said."""
    lacking = {what for what, rate in LACKING.items() if chance.rand() < rate}
    keep = ~example.near if "answers" in lacking else np.ones(len(example.used), bool)
    columns = {name: column[keep].astype(np.float32) for name, column in example.columns.items()}
    for what, names, value in (
        ("texts", OF_TEXTS, 0.0),
        ("meaning", (*OF_MEANING, "checkpoint_meaning"), np.nan),
        ("popularity", OF_POPULARITY, np.nan),
    ):
        if what in lacking:
            columns |= {name: np.full_like(columns[name], value) for name in names}
    if "texts" in lacking:  # where the checkpoint is not known, that stays
        columns |= {name: 0.0 * columns[name] for name in OF_CHECKPOINT}
    return example._replace(
        columns=columns,
        used=example.used[keep],
        near=example.near[keep],
        models=example.models[keep],
    )


def thinned(used: np.ndarray, chance: np.random.RandomState) -> np.ndarray:
    """bool [candidates]: all that were used, and one wrong answer of WRONG."""
    return used | (chance.rand(len(used)) < 1 / WRONG)
