"""Fit the alignment of vectors: that a prompt lies near the LoRAs that were used with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..core.embedding import DIMENSIONS
from ..core.recommending.index import Floats
from ..core.recommending.vectors import Alignment
from ._recommend_examples import Data, Prompt

if TYPE_CHECKING:
    from torch import Tensor

EPOCHS = 2
AT_ONCE = 128
"""Prompts a step; of few prompts fewer, a tenth of them."""
FEWEST = 10
"""Prompts to fit on."""
FASTEST = 5e-4
"""The highest rate of learning, a tenth of the way; it falls from there as a half cosine."""
SHARPNESS = 20.0
"""What cosines are multiplied by at first."""
HELD = 0.02
"""How strongly the maps are held to what they start from. Without it they learn the pairs by
heart: after six epochs they did worse on LoRAs never seen than after one."""
DESCRIBED = 0.3
"""Weight of the description beside the name at first."""
NEVER = -1e4


def align(data: Data, left_out: frozenset[int]) -> Alignment:
    """The maps under which the LoRAs that were used with a prompt are nearer to it than all others
    of the library, by the mean of the cosines to the whole prompt and to its nearest clause, and
    by how far they lie towards what is used with the checkpoint.

    They start from the encoder's own vectors, the checkpoint's from nothing. The loss is InfoNCE
    (van den Oord and others, 2018) with every LoRA of the library as a negative; all versions of
    the models that were used are right together, and what would have fitted as well is neither
    right nor wrong.

    Args:
        left_out: folds of LoRAs that are not seen, as answers or as wrong answers.

    Raises:
        ValueError: fewer than FEWEST prompts are left to fit on.
    """
    import torch
    from torch.nn.functional import normalize

    torch.manual_seed(0)
    chance = np.random.RandomState(0)
    seen = ~np.isin(data.folds[data.models], list(left_out))
    models = data.models[seen]
    names = torch.from_numpy(data.names[seen])
    descriptions = torch.from_numpy(data.descriptions[seen])
    prompts = [p for p in data.prompts if p.used and p.encoded.any() and not p.folds & left_out]
    if len(prompts) < FEWEST:
        raise ValueError(
            f"{len(prompts)} prompts have LoRAs of the library none of which is left out; at least "
            f"{FEWEST} are needed to fit on. Give more pairs."
        )
    at_once = min(AT_ONCE, len(prompts) // FEWEST)
    weights = (1.0, 1.0, DESCRIBED, 0.0)
    start = torch.stack([weight * torch.eye(DIMENSIONS) for weight in weights])
    maps = start.clone().requires_grad_()
    sharpness = torch.tensor(math.log(SHARPNESS), requires_grad=True)
    steps = EPOCHS * (len(prompts) // at_once)
    optimizer = torch.optim.Adam([{"params": [maps]}, {"params": [sharpness]}])
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [FASTEST, 20 * FASTEST], total_steps=steps, pct_start=0.1
    )
    orders = [chance.permutation(len(prompts)) for _ in range(EPOCHS)]
    for step in range(steps):
        epoch, at = divmod(step, steps // EPOCHS)
        some = [prompts[place] for place in orders[epoch][at * at_once : (at + 1) * at_once]]
        prompt, name, description, checkpoint = maps
        loras = normalize(names @ name + descriptions @ description, dim=1)
        called = torch.from_numpy(np.stack([data.checkpoints[one.checkpoint] for one in some]))
        pull = called @ checkpoint @ loras.T
        logits = sharpness.exp() * (_nearness(some, prompt, loras) + pull)
        used, fitting = (
            torch.from_numpy(np.stack([np.isin(models, list(each)) for each in columns]))
            for columns in zip(*((one.used, one.fitting) for one in some), strict=True)
        )
        logits = logits.masked_fill(fitting & ~used, NEVER)
        missed = logits.logsumexp(1) - logits.masked_fill(~used, NEVER).logsumexp(1)
        loss = missed.mean() + HELD * (maps - start).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        _, name, description, _ = maps
        loras = normalize(names @ name + descriptions @ description, dim=1)
        # Turned so that the directions in which LoRAs differ most come first: cosines stay.
        turn = torch.linalg.eigh(loras.T @ loras).eigenvectors.flip(1)
        return Alignment(*(_as_kept(one @ turn) for one in maps))


def _nearness(prompts: Sequence[Prompt], map_: Tensor, loras: Tensor) -> Tensor:
    """[prompts, LoRAs]: the mean of the cosines to the whole prompt and to its nearest clause."""
    import torch
    from torch.nn.functional import normalize

    encoded = torch.from_numpy(np.concatenate([one.encoded for one in prompts]))
    cosines = normalize(encoded @ map_, dim=1) @ loras.T
    rows = torch.tensor([len(one.encoded) for one in prompts])
    whole = torch.zeros(len(encoded), dtype=torch.bool)
    whole[rows.cumsum(0) - rows] = True
    return (cosines[whole] + torch.segment_reduce(cosines[~whole], "max", lengths=rows - 1)) / 2


def _as_kept(map_: Tensor) -> Floats:
    """As alignment.safetensors keeps it, in half precision."""
    return map_.numpy().astype(np.float16).astype(np.float32)
