"""What is not recommended whatever its score. Whole words only: `sussex` is not `sex`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from ..catalog.entries import LoraEntry
from .text import contains, name_words, pieces, words

_TELLING_SHARE = 0.25
"""A caption tag in fewer training images does not make the LoRA what the tag says."""
_ANY_SHARE = 0.05
"""The stricter share where minors are concerned."""
_ADULT = 18
_AGE_UNITS = ("yo", "yr", "yearold")

Phrase = tuple[str, ...]


def blocked_by(
    entry: LoraEntry, prompt: Sequence[Phrase], *, allow_nsfw: bool, tags: Iterable[str]
) -> str | None:
    """Why this LoRA may not be recommended for this prompt, or None.

    `prompt` is the words of each clause; `tags` the user's own blocked words and phrases,
    compared with title, file name, trigger words and tags.
    """
    if minors_in_sexual_context(entry, prompt):
        return "it would put minors into a sexual context"
    said = _said(entry)
    if not allow_nsfw:
        said_and_described = [*said, words(entry.description)]
        if word := _first(_list("sexual"), said_and_described):
            return f'it says "{word}" of itself, and sexual content is off'
    if word := _first({tag: words(tag) for tag in tags}, said):
        return f'it has the blocked tag "{word}"'
    return None


def minors_in_sexual_context(entry: LoraEntry, prompt: Sequence[Phrase]) -> bool:
    """Whether LoRA and prompt together speak of minors and of sexual content, with at least
    one of the two said by the LoRA."""
    own = [*_said(entry, _ANY_SHARE), words(entry.description)]
    together = [*own, *prompt]
    return (_sexual(own) and _minors(together)) or (_minors(own) and _sexual(together))


def _said(entry: LoraEntry, least_share: float = _TELLING_SHARE) -> list[Phrase]:
    phrases = [words(entry.title), name_words(entry.title), words(entry.file.name)]
    phrases += [words(piece) for t in entry.trigger_words for piece in pieces(t.text)]
    phrases += [words(tag.text) for tag in entry.tags if tag.share >= least_share]
    return phrases


def _sexual(phrases: Iterable[Phrase]) -> bool:
    return _first(_list("sexual"), phrases) is not None


def _minors(phrases: Iterable[Phrase]) -> bool:
    phrases = list(phrases)
    return _first(_list("minors"), phrases) is not None or any(map(_under_age, phrases))


def _under_age(phrase: Phrase) -> bool:
    for at, word in enumerate(phrase):
        number, unit = word, phrase[at + 1 : at + 3]
        if word.endswith("yo"):
            number, unit = word[:-2], ("yo",)
        is_age = unit[:1] and (unit[0] in _AGE_UNITS or unit == ("year", "old"))
        if is_age and number.isdecimal() and int(number) < _ADULT:
            return True
    return False


def _first(wanted: dict[str, Phrase], phrases: Iterable[Phrase]) -> str | None:
    said = [(phrase, frozenset(phrase)) for phrase in phrases]
    for text, phrase in wanted.items():
        for inside, known in said:
            if phrase and phrase[0] in known and contains(inside, phrase):
                return text
    return None


@cache
def _list(name: str) -> dict[str, Phrase]:
    data = json.loads(Path(__file__).with_name("safety.json").read_text("utf-8"))
    row = next(row for row in data["lists"] if row["list"] == name)
    return {word: words(word) for word in row["words"]}
