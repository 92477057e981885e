"""Recommended weights and settings, from what a version's sample images were made with."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from .entries import MinedSettings

# Wider than anybody uses; outside is a slip of a keyboard or a test of extremes.
_WEIGHTS = (-3.0, 3.0)
_CFG = (0.5, 40.0)
_STEPS = (1.0, 200.0)
_CLIP_SKIP = (1.0, 12.0)
_SIGN = re.compile(r"[^a-z0-9+]+")


class SamplerChoice(NamedTuple):
    """A sampler and scheduler by ComfyUI's names; None where nothing is said."""

    sampler: str | None
    scheduler: str | None


def mine(
    images: Iterable[Mapping[str, Any]], version_id: int, hashes: Collection[str] = ()
) -> MinedSettings:
    """Medians over the images of a version; the most frequent sampler, with its scheduler.

    Args:
        images: items of CivitAI's `/images` with `meta`, flat or nested.
        version_id: whose weight to read.
        hashes: the version's file hashes in any length, any case: an image made outside CivitAI
            names its LoRAs by those. A prefix of 8 digits or more counts.
    """
    known = {value.lower() for value in hashes}
    told = [s for image in images if any(s := _said(_meta(image), version_id, known))]
    sampler = _most_frequent(s.sampler for s in told)
    return MinedSettings(
        images=len(told),
        weight=_middle((s.weight for s in told), lambda value: round(value, 2)),
        cfg=_middle((s.cfg for s in told), lambda value: round(value, 1)),
        steps=_middle((s.steps for s in told), round),
        sampler=sampler,
        scheduler=_most_frequent(s.scheduler for s in told if s.sampler == sampler),
        clip_skip=_middle((s.clip_skip for s in told), round),
    )


def name_sampler(sampler: str, scheduler: str = "") -> SamplerChoice:
    """ComfyUI's names for a sampler as A1111, Forge, CivitAI or ComfyUI write it.

    `DPM++ 2M Karras` holds the scheduler at its end; one given apart counts more.
    """
    name = _plain(sampler)
    apart = _schedulers().get(_plain(scheduler))
    if found := _samplers().get(name):
        return SamplerChoice(found, apart)
    # Longest first: "sgm uniform" before "uniform".
    for ending in sorted(_schedulers(), key=len, reverse=True):
        if name.endswith(ending) and (found := _samplers().get(name.removesuffix(ending))):
            return SamplerChoice(found, apart or _schedulers()[ending])
    return SamplerChoice(None, apart)


class _Said(NamedTuple):
    weight: float | None
    cfg: float | None
    steps: float | None
    clip_skip: float | None
    sampler: str | None
    scheduler: str | None


def _said(meta: Mapping[str, Any], version_id: int, hashes: Collection[str]) -> _Said:
    return _Said(
        _weight(meta, version_id, hashes),
        _first_number(meta, ("cfgScale", "cfg_scale", "CFG scale"), _CFG),
        _first_number(meta, ("steps", "Steps"), _STEPS),
        _first_number(meta, ("clipSkip", "clip_skip", "Clip skip"), _CLIP_SKIP),
        *name_sampler(_text(meta, "sampler"), _scheduler(meta)),
    )


def _meta(image: Mapping[str, Any]) -> Mapping[str, Any]:
    meta = image.get("meta")
    if isinstance(meta, Mapping) and isinstance(meta.get("meta"), Mapping):
        meta = meta["meta"]
    return meta if isinstance(meta, Mapping) else {}


def _weight(meta: Mapping[str, Any], version_id: int, hashes: Collection[str]) -> float | None:
    for resource in _rows(meta, "civitaiResources"):
        if resource.get("modelVersionId") == version_id:
            return _number(resource.get("weight"), _WEIGHTS)
    for resource in _rows(meta, "resources"):
        value = str(resource.get("hash") or "").lower()
        if len(value) >= 8 and any(h.startswith(value) for h in hashes):
            return _number(resource.get("weight"), _WEIGHTS)
    return None


def _rows(meta: Mapping[str, Any], name: str) -> Sequence[Mapping[str, Any]]:
    rows = meta.get(name)
    return [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []


def _scheduler(meta: Mapping[str, Any]) -> str:
    return _text(meta, "scheduler") or _text(meta, "Schedule type") or _text(meta, "scheduleType")


def _text(meta: Mapping[str, Any], name: str) -> str:
    value = meta.get(name)
    return value if isinstance(value, str) else ""


def _first_number(
    meta: Mapping[str, Any], names: Sequence[str], bounds: tuple[float, float]
) -> float | None:
    values = (_number(meta.get(name), bounds) for name in names)
    return next((value for value in values if value is not None), None)


def _number(value: Any, bounds: tuple[float, float]) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    low, high = bounds
    return number if math.isfinite(number) and low <= number <= high else None


def _middle(values: Iterable[float | None], shape: Callable[[float], Any]) -> Any:
    numbers = [value for value in values if value is not None]
    return shape(median(numbers)) if numbers else None


def _most_frequent(values: Iterable[str | None]) -> str | None:
    counts = Counter(value for value in values if value)
    return min(counts, key=lambda name: (-counts[name], name), default=None)


def _plain(name: str) -> str:
    return _SIGN.sub("", name.lower())


@cache
def _samplers() -> Mapping[str, str]:
    return _names("samplers", "sampler")


@cache
def _schedulers() -> Mapping[str, str]:
    return _names("schedulers", "scheduler")


def _names(table: str, field: str) -> dict[str, str]:
    data = json.loads(Path(__file__).with_name("samplers.json").read_text("utf-8"))
    rows = data[table]
    return {_plain(name): row[field] for row in rows for name in (*row["names"], row[field])}
