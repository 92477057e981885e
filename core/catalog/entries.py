"""What the catalog knows of one LoRA file. Small on purpose: thousands are read at once."""

from __future__ import annotations

from typing import NamedTuple

from ..plan import FileRef


class TriggerWord(NamedTuple):
    """A word or phrase that the LoRA was trained to react to."""

    text: str
    share: float
    """Share of the training images whose caption had it, in [0, 1]; 1.0 when the author named
    it without a count."""
    source: str
    """Where it was read: modelspec, trained_words, instance_prompt, tag_frequency."""


class TagCount(NamedTuple):
    """A caption tag and the share of training images that had it, in [0, 1]."""

    text: str
    share: float


class LoraEntry(NamedTuple):
    """One readable LoRA file."""

    file: FileRef
    title: str
    """The author's title, else the file's stem with separators turned into spaces."""
    family: str
    """Id in families.json, by tensors and header; `unknown` when neither says."""
    variant: str | None
    """lightning, turbo, lcm, hyper, dmd for an acceleration LoRA; None for others."""
    family_confidence: float
    evidence: str
    trigger_words: tuple[TriggerWord, ...] = ()
    """Ranked: what the author named first, then caption tags in nearly every image."""
    tags: tuple[TagCount, ...] = ()
    """The most frequent caption tags and the author's own tags, at most 64."""
    description: str = ""
    """Plain text, at most 1,000 characters."""
    recommended_weight: float | None = None
    """The strength its author recommends, where the header says one."""
    rank: int | None = None
    """Network dimension, from tensors."""
    has_text_encoder: bool = False
    """Whether it holds text-encoder weights."""


class UnreadableFile(NamedTuple):
    """A file in a model folder that cannot be read as safetensors."""

    name: str
    """Below its folder, forward slashes."""
    problem: str
    """What is wrong and what to do, one sentence."""


class LoraLibrary(NamedTuple):
    """All LoRA files of the LoRA folders at one moment."""

    entries: tuple[LoraEntry, ...]
    unreadable: tuple[UnreadableFile, ...]
    revision: str
    """Changes when any file is added, removed or modified; the same otherwise."""
