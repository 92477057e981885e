"""Fit the recommender's networks."""

from __future__ import annotations

import itertools
import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.recommending.index import Floats
from ..core.recommending.networks import Scale, on_scale
from ._recommend_lists import WRONG, Lists, thinned

if TYPE_CHECKING:
    from torch import Tensor

NETWORKS = 4
WIDTH = 32
"""Outputs of the two layers that are not the last: with twice as many they are no better."""
EPOCHS = 9
AT_ONCE = 64
"""Lists a step."""
FASTEST = 2e-3
"""The highest rate of learning, a tenth of the way; it falls from there as a half cosine."""
DECAY = 0.3
"""Of the weights, against learning the pairs by heart."""
DROPPED = (0.1, 0.2)
"""Shares of what the first layer is told and of what the others are told that are left out."""
BESIDE = 0.7
"""How much their mean answer counts beside the trees'. As much gives the same LoRAs, but tells
prompts that need none a little worse."""
LEAST_SPREAD = 1e-3
"""So that a column that is always the same divides by something."""
NEVER = -1e4
"""A score that leaves nothing to a softmax."""
DIGITS = 5


def fit_networks(lists: Lists) -> dict[str, Any]:
    """The networks, as `Networks.read` takes them; their answers sum up to BESIDE times the mean.

    Each is fitted so that a candidate that was used scores higher than the others and than 0,
    which is nothing's score; where none was used, nothing is right. The loss is the cross-entropy
    of a softmax over the candidates and nothing.
    """
    import torch

    torch.manual_seed(0)
    chance = np.random.RandomState(0)
    scale = _scale(lists)
    told = torch.from_numpy(
        np.concatenate([scale.told(t.astype(np.float32)) for t in lists.tables])
    )
    used = np.concatenate(lists.used)
    list_of = np.repeat(np.arange(len(lists.used)), list(map(len, lists.used)))
    sizes = (told.shape[1], WIDTH, WIDTH, 1)
    # As torch.nn.Linear starts.
    layers = [
        torch.empty(NETWORKS, inputs + 1, outputs).uniform_(-1, 1).div_(math.sqrt(inputs))
        for inputs, outputs in itertools.pairwise(sizes)
    ]
    for layer in layers:
        layer.requires_grad_()
    at_once = min(AT_ONCE, len(lists.used))
    steps = len(lists.used) // at_once
    optimizer = torch.optim.AdamW(layers, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, FASTEST, total_steps=EPOCHS * steps, pct_start=0.1
    )
    for _ in range(EPOCHS):
        order = chance.permutation(len(lists.used))
        kept = np.flatnonzero(thinned(used, chance))
        first = np.searchsorted(list_of[kept], np.arange(len(lists.used) + 1))
        for step in range(steps):
            some = order[step * at_once : (step + 1) * at_once]
            rows = np.concatenate([kept[first[one] : first[one + 1]] for one in some])
            lengths = first[some + 1] - first[some]
            answers = _answers(layers, told[rows])
            loss = _loss(answers, torch.from_numpy(used[rows]), lengths)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        layers[-1] *= BESIDE / NETWORKS
        return {
            "mean": _rounded(scale.mean),
            "spread": _rounded(scale.spread),
            "unknown": scale.unknown.tolist(),
            "weights": [_rounded(layer[:, :-1].numpy()) for layer in layers],
            "offsets": [_rounded(layer[:, -1:].numpy()) for layer in layers],
        }


def _scale(lists: Lists) -> Scale:
    """Mean and spread of each column, of every seventh list: all of them take gigabytes."""
    values = on_scale(np.concatenate(lists.tables[::7]).astype(np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a column that is never known
        mean, spread = (
            np.nan_to_num(np.asarray(statistic(values, axis=0, dtype=np.float64), np.float32))
            for statistic in (np.nanmean, np.nanstd)
        )
    unknown = np.flatnonzero(np.isnan(values).any(0)).astype(np.int32)
    return Scale(mean, np.maximum(spread, LEAST_SPREAD), unknown)


def _answers(layers: list[Tensor], told: Tensor) -> Tensor:
    """[networks, rows], with some of what the layers are told left out."""
    from torch.nn.functional import dropout, relu

    # All networks lack the same of a row.
    values = dropout(told, DROPPED[0]).expand(NETWORKS, *told.shape)
    for layer in layers[:-1]:
        values = dropout(relu(values @ layer[:, :-1] + layer[:, -1:]), DROPPED[1])
    return (values @ layers[-1][:, :-1] + layers[-1][:, -1:])[..., 0]


def _loss(answers: Tensor, used: Tensor, lengths: np.ndarray) -> Tensor:
    """Mean over networks and lists; `answers` [networks, rows], list after list."""
    import torch

    # A wrong candidate stands for WRONG of them. The last column is nothing.
    shown = torch.arange(int(lengths.max())) < torch.from_numpy(lengths)[:, None]
    padded = answers.new_full((len(answers), *shown.shape), NEVER)
    padded[:, shown] = answers + torch.where(used, 0.0, math.log(WRONG))
    right = torch.zeros_like(shown)
    right[shown] = used
    scores = torch.nn.functional.pad(padded, (0, 1))
    right = torch.cat([right, ~right.any(1, keepdim=True)], dim=1)
    return (scores.logsumexp(2) - scores.masked_fill(~right, NEVER).logsumexp(2)).mean()


def _rounded(values: Floats) -> Any:
    """Lists of as many digits as are kept."""
    if values.ndim:
        return [_rounded(each) for each in values]
    return float(f"{values:.{DIGITS}g}")
