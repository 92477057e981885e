"""What other tools wrote beside a model file. Read, never written.

The forms are those of ComfyUI-Lora-Manager (`.metadata.json`), of the CivitAI helpers of several
interfaces (`.civitai.info`, CivitAI's answer for the version) and of rgthree-comfy
(`.rgthree-info.json`).
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic_core import from_json

from .scan import SIDECARS, sidecar_names
from .text import plain_text

log = logging.getLogger(__name__)

_MOST_BYTES = 16 * 1024 * 1024
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


class SidecarFacts(NamedTuple):
    """What all files beside a model say together; of several the best one (scan.SIDECARS)."""

    name: str = ""
    base_model: str = ""
    user_words: tuple[str, ...] = ()
    """Trigger words that the user wrote in another tool."""
    trained_words: tuple[str, ...] = ()
    """CivitAI's `trainedWords`."""
    tags: tuple[str, ...] = ()
    description: str = ""
    weight: float | None = None
    """The strength that the user set in another tool; the middle of a range."""
    nsfw: bool = False
    minor: bool = False
    sha256: str | None = None
    """As the tool has it: good enough to ask a hub with, never to trust a file by."""
    page: str = ""


def read_sidecars(path: str) -> SidecarFacts:
    """The facts beside the model file at `path`. One that cannot be read is logged and left out."""
    place = Path(path)
    facts = SidecarFacts()
    for name, suffix in zip(sidecar_names(place.name), SIDECARS, strict=True):
        beside = place.with_name(name)
        try:
            if beside.stat().st_size > _MOST_BYTES:
                raise ValueError("it is too large")
            data = from_json(beside.read_bytes().removeprefix(b"\xef\xbb\xbf"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            log.warning("%s cannot be read and is left out: %s", beside, error)
            continue
        if isinstance(data, dict):
            facts = _filled(facts, _READERS[suffix](data))
    return facts


def pack_facts(facts: SidecarFacts) -> str:
    """As compact JSON, without what is not said."""
    said = {
        key: value
        for key, value in facts._asdict().items()
        if value != SidecarFacts._field_defaults[key]
    }
    return json.dumps(said, ensure_ascii=False, separators=(",", ":"))


def unpack_facts(text: str) -> SidecarFacts:
    """What `pack_facts` wrote."""
    said: dict[str, Any] = from_json(text)
    for key, value in said.items():
        said[key] = tuple(value) if type(value) is list else value
    return SidecarFacts(**said)


def _filled(facts: SidecarFacts, more: SidecarFacts) -> SidecarFacts:
    best = SidecarFacts._make(first or second for first, second in zip(facts, more, strict=True))
    return best._replace(nsfw=facts.nsfw or more.nsfw, minor=facts.minor or more.minor)


def _civitai(version: Any) -> SidecarFacts:
    if not isinstance(version, dict):
        return SidecarFacts()
    model = version.get("model")
    model = model if isinstance(model, dict) else {}
    ids = version.get("modelId"), version.get("id")
    page = f"https://civitai.com/models/{ids[0]}?modelVersionId={ids[1]}" if all(ids) else ""
    files = [file for file in _list(version.get("files")) if isinstance(file, dict)]
    files.sort(key=lambda file: not file.get("primary"))
    hashes = files[0].get("hashes") if len(files) == 1 or _primary(files) else None
    return SidecarFacts(
        name=_text(model.get("name")),
        base_model=_text(version.get("baseModel")),
        trained_words=tuple(_texts(version.get("trainedWords"))),
        tags=tuple(_texts(model.get("tags"))),
        description=plain_text(
            _text(model.get("description")) or _text(version.get("description"))
        ),
        nsfw=bool(model.get("nsfw")),
        minor=bool(model.get("minor")),
        sha256=_sha256(hashes.get("SHA256")) if isinstance(hashes, dict) else None,
        page=page,
    )


def _lora_manager(data: dict[str, Any]) -> SidecarFacts:
    tips = data.get("usage_tips")
    try:
        tips = from_json(tips) if isinstance(tips, str) else tips
    except ValueError:
        tips = None
    tips = tips if isinstance(tips, dict) else {}
    own = SidecarFacts(
        name=_text(data.get("model_name")),
        base_model=_text(data.get("base_model")),
        tags=tuple(_texts(data.get("tags"))),
        description=plain_text(_text(data.get("modelDescription"))),
        weight=_weight(tips.get("strength"), tips.get("strength_min"), tips.get("strength_max")),
        sha256=_sha256(data.get("sha256")),
    )
    return _filled(own, _civitai(data.get("civitai")))


def _rgthree(data: dict[str, Any]) -> SidecarFacts:
    words = [word for word in _list(data.get("trainedWords")) if isinstance(word, dict)]
    raw = data.get("raw")
    own = SidecarFacts(
        name=_text(data.get("name")),
        base_model=_text(data.get("baseModel")),
        user_words=tuple(_texts(word.get("word") for word in words if word.get("user"))),
        trained_words=tuple(_texts(word.get("word") for word in words if word.get("civitai"))),
        weight=_weight(None, data.get("strengthMin"), data.get("strengthMax")),
        sha256=_sha256(data.get("sha256")),
    )
    return _filled(own, _civitai(raw.get("civitai") if isinstance(raw, dict) else None))


_READERS = dict(zip(SIDECARS, (_lora_manager, _civitai, _rgthree), strict=True))


def _primary(files: list[dict[str, Any]]) -> bool:
    return bool(files and files[0].get("primary"))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any) -> str:
    return " ".join(value.split()) if isinstance(value, str) else ""


def _texts(values: Any) -> Iterator[str]:
    for value in values if isinstance(values, Iterable) and not isinstance(values, str) else ():
        if text := _text(value):
            yield text


def _sha256(value: Any) -> str | None:
    return value.lower() if isinstance(value, str) and _SHA256.fullmatch(value) else None


def _weight(exact: Any, low: Any, high: Any) -> float | None:
    numbers = [value for value in (low, high) if _is_strength(value)]
    if _is_strength(exact):
        return float(exact)
    return round(sum(numbers) / len(numbers), 3) if numbers else None


def _is_strength(value: Any) -> bool:
    return type(value) in (int, float) and -10.0 <= value <= 10.0 and value != 0
