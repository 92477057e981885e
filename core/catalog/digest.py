"""From a model file's header to what the catalog keeps of it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic_core import from_json

from ..plan import FileRef
from .entries import LoraEntry, ModelEntry, TagCount, TriggerWord
from .families import UNKNOWN, detect_lora, detect_lora_name, detect_model
from .headers import SafetensorsHeader
from .text import plain_text, tag_key

DIGEST_VERSION = 3
"""Raised when `describe` or `describe_model` would say something else of the same header: stored
digests of another version are made anew."""

MAX_TRIGGER_WORDS = 16
MAX_TAGS = 64

_TRIGGER_SHARE = 0.9  # of a dataset's images: "in nearly every image"
_NAMED_TRIGGER_SHARE = 0.5  # enough where the tag is also the dataset's or the output's name
_MAX_TRIGGER_CHARS = 200
_MAX_TAG_CHARS = 80
_MAX_TAG_WORDS = 8  # a longer caption piece is a sentence, not a tag
_WEIGHT_RANGE = (0.05, 2.0)  # outside it the number is something else, e.g. a learning rate

_LORA_TAG = re.compile(r"<(?:lora|lyco):[^>]*>", re.IGNORECASE)
_GENERATED_TITLE = re.compile(r"(?:LoRA|Checkpoint|TextualInversion)@\d")  # kohya's, when untitled
_NUMBER = r"(\d?\.\d+|\d)(?![\d%]|\.\d)"
_RANGE = rf"{_NUMBER}(?:\s*(?:-|–|—|~|～|to|and)\s*{_NUMBER})?"
_WEIGHT_THEN_NUMBER = re.compile(
    rf"(?<!noising )(?<!noise )(?:\b(?:weights?|strengths?|multiplier)\b|权重)(?!\s*decay)"
    rf"(?:\s*(?:is|are|of|at|to|set|between|from|around|about|in|the|range|use|recommended"
    rf"|推荐|为|在|：|[:=(~≈\[]))*\s*{_RANGE}",
    re.IGNORECASE,
)
_NUMBER_THEN_WEIGHT = re.compile(
    rf"(?<![\d.]){_RANGE}\s*(?:lora\s+|model\s+)?(?:weights?|strengths?)\b(?!\s*decay)",
    re.IGNORECASE,
)


def describe(header: SafetensorsHeader, file: FileRef) -> LoraEntry:
    """What the header says, as a catalog entry.

    Trigger words come first from `modelspec.trigger_phrase`, then `trained_words`, then
    `instance_prompt`, then from caption tags: those in at least 0.9 of the images of a dataset,
    or in half of them where the tag is also the dataset's or the LoRA's own name; tags that
    describe most pictures (generic_tags.json) are none. The weight is `lora_default_weight`
    (SwarmUI), else what the usage hint, description or training comment recommends in words; the
    middle of a range.
    """
    found = detect_lora(header)
    metadata = header.metadata
    tags, triggers = _captions(metadata)
    description = plain_text(
        metadata.get("modelspec.description") or metadata.get("description") or ""
    )
    return LoraEntry(
        file=file,
        title=_title(metadata, file.name),
        family=found.family,
        variant=found.variant or detect_lora_name(file.name),
        family_confidence=round(found.confidence, 3),
        evidence=found.evidence,
        trigger_words=tuple(_trigger_words(metadata, triggers)),
        tags=tuple(_tags(metadata, tags)),
        description=description,
        recommended_weight=_recommended_weight(metadata, description),
        rank=_rank(header),
        has_text_encoder=_has_text_encoder(header),
    )


def describe_model(header: SafetensorsHeader, file: FileRef) -> ModelEntry:
    """What the header of a checkpoint, diffusion model, text encoder or VAE says, and where it
    leaves that open, the file's name."""
    found = detect_model(header, file.name)
    if file.folder not in _WITH_FAMILY:
        found = found._replace(family=UNKNOWN, variant=None, confidence=0.0, evidence="")
    metadata = header.metadata
    weights: Counter[str] = Counter()
    for tensor in header.tensors.values():
        weights[tensor.dtype] += tensor.bytes
    return ModelEntry(
        file=file,
        title=_title(metadata, file.name),
        family=found.family,
        variant=found.variant,
        family_confidence=round(found.confidence, 3),
        evidence=found.evidence,
        precision=weights.most_common(1)[0][0] if weights else "",
        tags=tuple(tag.text for tag in _tags(metadata, ())),
        description=plain_text(
            metadata.get("modelspec.description") or metadata.get("description") or ""
        ),
    )


_WITH_FAMILY = ("checkpoints", "diffusion_models")


def pack(entry: LoraEntry | ModelEntry) -> str:
    """An entry without its file, as compact JSON."""
    values: list[Any] = list(entry[1:])
    if isinstance(entry, LoraEntry):
        values[_TRIGGERS] = [list(word) for word in entry.trigger_words]
        values[_TAGS] = [[tag.text for tag in entry.tags], [tag.share for tag in entry.tags]]
    return json.dumps(values, ensure_ascii=False, separators=(",", ":"))


def unpack_model(text: str, file: FileRef) -> ModelEntry:
    """The entry of another folder than loras that `pack` wrote. Raises as `unpack`."""
    values = from_json(text)
    try:
        values[_MODEL_TAGS] = tuple(values[_MODEL_TAGS])
        return ModelEntry(file, *values)
    except (TypeError, IndexError, KeyError) as error:
        raise ValueError("not a packed model entry") from error


_MODEL_TAGS = ModelEntry._fields.index("tags") - 1


def unpack(text: str, file: FileRef) -> LoraEntry:
    """The LoRA entry that `pack` wrote. Raises ValueError when the text is something else."""
    values = from_json(text)
    try:
        values[_TRIGGERS] = tuple(map(TriggerWord._make, values[_TRIGGERS]))
        values[_TAGS] = tuple(map(_tag_count, zip(*values[_TAGS], strict=True)))
        return LoraEntry(file, *values)
    except (TypeError, IndexError, KeyError) as error:
        raise ValueError("not a packed LoRA entry") from error


_TRIGGERS = LoraEntry._fields.index("trigger_words") - 1
_TAGS = LoraEntry._fields.index("tags") - 1
_tag_count = partial(tuple.__new__, TagCount)  # half the time of TagCount(): there are many


# --------------------------------------------------------------------------- captions


def _captions(metadata: Mapping[str, str]) -> tuple[list[TagCount], list[TriggerWord]]:
    """Caption tags, most frequent first, at most MAX_TAGS; and those that are trigger words."""
    datasets = list(_datasets(metadata))
    images = sum(count for _, _, count in datasets)
    own_names = {tag_key(metadata.get("ss_output_name", ""))}
    own_names.update(tag_key(re.sub(r"^\d+_", "", name)) for name, _, _ in datasets)
    totals: dict[str, int] = {}
    triggers: set[str] = set()
    for _, tags, count in datasets:
        nearly_all, half = count * _TRIGGER_SHARE, count * _NAMED_TRIGGER_SHARE
        for tag, number in tags.items():
            totals[tag] = totals.get(tag, 0) + number
            if number >= half and (
                tag_key(tag) in own_names
                or (number >= nearly_all and tag_key(tag) not in generic_tags())
            ):
                triggers.add(tag)
    ranked = [
        TagCount(tag, round(min(1.0, number / images), 3))
        for tag, number in sorted(totals.items(), key=lambda item: (-item[1], item[0]))
    ]
    return ranked[:MAX_TAGS], [
        TriggerWord(tag.text, tag.share, "tag_frequency") for tag in ranked if tag.text in triggers
    ]


def _datasets(metadata: Mapping[str, str]) -> Iterator[tuple[str, dict[str, int], int]]:
    """Name, tag counts and number of images of each dataset.

    kohya writes either `ss_tag_frequency` and `ss_dataset_dirs`, or, with a dataset file,
    `ss_datasets` with both inside (train_network.py). ai-toolkit writes its trigger word as a
    tag with a count of one. Where no image count stands, the most frequent tag gives it: no tag
    counts more than once an image.
    """
    frequencies = _json_table(metadata.get("ss_tag_frequency"))
    counts = {
        name: row.get("img_count")
        for name, row in _json_table(metadata.get("ss_dataset_dirs")).items()
        if isinstance(row, dict)
    }
    for dataset in _json_list(metadata.get("ss_datasets")):
        if not isinstance(dataset, dict):
            continue
        inner = dataset.get("tag_frequency")
        frequencies |= inner if isinstance(inner, dict) else {}
        subsets = dataset.get("subsets")
        for subset in subsets if isinstance(subsets, list) else ():
            if isinstance(subset, dict) and isinstance(subset.get("image_dir"), str):
                directory = PurePosixPath(subset["image_dir"].replace("\\", "/")).name
                counts[directory] = subset.get("img_count")
    for name, row in frequencies.items():
        tags: dict[str, int] = {}
        for tag, number in row.items() if isinstance(row, dict) else ():
            text = tag.strip()
            if (
                0 < len(text) <= _MAX_TAG_CHARS
                and text.count(" ") < _MAX_TAG_WORDS
                and type(number) is int
                and number > 0
            ):
                tags[text] = tags.get(text, 0) + number
        if tags:
            count = counts.get(name)
            most = max(tags.values())
            yield name, tags, count if type(count) is int and count > 0 else most


@cache
def generic_tags() -> frozenset[str]:
    """Keys of the tags that describe most pictures, and so name no LoRA."""
    rows = json.loads(Path(__file__).with_name("generic_tags.json").read_text("utf-8"))
    return frozenset(map(tag_key, rows["tags"]))


# --------------------------------------------------------------------------- fields


def _title(metadata: Mapping[str, str], name: str) -> str:
    title = plain_text(metadata.get("modelspec.title", ""), 200)
    if title and not _GENERATED_TITLE.match(title):
        return title
    stem = name.rpartition("/")[2].rpartition(".")[0]
    return " ".join(re.split(r"[\s_\-+]+", stem)).strip() or stem


def _trigger_words(
    metadata: Mapping[str, str], captions: Iterable[TriggerWord]
) -> Iterator[TriggerWord]:
    named = (
        TriggerWord(text, 1.0, source)
        for source, key in _TRIGGER_FIELDS
        if metadata.get(key)
        for text in _phrases(metadata[key])
    )
    unique: dict[str, TriggerWord] = {}
    for word in (*named, *captions):
        unique.setdefault(tag_key(word.text), word)
    return islice(unique.values(), MAX_TRIGGER_WORDS)


_TRIGGER_FIELDS = (
    ("modelspec", "modelspec.trigger_phrase"),
    ("trained_words", "trained_words"),
    ("trained_words", "trainedWords"),
    ("instance_prompt", "instance_prompt"),
)


def _tags(metadata: Mapping[str, str], captions: Iterable[TagCount]) -> Iterable[TagCount]:
    if not (own := metadata.get("modelspec.tags")):
        return captions
    unique: dict[str, TagCount] = {}
    for tag in (*(TagCount(text, 1.0) for text in _phrases(own)), *captions):
        unique.setdefault(tag_key(tag.text), tag)
    return islice(unique.values(), MAX_TAGS)


def _phrases(text: str) -> Iterator[str]:
    for item in _json_list(text) or re.split(r"[,;\n]", _LORA_TAG.sub(" ", text)):
        phrase = " ".join(str(item).split()).strip(" ,;")
        if phrase and len(phrase) <= _MAX_TRIGGER_CHARS:
            yield phrase


def _recommended_weight(metadata: Mapping[str, str], description: str) -> float | None:
    for key in ("modelspec.lora_default_weight", "lora_default_weight"):
        try:
            return _in_range(float(metadata[key]))
        except (KeyError, ValueError):
            continue
    texts = (
        plain_text(metadata.get("modelspec.usage_hint", "")),
        description,
        plain_text(metadata.get("ss_training_comment", "")),
    )
    found = (weight_in_words(text) for text in texts if text)
    return next((weight for weight in found if weight is not None), None)


def weight_in_words(text: str) -> float | None:
    """The LoRA strength that a text recommends; the middle of a range."""
    for pattern in (_WEIGHT_THEN_NUMBER, _NUMBER_THEN_WEIGHT):
        if (weight := _weight_in(pattern, text)) is not None:
            return weight
    return None


def _weight_in(pattern: re.Pattern[str], text: str) -> float | None:
    for match in pattern.finditer(text):
        low, high = float(match[1]), float(match[2] or match[1])
        if (weight := _in_range((low + high) / 2)) is not None:
            return weight
    return None


def _in_range(weight: float) -> float | None:
    low, high = _WEIGHT_RANGE
    return round(weight, 3) if low <= weight <= high else None


def _rank(header: SafetensorsHeader) -> int | None:
    ranks = Counter(
        islice(
            (
                tensor.shape[0]
                for name, tensor in header.tensors.items()
                if name.endswith(_RANK_SUFFIXES) and len(tensor.shape) >= 2
            ),
            _RANK_SAMPLE,
        )
    )
    return ranks.most_common(1)[0][0] if ranks else None


_RANK_SAMPLE = 64  # modules looked at: nearly every LoRA has one rank throughout
_RANK_SUFFIXES = (
    *(".lora_down.weight", ".lora_A.weight", ".lora.down.weight", "_lora.down.weight", ".lora_A"),
    *(".lora_A.default.weight", ".lora_linear_layer.down.weight", ".hada_w1_b", ".lokr_w2_b"),
)


def _has_text_encoder(header: SafetensorsHeader) -> bool:
    return any(name.startswith(_TEXT_ENCODER_PREFIXES) for name in header.tensors)


_TEXT_ENCODER_PREFIXES = (
    *("lora_te_", "lora_te1_", "lora_te2_", "lora_te3_", "lora_prior_te_"),
    *("text_encoder.", "text_encoder_2.", "text_encoder_3.", "text_encoders.", "text_model."),
)


def _json_table(text: str | None) -> dict[str, Any]:
    value = _parsed(text)
    return value if isinstance(value, dict) else {}


def _json_list(text: str | None) -> list[Any]:
    value = _parsed(text) if text and text.lstrip().startswith("[") else None
    return value if isinstance(value, list) else []


def _parsed(text: str | None) -> Any:
    try:
        return from_json(text) if text else None
    except ValueError:
        return None  # one odd field does not make the file unreadable
