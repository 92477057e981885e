"""What is not recommended whatever its score. Whole words only: `sussex` is not `sex`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..catalog.entries import LoraEntry
from ..hubs.safety import Phrase, blocked_tag, sexual_word, speaks_of_minors
from .text import name_words, pieces, words

_TELLING_SHARE = 0.25
"""A caption tag in fewer training images does not make the LoRA what the tag says."""
_ANY_SHARE = 0.05
"""The stricter share where minors are concerned."""


def blocked_by(
    entry: LoraEntry, prompt: Sequence[Phrase], *, allow_nsfw: bool, tags: Iterable[str]
) -> str | None:
    """Why this LoRA may not be recommended for this prompt, or None.

    `prompt` is the words of each clause; `tags` the user's own blocked words and phrases,
    compared with title, file name, trigger words and tags.
    """
    if minors_in_sexual_context(entry, prompt):
        return "it would put minors into a sexual context"
    if entry.minor_unsafe:
        return "the hub marks it as showing minors"
    said = _said(entry)
    if not allow_nsfw:
        if entry.nsfw:
            return "the hub marks it as not safe for work, and that is off"
        if word := sexual_word([*said, words(entry.description)]):
            return f'it says "{word}" of itself, and sexual content is off'
    if word := blocked_tag(tags, said):
        return f'it has the blocked tag "{word}"'
    return None


def minors_in_sexual_context(entry: LoraEntry, prompt: Sequence[Phrase]) -> bool:
    """Whether LoRA and prompt together speak of minors and of sexual content, with at least
    one of the two said by the LoRA."""
    own = [*_said(entry, _ANY_SHARE), words(entry.description)]
    together = [*own, *prompt]
    adult = entry.nsfw or sexual_word(own) is not None
    young = entry.minor_unsafe or speaks_of_minors(own)
    return (adult and (young or speaks_of_minors(together))) or (
        young and sexual_word(together) is not None
    )


def _said(entry: LoraEntry, least_share: float = _TELLING_SHARE) -> list[Phrase]:
    phrases = [words(entry.title), name_words(entry.title), words(entry.file.name)]
    phrases += [words(piece) for t in entry.trigger_words for piece in pieces(t.text)]
    phrases += [words(tag.text) for tag in entry.tags if tag.share >= least_share]
    return phrases
