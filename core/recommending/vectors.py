"""Vectors of LoRAs and prompts: which texts they are made of, and how near they lie."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from ..catalog.entries import LoraEntry
from ..plan import Clause
from .index import Floats, Indices, background_rarity
from .text import STOPWORDS, words

MAX_WORDS = 32
"""Words of a prompt that are compared by meaning: its most telling clauses. Bounds the time that
the encoder takes."""
ALIGNMENT = Path(__file__).with_name("alignment.safetensors")
_MAX_LETTERS = 200
"""Of a LoRA's trigger words, and of its tags."""
_MAX_TAGS = 12
_MAX_DESCRIPTION = 300
_ROUGH = 96
"""Numbers of a vector, the most telling ones, by which a library is searched first."""
_PULL = 2.0
"""Of the checkpoint, beside the sum of two cosines: it is fitted beside their mean."""
_LOOKED_AT = 5
"""How many times as many LoRAs as are wanted are then compared by whole vectors."""

Halves = npt.NDArray[np.float16]


# --------------------------------------------------------------------------- texts


class Texts(NamedTuple):
    """What of a LoRA is encoded."""

    name: str
    """Its title, trigger words and tags."""
    description: str
    """The start of what its author says; may be empty."""


def texts_of(entry: LoraEntry) -> Texts:
    """What of a LoRA is encoded; bounded however much there is."""
    triggers = ", ".join(trigger.text for trigger in entry.trigger_words)[:_MAX_LETTERS]
    tags = ", ".join(tag.text for tag in entry.tags[:_MAX_TAGS])[:_MAX_LETTERS]
    name = ". ".join(part for part in (entry.title, triggers, tags) if part)
    return Texts(name, entry.description[:_MAX_DESCRIPTION].strip())


def telling_parts(clauses: Sequence[Clause]) -> tuple[str, ...]:
    """The clauses to compare by meaning, in the prompt's order: the most telling ones, by their
    rarest word, of MAX_WORDS words in all; what is longer is cut."""
    ranked = sorted(
        (-max(map(background_rarity, telling)), at)
        for at, clause in enumerate(clauses)
        if (telling := set(words(clause.text)) - STOPWORDS)
    )
    left = MAX_WORDS
    kept: dict[int, str] = {}
    for _, at in ranked:
        run = clauses[at].text.split()[:left]
        if not run:
            break
        kept[at] = " ".join(run)
        left -= len(run)
    return tuple(kept[at] for at in sorted(kept))


# --------------------------------------------------------------------------- alignment


class Alignment(NamedTuple):
    """Linear maps from the encoder's vectors to ones where a prompt lies near the LoRAs that are
    used with it, and not only near those that are called alike.

    Fitted by benchmarks/recommend_fit.py. The first numbers of an aligned vector tell most.
    """

    prompt: Floats
    """[encoder's dimensions, n], for a prompt and its clauses."""
    name: Floats
    """Likewise, for `Texts.name`."""
    description: Floats
    """Likewise, for `Texts.description`."""
    checkpoint: Floats
    """Likewise, for what a checkpoint is called: towards the LoRAs that are used with checkpoints
    of such names."""

    def of_prompt(self, encoded: Floats) -> Floats:
        """Unit vectors [texts, n] of a prompt and its clauses; zeros stay zeros."""
        return _unit(product(encoded, self.prompt))

    def of_loras(self, names: Floats, descriptions: Floats) -> Floats:
        """Unit vectors [LoRAs, n], one for both texts; zeros stand for an empty text."""
        return _unit(product(names, self.name) + product(descriptions, self.description))

    def of_checkpoint(self, encoded: Floats) -> Floats:
        """[n], of one checkpoint's name; not of unit length, as some names tell more."""
        return product(encoded[None], self.checkpoint)[0]


def read_alignment(path: Path) -> Alignment:
    """What alignment.safetensors, or another file of its form, holds."""
    held = load_file(path)
    return Alignment(*(held[name].astype(np.float32) for name in Alignment._fields))


@cache
def alignment() -> Alignment:
    """The alignment that is shipped."""
    return read_alignment(ALIGNMENT)


def _unit(vectors: Floats) -> Floats:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


# --------------------------------------------------------------------------- comparing


class LoraVectors(NamedTuple):
    """The aligned vectors of a library's LoRAs, in its order; NaN where there is none yet."""

    whole: Halves
    """[LoRAs, n]"""
    rough: Floats
    """[LoRAs, _ROUGH], their first numbers: several times as fast to compare."""

    @classmethod
    def of(cls, vectors: Halves) -> LoraVectors:
        """From unit vectors [LoRAs, n]."""
        return cls(vectors, np.ascontiguousarray(vectors[:, :_ROUGH], np.float32))


class Similarity(NamedTuple):
    """How near the LoRAs of a library are to a prompt in meaning, by cosine of aligned vectors;
    NaN where a LoRA has no vector yet."""

    asked: Floats
    """[1 + clauses, n], of the prompt as a whole, then of its clauses, one or more."""
    loras: LoraVectors
    checkpoint: Floats | None = None
    """[n], as `Alignment.of_checkpoint` gives it; None where its name is not known."""

    def of(self, positions: Indices) -> tuple[Floats, Floats]:
        """Cosines of some LoRAs to the prompt as a whole, and to the nearest of its clauses."""
        return _cosines(self.loras.whole[positions].astype(np.float32), self.asked)

    def of_checkpoint(self, positions: Indices) -> Floats:
        """How far some LoRAs lie towards those that are used with checkpoints of such names."""
        if self.checkpoint is None:
            return np.full(len(positions), np.nan, np.float32)
        loras = self.loras.whole[positions].astype(np.float32)
        return product(loras, self.checkpoint[:, None])[:, 0]

    def nearest(self, usable: np.ndarray, most: int) -> Indices:
        """The usable LoRAs nearest to the prompt and to one of its clauses, by the sum of both;
        with the checkpoint's pull where it is known, as the alignment was fitted.

        Searched by the first numbers of the vectors, then by the whole vectors of the nearest.

        Args:
            usable: bool [LoRAs].
            most: how many, 1 or more.
        """
        rows = np.flatnonzero(usable).astype(np.int32)
        # To copy the rows of few takes less than to compare all, of most it takes more.
        few = 2 * len(rows) < len(usable)
        rough = self.loras.rough[rows] if few else self.loras.rough
        towards = self.asked.copy()
        if self.checkpoint is not None:
            towards[0] += _PULL * self.checkpoint
        whole, clause = _cosines(rough, towards[:, :_ROUGH])
        near = whole + clause if few else (whole + clause)[rows]
        some = rows[largest(near, _LOOKED_AT * most)]
        whole, clause = _cosines(self.loras.whole[some].astype(np.float32), towards)
        return some[largest(whole + clause, most)]


def largest(values: Floats, most: int) -> Indices:
    """Positions of the `most` largest values; NaN is none."""
    values = np.nan_to_num(values, nan=-np.inf)
    most = min(most, len(values))
    at = np.argpartition(-values, most - 1)[:most] if most else np.zeros(0, int)
    return at[values[at] > -np.inf].astype(np.int32)


def product(left: Floats, right: Floats) -> Floats:
    """The matrix product, by torch: numpy's own threads would get in the way of those that the
    encoder has just used, and make a recommendation take twice as long (measured)."""
    import torch

    return torch.matmul(
        torch.from_numpy(np.ascontiguousarray(left)), torch.from_numpy(np.ascontiguousarray(right))
    ).numpy()


def _cosines(loras: Floats, asked: Floats) -> tuple[Floats, Floats]:
    near = product(loras, asked.T)
    return near[:, 0], near[:, 1:].max(1)
