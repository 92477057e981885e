"""Finds what a text asks for: phrases with a category, from lexicon.json and from what is new.

A clause is read as runs of words between function words. In a run, adjectives and unknown words
join the next noun they stand before ("victorian mansion"); what the lexicon does not know and
nothing takes along is content. Matching is by whole words, longest phrase first, in singular and
plural; a negator ("not", "no", "without") takes away the next concept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

_LEXICON = Path(__file__).with_name("lexicon.json")
_LANGUAGES = Path(__file__).with_name("languages.json")
"""More terms of the lexicon's groups, in other languages than English."""
_NOUNS = frozenset({"character", "content", "setting"})
_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff]"  # kana and Han are written without spaces: one by one
    r"|[^\W\d_\u3040-\u30ff\u3400-\u9fff]+(?:['’][^\W\d_]+)*"
    r"|\d+(?:[.,]\d+)*"
)
_NEGATOR_REACH = 4
_ONLY_STYLE = ("style",)
_ALSO_DENIED = frozenset({"or", "nor"})
_UNBROKEN = re.compile(r'[^()\[\]<>"“”]+')
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")

Role = Literal["term", "head", "modifier", "plain"]


class Entry(NamedTuple):
    """What the lexicon says of a phrase."""

    category: str
    role: Role
    """modifier: joins what follows; head: takes unknown words before it along ("klimt style");
    plain: stands alone; term: as its category does."""
    style: Mapping[str, float]
    content: Mapping[str, float]
    quality: Mapping[str, float]
    """How far this phrase alone points to an intent, in [0, 1], by the intent's name."""
    abroad: bool = False
    """Of languages.json."""


class Found(NamedTuple):
    """A phrase that the text asks for."""

    category: str
    """One of plan.ConceptCategory, or `mood`."""
    start: int
    end: int
    """Where it stands in the text."""
    words: tuple[str, ...]
    """Singular, lower case, without numbers and function words."""
    entries: tuple[Entry, ...]
    """Of its parts, as far as the lexicon knows them."""


class _Lexicon(NamedTuple):
    phrases: dict[tuple[str, ...], Entry]
    singulars: dict[tuple[str, ...], Entry]
    longest: dict[str, int]
    """Words in the longest phrase that begins with this word."""
    patterns: tuple[tuple[re.Pattern[str], Entry], ...]
    fillers: frozenset[str]
    negators: frozenset[str]
    carriers: frozenset[str]
    """Words such as "holding", after which "a photo" is a thing and not the style."""
    irregular: dict[str, str]


class _Item(NamedTuple):
    kind: Literal["known", "unknown", "filler", "negator"]
    start: int
    end: int
    words: tuple[str, ...]
    entry: Entry | None


_THING = Entry("content", "term", {}, {}, {})
_BREAK = _Item("filler", 0, 0, ("",), None)
"""Stands where brackets or quotes end a run of words."""


def find(text: str, pieces: list[tuple[int, int]]) -> list[Found]:
    """The phrases asked for in each piece (start, end) of the text, in order.

    No phrase reaches over the end of a piece. Repetitions are listed again.
    """
    lexicon = _lexicon()
    found: list[Found] = []
    for start, end in pieces:
        items: list[_Item] = []
        for part in _UNBROKEN.finditer(text, start, end):
            items += _items(text, *part.span(), lexicon)
            items.append(_BREAK)
        found += _phrases(items)
    return found


def as_found(category: str, phrase: str) -> Found:
    """A phrase whose category another reader gave, as `find` would have listed it."""
    lexicon = _lexicon()
    words = (token[0].lower() for token in _WORD.finditer(phrase))
    said = tuple(
        _singular(word, lexicon.irregular)
        for word in words
        if word not in lexicon.fillers and not word[0].isdigit()
    )
    return Found(category, 0, len(phrase), said, ())


@lru_cache(maxsize=1)
def _lexicon() -> _Lexicon:
    data = json.loads(_LEXICON.read_text(encoding="utf-8"))
    languages = json.loads(_LANGUAGES.read_text(encoding="utf-8"))
    abroad: dict[str, list[str]] = {}
    for row in languages["groups"]:
        abroad[row["group"]] = [term for terms in row["terms"].values() for term in terms]
    irregular = data["irregular_plurals"]
    phrases: dict[tuple[str, ...], Entry] = {}
    singulars: dict[tuple[str, ...], Entry] = {}
    for group in data["groups"]:
        entry = _entry(group)
        terms = [(term, entry) for term in group["terms"]]
        foreign = entry._replace(abroad=True)
        terms += [(term, foreign) for term in abroad.get(group["id"], ())]
        for term, meant in terms:
            words = tuple(found[0].lower() for found in _WORD.finditer(term))
            phrases.setdefault(words, meant)
            singulars.setdefault(tuple(_singular(word, irregular) for word in words), meant)
    longest: dict[str, int] = {}
    for words in (*phrases, *singulars):
        longest[words[0]] = max(longest.get(words[0], 0), len(words))
    return _Lexicon(
        phrases=phrases,
        singulars=singulars,
        longest=longest,
        patterns=tuple(
            (re.compile(row["regex"], re.IGNORECASE), _entry(row)) for row in data["patterns"]
        ),
        fillers=frozenset(data["fillers"]).union(*languages["fillers"].values()),
        negators=frozenset(data["negators"]).union(*languages["negators"].values()),
        carriers=frozenset(data["carriers"]),
        irregular=irregular,
    )


def _entry(row: dict[str, Any]) -> Entry:
    return Entry(
        category=row["category"],
        role=row.get("role", "term"),
        style=row.get("style", {}),
        content=row.get("content", {}),
        quality=row.get("quality", {}),
    )


def _singular(word: str, irregular: dict[str, str]) -> str:
    if word in irregular:
        return irregular[word]
    if len(word) <= 3 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("sses", "xes", "ches", "shes", "zes")):
        return word[:-2]
    return word[:-1]


def _items(text: str, start: int, end: int, lexicon: _Lexicon) -> list[_Item]:
    piece = text[start:end]
    special: dict[int, tuple[int, Entry]] = {}
    for pattern, entry in lexicon.patterns:
        for found in pattern.finditer(piece):
            special.setdefault(found.start(), (found.end(), entry))
    tokens = list(_WORD.finditer(piece))
    words = [token[0].lower().replace("’", "'") for token in tokens]
    singulars = [_singular(word, lexicon.irregular) for word in words]
    items: list[_Item] = []
    index = 0
    while index < len(tokens):
        at = tokens[index].start()
        length, entry = _longest(words, singulars, index, lexicon)
        upto = tokens[index + length - 1].end()
        if at in special and (entry is None or special[at][0] > upto):
            upto, entry = special[at]
            length = sum(token.start() < upto for token in tokens[index : index + upto - at])
            keys = (_pattern_key(piece[at:upto], lexicon),)
        else:
            keys = tuple(
                word
                for word in singulars[index : index + length]
                if word not in lexicon.fillers and not word[0].isdigit()
            )
        kind = "known" if entry else _kind(words[index], lexicon)
        items.append(_Item(kind, start + at, start + upto, keys or (words[index],), entry))
        index += length
    return items


def _kind(word: str, lexicon: _Lexicon) -> Literal["unknown", "filler", "negator"]:
    if word in lexicon.negators:
        return "negator"
    if word in lexicon.fillers or word[0].isdigit() or (len(word) == 1 and not _CJK.match(word)):
        return "filler"
    return "unknown"


def _pattern_key(text: str, lexicon: _Lexicon) -> str:
    # "1girl" and "girl" are one detail; "50mm" and "f/1.8" are told apart by their number.
    letters = re.sub(r"[\d\s+]", "", text.lower())
    if letters.isalpha() and len(letters) > 2:
        return _singular(letters, lexicon.irregular)
    return re.sub(r"\s", "", text.lower())


def _longest(
    words: list[str], singulars: list[str], index: int, lexicon: _Lexicon
) -> tuple[int, Entry | None]:
    longest = max(lexicon.longest.get(form, 0) for form in (words[index], singulars[index]))
    for length in range(min(longest, len(words) - index), 0, -1):
        upto = index + length
        entry = lexicon.phrases.get(tuple(words[index:upto])) or lexicon.singulars.get(
            tuple(singulars[index:upto])
        )
        if entry is not None:
            return length, entry
    return 1, None


def _phrases(items: list[_Item]) -> list[Found]:
    reader = _Reader(_lexicon().carriers)
    for item in items:
        if item.kind == "known" or item.kind == "unknown":
            reader.take(item)
        else:
            reader.step_over(item)
        reader.after(item)
    reader.flush()
    return reader.found


class _Reader:
    def __init__(self, carriers: frozenset[str]) -> None:
        self.carriers = carriers
        self.found: list[Found] = []
        self.pending: list[_Item] = []
        """Modifiers and unknown words that may still join a noun."""
        self.before: tuple[str, str] = ("", "")
        """The last two words."""
        self.artists = False
        """Whether unknown words here are names of artists."""
        self.carried = False
        """Whether a carrier stands before, with nothing but function words between."""
        self.denied_words = 0
        """How many more words the last negator reaches."""
        self.denies = False

    def take(self, item: _Item) -> None:
        entry = item.entry
        if entry is None or entry.role == "modifier":
            if not self.pending:
                self.artists = self._artist_expected()
            self.pending.append(item)
            return
        expected = not self.pending and self._artist_expected()
        self.artists = entry.category == "style" and (self.artists or expected)
        joins = entry.role == "head" or (entry.category in _NOUNS and entry.role != "plain")
        if not joins and any(part.entry is None for part in self.pending):
            self.flush()
        place = self.found[-1] if self.found else None
        if (
            place is not None
            and place.category == "setting"
            and place.end + 1 == item.start
            and entry.category == "content"
            and not self.denied_words
        ):
            # "city bus", "forest spirit": here the place only says which one.
            self.found[-1] = Found(
                "content", place.start, item.end, place.words + item.words, (entry,)
            )
            return
        if self.carried and entry.category == "style":
            item = item._replace(entry=_THING)
        parts, self.pending = [*self.pending, item], []
        self._emit(item.entry.category if item.entry else "content", parts)

    def after(self, item: _Item) -> None:
        self.before = (self.before[1], item.words[-1])
        if item.words[-1] in self.carriers:
            self.carried = True
        elif item.kind != "filler":
            self.carried = False

    def step_over(self, item: _Item) -> None:
        self.flush()
        word = item.words[0]
        if item.kind == "negator":
            self.denies, self.denied_words = True, _NEGATOR_REACH
        elif word in _ALSO_DENIED and self.denies:
            self.denied_words = _NEGATOR_REACH
        elif word == "but":
            self.denies, self.denied_words = False, 0
        else:
            self.denied_words = max(0, self.denied_words - 1)

    def flush(self) -> None:
        """No noun follows: what waits stands for itself."""
        parts, self.pending = self.pending, []
        if not parts:
            return
        last = parts[-1].entry
        if any(part.entry is None for part in parts):
            self._emit("style" if self.artists else "content", parts)
        elif last is not None:
            self._emit(last.category, parts)

    def _emit(self, category: str, parts: list[_Item]) -> None:
        denied, self.denied_words = self.denied_words, 0
        words = tuple(word for part in parts for word in part.words)
        if denied or words == _ONLY_STYLE:
            return
        for part in parts:
            if part.entry and part.entry.category == "mood" != category:
                self.found.append(Found("mood", part.start, part.end, part.words, ()))
        entries = tuple(part.entry for part in parts if part.entry is not None)
        self.found.append(Found(category, parts[0].start, parts[-1].end, words, entries))

    def _artist_expected(self) -> bool:
        # "by greg rutkowski and john howe", but not "surrounded by", "eaten by"
        earlier, last = self.before
        if last == "by":
            return not earlier.endswith(("ed", "en"))
        return (earlier, last) == ("style", "of") or (last == "and" and self.artists)
