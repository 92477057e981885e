"""What the catalog knows of one model file. Small on purpose: thousands are read at once."""

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
    """Where it was read: user, civitai, modelspec, trained_words, instance_prompt,
    tag_frequency."""


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
    """Ranked: what the user wrote, alone; else CivitAI's, then what the file's author named, then
    caption tags in nearly every image."""
    tags: tuple[TagCount, ...] = ()
    """The most frequent caption tags and the author's own tags, at most 64."""
    description: str = ""
    """Plain text, at most 1,000 characters."""
    recommended_weight: float | None = None
    """The strength that the user set, else the author's, else that of CivitAI's sample images."""
    rank: int | None = None
    """Network dimension, from tensors."""
    has_text_encoder: bool = False
    """Whether it holds text-encoder weights."""
    nsfw: bool = False
    """A hub, or another tool's file beside it, marks it as not safe for work."""
    minor_unsafe: bool = False
    """A hub marks it as showing minors; never shown or recommended."""
    downloads: int | None = None
    """From the hub it came from, as last seen; None when no hub is known."""
    likes: int | None = None
    page: str = ""
    """Its web page for a person; empty when no hub is known."""


class ModelEntry(NamedTuple):
    """One readable model file that is no LoRA: checkpoint, diffusion model, text encoder, VAE."""

    file: FileRef
    title: str
    """As LoraEntry's."""
    family: str
    """Id in families.json; `unknown` for text encoders and VAEs, which many families share."""
    variant: str | None
    family_confidence: float
    evidence: str
    precision: str = ""
    """Type of most of its weights, as safetensors names it: F16, BF16, F8_E4M3 ..."""
    tags: tuple[str, ...] = ()
    description: str = ""
    """Plain text, at most 1,000 characters."""
    nsfw: bool = False
    minor_unsafe: bool = False
    downloads: int | None = None
    likes: int | None = None
    page: str = ""


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
    """Changes when any file is added, removed or modified, and when a hub or the user says
    something new of one; the same otherwise."""


class ModelLibrary(NamedTuple):
    """All files of one folder key other than `loras` at one moment."""

    entries: tuple[ModelEntry, ...]
    unreadable: tuple[UnreadableFile, ...]
    revision: str
    """As LoraLibrary's."""
