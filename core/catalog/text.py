"""Texts as people and hubs write them, made plain and comparable."""

from __future__ import annotations

import html
import re
import unicodedata
from functools import lru_cache

MAX_DESCRIPTION = 1_000

_TAG = re.compile(r"<(script|style)\b.*?</\1\s*>|</?[a-zA-Z!][^<>]*>", re.DOTALL | re.IGNORECASE)
_WORD = re.compile(r"[^\W_]+")


def plain_text(text: str, limit: int = MAX_DESCRIPTION) -> str:
    """Text without HTML tags and entities, white space collapsed, cut at `limit` characters."""
    if not text:
        return text
    text = " ".join(html.unescape(_TAG.sub(" ", text[: limit * 20])).split())
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


@lru_cache(20_000)  # the same tags come in thousands of LoRAs
def tag_key(text: str) -> str:
    """What two spellings of one tag have in common: no case, underscores or escapes."""
    return " ".join(text.casefold().replace("_", " ").replace("\\", "").split())


def tokens(text: str) -> list[str]:
    """The words of a text, without case, width and accents: what a search compares."""
    if not text.isascii():
        folded = unicodedata.normalize("NFKD", text)
        text = "".join(c for c in folded if not unicodedata.combining(c))
    return _WORD.findall(text.casefold())
