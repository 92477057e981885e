"""What an encoder of meaning adds to the lexicon: what the picture is of, and the category of
phrases that the lexicon does not know.

Two linear models over the vectors of all-MiniLM-L6-v2, in meaning.json: one over the vector of the
prompt and the lexicon's evidence, one over the vector of a phrase. `bench.py prompting fit` fits
them again. Pure but for the encoder.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, get_args

from ..plan import ContentIntent
from .concepts import Found
from .intent import Evidence

if TYPE_CHECKING:
    import numpy as np

MOST_PHRASES = 32
"""Unknown phrases of one prompt that are encoded; further ones stay content."""

MOST_FOREIGN = 0.2
"""Share of letters outside ASCII from which a prompt is not read by the encoder, which knows
English only."""

SURE = 0.6
"""Evidence from which the lexicon decides alone. On PartiPrompts none would be best; on prompts of
tags the model would take people for things."""

FEW_PIECES = 3
WORDS_OF_PROSE = 5
"""Mean number of words between two commas from which a longer prompt is taken for prose."""

_WEIGHTS = Path(__file__).with_name("meaning.json")
_WORD = re.compile(r"\w+")
_LETTER = re.compile(r"[^\W\d_]")
_GROUPS: Mapping[str, tuple[ContentIntent, ...]] = {
    "PEOPLE": ("CHARACTER", "PORTRAIT"),
    "OUTDOOR": ("LANDSCAPE", "SCENE"),
    "INDOOR": ("SCENE",),
    "THING": ("OBJECT",),
    "ABSTRACT": ("ABSTRACT",),
}
"""What the model of prompts tells apart; within a group the lexicon's evidence decides, and
without any the first holds."""


class Encoder(Protocol):
    """Turns texts into unit vectors: float32 [texts, dimensions]."""

    def encode(self, texts: Sequence[str]) -> Any: ...


class Linear(NamedTuple):
    """A multinomial logistic regression."""

    labels: tuple[str, ...]
    weights: np.ndarray
    """[labels, features]"""
    bias: np.ndarray
    """[labels]"""

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """[rows, features] -> [rows, labels], each row summing to 1."""
        import numpy as np

        raw = features @ self.weights.T + self.bias
        raw = np.exp(raw - raw.max(axis=1, keepdims=True))
        return raw / raw.sum(axis=1, keepdims=True)


def readable(text: str, found: Sequence[Found]) -> bool:
    """Whether the encoder can be asked: it knows English alone."""
    letters = _LETTER.findall(text)
    foreign = sum(not letter.isascii() for letter in letters)
    known_abroad = any(entry.abroad for phrase in found for entry in phrase.entries)
    return bool(letters) and not known_abroad and foreign <= MOST_FOREIGN * len(letters)


def is_caption(text: str, pieces: Sequence[tuple[int, int]]) -> bool:
    """Whether a prompt is a sentence or two, as what the model of prompts was fitted on, and not a
    list of tags."""
    words = sum(len(_WORD.findall(text, start, end)) for start, end in pieces)
    return len(pieces) <= FEW_PIECES or words >= WORDS_OF_PROSE * len(pieces)


def read_meaning(
    text: str, found: Sequence[Found], encoder: Encoder
) -> tuple[list[Found], np.ndarray]:
    """The phrases with the categories that unknown ones seem to have, and the prompt's vector.

    Args:
        text: the prompt without emphasis and LoRA tags.
        found: as `concepts.find` gives them.
    """
    unknown = list(
        dict.fromkeys(
            _phrase(text, phrase)
            for phrase in found
            if phrase.category == "content" and not phrase.entries
        )
    )[:MOST_PHRASES]
    vectors = encoder.encode([text, *unknown])
    categories: dict[str, str] = {}
    if unknown:
        model = _models()["phrases"]
        for said, row in zip(unknown, model.probabilities(vectors[1:]), strict=True):
            best = int(row.argmax())
            if row[best] >= _data()["phrases"]["threshold"]:
                categories[said] = model.labels[best]
    read = [
        phrase._replace(category=categories.get(_phrase(text, phrase), phrase.category))
        if phrase.category == "content" and not phrase.entries
        else phrase
        for phrase in found
    ]
    return read, vectors[0]


def content_of(
    evidence: Evidence, vector: np.ndarray, model: Linear | None = None
) -> tuple[ContentIntent, float]:
    """What the picture is mainly of, and the lead of that over the next, in [0, 1].

    Where the lexicon has strong evidence, it decides: the model was fitted on captions, and knows
    less of tags than of sentences.

    Args:
        model: in place of that of meaning.json.
    """
    import numpy as np

    found: dict[ContentIntent, float] = {
        label: 1.0 - math.exp(-value) for label, value in evidence.items()
    }
    first, second = sorted(found, key=lambda label: -found[label])[:2]
    if found[first] >= SURE:
        return first, found[first] - found[second]
    model = model or _models()["prompts"]
    row = model.probabilities(features(evidence, vector)[np.newaxis])[0]
    order = row.argsort()[::-1]
    group = _GROUPS[model.labels[order[0]]]
    content: ContentIntent = max(group, key=evidence.__getitem__)  # the first where all are equal
    return content, float(row[order[0]] - row[order[1]])


def features(evidence: Evidence, vector: np.ndarray) -> np.ndarray:
    """What the model of prompts reads: -log doubt for each content, then the vector.

    The doubt of content c is product(1 - strength) over the lexicon's hints at c."""
    import numpy as np

    said = [evidence[label] for label in get_args(ContentIntent)]
    return np.concatenate([np.asarray(said, np.float32), vector])


def pack(values: np.ndarray) -> str:
    """Numbers as they stand in meaning.json: float16, base64."""

    return base64.b64encode(values.astype("<f2").tobytes()).decode()


def _phrase(text: str, phrase: Found) -> str:
    return " ".join(text[phrase.start : phrase.end].lower().split())


@cache
def _data() -> dict[str, Any]:
    return json.loads(_WEIGHTS.read_text(encoding="utf-8"))


@cache
def _models() -> dict[str, Linear]:
    return {name: _linear(_data()[name]) for name in ("prompts", "phrases")}


def _linear(row: Mapping[str, Any]) -> Linear:
    import numpy as np

    labels = tuple(row["labels"])
    values = np.frombuffer(base64.b64decode(row["weights"]), "<f2").astype(np.float32)
    matrix = values.reshape(len(labels), -1)
    return Linear(labels, matrix[:, 1:], matrix[:, 0])
