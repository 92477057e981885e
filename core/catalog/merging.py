"""One entry from all that is said of a file: its header, sidecars, hubs and the user."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeVar

from ..errors import SettingError
from ..hubs.entries import MinedSettings, RemoteVersion
from .digest import MAX_TAGS, MAX_TRIGGER_WORDS, generic_tags, weight_in_words
from .entries import LoraEntry, ModelEntry, TagCount, TriggerWord
from .families import MOST_BY_NAME, UNKNOWN, family, family_of_base_model
from .sidecars import SidecarFacts
from .text import tag_key

Entry = TypeVar("Entry", bound=LoraEntry | ModelEntry)

_SURE_SHARE = 0.9  # of the training images: an activation word, as in digest.py
_LEAST_IMAGES = 3  # sample images that make a weight more than one person's taste
_MAX_TRIGGER_CHARS = 200
_LORA_TAG = re.compile(r"<(?:lora|lyco):[^>]*>", re.IGNORECASE)
_SURE_FAMILY = 0.9
"""Confidence from which tensors, or tensors and header, leave a hub nothing to add."""


class Edit(NamedTuple):
    """What the user says of a LoRA. It beats every other source."""

    trigger_words: tuple[str, ...] | None = None
    """These and no others, in this order; None leaves them to the other sources."""
    weight: float | None = None
    """Recommended strength; None leaves it to the other sources."""


def made_edit(trigger_words: Any, weight: Any) -> Edit:
    """What the user says of a LoRA, from JSON. Raises SettingError."""
    if trigger_words is not None:
        texts = isinstance(trigger_words, list) and all(
            isinstance(word, str) and word.strip() for word in trigger_words
        )
        if not texts:
            raise SettingError(f"trigger_words must be a list of texts, not {trigger_words!r}.")
        trigger_words = tuple(word.strip() for word in trigger_words)
    if weight is not None:
        number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not number or not -100 <= weight <= 100:
            raise SettingError(f"weight must be a strength from -100 to 100, not {weight!r}.")
        weight = float(weight)
    return Edit(trigger_words, weight)


class Said(NamedTuple):
    """What others than its header say of one file."""

    edit: Edit = Edit()
    sidecar: SidecarFacts = SidecarFacts()
    versions: tuple[RemoteVersion, ...] = ()
    """Versions of the hubs with a file of this content, CivitAI's first."""
    mined: MinedSettings | None = None


def merge(entry: Entry, said: Said) -> Entry:
    """The entry of a header with what others say of the file.

    Trigger words, best first: the user's edit, which stands alone; CivitAI's `trainedWords`,
    those first that nearly every training image had; the header's `modelspec.trigger_phrase`;
    `instance_prompt` of Hugging Face; frequent caption tags. The weight: the user's, here or in
    another tool; the author's, in the header or in words on a hub; the median of CivitAI's
    sample images, from three on. The family is the header's and tensors'; a hub only chooses
    among the families of one architecture where these leave it open, or names one where they
    name none; it comes before the file's name.
    """
    first = said.versions[0] if said.versions else None
    sidecar = said.sidecar
    author = (first.name if first else "") or sidecar.name
    description = entry.description or (first.description if first else "") or sidecar.description
    entry = _with_family(
        entry._replace(
            title=author if author and _is_file_name(entry) else entry.title,
            description=description,
            nsfw=sidecar.nsfw or any(version.nsfw for version in said.versions),
            minor_unsafe=sidecar.minor or any(v.minor_unsafe for v in said.versions),
            downloads=first.downloads if first else None,
            likes=first.likes if first else None,
            page=(first.page if first else "") or sidecar.page,
        ),
        [*(version.base_model for version in said.versions), sidecar.base_model],
        [version.family for version in said.versions],
    )
    named = [*(tag for version in said.versions for tag in version.tags), *sidecar.tags]
    if isinstance(entry, ModelEntry):
        unique: dict[str, str] = {}
        for tag in (*entry.tags, *named):
            unique.setdefault(tag_key(tag), tag)
        return entry._replace(tags=tuple(islice(unique.values(), MAX_TAGS)))
    return entry._replace(
        trigger_words=tuple(_trigger_words(entry, said)),
        tags=tuple(_tags(entry.tags, named)),
        recommended_weight=_weight(entry, said, description),
    )


def _is_file_name(entry: LoraEntry | ModelEntry) -> bool:
    def plain(text: str) -> str:
        return "".join(c for c in text.casefold() if c.isalnum())

    return plain(entry.title) == plain(entry.file.name.rpartition("/")[2].rpartition(".")[0])


def _with_family(entry: Entry, names: Iterable[str], ids: Iterable[str]) -> Entry:
    if isinstance(entry, ModelEntry) and entry.file.folder in ("vae", "text_encoders"):
        return entry
    known = [*ids, *(family_of_base_model(name) for name in names if name)]
    told = next((id for id in known if id != UNKNOWN), UNKNOWN)
    if told in (UNKNOWN, entry.family):
        return entry
    guessed = entry.family == UNKNOWN and entry.family_confidence < _SURE_FAMILY
    if guessed or entry.family_confidence <= MOST_BY_NAME:
        evidence = f"{entry.evidence}; a hub says {family(told).name}"
        return entry._replace(family=told, family_confidence=0.5, evidence=evidence)
    same = family(told).architecture == family(entry.family).architecture
    if same and 0.5 < entry.family_confidence < _SURE_FAMILY:
        evidence = f"{entry.evidence}; a hub says {family(told).name}"
        return entry._replace(family=told, family_confidence=0.85, evidence=evidence)
    return entry


def _trigger_words(entry: LoraEntry, said: Said) -> Iterable[TriggerWord]:
    if said.edit.trigger_words is not None:
        return _words(said.edit.trigger_words, "user")
    hub = [word for v in said.versions if v.hub == "civitai" for word in v.trigger_words]
    civitai = _words([*hub, *said.sidecar.trained_words], "civitai")
    shares = {tag_key(tag.text): tag.share for tag in entry.tags}

    def unsure(word: TriggerWord) -> bool:
        shown = tag_key(word.text)
        return shares.get(shown, 0.0) < _SURE_SHARE or shown in generic_tags()

    own = [word for word in entry.trigger_words if word.source in _BEFORE_HUGGING_FACE]
    card = [word for v in said.versions if v.hub == "huggingface" for word in v.trigger_words]
    ranked = (
        *_words(said.sidecar.user_words, "user"),
        *sorted(civitai, key=unsure),
        *own,
        *_words(card, "instance_prompt"),
        *(word for word in entry.trigger_words if word not in own),
    )
    unique: dict[str, TriggerWord] = {}
    for word in ranked:
        unique.setdefault(tag_key(word.text), word)
    return islice(unique.values(), MAX_TRIGGER_WORDS)


_BEFORE_HUGGING_FACE = ("modelspec", "trained_words")


def _words(texts: Iterable[str], source: str) -> Iterator[TriggerWord]:
    for text in texts:
        phrase = " ".join(_LORA_TAG.sub(" ", text).split()).strip(" ,;")
        if len(phrase) > _MAX_TRIGGER_CHARS:  # a whole prompt: as much of it as fits
            phrase = phrase[: phrase.rfind(",", 0, _MAX_TRIGGER_CHARS)].strip(" ,;")
        if 0 < len(phrase) <= _MAX_TRIGGER_CHARS:
            yield TriggerWord(phrase, 1.0, source)


def _tags(own: Sequence[TagCount], named: Iterable[str]) -> Iterable[TagCount]:
    unique: dict[str, TagCount] = {}
    for tag in (*(TagCount(text, 1.0) for text in named), *own):
        unique.setdefault(tag_key(tag.text), tag)
    return islice(unique.values(), MAX_TAGS)


def _weight(entry: LoraEntry, said: Said, description: str) -> float | None:
    told = [said.edit.weight, said.sidecar.weight, entry.recommended_weight]
    told += [weight_in_words(v.description) for v in said.versions]
    told.append(weight_in_words(description))
    if said.mined is not None and said.mined.images >= _LEAST_IMAGES:
        told.append(said.mined.weight)
    return next((weight for weight in told if weight is not None), None)
