"""What search and catalog do not show. Whole words only: "18" does not block "2018"."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from .entries import RemoteVersion

Phrase = tuple[str, ...]

_WORD = re.compile(r"[^\W_]+")
_ADULT = 18
_AGE_UNITS = ("yo", "yr", "yearold")


class SafetyRules(NamedTuple):
    """What a person allows. Minors in sexual content, or marked by the hub, are never allowed."""

    allow_nsfw: bool = False
    blocked_tags: tuple[str, ...] = ()
    """The person's own words and phrases, compared with name, tags, trigger words and creator."""


SAFE = SafetyRules()


def blocked_by(version: RemoteVersion, rules: SafetyRules = SAFE) -> str | None:
    """Why this version is not shown, as the end of a sentence, or None.

    The hub's own marks count first; words of name, tags and trigger words also where the hub
    marks nothing. The description counts where minors are concerned: it may say "no nsfw".
    """
    said = [words(text) for text in (version.name, *version.tags, *version.trigger_words)]
    if version.minor_unsafe:
        return "the hub marks it as showing minors"
    told = [*said, words(version.description)]
    if speaks_of_minors(told) and (version.nsfw or sexual_word(told)):
        return "it would put minors into a sexual context"
    if not rules.allow_nsfw:
        if version.nsfw:
            return "the hub marks it as not safe for work, and that is off"
        if word := _first(_list("sexual") | _list("marks"), said):
            return f'it says "{word}" of itself, and sexual content is off'
    if word := blocked_tag(rules.blocked_tags, [*said, words(version.creator)]):
        return f'it has the blocked tag "{word}"'
    return None


def sexual_word(phrases: Iterable[Phrase]) -> str | None:
    """The first of our words for sexual content that a phrase holds, or None."""
    return _first(_list("sexual"), phrases)


def blocked_tag(tags: Iterable[str], phrases: Iterable[Phrase]) -> str | None:
    """The first of a person's blocked words and phrases that a phrase holds, or None."""
    return _first({tag: words(tag) for tag in tags}, phrases)


def speaks_of_minors(phrases: Iterable[Phrase]) -> bool:
    """Whether any phrase holds a word for people under 18, or such an age ("17 years old")."""
    phrases = list(phrases)
    return _first(_list("minors"), phrases) is not None or any(map(_under_age, phrases))


def marked_for_adults(tags: Iterable[str]) -> bool:
    """Whether a Hugging Face repository says in its tags that it is for adults."""
    wanted = _list("marks").values()
    return any(words(tag) in wanted for tag in tags)


def words(text: str) -> Phrase:
    """The words of `text`: runs of letters and digits, without case, width and accents."""
    folded = unicodedata.normalize("NFKD", text)
    folded = "".join(c for c in folded if not unicodedata.combining(c))
    return tuple(_WORD.findall(unicodedata.normalize("NFC", folded).casefold()))


def _first(wanted: dict[str, Phrase], phrases: Iterable[Phrase]) -> str | None:
    said = [(phrase, frozenset(phrase)) for phrase in phrases]
    for text, phrase in wanted.items():
        for inside, known in said:
            if phrase and phrase[0] in known and _contains(inside, phrase):
                return text
    return None


def _contains(inside: Phrase, phrase: Phrase) -> bool:
    size = len(phrase)
    return any(inside[i : i + size] == phrase for i in range(len(inside) - size + 1))


def _under_age(phrase: Phrase) -> bool:
    for at, word in enumerate(phrase):
        number, unit = word, phrase[at + 1 : at + 3]
        if word.endswith("yo"):
            number, unit = word[:-2], ("yo",)
        is_age = unit[:1] and (
            unit[0] in _AGE_UNITS or (unit[0] in ("year", "years") and unit[1:] == ("old",))
        )
        if is_age and number.isdecimal() and int(number) < _ADULT:
            return True
    return False


@cache
def _list(name: str) -> dict[str, Phrase]:
    data = json.loads(Path(__file__).with_name("safety.json").read_text("utf-8"))
    row = next(row for row in data["lists"] if row["list"] == name)
    return {word: words(word) for word in row["words"]}
