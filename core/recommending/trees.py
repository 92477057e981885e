"""Regression trees as arrays: what a gradient-boosting library fitted, answered by numpy alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .index import Floats

Nodes = npt.NDArray[np.intp]
"""As numpy takes indices: it would turn any others into these, at every step."""


class Trees(NamedTuple):
    """All nodes of all trees in one list. In a leaf one goes left, to the leaf itself."""

    columns: tuple[str, ...]
    """What is asked about."""
    roots: Nodes
    column: Nodes
    """[nodes] which column a node asks about; 0 for a leaf. Where NaN goes right, so many columns
    further: see `_twice`."""
    threshold: Floats
    """[nodes] up to which value one goes left."""
    left: Nodes
    """[nodes] where one goes on; to the right it is the node after that."""
    value: Floats
    """[nodes] the answer of a leaf; of another node, the mean of what is below it."""
    depth: int

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Trees:
        """From JSON: the lists of this class, `column` without what NaN does and `missing_left`,
        whether NaN goes left, beside it; `depth` is of the deepest leaf."""
        columns = tuple(data["columns"])
        right = ~np.array(data["missing_left"], bool)
        return cls(
            columns,
            np.array(data["roots"], np.intp),
            np.array(data["column"], np.intp) + right * len(columns),
            np.array(data["threshold"], np.float32),
            np.array(data["left"], np.intp),
            np.array(data["value"], np.float32),
            int(data["depth"]),
        )

    def answer(self, table: Floats) -> np.ndarray:
        """The sum of all trees' answers, float64 [rows], for float32 [rows, columns]."""
        values = _twice(table)
        first = (np.arange(len(values), dtype=np.intp) * values.shape[1])[:, None]
        at = np.broadcast_to(self.roots, (len(values), len(self.roots)))
        for _ in range(self.depth):
            at = self._next(at, values.take(first + self.column.take(at)))
        return self.value.take(at).astype(np.float64).sum(1)

    def shares(self, row: Floats) -> tuple[float, np.ndarray]:
        """The mean answer, and what each column's splits added to it for one row, [columns].

        Each step of a path adds the difference of the node's means to the column that it asked
        about (Saabas, "Interpreting random forests", 2014). All together give `answer`.
        """
        found = np.zeros(len(self.columns), np.float64)
        values = _twice(row)
        at = self.roots
        for _ in range(self.depth):
            below = self._next(at, values.take(self.column.take(at)))
            np.add.at(found, self.column[at] % len(found), self.value[below] - self.value[at])
            at = below
        return float(self.value[self.roots].sum(dtype=np.float64)), found

    def _next(self, at: np.ndarray, values: np.ndarray) -> np.ndarray:
        return self.left.take(at) + (values > self.threshold.take(at))


def _twice(table: Floats) -> Floats:
    """The columns with NaN as the smallest number, so that it goes left, then all of them again
    with NaN as the largest: to compare is all that is left to do at a node."""
    missing = np.isnan(table)
    smallest = np.where(missing, -np.float32(np.inf), table)
    return np.concatenate((smallest, np.where(missing, np.float32(np.inf), table)), axis=-1)
