"""Which trigger words the prompt still needs, and how they are written into it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .index import EntryText, TriggerPhrase
from .text import contains

MAX_ADDED = 3
"""Trigger words put into the prompt for one LoRA, at most."""
_SURE_SHARE = 0.9
"""A caption tag in fewer training images is content, not an activation word."""
_RARE = 0.6
"""Rarity from which a word means this LoRA: `1girl` has 0.14, a word in one LoRA of a thousand
0.75."""


def needed(
    text: EntryText,
    prompt: tuple[str, ...],
    rarity: Callable[[str], float],
    *,
    sure_tags: bool = True,
) -> tuple[str, ...]:
    """The trigger words of a LoRA that the prompt lacks, as plain text, at most MAX_ADDED.

    Author-named words come first: those of the first trigger word, common caption tags in it
    left out unless there is nothing else; none when the prompt already has one that means this
    LoRA. Without any and with `sure_tags`, one rare caption tag that nearly every training image
    had.
    `prompt` is the prompt's words; `rarity` gives a phrase's rarity in [0, 1].
    """
    author = [trigger for trigger in text.triggers if trigger.by_author]

    def rare(trigger: TriggerPhrase) -> bool:
        return rarity(" ".join(trigger.words)) >= _RARE

    if author:
        if any(rare(trigger) and contains(prompt, trigger.words) for trigger in author):
            return ()
        first = [trigger for trigger in author if trigger.rank == author[0].rank]
        wanted = [trigger for trigger in first if rare(trigger)] or first[:1]
    elif not sure_tags:
        return ()
    else:
        sure = [t for t in text.triggers if t.share >= _SURE_SHARE and rare(t)]
        if any(contains(prompt, trigger.words) for trigger in sure):
            return ()
        wanted = sure[:1]
    missing = [trigger.text for trigger in wanted if not contains(prompt, trigger.words)]
    return tuple(missing[:MAX_ADDED])


def escape(phrase: str) -> str:
    """The phrase as ComfyUI reads it literally: its parentheses are no emphasis."""
    return phrase.replace("(", "\\(").replace(")", "\\)")


def append(segments: Sequence[str], phrases: Sequence[str]) -> tuple[str, ...]:
    """The segments with `phrases`, escaped, at the end of the last one."""
    if not phrases:
        return tuple(segments)
    *before, last = segments or ("",)
    parts = [last.rstrip().rstrip(",").rstrip(), *map(escape, phrases)]
    return (*before, ", ".join(part for part in parts if part))
