"""How well each LoRA of a library fits a prompt: named factors, combined by weights.json.

A factor is a number in about [0, 1] with a name. The score is the sum of value times weight
over the factors, `prior` among them, and the confidence is its logistic. To add a factor
(similarity of embeddings, popularity, what ratings taught): compute its column in `score`, and
give it a row in weights.json.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..catalog.entries import LoraEntry
from ..plan import Clause, Factor
from .index import JOINED, MAX_PHRASE, RARITY_SCALE, Field, Floats, Index, Indices, joined
from .text import STOPWORDS, words

MAX_QUERY_WORDS = 2000
"""Words of the prompt that are read, from its start."""
_HOPELESS = -4.0
"""Score (a logit, confidence 0.02) below which no single factor makes a recommendation."""
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


def read_query(clauses: Sequence[Clause]) -> Query:
    """The terms of a prompt's clauses. Emphasis counts from 0 to 1.5."""
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


class Weight(NamedTuple):
    """A row of weights.json."""

    weight: float
    missing: float = 0.0
    """Value of the factor for a LoRA that lacks the field, so that a lack counts neither for
    nor against it."""


@cache
def load_weights() -> dict[str, Weight]:
    """The rows of weights.json by factor name."""
    data = json.loads(Path(__file__).with_name("weights.json").read_text("utf-8"))
    return {
        row["factor"]: Weight(row["weight"], row.get("missing", 0.0)) for row in data["factors"]
    }


class Scores(NamedTuple):
    """The LoRAs that have anything in common with the prompt, the best first."""

    positions: Indices
    """Positions in the index; equal scores stand in the library's order."""
    confidence: Floats
    """In [0, 1]."""
    factors: dict[str, Floats]
    """Value of each factor; rows as in `positions`."""

    def explain(self, row: int, details: Mapping[str, str]) -> tuple[Factor, ...]:
        """The factors of one row, the heaviest first. `details` says what matched."""
        weights = load_weights()
        factors = [
            Factor(
                name=name,
                value=round(float(values[row]), 4),
                weight=weights[name].weight,
                detail=details.get(name, ""),
            )
            for name, values in self.factors.items()
        ]
        return tuple(sorted(factors, key=lambda factor: -abs(factor.value * factor.weight)))


def score(
    index: Index,
    query: Query,
    fits: Mapping[str, float],
    intent: Callable[[LoraEntry], float] = lambda _: 0.0,
) -> Scores:
    """Scores of all LoRAs that share a term with the prompt, whatever their base model.

    `fits` gives each family of the library its fit to the model in [0, 1]; 0 is scored as if
    it fitted, so that the caller can tell what another base model cost. `intent` gives the
    factor of that name for one LoRA; it is slow, so only LoRAs that it could lift are asked.
    """
    positions, factors = measure(index, query)
    fit = np.array([fits[family] or 1.0 for family in index.families], np.float32)
    factors["base_model"] = fit[index.family[positions]]
    crowd = math.log(max(1, len(index.entries))) / RARITY_SCALE
    factors["library"] = np.full(len(positions), crowd, np.float32)
    factors["prior"] = np.ones(len(positions), np.float32)
    weights = load_weights()
    logit = np.zeros(len(positions), np.float64)
    for name, values in factors.items():
        logit += weights[name].weight * values.astype(np.float64)
    factors["intent"] = np.zeros(len(positions), np.float32)
    for row in np.flatnonzero(logit > _HOPELESS):
        factors["intent"][row] = intent(index.entries[positions[row]])
    logit += weights["intent"].weight * factors["intent"]
    confidence = 1.0 / (1.0 + np.exp(-logit))
    order = np.argsort(-confidence, kind="stable")
    return Scores(
        positions[order],
        confidence[order].astype(np.float32),
        {name: values[order] for name, values in factors.items()},
    )


def measure(index: Index, query: Query) -> tuple[Indices, dict[str, Floats]]:
    """Positions of the LoRAs that share a term with the prompt, and the values of the lexical
    factors for them. weights.json says what each factor is."""
    size = len(index.entries)
    terms = tuple(_terms(query, index))
    whole_prompt = sum(index.rarity(word) for word in query.words) or 1.0
    touched = np.zeros(size, bool)
    rarest = np.zeros(size, np.float32)

    def total(field: Field, *, label: bool = True) -> Floats:
        found = np.zeros(size, np.float32)
        for term in terms:
            if (posting := field.get(term.key)) is not None:
                at, weights = posting
                found[at] += weights * (term.rarity * term.emphasis)
                touched[at] = True
                if label:
                    rarest[at] = np.maximum(rarest[at], term.rarity)
        return found

    def share(found: Floats, field: Field) -> Floats:
        return np.minimum(1.0, found / np.maximum(field.mass, 1e-6))

    trigger = np.zeros(size, np.float32)
    tags = np.zeros(size, np.float32)
    for phrase, emphasis in query.phrases.items():
        if (posting := index.trigger.get(phrase)) is not None:
            at, weights = posting
            value = index.rarity(phrase) * emphasis
            trigger[at] = np.maximum(trigger[at], weights * value)
            touched[at] = True
        if (posting := index.tags.get(phrase)) is not None:
            at, weights = posting
            tags[at] += weights * (index.rarity(phrase) * emphasis)
            touched[at] = True
    trigger_words = total(index.trigger_words)
    title = total(index.title)
    stem = total(index.stem)
    name = np.maximum(title, stem)
    description = total(index.description, label=False)
    values = {
        "trigger": trigger,
        "trigger_share": share(trigger_words, index.trigger_words),
        "name": np.minimum(name, 2.0) / 2.0,
        "name_share": np.maximum(share(title, index.title), share(stem, index.stem)),
        "tags": tags / (tags + 1.0),
        "description": description / (description + 2.0),
        "rarity": rarest,
        "focus": np.minimum(1.0, np.maximum(name, trigger_words) / whole_prompt),
    }
    lacking = {
        "trigger": index.trigger_words.mass == 0,
        "tags": index.tags.mass == 0,
        "description": index.description.mass == 0,
    }
    for factor, rows in lacking.items():
        values[factor][rows] = load_weights()[factor].missing
    at = np.flatnonzero(touched).astype(np.int32)
    return at, {factor: column[at] for factor, column in values.items()}


class _Term(NamedTuple):
    key: str
    """As it stands in a field's posting lists."""
    rarity: float
    emphasis: float


def _terms(query: Query, index: Index) -> Iterator[_Term]:
    for word, emphasis in query.words.items():
        rarity = index.rarity(word)
        yield _Term(word, rarity, emphasis)
        yield _Term(JOINED + word, rarity, emphasis)
    for pair, emphasis in query.joined.items():
        yield _Term(pair, index.rarity(pair), emphasis)


def _raise(terms: dict[str, float], term: str, emphasis: float) -> None:
    terms[term] = max(emphasis, terms.get(term, 0.0))
