"""The prompt as terms to look up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..plan import Clause
from .index import JOINED, MAX_PHRASE, joined
from .text import STOPWORDS, called, words

MAX_QUERY_WORDS = 2000
"""Words of the prompt that are read, from its start."""
_EMPHASIS_RANGE = (0.0, 1.5)


class Query(NamedTuple):
    """The prompt as terms to look up."""

    clauses: tuple[tuple[str, ...], ...]
    """Words of each clause."""
    words: dict[str, float]
    """Each telling word and its emphasis, the strongest where it stands twice."""
    joined: dict[str, float]
    """Neighbouring words written as one, likewise."""
    phrases: dict[str, float]
    """Each run of 1 to MAX_PHRASE words within a clause, likewise."""
    checkpoint: frozenset[str] | None = None
    """What the checkpoint may be called in a description; None where it is not known."""

    def terms(self) -> Iterator[tuple[str, float]]:
        """The words, and neighbouring words written as one, with their emphasis: what is looked
        up in names, trigger words, tags and descriptions."""
        for word, emphasis in self.words.items():
            yield word, emphasis
            yield JOINED + word, emphasis
        yield from self.joined.items()

    def on(self, checkpoint: str) -> Query:
        """The same prompt for a checkpoint, by the stem of its file's name; empty where it is not
        known."""
        return self._replace(checkpoint=called(checkpoint) if checkpoint else None)


def read_query(clauses: Sequence[Clause]) -> Query:
    """The terms of a prompt's clauses, for a checkpoint that is not known. Emphasis counts from 0
    to 1.5."""
    query = Query(tuple(words(clause.text) for clause in clauses), {}, {}, {})
    left = MAX_QUERY_WORDS
    for clause, run in zip(clauses, query.clauses, strict=True):
        run = run[:left]
        left -= len(run)
        emphasis = min(max(clause.weight, _EMPHASIS_RANGE[0]), _EMPHASIS_RANGE[1])
        for n in range(1, MAX_PHRASE + 1):
            for at in range(len(run) - n + 1):
                _raise(query.phrases, " ".join(run[at : at + n]), emphasis)
        for word in run:
            if word not in STOPWORDS:
                _raise(query.words, word, emphasis)
        for pair in joined(run):
            _raise(query.joined, pair, emphasis)
    return query


def _raise(terms: dict[str, float], term: str, emphasis: float) -> None:
    terms[term] = max(emphasis, terms.get(term, 0.0))
