"""Meaning: which texts of a LoRA and of a prompt are compared as vectors, and how near they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..catalog.entries import LoraEntry
from ..plan import Clause
from .index import Floats, Indices, background_rarity
from .text import STOPWORDS, words

MAX_WORDS = 32
"""Words of a prompt that are compared by meaning: its most telling clauses. Bounds the time that
the encoder takes."""
_MAX_LETTERS = 200
"""Of a LoRA's trigger words, and of its tags."""
_MAX_TAGS = 12
_MAX_DESCRIPTION = 300


class Similarity(NamedTuple):
    """How near each LoRA of a library is to a prompt in meaning, by cosine; NaN where a LoRA has
    no vector yet."""

    prompt: Floats
    """[LoRAs], to the telling part of the prompt as a whole."""
    clause: Floats
    """[LoRAs], to the nearest of its clauses."""
    asked: Floats
    """[1 + clauses, n], the vectors of the prompt and of its clauses."""
    descriptions: Floats
    """[LoRAs, n], the vectors of the LoRAs' descriptions; NaN also where there is none."""

    def of_descriptions(self, positions: Indices) -> tuple[Floats, Floats]:
        """How near the descriptions of some LoRAs are to the prompt and to its nearest clause:
        of the candidates alone, as all would take as long as all else in a large library."""
        return _nearness(self.asked, self.descriptions[positions])


class Texts(NamedTuple):
    """What of a LoRA is turned into vectors, one each."""

    name: str
    """Its title, trigger words and tags."""
    description: str
    """The start of what its author says; may be empty."""


def texts_of(entry: LoraEntry) -> Texts:
    """What of a LoRA is turned into vectors; bounded however much there is."""
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


def product(left: Floats, right: Floats) -> Floats:
    """The matrix product, by torch: numpy's own threads would get in the way of those that the
    encoder has just used, and make a recommendation take twice as long (measured)."""
    import torch

    return torch.matmul(
        torch.from_numpy(np.ascontiguousarray(left)), torch.from_numpy(np.ascontiguousarray(right))
    ).numpy()


def similarity(prompt: Floats, names: Floats, descriptions: Floats) -> Similarity:
    """Compare vectors of a prompt with those of a library.

    Args:
        prompt: [1 + clauses, n], unit vectors: of the prompt, then of its clauses.
        names: [LoRAs, n], unit vectors of `Texts.name`; NaN where there is none yet.
        descriptions: [LoRAs, n], likewise of `Texts.description`.
    """
    return Similarity(*_nearness(prompt, names), prompt, descriptions)


def _nearness(prompt: Floats, library: Floats) -> tuple[Floats, Floats]:
    near = product(library, prompt.T)
    whole = near[:, 0]
    clause = near[:, 1:].max(1) if near.shape[1] > 1 else whole
    return np.asarray(whole, np.float32), np.asarray(clause, np.float32)
