"""What of one LoRA stands in the prompt: the words, the clauses, and what kind of LoRA it is.

Only for the few LoRAs that scored well; the index has found them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from ..catalog.entries import LoraEntry
from .index import EntryText, joined, kind_of, read_description, read_entry
from .query import Query
from .text import STOPWORDS, words

_TAG_WORTH = 0.5
"""A tag's match says less of what a LoRA is for than its name's or trigger word's."""
_TELLING_SHARE = 0.5
"""Share of images from which a caption tag counts as what the LoRA is for."""
_TELLING_RARITY = 0.3
"""Rarity below which a word (`girl`, `style`, `background`) does not count as a clause served
while there are better ones."""


class Match(NamedTuple):
    """One LoRA against one prompt."""

    text: EntryText
    worth: dict[str, float]
    """The prompt's words it has, and how much each says: rarity, halved for tags."""
    clauses: tuple[int, ...]
    """The clauses it serves, best first."""
    details: dict[str, str]
    """By factor: the words that matched."""
    kind: str | None
    """character, style, or None where nothing says."""
    named: bool
    """Whether the prompt names it: its first trigger word, or most of its name."""
    identity: frozenset[tuple[str, ...]]
    """The telling trigger words its author named: the same set means the same LoRA."""
    sides: frozenset[str]
    """Styles that exclude others, by conflicts.json: anime, photoreal, painting ..."""


def match(entry: LoraEntry, query: Query, rarity: Callable[[str], float]) -> Match:
    """Compare one LoRA with the prompt. `rarity` is Index.rarity."""
    text = read_entry(entry)
    triggers = [t for t in text.triggers if " ".join(t.words) in query.phrases]
    trigger_words = {word for t in text.triggers for word in t.words} & query.words.keys()
    name_words = {word for name in text.names for word in _found(name, query)}
    tags = [
        tag
        for tag, share in text.tags
        if share >= _TELLING_SHARE and " ".join(tag) in query.phrases
    ]
    worth: dict[str, float] = {}
    for word in [word for tag in tags for word in tag]:
        if word not in STOPWORDS:
            worth[word] = _TAG_WORTH * rarity(word)
    own = trigger_words | name_words
    said = read_description(entry)
    # In the prompt's order: sets have another in each process, and people read these.
    worth |= {word: rarity(word) for clause in query.clauses for word in clause if word in own}
    details = {
        "trigger": _listed(
            t.text for t in sorted(triggers, key=lambda t: -rarity(" ".join(t.words)))
        ),
        "trigger_share": _rarest(trigger_words, rarity),
        "name": _rarest(name_words, rarity),
        "tags": _rarest({" ".join(tag) for tag in tags}, rarity),
        "description": _rarest(said & query.words.keys(), rarity),
        "checkpoint": _rarest(said & (query.checkpoint or frozenset()), rarity),
        "rarity": _rarest(own, rarity, 1),
    }
    return Match(
        text=text,
        worth=worth,
        clauses=_served(query, worth),
        details={factor: detail for factor, detail in details.items() if detail},
        kind=kind_of(entry, text),
        named=_named(text, query, rarity),
        identity=frozenset(
            t.words
            for t in text.triggers
            if t.by_author and rarity(" ".join(t.words)) >= _TELLING_RARITY
        ),
        sides=_sides(entry, text),
    )


def _found(name: tuple[str, ...], query: Query) -> set[str]:
    """The prompt's words that stand in a name, also where one of both writes them as one."""
    found = set(name) & query.words.keys() | joined(name) & query.words.keys()
    for clause in query.clauses:
        for a, b in pairwise(clause):
            if a + b in name:
                found |= {a, b}
    return found - STOPWORDS


def _served(query: Query, worth: dict[str, float]) -> tuple[int, ...]:
    scores = {}
    for at, clause in enumerate(query.clauses):
        value = sum(worth.get(word, 0.0) for word in set(clause))
        best = max((worth.get(word, 0.0) for word in clause), default=0.0)
        if value > 0:
            scores[at] = (value, best)
    if not scores:
        return ()
    top = max(value for value, _ in scores.values())
    served = [
        at
        for at, (value, best) in scores.items()
        if value == top or (value >= top / 2 and best >= _TELLING_RARITY)
    ]
    return tuple(sorted(served, key=lambda at: (-scores[at][0], at)))


def _named(text: EntryText, query: Query, rarity: Callable[[str], float]) -> bool:
    first = [t for t in text.triggers if t.by_author and t.rank == 0]
    if any(
        " ".join(t.words) in query.phrases and rarity(" ".join(t.words)) >= _TELLING_RARITY
        for t in first[:1]
    ):
        return True
    for name in (*text.names, *(t.words for t in first[:1])):
        telling = set(name) - STOPWORDS
        whole = sum(rarity(word) for word in telling)
        if whole and sum(rarity(word) for word in _found(name, query)) >= whole / 2:
            return True
    return False


def _sides(entry: LoraEntry, text: EntryText) -> frozenset[str]:
    """From the name and trigger words; from tags only for a style, as model sites tag every
    character of an anime `anime`."""
    said: list[tuple[str, ...]] = [words(entry.title), *text.names]
    said += [t.words for t in text.triggers if t.by_author]
    if kind_of(entry, text) == "style":
        said += [tag for tag, share in text.tags if share >= _TELLING_SHARE]
    return sides_of(said)


def sides_of(phrases: Iterable[tuple[str, ...]]) -> frozenset[str]:
    """Which mutually exclusive styles the phrases speak of."""
    return frozenset(
        side
        for phrase in phrases
        for at, word in enumerate(phrase)
        for name, side in _side_names().get(word, ())
        if phrase[at : at + len(name)] == name
    )


def opposed(a: Iterable[str], b: Iterable[str]) -> tuple[str, str] | None:
    """A side of `a` and a side of `b` that exclude each other, or None."""
    theirs = set(b)
    for mine in sorted(a):
        for other in sorted(theirs):
            if frozenset((mine, other)) in _opposed():
                return mine, other
    return None


def side_of_intent(style: str) -> str | None:
    """The side that a PromptAnalysis.intent.style stands for."""
    rows = _conflicts()["intents"]
    return next((row["side"] for row in rows if row["style"] == style), None)


def _rarest(terms: Iterable[str], rarity: Callable[[str], float], most: int = 5) -> str:
    return _listed(sorted(terms, key=lambda term: (-rarity(term), term)), most)


def intent_value(entry: LoraEntry, side: str, clarity: float) -> float:
    """The `intent` factor: how clearly the prompt asks for the style that this LoRA gives."""
    text = read_entry(entry)
    is_style = kind_of(entry, text) == "style"
    return clarity if is_style and side in _sides(entry, text) else 0.0


def captions_value(entry: LoraEntry, query: Query, rarity: Callable[[str], float]) -> float:
    """The `captions` factor, in [0, 1]: how rare what the prompt asks for is that both the LoRA's
    name and the captions of nearly all its training images say."""
    if all(trigger.source != "tag_frequency" for trigger in entry.trigger_words):
        return 0.0  # before reading all its text, which takes a tenth of a millisecond
    text = read_entry(entry)
    said = (t.words for t in text.triggers if not t.by_author)
    return max(
        (
            rarity(phrase)
            for run in said
            if (phrase := " ".join(run)) in query.phrases
            and any(set(run) <= set(name) for name in text.names)
        ),
        default=0.0,
    )


def _listed(texts: Iterable[str], most: int = 5) -> str:
    return ", ".join(list(dict.fromkeys(texts))[:most])


@cache
def _conflicts() -> dict[str, list[dict[str, str]]]:
    return json.loads(Path(__file__).with_name("conflicts.json").read_text("utf-8"))


@cache
def _side_names() -> dict[str, list[tuple[tuple[str, ...], str]]]:
    """What each side is called, with the side, by the first word."""
    found: dict[str, list[tuple[tuple[str, ...], str]]] = {}
    for row in _conflicts()["sides"]:
        for name in map(words, row["words"]):
            found.setdefault(name[0], []).append((name, row["side"]))
    return found


@cache
def _opposed() -> frozenset[frozenset[str]]:
    return frozenset(frozenset((row["a"], row["b"])) for row in _conflicts()["opposed"])
