"""What speaks for each LoRA: the candidates for a prompt, and one number a column for each.

`Search` looks everything up in the index; `compare` adds how each candidate stands among the
others. ranking.json was fitted on just these columns, and names the factor that each belongs to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from .index import (
    DESCRIPTION,
    FIRST_TRIGGER,
    JOINED,
    NAME,
    RARITY_SCALE,
    STEM,
    TAG,
    TAG_PHRASE,
    TELLING,
    TRIGGER,
    TRIGGER_PHRASE,
    Floats,
    Grams,
    Index,
    Indices,
    grams,
    rarity_of,
)
from .query import Query
from .vectors import Similarity, largest, product

BEST_BY_WORDS, BEST_BY_ALL_TEXT, BEST_BY_MEANING, BEST_BY_POPULARITY = 50, 20, 50, 10
"""How many candidates each way of looking finds at most. With twice as many more of the LoRAs that
were used are among them, but fewer among the first three (measured): trees fitted on fewer
candidates tell close ones apart better."""
_MOST_CLAUSES = 60
"""Clauses whose spelling is compared."""
_CLAUSE_LETTERS = 80
_LAST_PLACE = 50.0
_WORD_FIELDS = (NAME, STEM, TRIGGER, FIRST_TRIGGER, TAG, DESCRIPTION)
_QUALITY = frozenset({"masterpiece", "quality", "best", "detailed", "8k", "highre", "absurdre"})
_PEOPLE = frozenset({"1girl", "girl", "woman", "1boy", "boy", "man"})

COMPARED = (
    "name", "trigger_words", "trigger", "tags", "tag_phrases", "description", "all_text", "rarest",
    "focus", "clause", "spelling_name", "spelling_trigger", "similarity", "similarity_clause",
    "downloads", "checkpoint",
)  # fmt: skip
"""Columns by which candidates are compared with one another."""


class Evidence(NamedTuple):
    """The candidates for a prompt."""

    positions: Indices
    """Positions in the index, ascending."""
    columns: dict[str, Floats]
    """A value for each candidate; NaN where nothing says."""


class Search:
    """The LoRAs that may fit a prompt, found by words, by spelling out of all text, by meaning and
    by popularity, and what speaks for each. Every word is looked up once, for all LoRAs."""

    def __init__(
        self,
        index: Index,
        query: Query,
        usable: np.ndarray,
        similarity: Similarity | None = None,
    ) -> None:
        """
        Args:
            usable: bool [LoRAs], those that tell how rare a word is: what others are called is no
                matter.
            similarity: to the prompt, in the index's order; None compares words alone.
        """
        size = len(index.entries)
        self._index, self._query, self._similarity = index, query, similarity
        self._rarity = rarity = _rarity_among(index, usable)
        sums = {field: np.zeros(size, np.float32) for field in _WORD_FIELDS}
        tops = {field: np.zeros(size, np.float32) for field in _WORD_FIELDS}
        all_text, rarest = np.zeros(size, np.float32), np.zeros(size, np.float32)
        found = [
            (rarity(term.removeprefix(JOINED)), emphasis, posting)
            for term, emphasis in query.terms()
            if (posting := index.get(term)) is not None
        ]
        # The rarest come last, so that what is assigned last is the largest.
        for value, emphasis, (positions, fields) in sorted(found, key=lambda each: each[0]):
            all_text[positions] += value * emphasis
            for field in _WORD_FIELDS:
                at = positions[(fields & field) != 0]
                sums[field][at] += value * emphasis
                tops[field][at] = value
            rarest[positions[(fields & TELLING) != 0]] = value
        trigger, tag_phrases = np.zeros(size, np.float32), np.zeros(size, np.float32)
        for phrase, emphasis in query.phrases.items():
            if (posting := index.get(phrase)) is not None:
                positions, fields = posting
                value = rarity(phrase) * emphasis
                at = positions[(fields & TRIGGER_PHRASE) != 0]
                trigger[at] = np.maximum(trigger[at], value)
                tag_phrases[positions[(fields & TAG_PHRASE) != 0]] += value

        self._whole_prompt = sum(map(rarity, query.words)) or 1.0
        name = np.maximum(sums[NAME], sums[STEM])
        shares = {
            field: np.minimum(1.0, sums[field] / np.maximum(index.mass[field], 1e-6))
            for field in index.mass
        }
        name_share = np.maximum(shares[NAME], shares[STEM])
        focus = np.minimum(1.0, np.maximum(name, sums[TRIGGER]) / self._whole_prompt)
        self._columns = {
            "name": name,
            "name_share": name_share,
            "name_top": np.maximum(tops[NAME], tops[STEM]),
            "trigger_words": sums[TRIGGER],
            "trigger_share": shares[TRIGGER],
            "first_trigger_share": shares[FIRST_TRIGGER],
            "trigger_top": tops[TRIGGER],
            "trigger": trigger,
            "tags": sums[TAG],
            "tag_top": tops[TAG],
            "tag_share": shares[TAG],
            "tag_phrases": tag_phrases,
            "description": sums[DESCRIPTION],
            "description_top": tops[DESCRIPTION],
            "all_text": all_text,
            "rarest": rarest,
            "focus": focus,
            "downloads": index.downloads,
            "likes": index.likes,
            "trigger_count": index.trigger_count,
            "tag_count": index.tag_count,
            "description_length": index.description_length,
            "kind": index.kind,
        }
        self._columns |= _of_checkpoint(index, query, usable)
        short = name + sums[TRIGGER] + 2.0 * trigger + 0.5 * sums[TAG] + focus + name_share
        self._by_words = short + 0.3 * sums[DESCRIPTION]
        clauses = [" ".join(run)[:_CLAUSE_LETTERS] for run in query.clauses[:_MOST_CLAUSES]]
        self._spelt = _Spelt(index, clauses)

    def among(self, some: np.ndarray, *, share: float = 1.0) -> Evidence:
        """The candidates among some LoRAs, and what speaks for each.

        Args:
            some: bool [LoRAs].
            share: of the usual number of candidates, in (0, 1].
        """
        index, query, similarity = self._index, self._query, self._similarity
        chosen = np.zeros(len(some), bool)
        for values, most in (
            (self._by_words, BEST_BY_WORDS),
            (self._columns["all_text"], BEST_BY_ALL_TEXT),
            (index.downloads, BEST_BY_POPULARITY),
        ):
            above = np.where(some & (values > 0), values, math.nan)
            chosen[largest(above, math.ceil(share * most))] = True
        if similarity is not None:
            chosen[similarity.nearest(some, math.ceil(share * BEST_BY_MEANING))] = True
        positions = np.flatnonzero(chosen).astype(np.int32)
        columns = {each: column[positions] for each, column in self._columns.items()}
        unknown = np.full(len(positions), math.nan, np.float32)
        columns |= dict.fromkeys(("similarity", "similarity_clause", "checkpoint_meaning"), unknown)
        if similarity is not None:
            columns["similarity"], columns["similarity_clause"] = similarity.of(positions)
            columns["checkpoint_meaning"] = similarity.of_checkpoint(positions)
        columns |= _by_clause(index, query, positions, self._rarity)
        columns["spelling_name"] = self._spelt.like(index.name_grams, positions)
        columns["spelling_trigger"] = self._spelt.like(index.trigger_grams, positions)
        of_prompt = _of_prompt(query, self._whole_prompt, self._rarity, len(positions))
        return Evidence(positions, columns | of_prompt)


def compare(columns: dict[str, Floats], library_size: float) -> dict[str, Floats]:
    """The columns, and for each of COMPARED its share of the best candidate's value (`…/best`)
    and the candidate's place by it (`…#`, 0 the first), with the number of usable LoRAs."""
    found = dict(columns)
    for each in COMPARED:
        values = np.where(np.isnan(columns[each]), 0.0, columns[each])
        best = float(values.max(initial=0.0))
        found[f"{each}/best"] = (values / best if best > 0 else np.zeros_like(values)).astype(
            np.float32
        )
        # Equal values share the first of their places.
        place = np.searchsorted(np.sort(-values), -values).astype(np.float32)
        found[f"{each}#"] = np.minimum(place, _LAST_PLACE)
    size = math.log(max(1.0, library_size)) / RARITY_SCALE
    found["library"] = np.full(len(next(iter(columns.values()))), size, np.float32)
    return found


def _rarity_among(index: Index, usable: np.ndarray) -> Callable[[str], float]:
    """As `Index.rarity`, in [0, 1], among some LoRAs alone."""
    entries = int(usable.sum())

    @cache
    def rarity(term: str) -> float:
        count = 0
        if (posting := index.get(term)) is not None:
            positions, fields = posting
            count = int(np.count_nonzero(usable[positions] & ((fields & TELLING) != 0)))
        return rarity_of(term, count, entries)

    return rarity


def _by_clause(
    index: Index, query: Query, positions: Indices, rarity: Callable[[str], float]
) -> dict[str, Floats]:
    """How well one clause of the prompt, the best one for each LoRA, is matched by name or
    trigger words: by its share, and by the rarity of what matches; how many others match that
    clause better, or as well and are more often downloaded; where it stands and how long it is."""
    terms = sorted({word for run in query.clauses for word in run if word in query.words})
    places = {term: place for place, term in enumerate(terms)}
    rarities = np.array([rarity(term) for term in terms], np.float32)
    asked = np.zeros((len(query.clauses), len(terms)), np.float32)
    for row, run in enumerate(query.clauses):
        for word in run:
            if word in places:
                asked[row, places[word]] = rarities[places[word]]
    candidate = np.full(len(index.entries), -1, np.int32)
    candidate[positions] = np.arange(len(positions), dtype=np.int32)
    has = np.zeros((len(terms), len(positions)), np.float32)
    for term, place in places.items():
        if (posting := index.get(term)) is not None:
            at, fields = posting
            at = candidate[at[(fields & (NAME | STEM | TRIGGER)) != 0]]
            has[place, at[at >= 0]] = 1.0
    matched = product(asked, has)
    whole = asked.sum(1, keepdims=True) + 1e-6
    best = matched * (matched / whole)
    none = np.zeros((1, len(positions)), np.float32)
    best, matched = np.concatenate((best, none)), np.concatenate((matched, none))
    own = best.argmax(0)
    value = best[own, np.arange(len(positions))]
    # How well all others match the clause that each candidate matches best.
    others = best[own]
    close = others >= value[:, None] - 1e-4
    downloads = np.nan_to_num(index.downloads[positions], nan=-1.0)
    lengths = np.array([*map(len, query.clauses), 0])

    def known(values: np.ndarray) -> Floats:
        return np.where(value > 0, np.minimum(values, _LAST_PLACE), math.nan).astype(np.float32)

    return {
        "clause": value,
        "clause_rarity": matched.max(0),
        "clause_better": known((others > value[:, None] + 1e-4).sum(1)),
        "clause_tied": known(close.sum(1)),
        "clause_downloads": known((close & (downloads > downloads[:, None])).sum(1)),
        "clause_place": known(own / max(1, len(query.clauses))),
        "clause_words": known(lengths[own]),
        "matched_words": has.sum(0),
        "matched_clauses": (matched > 0).sum(0).astype(np.float32),
    }


def _of_checkpoint(index: Index, query: Query, usable: np.ndarray) -> dict[str, Floats]:
    """Whether an author speaks of the checkpoint: what it is called, by how few of the usable
    LoRAs' descriptions say so, summed and at most."""
    start = math.nan if query.checkpoint is None else 0.0
    found = {
        name: np.full(len(index.entries), start, np.float32)
        for name in ("checkpoint", "checkpoint_top")
    }
    size = int(usable.sum())
    for term in sorted(query.checkpoint or ()):  # sums must not depend on a set's order
        if (posting := index.get(term)) is not None:
            positions, fields = posting
            at = positions[(fields & DESCRIPTION) != 0]
            value = math.log((size + 1) / (1 + int(usable[at].sum()))) / RARITY_SCALE
            found["checkpoint"][at] += value
            found["checkpoint_top"][at] = np.maximum(found["checkpoint_top"][at], value)
    return found


class _Spelt:
    """The clauses as hashed runs of letters."""

    def __init__(self, index: Index, clauses: Sequence[str]) -> None:
        runs = [grams(clause) for clause in clauses]
        known, columns = np.unique(
            np.concatenate([np.zeros(0, np.uint16), *runs]), return_inverse=True
        )
        self._squares = index.gram_weights**2
        self._table = np.zeros((len(known) + 1, len(runs)), np.float32)
        """The squared weight of each run in each clause; a last row of zeros for all others."""
        rows = np.repeat(np.arange(len(runs)), list(map(len, runs)))
        self._table[columns, rows] = self._squares[known][columns]
        self._norms = np.sqrt(self._table.sum(0)) + 1e-6
        self._places = np.full(len(self._squares), len(known), np.int32)
        """The row of each hash."""
        self._places[known] = np.arange(len(known))

    def like(self, has: Grams, positions: Indices) -> Floats:
        """Cosine between each LoRA's text and the nearest clause, in [0, 1]."""
        if not self._table.any():
            return np.zeros(len(positions), np.float32)
        lengths = has.starts[positions + 1] - has.starts[positions]
        picked = np.repeat(has.starts[positions], lengths) + _counting(lengths)
        hashes = has.hashes[picked]
        shared = _sums(self._table[self._places[hashes]], lengths)
        own = _sums(self._squares[hashes], lengths)
        return (shared / self._norms).max(1) / (np.sqrt(own) + 1e-6)


def _sums(values: Floats, lengths: Indices) -> Floats:
    """The sum of each run of rows, one run after the other; 0 for an empty one."""
    found = np.zeros((len(lengths), *values.shape[1:]), np.float32)
    filled = lengths > 0
    if filled.any():
        found[filled] = np.add.reduceat(values, (np.cumsum(lengths) - lengths)[filled], axis=0)
    return found


def _counting(lengths: Indices) -> Indices:
    """0, 1 … for each length, one run after the other."""
    total = int(lengths.sum())
    return np.arange(total) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def _of_prompt(
    query: Query, whole: float, rarity: Callable[[str], float], count: int
) -> dict[str, Floats]:
    """What the prompt is like, the same for every candidate."""
    clauses = max(1, len(query.clauses))
    values = {
        "prompt_words": len(query.words),
        "prompt_clauses": clauses,
        "prompt_rarity": whole,
        "prompt_rarest": max(map(rarity, query.words), default=0.0),
        "prompt_quality": len(_QUALITY & query.words.keys()),
        "prompt_people": len(_PEOPLE & query.words.keys()),
        "prompt_prose": len(query.words) / clauses,
    }
    return {each: np.full(count, value, np.float32) for each, value in values.items()}
