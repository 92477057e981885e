"""Inverted index over a LoRA library: which LoRAs have which words and phrases, by field."""

from __future__ import annotations

import json
import math
import threading
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..catalog.entries import LoraEntry, LoraLibrary
from .text import STOPWORDS, name_words, pieces, words

MAX_PHRASE = 6
"""Longest phrase of the prompt, in words, that is looked up as a whole."""
JOINED = "+"
"""Prefix of the term under which a name's two neighbouring words are found written as one."""
MAX_TRIGGERS = 64
"""Trigger words of one LoRA that are read; some files list hundreds of caption tags."""

_BACKGROUND_ENTRIES = 5000
"""How many LoRAs the background rates count for against the library's own. In a library of
twelve every word is in one LoRA of twelve; that says nothing of how telling it is."""
_UNSEEN_RATE = 1 / 5000
RARITY_SCALE = math.log(10_000)

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int32]


class TriggerPhrase(NamedTuple):
    """One phrase of a trigger word, ready to compare."""

    text: str
    words: tuple[str, ...]
    share: float
    """Share of the training images that had it; 1.0 when the author named it."""
    by_author: bool
    rank: int
    """Which trigger word of the entry it belongs to, 0 first."""


class EntryText(NamedTuple):
    """One LoRA's fields as words."""

    names: tuple[tuple[str, ...], ...]
    """The title's words and, where they differ, the file stem's."""
    triggers: tuple[TriggerPhrase, ...]
    tags: tuple[tuple[tuple[str, ...], float], ...]
    """Words of each caption or author's tag, with its share."""
    description: frozenset[str]


def read_entry(entry: LoraEntry) -> EntryText:
    """The words of one LoRA, field by field."""
    titles = (entry.title, PurePosixPath(entry.file.name).stem)
    names = dict.fromkeys(name_words(title, entry.family) for title in titles)
    triggers: list[TriggerPhrase] = []
    for rank, trigger in enumerate(entry.trigger_words):
        for text in pieces(trigger.text):
            author = trigger.source != "tag_frequency"
            triggers.append(TriggerPhrase(text, words(text), trigger.share, author, rank))
        if len(triggers) >= MAX_TRIGGERS:
            break
    return EntryText(
        names=tuple(name for name in names if name),
        triggers=tuple(triggers[:MAX_TRIGGERS]),
        tags=tuple((phrase, tag.share) for tag in entry.tags if (phrase := words(tag.text))),
        description=frozenset(words(entry.description)) - STOPWORDS,
    )


class Field:
    """Posting lists of one field: term -> the LoRAs that have it and how strongly."""

    def __init__(self, size: int) -> None:
        self._building: dict[str, tuple[array[int], array[float]]] = {}
        self._postings: dict[str, tuple[Indices, Floats]] = {}
        self.mass: Floats = np.zeros(size, np.float32)
        """Summed rarity of a LoRA's terms in this field; 0 where the field is missing."""

    def add(self, position: int, terms: Mapping[str, float]) -> None:
        for term, weight in terms.items():
            positions, weights = self._building.setdefault(term, (array("i"), array("f")))
            positions.append(position)
            weights.append(weight)

    def close(self) -> None:
        for term, (positions, weights) in self._building.items():
            self._postings[term] = (
                np.frombuffer(positions, np.int32),
                np.frombuffer(weights, np.float32),
            )
        self._building = {}

    def get(self, term: str) -> tuple[Indices, Floats] | None:
        return self._postings.get(term)

    def __contains__(self, term: str) -> bool:
        return term in self._postings


class Index:
    """A library ready to be searched. Positions are positions in `entries`."""

    def __init__(self, entries: Sequence[LoraEntry]) -> None:
        self.entries = tuple(entries)
        size = len(self.entries)
        self.trigger = Field(size)
        """Whole trigger phrases."""
        self.trigger_words = Field(size)
        """The single words of the trigger phrases."""
        self.title = Field(size)
        self.stem = Field(size)
        self.tags = Field(size)
        """Whole tags, weighted by their share."""
        self.description = Field(size)
        texts = [read_entry(entry) for entry in self.entries]
        self._counts = Counter(
            term for text in texts for term in {*_telling(text), *_phrases(text)}
        )
        for position, text in enumerate(texts):
            self._add(position, text)
        for field in self.fields:
            field.close()

    @property
    def fields(self) -> tuple[Field, ...]:
        return (
            self.trigger,
            self.trigger_words,
            self.title,
            self.stem,
            self.tags,
            self.description,
        )

    def rarity(self, term: str) -> float:
        """How telling a word or phrase is, in [0, 1]: 0 in every LoRA, about 0.9 in one of
        thousands. The library's own rate, shrunk towards the background rates of
        vocabulary.json so that it also holds in a small library.
        """
        rate = (self._counts[term] + _BACKGROUND_ENTRIES * _background(term)) / (
            len(self.entries) + _BACKGROUND_ENTRIES
        )
        return min(1.0, max(0.0, -math.log(rate) / RARITY_SCALE))

    def _add(self, position: int, text: EntryText) -> None:
        phrases: dict[str, float] = {}
        for trigger in text.triggers:
            key = " ".join(trigger.words)
            phrases[key] = max(trigger.share, phrases.get(key, 0.0))
        self.trigger.add(position, phrases)
        trigger_words = {word for t in text.triggers for word in t.words} - STOPWORDS
        self.trigger_words.add(position, dict.fromkeys(trigger_words, 1.0))
        self.trigger_words.mass[position] = self._mass(trigger_words)
        for field, name in zip((self.title, self.stem), text.names, strict=False):
            telling = set(name) - STOPWORDS
            field.mass[position] = self._mass(telling)
            telling |= {JOINED + pair for pair in joined(name)}
            field.add(position, dict.fromkeys(telling, 1.0))
        tags: dict[str, float] = {}
        for tag, share in text.tags:
            key = " ".join(tag)
            tags[key] = max(share, tags.get(key, 0.0))
        self.tags.add(position, tags)
        self.tags.mass[position] = float(len(tags))
        self.description.add(position, dict.fromkeys(text.description, 1.0))
        self.description.mass[position] = float(len(text.description))

    def _mass(self, terms: Iterable[str]) -> float:
        return sum(self.rarity(term) for term in terms)


def joined(run: Sequence[str]) -> set[str]:
    """Neighbouring words written as one: `pixel art` is also `pixelart`."""
    return {a + b for a, b in pairwise(run) if a.isascii() and b.isascii()}


def _telling(text: EntryText) -> set[str]:
    found = {word for name in text.names for word in name}
    found.update(word for trigger in text.triggers for word in trigger.words)
    found.update(word for tag, _ in text.tags for word in tag)
    return found - STOPWORDS


def _phrases(text: EntryText) -> set[str]:
    found = {" ".join(t.words) for t in text.triggers if len(t.words) > 1}
    found.update(" ".join(tag) for tag, _ in text.tags if len(tag) > 1)
    return found


@cache
def _vocabulary() -> dict[str, float]:
    path = Path(__file__).with_name("vocabulary.json")
    return json.loads(path.read_text("utf-8"))["rates"]


def _background(term: str) -> float:
    rates = _vocabulary()
    known = rates.get(term)
    if known is None and " " in term:
        # A phrase is no commoner than its rarest word, and words of one phrase go together
        # more often than chance: an order of magnitude is taken off, no more.
        known = min(rates.get(word, _UNSEEN_RATE) for word in term.split()) / 10
    return max(_UNSEEN_RATE, known or 0.0)


_kept: OrderedDict[str, Index] = OrderedDict()
_kept_lock = threading.Lock()
_KEEP = 2


def index_of(library: LoraLibrary) -> Index:
    """The library's index, built on first use and kept for the two latest revisions.

    Pure but for the time it takes: equal libraries give equal indexes. Linear in the library's
    text; the first call on a revision pays it.
    """
    with _kept_lock:
        index = _kept.get(library.revision)
        # A revision names its content; comparing guards callers (tests above all) that make two
        # libraries under one name, and costs little where the entries are the same objects.
        if index is None or index.entries != library.entries:
            index = Index(library.entries)
        _kept[library.revision] = index
        _kept.move_to_end(library.revision)
        while len(_kept) > _KEEP:
            _kept.popitem(last=False)
    return index
