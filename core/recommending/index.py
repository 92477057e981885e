"""Inverted index over a LoRA library: which LoRAs have which words and phrases, by field."""

from __future__ import annotations

import json
import math
import sys
import threading
from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import chain, pairwise, repeat
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..catalog.entries import LoraEntry, LoraLibrary
from .keeping import Kept
from .text import STOPWORDS, contains, name_words, pieces, words

MAX_PHRASE = 6
"""Longest phrase of the prompt, in words, that is looked up as a whole."""
JOINED = "+"
"""Prefix of the term under which a name's two neighbouring words are found written as one."""
MAX_TRIGGERS = 64
"""Trigger words of one LoRA that are read; some files list hundreds of caption tags."""

_TELLING_SHARE = 0.75
"""Share of the training images from which a caption tag says what a LoRA is for."""
_BACKGROUND_ENTRIES = 5000
"""How many LoRAs the background rates count for against the library's own. In a library of
twelve every word is in one LoRA of twelve; that says nothing of how telling it is."""
_UNSEEN_RATE = 1 / 5000
RARITY_SCALE = math.log(10_000)

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int32]
Posting = tuple[Indices, npt.NDArray[np.uint8]]
"""The LoRAs that have a term, and the fields it stands in."""


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
    """One LoRA's short fields as words."""

    names: tuple[tuple[str, ...], ...]
    """The title's words and, where they differ, the file stem's."""
    triggers: tuple[TriggerPhrase, ...]
    tags: tuple[tuple[tuple[str, ...], float], ...]
    """Words of each caption or author's tag, with its share."""


def read_entry(entry: LoraEntry) -> EntryText:
    """The words of one LoRA, field by field, without its description, which takes as long as all
    the others."""
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
    )


def read_description(entry: LoraEntry) -> frozenset[str]:
    """The telling words of what the author says of a LoRA."""
    return frozenset(words(entry.description)) - STOPWORDS


# What of a LoRA a term stands in. A term can stand in several.
NAME, STEM, TRIGGER, FIRST_TRIGGER, TAG, DESCRIPTION, TRIGGER_PHRASE, TAG_PHRASE = (
    1 << bit for bit in range(8)
)
TELLING = 0xFF & ~DESCRIPTION
"""Where a term says what the LoRA is for, and counts towards how rare it is."""
_HASHES = 1 << 16


class Grams(NamedTuple):
    """Hashed runs of three letters of one text a LoRA, to compare spellings."""

    starts: Indices
    """LoRA i has `hashes[starts[i]:starts[i + 1]]`, each once."""
    hashes: npt.NDArray[np.uint16]


class Index:
    """A library ready to be searched. Positions are positions in `entries`.

    One posting list a term, a word or a whole phrase, with a byte that tells the fields it stands
    in: 5 bytes a posting.
    """

    def __init__(self, entries: Sequence[LoraEntry]) -> None:
        self.entries = tuple(entries)
        size = len(self.entries)
        self.families = tuple(sorted({entry.family for entry in self.entries}))
        places = {family: place for place, family in enumerate(self.families)}
        self.family: Indices = np.array([places[e.family] for e in self.entries], np.int32)
        """Position of each LoRA's family in `families`."""
        self.downloads = _logarithms([entry.downloads for entry in self.entries])
        """log10(1 + downloads); NaN where no hub says."""
        self.likes = _logarithms([entry.likes for entry in self.entries])
        self.trigger_count = np.zeros(size, np.float32)
        self.tag_count = np.zeros(size, np.float32)
        self.description_length = np.zeros(size, np.float32)
        self.kind = np.zeros(size, np.float32)
        """1 a character, 2 a style, 0 neither or not said."""

        numbers: defaultdict[str, int] = defaultdict()
        numbers.default_factory = numbers.__len__
        building = (array("i"), array("i"), array("B"))
        names: list[str] = []
        triggers: list[str] = []
        for position, entry in enumerate(self.entries):
            text, description = read_entry(entry), read_description(entry)
            terms = _terms_of(text, description)
            building[0].extend(map(numbers.__getitem__, terms))
            building[1].extend(repeat(position, len(terms)))
            building[2].extend(terms.values())
            self.trigger_count[position] = len(text.triggers)
            self.tag_count[position] = len(text.tags)
            self.description_length[position] = len(description)
            self.kind[position] = _KINDS.index(kind_of(entry, text))
            names.append(" ".join(chain.from_iterable(text.names)))
            triggers.append(" ".join(t.text for t in text.triggers if t.rank == 0))
        numbers.default_factory = None
        self._numbers: dict[str, int] = numbers
        number, position, fields = (np.asarray(column) for column in building)
        order = np.argsort(number, kind="stable")
        self._positions, self._fields = position[order], fields[order]
        per_term = np.bincount(number, minlength=len(numbers))
        self._starts = np.concatenate(([0], np.cumsum(per_term))).astype(np.int32)
        telling = np.bincount(
            number, weights=(fields & TELLING) != 0, minlength=len(numbers)
        ).astype(np.int32)
        self._counts: Indices = telling
        self._rarity: dict[str, float] = {}
        rarities = np.array([self.rarity(term) for term in numbers], np.float32)
        self._rarity.clear()
        self.mass = {
            field: np.bincount(
                position[chosen := (fields & field) != 0],
                weights=rarities[number[chosen]],
                minlength=size,
            ).astype(np.float32)
            for field in (NAME, STEM, TRIGGER, FIRST_TRIGGER, TAG)
        }
        """Summed rarity of a LoRA's terms in a field; 0 where the field is missing."""
        self.name_grams = _grams_of(names)
        self.trigger_grams = _grams_of(triggers)
        seen = np.bincount(self.name_grams.hashes, minlength=_HASHES)
        seen += np.bincount(self.trigger_grams.hashes, minlength=_HASHES)
        self.gram_weights: Floats = np.log((2 * size + 1) / (seen + 1)).astype(np.float32)

    def family_counts(self) -> dict[str, int]:
        """How many LoRAs each family has."""
        counts = np.bincount(self.family, minlength=len(self.families))
        return dict(zip(self.families, counts.tolist(), strict=True))

    def bytes(self) -> int:
        """Bytes that the index takes, without the entries themselves."""
        arrays = [
            value
            for value in vars(self).values()
            for value in (value if isinstance(value, tuple) else (value,))
            if isinstance(value, np.ndarray)
        ]
        arrays += self.mass.values()
        terms = sys.getsizeof(self._numbers) + sum(map(sys.getsizeof, self._numbers))
        return terms + sum(array.nbytes for array in arrays)

    def get(self, term: str) -> Posting | None:
        """The LoRAs that have a term, and the fields it stands in."""
        number = self._numbers.get(term)
        if number is None:
            return None
        rows = slice(self._starts[number], self._starts[number + 1])
        return self._positions[rows], self._fields[rows]

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
        number = self._numbers.get(term)
        count = 0 if number is None else int(self._counts[number])
        return rarity_of(term, count, len(self.entries))


def rarity_of(term: str, count: int, entries: int) -> float:
    """`Index.rarity` of a term that `count` of so many LoRAs have."""
    rate = (count + _BACKGROUND_ENTRIES * _background(term)) / (entries + _BACKGROUND_ENTRIES)
    return min(1.0, max(0.0, -math.log(rate) / RARITY_SCALE))


def grams(text: str) -> npt.NDArray[np.uint16]:
    """The hashed runs of three letters of a text, each once; none for under two letters."""
    letters = np.frombuffer(f" {text.lower()} ".encode("utf-32-le"), np.uint32)
    if len(letters) < 4:
        return np.zeros(0, np.uint16)
    mixed = letters[:-2] * np.uint32(40503) ^ letters[1:-1] * np.uint32(2654435761)
    mixed ^= letters[2:] * np.uint32(2246822519)
    return np.unique((mixed ^ (mixed >> np.uint32(16))).astype(np.uint16))


def _grams_of(texts: Sequence[str]) -> Grams:
    found = [grams(text) for text in texts]
    starts = np.concatenate(([0], np.cumsum([len(one) for one in found]))).astype(np.int32)
    return Grams(starts, np.concatenate([np.zeros(0, np.uint16), *found]))


def _logarithms(counts: Sequence[int | None]) -> Floats:
    return np.array([math.nan if n is None else math.log10(1 + n) for n in counts], np.float32)


def _terms_of(text: EntryText, description: frozenset[str]) -> dict[str, int]:
    """Every term of a LoRA and the fields it stands in."""
    terms: dict[str, int] = {}

    def add(found: Iterable[str], field: int) -> None:
        for term in found:
            terms[term] = terms.get(term, 0) | field

    add(description, DESCRIPTION)
    for tag, share in text.tags:
        field = TAG if share >= _TELLING_SHARE else DESCRIPTION
        add(set(tag) - STOPWORDS, field)
        if field == TAG:
            add([" ".join(tag)], TAG_PHRASE)
    for trigger in text.triggers:
        add(set(trigger.words) - STOPWORDS, TRIGGER | FIRST_TRIGGER * (trigger.rank == 0))
        add([" ".join(trigger.words)], TRIGGER_PHRASE)
    for field, name in zip((NAME, STEM), (text.names * 2)[:2], strict=False):
        telling = set(name) - STOPWORDS
        add(telling | {JOINED + pair for pair in joined(name)}, field)
    return terms


_KINDS: tuple[str | None, ...] = (None, "character", "style")
STYLE = _KINDS.index("style")
"""A style in `Index.kind`."""


def kind_of(entry: LoraEntry, text: EntryText) -> str | None:
    """By the folder it lies in, its tags as model sites give them, or `style` in its name."""
    folders = [words(part) for part in PurePosixPath(entry.file.name).parent.parts]
    own = [*folders, *(tag for tag, _ in text.tags)]
    for phrase in own:
        for kind, names in _kind_words().items():
            if phrase in names:
                return kind
    for phrase in (words(entry.title), *(t.words for t in text.triggers if t.by_author)):
        if any(contains(phrase, name) for name in _kind_words()["style"]):
            return "style"
    return None


@cache
def _kind_words() -> dict[str, frozenset[tuple[str, ...]]]:
    data = json.loads(Path(__file__).with_name("kinds.json").read_text("utf-8"))
    return {row["kind"]: frozenset(map(words, row["words"])) for row in data["kinds"]}


def joined(run: Sequence[str]) -> set[str]:
    """Neighbouring words written as one: `pixel art` is also `pixelart`."""
    return {a + b for a, b in pairwise(run) if a.isascii() and b.isascii()}


@cache
def _vocabulary() -> dict[str, float]:
    path = Path(__file__).with_name("vocabulary.json")
    return json.loads(path.read_text("utf-8"))["rates"]


def background_rarity(term: str) -> float:
    """How telling a word is in prompts at large, in [0, 1]; `Index.rarity` of an empty library."""
    return min(1.0, -math.log(_background(term)) / RARITY_SCALE)


def _background(term: str) -> float:
    rates = _vocabulary()
    known = rates.get(term)
    if known is None and " " in term:
        # A phrase is no commoner than its rarest word, and words of one phrase go together
        # more often than chance: an order of magnitude is taken off, no more.
        known = min(rates.get(word, _UNSEEN_RATE) for word in term.split()) / 10
    return max(_UNSEEN_RATE, known or 0.0)


_kept: Kept[Index] = Kept()
_building = threading.Lock()


def index_of(library: LoraLibrary) -> Index:
    """The library's index, built on first use and kept for the latest libraries.

    Pure but for the time it takes: equal libraries give equal indexes. Linear in the library's
    text; the first call on a revision pays it.
    """
    with _building:
        return _kept.get(library) or _kept.put(library, Index(library.entries))
