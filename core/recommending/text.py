"""Text into comparable words. Pure; knows nothing of LoRAs' files or of scores."""

from __future__ import annotations

import json
import re
import unicodedata
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Any

_LISTS = json.loads(Path(__file__).with_name("words.json").read_text("utf-8"))
STOPWORDS = frozenset(_LISTS["stopwords"])
"""English function words: never evidence for a LoRA on their own, kept inside phrases."""

_RUN = re.compile(r"[^\W_]+")
# Scripts written without spaces between words: CJK ideographs, kana, Hangul (its particles
# stick to the word), Thai, Lao, Khmer, Myanmar.
_UNSPACED = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
    r"\uf900-\ufaff\U00020000-\U0003ffff]+"
)
_POSSESSIVE = re.compile(r"['\u2019]s\b")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_LETTERS_OR_DIGITS = re.compile(r"[^\W\d_]+|\d+")
_AFTER_NUMBER = re.compile(r"(?<=\d)(?=[^\W\d_])")
_TRAILING_NUMBER = re.compile(r"(?<=[^\W\d_]{3})\d+$")
COUNTING: dict[str, Any] = _LISTS["counting"]
"""Words that count people: `people`, `numbers` and `groups` with how many each means."""
# What a file name says about the file rather than about the picture.
_NAME_NOISE = frozenset(_LISTS["name_noise"])
_FILE_NOISE = _NAME_NOISE.union(_LISTS["file_noise"])
_VERSION = re.compile(r"v\d+[a-z]?|\d+|(e|ep|epoch|step|dim)\d+|\d+(k|ep|steps?)")
_LORA_TAG = re.compile(r"<[^<>]*>")
_ESCAPE = re.compile(r"\\([()\[\]{}\\])")
_EMPHASIS = re.compile(r"\(+([^()]*?)(?::\s*[\d.]+\s*)?\)+")
_SEPARATOR = re.compile(r"[,;\n\uff0c\u3001]+")


def words(text: str) -> tuple[str, ...]:
    """The words of `text`, compared without case, width, accents or plural.

    Underscores and punctuation separate words; runs of a script written without spaces give
    their character bigrams (a lone character itself). Order and repeats are kept.
    """
    # Tags come again in thousands of files; long texts do not and would fill the memory.
    return _words_of_tag(text) if len(text) <= _TAG_LENGTH else _words(text)


def _words(text: str) -> tuple[str, ...]:
    found: list[str] = []
    for run in _RUN.findall(_POSSESSIVE.sub("", _folded(text))):
        if run.isascii():
            found.append(_stem(run))
            continue
        at = 0
        for part in _UNSPACED.finditer(run):
            if part.start() > at:
                found.append(_stem(run[at : part.start()]))
            piece = part.group()
            found += [piece[i : i + 2] for i in range(max(1, len(piece) - 1))]
            at = part.end()
        if at < len(run):
            found.append(_stem(run[at:]))
    return tuple(found)


_TAG_LENGTH = 64
_words_of_tag = lru_cache(maxsize=65536)(_words)


def name_words(name: str, family: str = "") -> tuple[str, ...]:
    """The telling words of a LoRA's title or file stem.

    Split at separators, camelCase and trailing numbers; versions, epochs, words such as
    `lora` and the name of its base model are dropped. `inkWash_v2-SDXL` gives `ink wash`.
    """
    noise = _NAME_NOISE.union(family.split("-"))
    found: list[str] = []
    for raw in _RUN.findall(_LORA_TAG.sub(" ", name).replace("_", " ")):
        if raw.lower() in noise or _VERSION.fullmatch(raw.lower()):
            continue
        for part in _CAMEL.sub(" ", raw).split():
            for word in words(_TRAILING_NUMBER.sub("", part)):
                if word not in noise and not _VERSION.fullmatch(word):
                    found.append(word)
    return tuple(found)


def called(stem: str) -> frozenset[str]:
    """What a file may be called in running text, by the stem of its name: of `AOM3_pruned` it is
    `aom3` and `aom`, of `realisticVisionV60_fp16` also `realisticvision`, `realistic`, `vision`."""
    found: set[str] = set()
    for run in _RUN.findall(stem.replace("_", " ")):
        parts = _CAMEL.sub(" ", _AFTER_NUMBER.sub(" ", run)).split()
        whole = "".join(takewhile(lambda part: not _VERSION.fullmatch(part.lower()), parts))
        for name in (run, whole, *parts):
            found |= {*words(name), *words(_TRAILING_NUMBER.sub("", name))}
    return frozenset(word for word in found - _FILE_NOISE if _names_a_file(word))


def _names_a_file(word: str) -> bool:
    # Two letters say nothing; two ideographs are a word.
    return not _VERSION.fullmatch(word) and (len(word) > 2 or not word.isascii())


def spelt_out(stem: str) -> str:
    """The stem of a file's name as a text to encode: `revAnimated_v122` is `rev Animated v 122`."""
    return " ".join(_LETTERS_OR_DIGITS.findall(_CAMEL.sub(" ", stem)))


def pieces(trigger: str) -> tuple[str, ...]:
    """The comma-separated phrases of a trigger word as its author wrote it, as plain text.

    LoRA tags, emphasis and backslash escapes are taken off: `hm2b, (red coat:1.2)` gives
    `hm2b` and `red coat`; `ana \\(game\\)` and `ana (game)` both give `ana (game)`.
    """
    found: list[str] = []
    for part in _SEPARATOR.split(_LORA_TAG.sub(" ", trigger)):
        part = part.strip()
        if (emphasised := _EMPHASIS.fullmatch(part)) and "\\" not in part:
            part = emphasised.group(1)
        part = " ".join(_ESCAPE.sub(r"\1", part).split())
        if words(part):
            found.append(part)
    return tuple(dict.fromkeys(found))


def contains(text: tuple[str, ...], phrase: tuple[str, ...]) -> bool:
    """Whether the words of `phrase` stand in `text` one after the other."""
    n = len(phrase)
    # Most texts lack the first word, and to look for that takes a tenth of the time.
    return (
        n > 0
        and phrase[0] in text
        and any(text[i : i + n] == phrase for i in range(len(text) - n + 1))
    )


def _folded(text: str) -> str:
    if text.isascii():
        return text.lower()
    # Accents come off Latin, Greek and Cyrillic letters only: in kana and Indic scripts the
    # combining marks make other letters.
    plain = []
    for char in unicodedata.normalize("NFKC", text).casefold():
        parts = unicodedata.normalize("NFD", char)
        plain.append(parts[0] if ord(parts[0]) < 0x530 else char)
    return "".join(plain)


def _stem(word: str) -> str:
    # Plural only, English: more stemming joins words that mean different LoRAs.
    if len(word) < 4 or not word.isascii() or not word.isalpha():
        return _LISTS["spelling"].get(word, word)
    if word.endswith("ies") and len(word) > 4:
        word = word[:-3] + "y"
    elif word.endswith(("sses", "shes", "ches", "xes", "zzes")):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    return _LISTS["spelling"].get(word, word)
