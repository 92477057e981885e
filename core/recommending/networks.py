"""Small neural networks: what torch fitted, answered beside the trees.

Trees see sharp edges, networks smooth ones; both together tell better which LoRA fits than more of
either (measured).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .index import Floats, Indices
from .vectors import product

_STEEPNESS = 4.0
"""Values of a tenth to ten, as most columns have, are then told apart about evenly."""
_FARTHEST = 5.0
"""How many spreads from the mean a value is told as at most."""


class Scale(NamedTuple):
    """How networks are told values."""

    mean: Floats
    """[columns], of the values that are known, by `on_scale`."""
    spread: Floats
    """[columns], likewise; above 0."""
    unknown: Indices
    """Columns of which they are told whether the value is unknown (NaN)."""

    def told(self, table: Floats) -> Floats:
        """What the first layer is told, [rows, columns and whether some are unknown]: 0 for the
        mean of a column, and for an unknown value."""
        spread = (on_scale(table) - self.mean) / self.spread
        values = np.nan_to_num(np.clip(spread, -_FARTHEST, _FARTHEST))
        return np.concatenate((values, np.isnan(table[:, self.unknown])), axis=1, dtype=np.float32)


class Networks(NamedTuple):
    """Several networks of the same shape; together their answers are summed."""

    scale: Scale
    layers: tuple[tuple[Floats, Floats], ...]
    """Weights [networks, inputs, outputs] and offsets [networks, 1, outputs]. What goes on from
    one layer to the next is cut off at 0; the last has one output."""

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Networks:
        """From JSON: the lists of `Scale`, and the layers as `weights` and `offsets`."""
        return cls(
            Scale(
                np.array(data["mean"], np.float32),
                np.array(data["spread"], np.float32),
                np.array(data["unknown"], np.int32),
            ),
            tuple(
                (np.array(weights, np.float32), np.array(offsets, np.float32))
                for weights, offsets in zip(data["weights"], data["offsets"], strict=True)
            ),
        )

    def answer(self, table: Floats) -> np.ndarray:
        """The sum of all networks' answers, float64 [rows], for float32 [rows, columns]."""
        return self._answer(self.scale.told(table))

    def shares(self, row: Floats, groups: Sequence[np.ndarray]) -> tuple[float, np.ndarray]:
        """The answer to a row of means, and what each group of columns adds to it, [groups].

        The groups are told one after the other, and again in reverse: a group's share is the mean
        of both changes of the answer (Shapley values, estimated from one order of players and its
        reverse as Mitchell and others do, 2022). All together give `answer`.

        Args:
            groups: bool [columns] each; every column in one of them.
        """
        told = self.scale.told(row[None])[0]
        of = np.stack([np.concatenate((group, group[self.scale.unknown])) for group in groups])
        # One row more than there are groups: in the first nothing is shown, in the last all.
        shown = np.concatenate((np.zeros((1, of.shape[1]), bool), np.logical_or.accumulate(of)))
        answers = self._answer(np.concatenate((told * shown, told * ~shown)))
        forth, back = np.split(answers, 2)
        return float(answers[0]), (np.diff(forth) - np.diff(back)) / 2

    def _answer(self, told: Floats) -> np.ndarray:
        *hidden, (weights, offsets) = self.layers
        values = told
        for each, offset in hidden:
            values = np.maximum(product(values, each) + offset, 0.0)
        return (product(values, weights) + offsets)[..., 0].astype(np.float64).sum(0)


def on_scale(table: Floats) -> Floats:
    """Values on a scale that is linear close to 0 and logarithmic beyond; NaN stays NaN."""
    return np.copysign(np.log1p(_STEEPNESS * np.abs(table)), table)
