"""Reads a prompt: syntax, clauses, concepts, intent and complexity."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from typing import get_args

from ..errors import PromptError
from ..plan import (
    Clause,
    Concept,
    ConceptCategory,
    Notice,
    PromptAnalysis,
    PromptSyntax,
    Span,
)
from .complexity import band, complexity
from .concepts import Found, find
from .intent import Weighted, intent
from .language_model import AnswerCache, OllamaSettings, read_with_ollama
from .meaning import Encoder, content_of, is_caption, read_meaning, readable
from .syntax import read_prompt

CHUNK_TOKENS = 75
"""Tokens that CLIP text encoders read at once; longer prompts are read in chunks."""

LONG_PROMPT_TOKENS = 4 * CHUNK_TOKENS
"""Estimated tokens from which a notice says that the far parts count little."""

LONG_CLAUSE_WORDS = 8
"""Words from which a clause of prose is cut before "and", "with", "while" and the like."""

_BOUNDARY = re.compile(
    r"[,;\n|{}，、。；！？]+|[–—]"
    r"|(?<!\b[^\W\d])(?<!\b(?i:mr|dr|st|vs))(?<!\b(?i:mrs))[.!?]+(?=\s|$)"
    r"|\bBREAK\b"
)
_LINK = re.compile(
    r"\b(?:and|with|while|wearing|holding|featuring|surrounded by|which|who|whose|where)\b",
    re.IGNORECASE,
)
_WORD = re.compile(r"\w+")
_TOKEN = re.compile(r"\w{1,7}|[^\w\s]")
_SAID = re.compile(r"[^\W_]|[^\s\x00-\x7f]")
_EDGES = " \t\r\n,;.!?|{}[]<>"


def analyze(
    prompt: str,
    negative_prompt: str = "",
    *,
    syntax: PromptSyntax = "comfy",
    ollama: OllamaSettings | None = None,
    cache: AnswerCache | None = None,
    check: Callable[[], object] = lambda: None,
    encoder: Encoder | None = None,
) -> PromptAnalysis:
    """What a prompt says: by the built-in analyzer, or by a language model in Ollama.

    The built-in one has nothing but the prompt to go by: same text, same result. A language model
    that gives no usable answer is replaced by it, and a notice of level error says so.

    With `comfy` the text stays as it is but for its LoRA tags; with `a1111` it is translated, and
    a notice shows how. The negative prompt is only made ready for encoding: its words never count
    as asked for. Takes linear time; 50,000 characters are analysed and a notice says that far
    parts have little effect.

    Args:
        ollama: the language model to ask; None asks none.
        cache, check: as `read_with_ollama` takes them.
        encoder: tells what the picture is of, and the category of words that the lexicon does not
            know, of English prompts; None leaves both to the lexicon.

    Raises:
        PromptError: no text besides LoRA tags, a malformed LoRA tag, a weight that is no finite
            number, or brackets nested deeper than syntax.MAX_NESTING.
    """
    analysis = _read(prompt, negative_prompt, syntax, encoder)
    if ollama is None:
        return analysis
    return read_with_ollama(analysis, ollama, cache=cache, check=check)


def _read(
    prompt: str, negative_prompt: str, syntax: PromptSyntax, encoder: Encoder | None
) -> PromptAnalysis:
    positive = read_prompt(prompt, syntax)
    negative = read_prompt(negative_prompt, syntax, negative=True)
    text, weights = _plain(positive.spans)
    if not text.strip(" \t\r\n,"):
        raise PromptError(
            "The prompt has no text besides its LoRA tags. Write what the picture should show."
            if positive.lora_tags
            else "The prompt is empty. Write what the picture should show."
        )
    pieces = _pieces(text)
    found = find(text, pieces)
    read_content = None
    if encoder is not None and readable(text, found):
        found, vector = read_meaning(text, found, encoder)
        if is_caption(text, pieces):
            read_content = partial(content_of, vector=vector)
    bounds = _clause_bounds(text, pieces, found)
    clauses = {start: _clause(text, weights, start, end) for start, end in bounds}
    starts = sorted(clauses)
    phrases = [
        Weighted(phrase, clauses[starts[bisect_right(starts, phrase.start) - 1]].weight)
        for phrase in found
    ]
    asked = [phrase for phrase in phrases if phrase.weight > 0]
    value = complexity(phrase.found for phrase in asked)
    return PromptAnalysis(
        prompt=prompt,
        negative_prompt=negative_prompt,
        syntax=syntax,
        segments=positive.segments,
        negative_segments=negative.segments if negative_prompt.strip() else ("",),
        spans=tuple(span for spans in positive.spans for span in spans),
        clauses=tuple(clause for clause in clauses.values() if _SAID.search(clause.text)),
        lora_tags=positive.lora_tags,
        concepts=_concepts(text, asked),
        mood=tuple(
            dict.fromkeys(
                _shown(text, phrase.found) for phrase in asked if phrase.found.category == "mood"
            )
        ),
        intent=intent(asked, read_content),
        complexity=round(value, 4),
        complexity_band=band(round(value, 4)),
        notices=(
            *positive.notices,
            *(_of_negative(notice) for notice in negative.notices),
            *_long(text),
        ),
    )


def _plain(segments: Iterable[tuple[Span, ...]]) -> tuple[str, list[float]]:
    """The text without emphasis, and the weight of each of its characters.

    A space keeps neighbouring spans apart, as the text encoder does; a line break, segments."""
    parts: list[str] = []
    weights: list[float] = []
    for spans in segments:
        for span in spans:
            gap = " " if parts and parts[-1][-1:].isalnum() and span.text[:1].isalnum() else ""
            parts.append(gap + span.text)
            weights.extend([span.weight] * len(parts[-1]))
        parts.append("\n")
        weights.append(1.0)
    return "".join(parts), weights


def _pieces(text: str) -> list[tuple[int, int]]:
    cuts = [(0, 0), *(found.span() for found in _BOUNDARY.finditer(text)), (len(text), len(text))]
    return [(left, right) for (_, left), (right, _) in pairwise(cuts) if left < right]


def _clause_bounds(
    text: str, pieces: list[tuple[int, int]], found: list[Found]
) -> list[tuple[int, int]]:
    """Cuts long prose further, never inside a phrase, each part keeping two words at least."""
    inside = {at for phrase in found for at in range(phrase.start + 1, phrase.end)}
    words = [word.start() for word in _WORD.finditer(text)]
    bounds: list[tuple[int, int]] = []
    for start, end in pieces:
        last = bisect_left(words, end)
        first = bisect_left(words, start, hi=last)
        if last - first > LONG_CLAUSE_WORDS:
            for link in _LINK.finditer(text, start, end):
                at = bisect_left(words, link.start(), lo=first, hi=last)
                if at - first > 1 and last - at > 1 and link.start() not in inside:
                    bounds.append((start, link.start()))
                    start, first = link.start(), at
        bounds.append((start, end))
    return bounds


def _clause(text: str, weights: list[float], start: int, end: int) -> Clause:
    counted = [weights[at] for at in range(start, end) if not text[at].isspace()]
    said = text[start:end].strip(_EDGES)
    if said.count("(") != said.count(")"):
        said = said.strip("()" + _EDGES)
    said = re.sub(r"^and\s+", "", said, flags=re.IGNORECASE)
    return Clause(text=said, weight=round(sum(counted) / len(counted), 6) if counted else 1.0)


def _concepts(text: str, phrases: list[Weighted]) -> tuple[Concept, ...]:
    categories: dict[str, ConceptCategory] = {name: name for name in get_args(ConceptCategory)}
    concepts: dict[tuple[str, tuple[str, ...]], Concept] = {}
    for phrase, weight in phrases:
        category = categories.get(phrase.category)
        if category is not None:
            concepts.setdefault(
                (category, phrase.words),
                Concept(category=category, text=_shown(text, phrase), weight=weight),
            )
    return tuple(concepts.values())


def _shown(text: str, phrase: Found) -> str:
    return " ".join(text[phrase.start : phrase.end].lower().split())


def _of_negative(notice: Notice) -> Notice:
    return notice.model_copy(update={"message": f"Negative prompt: {notice.message}"})


def _long(text: str) -> tuple[Notice, ...]:
    tokens = len(_TOKEN.findall(text))
    if tokens < LONG_PROMPT_TOKENS:
        return ()
    return (
        Notice(
            level="warning",
            code="long_prompt",
            message=f"The prompt has about {tokens} tokens. Text encoders read it in chunks of "
            f"{CHUNK_TOKENS}, and the far parts have little effect. Say what matters first.",
        ),
    )
