"""Inverted index over a LoRA library: which LoRAs have which words and phrases, by field."""

from __future__ import annotations

import json
import math
import threading
from array import array
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import chain, pairwise, repeat
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
        self._numbers: defaultdict[str, int] = defaultdict()
        self._numbers.default_factory = self._numbers.__len__
        self._building = (array("i"), array("i"), array("f"))
        self._starts: Indices = np.zeros(1, np.int32)
        self._positions: Indices = np.zeros(0, np.int32)
        self._weights: Floats = np.zeros(0, np.float32)
        self.mass: Floats = np.zeros(size, np.float32)
        """Summed rarity of a LoRA's terms in this field; 0 where the field is missing."""

    def add(self, position: int, terms: Mapping[str, float]) -> None:
        numbers, positions, weights = self._building
        numbers.extend(map(self._numbers.__getitem__, terms))
        positions.extend(repeat(position, len(terms)))
        weights.extend(terms.values())

    def close(self) -> None:
        """Sort what was added by term. Nothing can be added afterwards."""
        numbers, positions, weights = (np.asarray(column) for column in self._building)
        order = np.argsort(numbers, kind="stable")
        self._positions, self._weights = positions[order], weights[order]
        counts = np.bincount(numbers, minlength=len(self._numbers))
        self._starts = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
        self._numbers.default_factory = None
        self._building = (array("i"), array("i"), array("f"))

    def get(self, term: str) -> tuple[Indices, Floats] | None:
        number = self._numbers.get(term)
        if number is None:
            return None
        rows = slice(self._starts[number], self._starts[number + 1])
        return self._positions[rows], self._weights[rows]


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
        self.families = tuple(sorted({entry.family for entry in self.entries}))
        self.family: Indices = np.array(
            [self.families.index(entry.family) for entry in self.entries], np.int32
        )
        """Position of each LoRA's family in `families`."""
        texts = [read_entry(entry) for entry in self.entries]
        self._counts: Counter[str] = Counter()
        for text in texts:
            self._counts.update(_telling(text))
        self._rarity: dict[str, float] = {}
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

    def family_counts(self) -> dict[str, int]:
        """How many LoRAs each family has."""
        counts = np.bincount(self.family, minlength=len(self.families))
        return dict(zip(self.families, counts.tolist(), strict=True))

    def rarity(self, term: str) -> float:
        """How telling a word or phrase is, in [0, 1]: 0 in every LoRA, about 0.9 in one of
        thousands. The library's own rate, shrunk towards the background rates of
        vocabulary.json so that it also holds in a small library.
        """
        known = self._rarity.get(term)
        if known is None:
            known = self._rarity[term] = self._measured_rarity(term)
        return known

    def _measured_rarity(self, term: str) -> float:
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
    """Every word and every longer phrase that the LoRA says of itself."""
    runs = [*text.names, *(t.words for t in text.triggers), *(tag for tag, _ in text.tags)]
    found = set(chain.from_iterable(runs)) - STOPWORDS
    found.update(" ".join(run) for run in runs[len(text.names) :] if len(run) > 1)
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
