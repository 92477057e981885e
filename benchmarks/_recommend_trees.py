"""Fit the recommender's regression trees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ._recommend_lists import WRONG, Lists, thinned

BOOSTING = {
    "objective": "binary",
    "learning_rate": 0.04,
    "num_leaves": 32,
    "max_depth": 8,
    "min_data_in_leaf": 80,
    "feature_fraction": 0.3,
    "bagging_fraction": 0.6,
    "bagging_freq": 1,
    "lambda_l2": 5.0,
    "monotone_constraints_method": "intermediate",
    "max_bin": 127,
    "num_threads": 2,
    "verbose": -1,
    "deterministic": True,
}
ROUNDS = 480
RISING = ("name", "trigger", "trigger_words")
"""More of these never lowers the trees' answer: what a person expects who writes `(ink:1.4)`. It
costs nothing, measured; asked of all that speaks for a LoRA, it tells prompts that need none
worse (a Brier skill of 0.49, not 0.52)."""
ANYTHING = 3e38
"""A threshold that all numbers are below."""


def fit_trees(lists: Lists) -> dict[str, Any]:
    """The trees, as `Trees.read` takes them."""
    import lightgbm

    used = np.concatenate(lists.used)
    kept = thinned(used, np.random.RandomState(0))
    table = lightgbm.Dataset(
        np.concatenate(lists.tables)[kept].astype(np.float32),
        used[kept].astype(np.int8),
        weight=np.where(used[kept], 1, WRONG),
    )
    settings = {**BOOSTING, "monotone_constraints": list(map(_direction, lists.columns))}
    return _as_json(lightgbm.train(settings, table, ROUNDS).dump_model(), lists.columns)


def _direction(column: str) -> int:
    """Whether the answer may only rise with a column (1), only fall (-1), or both (0)."""
    if column.rstrip("#").removesuffix("/best") not in RISING:
        return 0
    return -1 if column.endswith("#") else 1


def _as_json(model: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """LightGBM's model as `Trees.read` takes it."""
    out: dict[str, Any] = {"columns": list(names)}
    out |= {key: [] for key in ("roots", "column", "threshold", "left", "missing_left", "value")}
    deepest = 0

    def room(nodes: int) -> int:
        at = len(out["value"])
        for key, value in (
            ("column", 0), ("threshold", ANYTHING), ("missing_left", 1), ("value", 0.0),
        ):  # fmt: skip
            out[key] += [value] * nodes
        out["left"] += range(at, at + nodes)
        return at

    def fill(at: int, node: Mapping[str, Any], depth: int) -> None:
        nonlocal deepest
        deepest = max(deepest, depth)
        leaf = "leaf_value" in node
        value = node["leaf_value" if leaf else "internal_value"]
        out["value"][at] = float(f"{value:.5g}")
        if leaf:
            return
        out["column"][at] = node["split_feature"]
        out["threshold"][at] = _threshold(node["threshold"])
        out["missing_left"][at] = int(node["default_left"])
        out["left"][at] = left = room(2)
        fill(left, node["left_child"], depth + 1)
        fill(left + 1, node["right_child"], depth + 1)

    for tree in model["tree_info"]:
        out["roots"].append(root := room(1))
        fill(root, tree["tree_structure"], 0)
    out["depth"] = deepest
    return out


def _threshold(value: float) -> float:
    # Columns are of single precision: the largest such number up to the threshold splits them as
    # the threshold does, and nine digits name it exactly.
    # Beyond what single precision holds all numbers go left, and only NaN can go right.
    single = np.float32(min(max(value, -ANYTHING), ANYTHING))
    if float(single) > value:
        single = np.nextafter(single, np.float32(-np.inf))
    return float(f"{single:.9g}")
