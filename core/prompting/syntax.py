"""Prompt syntax: LoRA tags, emphasis as ComfyUI reads it, and A1111's syntax put into ComfyUI's.

Everything is linear in the length of the text, up to MAX_NESTING levels of brackets.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

from ..errors import PromptError
from ..plan import LoraTag, Notice, PromptSyntax, Span

MAX_NESTING = 500
"""Deepest brackets that are read. ComfyUI's own reader is recursive and fails below about 900
levels; at 500 the weight is 5e20 already, so nobody means it."""

ROUND_FACTOR = 1.1
"""Weight of one pair of parentheses, in ComfyUI and A1111."""

SQUARE_FACTOR = 1 / 1.1
"""Weight of one pair of square brackets in A1111."""

A1111_STEPS = 20
"""A1111's default number of steps: what a prompt edit's step number is compared with."""

LARGEST_USUAL_WEIGHT = 5.0
"""Weights beyond it get a notice: mostly a colon that was not meant as a weight, "(at 10:30)"."""

_MAX_STRENGTH = 100.0
_SHOWN_CHARACTERS = 40
_SHOWN_EXAMPLES = 3


class PromptText(NamedTuple):
    """A prompt without its tags, in ComfyUI's syntax."""

    segments: tuple[str, ...]
    spans: tuple[tuple[Span, ...], ...]
    """Of each segment."""
    lora_tags: tuple[LoraTag, ...]
    notices: tuple[Notice, ...]


def read_prompt(text: str, syntax: PromptSyntax, *, negative: bool = False) -> PromptText:
    """Takes the tags out of a prompt, translates it where needed, and reads its emphasis.

    LoRA tags of a negative prompt have no effect, as in A1111: they are taken out with a notice.

    Raises:
        PromptError: a malformed LoRA tag, a weight that is no finite number, brackets nested
            deeper than MAX_NESTING, or text that is not valid Unicode.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"The prompt has half of a character at position {error.start + 1}. Type it again."
        ) from error
    clean, lora_tags, notices = _take_tags(text, syntax, negative=negative)
    masked = _TAG.sub(lambda tag: " " * len(tag[0]), text)
    if syntax == "a1111":
        segments, translated = _from_a1111(clean)
        notices += _unbalanced_a1111(masked) + translated
        if segments != (clean,):
            shown = " BREAK ".join(segments)
            notices += (
                _info("a1111_translated", f"Read as A1111 syntax; for ComfyUI this is: {shown}"),
            )
    else:
        segments = (clean,)
        notices += _unbalanced_comfy(masked) + _a1111_suspected(clean)
    spans = tuple(read_emphasis(segment) for segment in segments)
    return PromptText(
        segments=segments,
        spans=spans,
        lora_tags=lora_tags,
        notices=notices + _extreme(spans),
    )


def read_emphasis(text: str) -> tuple[Span, ...]:
    r"""The pieces of a text and their weights, exactly as ComfyUI's text encoders get them.

    `(x)` multiplies the weight around it by 1.1; `(x:1.3)` sets it to 1.3 whatever is around;
    `\(` and `\)` are literal. An unclosed `(` makes the rest of the text one piece, which counts
    as emphasized when it happens to end in `)`; after a stray `)`, as many `(` are literal.

    Neighbours of equal weight stay separate, because the encoder tokenizes each alone.

    Raises:
        PromptError: a weight that is not finite, or more than MAX_NESTING levels.
    """
    escaped = _escape(text)
    return tuple(
        Span(text=_unescape(escaped[start:end]), weight=weight)
        for start, end, weight in _emphasis(escaped)
    )


# --------------------------------------------------------------------------- ComfyUI's emphasis


def _escape(text: str) -> str:
    # Two characters for two, so that positions stay.
    return text.replace("\\)", "\0\1").replace("\\(", "\0\2")


def _unescape(text: str) -> str:
    return text.replace("\0\1", ")").replace("\0\2", "(")


def _emphasis(text: str) -> Iterator[tuple[int, int, float]]:
    parens, partner = _paren_pairs(text)
    waiting = [_Piece(0, len(text), 1.0, 0)]
    while waiting:
        piece = waiting.pop()
        if piece.depth is None:
            yield piece.start, piece.end, piece.weight
            continue
        if piece.depth > MAX_NESTING:
            raise _too_deep()
        items = [
            _group(text, start + 1, end - 1, piece.weight, piece.depth + 1)
            if end - start >= 2 and text[start] == "(" and text[end - 1] == ")"
            else _Piece(start, end, piece.weight, None)
            for start, end in _items(text, parens, partner, piece.start, piece.end)
        ]
        waiting.extend(reversed(items))


class _Piece(NamedTuple):
    start: int
    end: int
    weight: float
    depth: int | None
    """Of the group whose inside this is; None for text without groups."""


def _paren_pairs(text: str) -> tuple[list[int], dict[int, int]]:
    parens = [found.start() for found in re.finditer(r"[()]", text)]
    partner: dict[int, int] = {}
    opened: list[int] = []
    for index, position in enumerate(parens):
        if text[position] == "(":
            opened.append(index)
        elif opened:
            partner[opened.pop()] = index
    return parens, partner


def _items(
    text: str, parens: list[int], partner: dict[int, int], start: int, end: int
) -> Iterator[tuple[int, int]]:
    """Cuts text[start:end] into groups (with their parentheses) and the text between."""
    owed = 0  # stray ")" so far: as many "(" are literal
    index = bisect_left(parens, start)
    while index < len(parens) and parens[index] < end:
        position = parens[index]
        if text[position] == ")":
            owed += 1
        elif owed:
            owed -= 1
        else:
            if start < position:
                yield start, position
            start = position
            closing = partner.get(index)
            if closing is None or parens[closing] >= end:
                break
            start = parens[closing] + 1
            yield position, start
            index = closing
        index += 1
    if start < end:
        yield start, end


def _group(text: str, start: int, end: int, weight: float, depth: int) -> _Piece:
    colon = text.rfind(":", start, end)
    if colon > start:
        try:
            explicit = float(text[colon + 1 : end])
        except ValueError:
            pass
        else:
            if not math.isfinite(explicit):
                raise PromptError(
                    f'The weight of "({_excerpt(text[start:end])})" is not a finite number and '
                    "would make a black image. Give a number such as 1.2, or escape the "
                    "parentheses as \\( and \\)."
                )
            return _Piece(start, colon, explicit, depth)
    weight *= ROUND_FACTOR
    if not math.isfinite(weight):
        raise _too_deep()
    return _Piece(start, end, weight, depth)


def _too_deep() -> PromptError:
    return PromptError(
        f"The prompt's brackets are nested more than {MAX_NESTING} levels deep, or their weight is "
        "beyond any number; ComfyUI cannot read that. Write a weight instead, such as (word:1.3)."
    )


# --------------------------------------------------------------------------- tags

_TAG = re.compile(r"<\s*(lora|lyco|hypernet)\s*:([^<>]*)(>?)", re.IGNORECASE)
_REST_OF_EMPTY_GROUP = re.compile(r"\s*(?::[^():,]*)?\)")
_BLANKS = re.compile(r"[ \t]*")


def _take_tags(
    text: str, syntax: PromptSyntax, *, negative: bool
) -> tuple[str, tuple[LoraTag, ...], tuple[Notice, ...]]:
    clean, position = "", 0
    tags: list[LoraTag] = []
    ignored: list[str] = []
    hypernetworks: list[str] = []
    for found in _TAG.finditer(text):
        raw, body, closed = found[0], found[2], found[3]
        if not closed:
            raise PromptError(f'The tag "{_excerpt(raw)}" has no ">". Close it or remove it.')
        if found[1].lower() == "hypernet":
            hypernetworks.append(raw)
        elif negative:
            ignored.append(raw)
        else:
            tags.append(_lora_tag(raw, [field.strip() for field in body.split(":")], syntax))
        clean, position = _close_up(clean + text[position : found.start()], text, found.end())
    notices: tuple[Notice, ...] = ()
    if ignored:
        notices += (
            _warning(
                "lora_tag_in_negative",
                f"LoRA tags have no effect in the negative prompt: {_listed(ignored)} was taken "
                "out. Write it into the positive prompt to use it.",
            ),
        )
    if hypernetworks:
        notices += (
            _warning(
                "hypernetwork_ignored",
                f"Hypernetworks are not applied: {_listed(hypernetworks)} was taken out. "
                "Use ComfyUI's HypernetworkLoader before this pack's nodes.",
            ),
        )
    return clean + text[position:], tuple(tags), notices


def _lora_tag(raw: str, fields: list[str], syntax: PromptSyntax) -> LoraTag:
    name, *rest = fields
    named = dict(field.split("=", 1) for field in rest if "=" in field)
    positional = [field for field in rest if "=" not in field]
    if not name or len(positional) > 2 or not named.keys() <= {"te", "unet"}:
        raise PromptError(
            f'The tag "{_excerpt(raw)}" cannot be read. Write <lora:name>, <lora:name:0.8> or, '
            "with two strengths, <lora:name:0.8:0.6>."
        )
    numbers = [_strength(raw, field) for field in positional] or [1.0]
    first, second = numbers[0], numbers[-1]
    # A1111 names the text encoder first; ComfyUI's loaders, and tags made for them, the model.
    model, clip = (second, first) if syntax == "a1111" else (first, second)
    if "te" in named:
        clip = _strength(raw, named["te"])
        if len(positional) < 2 and syntax == "a1111":
            model = clip
    if "unet" in named:
        model = _strength(raw, named["unet"])
    return LoraTag(name=name, model_strength=model, clip_strength=clip)


def _strength(raw: str, field: str) -> float:
    try:
        number = float(field)
    except ValueError:
        number = math.nan
    if not abs(number) <= _MAX_STRENGTH:
        raise PromptError(
            f'The strength "{_excerpt(field)}" in "{_excerpt(raw)}" is not a number from '
            f"-{_MAX_STRENGTH:g} to {_MAX_STRENGTH:g}. Write for example <lora:name:0.8>."
        )
    return number


def _close_up(left: str, text: str, position: int) -> tuple[str, int]:
    """Tidies the place where a tag stood: one separator where there were two, no empty group.

    Gives the text before it, and where in `text` to go on."""
    left = left.rstrip(" \t")
    while left.endswith("(") and not left.endswith("\\("):
        rest = _REST_OF_EMPTY_GROUP.match(text, position)
        if rest is None:
            break
        left, position = left[:-1].rstrip(" \t"), rest.end()
    position = _skip_blanks(text, position)
    if text[position : position + 1] == "," and (not left or left[-1] in ",\n("):
        position = _skip_blanks(text, position + 1)
    following = text[position : position + 1]
    if not following:
        left = left.removesuffix(",").rstrip(" \t")
    elif following == "\n" and (not left or left[-1] == "\n"):
        position += 1
    elif left and left[-1] not in "\n(" and following not in ",.:\n)":
        left += " "
    return left, position


def _skip_blanks(text: str, position: int) -> int:
    blanks = _BLANKS.match(text, position)
    return blanks.end() if blanks else position


# --------------------------------------------------------------------------- A1111

_COMPOSITION = re.compile(r"\bAND\b")
_COMPOSITION_WEIGHT = re.compile(r":\s*[+-]?(?:\d+\.?\d*|\.\d+)$")
_BREAK = re.compile(r"(?<!\s)(?:\s*\bBREAK\b)+\s*")
_EDIT_TOKEN = re.compile(r"\\.?|[\[\]():|]|[^\\\[\]():|]+", re.DOTALL)
_EDIT_TIME = re.compile(r"\s*(?:\d+\.?\d*|\.\d+)\s*")
_A1111_TOKEN = re.compile(r"\\[()\[\]\\]?|:\s*([+-]?[.\d]+)\s*\)|[()\[\]:]|[^\\()\[\]:]+")


def _from_a1111(text: str) -> tuple[tuple[str, ...], tuple[Notice, ...]]:
    text, composition = _without_composition(text)
    text, edits = _without_edits(text)
    segments: list[list[tuple[str, float]]] = [[]]
    for piece, weight in _a1111_emphasis(text):
        first, *others = _BREAK.split(piece)
        segments[-1].append((first, weight))
        segments.extend([(other, weight)] for other in others)
    written = [_to_comfy(segment) for segment in segments]
    return tuple(segment for segment in written if segment.strip()) or ("",), composition + edits


def _a1111_emphasis(text: str) -> list[tuple[str, float]]:
    """Factors multiply; a group left open reaches to the end; round and square may interleave."""
    pieces: list[str] = []
    weights: list[float] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def close(bracket: str, factor: float) -> None:
        for index in range(opened[bracket].pop(), len(weights)):
            weights[index] *= factor

    for token in _A1111_TOKEN.finditer(text):
        piece, number = token[0], token[1]
        if piece in opened:
            opened[piece].append(len(pieces))
            if sum(map(len, opened.values())) > MAX_NESTING:
                raise _too_deep()
        elif number is not None and opened["("]:
            close("(", _a1111_weight(number))
        elif piece == ")" and opened["("]:
            close("(", ROUND_FACTOR)
        elif piece == "]" and opened["["]:
            close("[", SQUARE_FACTOR)
        else:
            pieces.append(piece.removeprefix("\\"))
            weights.append(1.0)
    for bracket, factor in (("(", ROUND_FACTOR), ("[", SQUARE_FACTOR)):
        while opened[bracket]:
            close(bracket, factor)
    return list(zip(pieces, weights, strict=True))


def _a1111_weight(number: str) -> float:
    try:
        return float(number)
    except ValueError as error:
        raise PromptError(
            f'The weight "{_excerpt(number)}" is not a number. Write for example (word:1.3).'
        ) from error


def _to_comfy(pieces: list[tuple[str, float]]) -> str:
    merged: list[tuple[str, float]] = []
    for text, weight in pieces:
        weight = round(weight, 4) if text.strip() else 1.0
        if merged and merged[-1][1] == weight:
            merged[-1] = (merged[-1][0] + text, weight)
        else:
            merged.append((text, weight))
    written = ""
    for text, weight in merged:
        escaped = text.replace("(", "\\(").replace(")", "\\)")
        # A backslash at the end would escape the parenthesis of the next group.
        plain = weight == 1.0 and not text.endswith("\\")
        written += escaped if plain else f"({escaped}:{weight:g})"
    return written


def _without_composition(text: str) -> tuple[str, tuple[Notice, ...]]:
    parts = [part.strip() for part in _COMPOSITION.split(text)]
    if len(parts) == 1:
        return text, ()
    parts = [_COMPOSITION_WEIGHT.sub("", part).strip(" ,") for part in parts]
    return ", ".join(part for part in parts if part), (
        _warning(
            "a1111_composition",
            f"AND joins {len(parts)} prompts that A1111 samples side by side. ComfyUI's text "
            "encoding cannot: they were joined with commas, their weights dropped.",
        ),
    )


class _Bracket:
    """An open `[`, what is in it so far, and where its own `:` and `|` stand in that."""

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.cuts: list[int] = []
        self.parentheses = 0

    def split(self, separator: str) -> list[str]:
        own = (cut for cut in self.cuts if self.tokens[cut] == separator)
        edges = [-1, *own, len(self.tokens)]
        return ["".join(self.tokens[left + 1 : right]) for left, right in pairwise(edges)]


def _without_edits(text: str) -> tuple[str, tuple[Notice, ...]]:
    """Replaces `[from:to:when]` and `[a|b]` by one fixed text each."""
    stack = [_Bracket()]
    edits: list[str] = []
    alternations: list[str] = []
    for found in _EDIT_TOKEN.finditer(text):
        token, bracket = found[0], stack[-1]
        if token == "[":
            if len(stack) > MAX_NESTING:
                raise _too_deep()
            stack.append(_Bracket())
        elif token == "]" and len(stack) > 1:
            stack[-2].tokens.append(_settled(stack.pop(), edits, alternations))
        else:
            if token == "(":
                bracket.parentheses += 1
            elif token == ")":
                bracket.parentheses = max(0, bracket.parentheses - 1)
            elif token in (":", "|") and len(stack) > 1 and not bracket.parentheses:
                bracket.cuts.append(len(bracket.tokens))
            bracket.tokens.append(token)
    notices: tuple[Notice, ...] = ()
    if edits:
        notices += (
            _warning(
                "a1111_prompt_editing",
                "ComfyUI's text encoding cannot change a prompt while sampling. Kept one text of "
                f"each edit, the one in effect for most steps: {_listed(edits)}.",
            ),
        )
    if alternations:
        notices += (
            _warning(
                "a1111_alternation",
                "ComfyUI's text encoding cannot alternate words from step to step. Kept all of "
                f"them at once: {_listed(alternations)}.",
            ),
        )
    return "[".join("".join(bracket.tokens) for bracket in stack), notices


def _settled(bracket: _Bracket, edits: list[str], alternations: list[str]) -> str:
    raw = "[" + "".join(bracket.tokens) + "]"
    *texts, when = bracket.split(":")
    if 1 <= len(texts) <= 2 and _EDIT_TIME.fullmatch(when):
        first, second = ["", *texts][-2:]
        share = float(when) if float(when) < 1 else float(when) / A1111_STEPS
        # An edit that only adds or only removes something still asks for it.
        kept = first if not second.strip() or (first.strip() and share >= 0.5) else second
        edits.append(f'"{_excerpt(raw)}" as "{_excerpt(kept)}"')
        return kept
    if "|" in (bracket.tokens[cut] for cut in bracket.cuts):
        options = [option.strip() for option in bracket.split("|")]
        kept = ", ".join(option for option in options if option)
        alternations.append(f'"{_excerpt(raw)}" as "{_excerpt(kept)}"')
        return kept
    return raw


# --------------------------------------------------------------------------- notices


def _unbalanced_comfy(text: str) -> tuple[Notice, ...]:
    escaped = _escape(text)
    strays = _strays(escaped, "(", ")")
    if not strays:
        return ()
    first = strays[0]
    readings = [
        f'"{_excerpt(_unescape(escaped[start:end]))}" with weight {weight:.4g}'
        for start, end, weight in _emphasis(escaped)
        if end > first
    ]
    return (
        _warning(
            "unbalanced_parentheses",
            f"{_stray(text, strays)} ComfyUI reads the text there as {_listed(readings)}. "
            "Add the missing parenthesis, or write \\( and \\) for literal ones.",
        ),
    )


def _unbalanced_a1111(text: str) -> tuple[Notice, ...]:
    escaped = re.sub(r"\\[()\[\]\\]", "  ", text)
    notices: list[Notice] = []
    for opening, closing in ("()", "[]"):
        strays = _strays(escaped, opening, closing)
        if strays:
            how = (
                "Its emphasis reaches to the end of the text, as in A1111."
                if text[strays[0]] == opening
                else "It is read as a literal character, as in A1111."
            )
            notices.append(
                _warning("unbalanced_parentheses", f"{_stray(text, strays)} {how} Correct it.")
            )
    return tuple(notices)


def _strays(text: str, opening: str, closing: str) -> list[int]:
    opened: list[int] = []
    closed: list[int] = []
    for found in re.finditer(f"[{re.escape(opening + closing)}]", text):
        if found[0] == opening:
            opened.append(found.start())
        elif opened:
            opened.pop()
        else:
            closed.append(found.start())
    return sorted(opened + closed)


def _stray(text: str, strays: list[int]) -> str:
    first, more = strays[0], len(strays) - 1
    around = _excerpt(text[max(0, first - 10) :].lstrip() if first else text)
    return f'The "{text[first]}" at character {first + 1} (near "{around}") has no partner' + (
        f", nor have {more} more." if more else "."
    )


def _extreme(segments: Iterable[tuple[Span, ...]]) -> tuple[Notice, ...]:
    extreme = [
        f'"{_excerpt(span.text)}" with weight {span.weight:g}'
        for spans in segments
        for span in spans
        if abs(span.weight) > LARGEST_USUAL_WEIGHT
    ]
    if not extreme:
        return ()
    return (
        _warning(
            "extreme_weight",
            f"ComfyUI reads {_listed(extreme)}, which spoils most images. Give a weight below 2, "
            "or write \\( and \\) for literal parentheses.",
        ),
    )


_A1111_ONLY = re.compile(r"\bBREAK\b|\[(?:[^\[\]:]{0,80}:){1,2} {0,4}[\d.]{1,8} {0,4}\]")


def _a1111_suspected(text: str) -> tuple[Notice, ...]:
    found = _A1111_ONLY.search(text)
    if found is None:
        return ()
    return (
        _info(
            "a1111_syntax_suspected",
            f'"{_excerpt(found[0])}" is plain text to ComfyUI. If it is meant as in A1111, set '
            "syntax to a1111.",
        ),
    )


def _excerpt(text: str) -> str:
    text = " ".join(text[: 4 * _SHOWN_CHARACTERS].split())
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS].rstrip() + "…"


def _listed(examples: list[str]) -> str:
    more = len(examples) - _SHOWN_EXAMPLES
    return ", ".join(examples[:_SHOWN_EXAMPLES]) + (f" and {more} more" if more > 0 else "")


def _info(code: str, message: str) -> Notice:
    return Notice(level="info", code=code, message=message)


def _warning(code: str, message: str) -> Notice:
    return Notice(level="warning", code=code, message=message)
