"""Which quantized formats a model file is in, from its header and its marks."""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from ..catalog import SafetensorsHeader
from ..errors import ModelFileError

_MARK = ".comfy_quant"
_METADATA = "_quantization_metadata"


def layer_formats(path: Path, header: SafetensorsHeader) -> dict[str, str]:
    """The format of each layer that ComfyUI's own marks say is quantized, by the layer's name.

    ComfyUI writes a mark as a tensor `LAYER.comfy_quant` with JSON in it, or all of them as JSON in
    the header (convert_old_quants and detect_layer_quantization in its comfy/utils.py). Only these
    few bytes are read.

    Raises:
        ModelFileError: the marks cannot be read.
    """
    try:
        stored = json.loads(header.metadata.get(_METADATA, "{}")).get("layers", {})
        marks = {layer: mark["format"] for layer, mark in stored.items()}
        names = [name for name in header.tensors if name.endswith(_MARK)]
        if names:
            with safe_open(path, framework="numpy") as file:
                for name in names:
                    mark = json.loads(file.get_tensor(name).tobytes())
                    marks[name.removesuffix(_MARK)] = mark["format"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise ModelFileError(
            f"What {path.name} says of its quantized layers cannot be read: {error}. Download it "
            "again, or choose another file."
        ) from error
    return {layer: str(name) for layer, name in marks.items()}


def has_marks(header: SafetensorsHeader) -> bool:
    """Whether a file's marks are tensors of their own, as newer files have them."""
    return any(name.endswith(_MARK) for name in header.tensors)


def with_formats(header: SafetensorsHeader, layers: Mapping[str, str]) -> SafetensorsHeader:
    """The header with the format's name as data type of each quantized weight."""
    if not layers:
        return header
    tensors = dict(header.tensors)
    for layer, format_ in layers.items():
        name = f"{layer}.weight"
        if name in tensors:
            tensors[name] = tensors[name]._replace(dtype=format_)
    return header._replace(tensors=tensors)


def check_formats(
    name: str, header: SafetensorsHeader, layers: Mapping[str, str], supported: Collection[str]
) -> None:
    """Refuse a file in a format that this ComfyUI does not load.

    Args:
        layers: as `layer_formats` gives them.
        supported: formats that this ComfyUI loads.

    Raises:
        ModelFileError: naming the format and what loads it.
    """
    for format_ in dict.fromkeys(layers.values()):
        if format_ in supported:
            continue
        row = _facts().own.get(format_)
        if row is None:
            raise ModelFileError(
                f"{name} holds weights in the format {format_!r}, which this ComfyUI does not "
                "know. Update ComfyUI, or choose another file of this model."
            )
        raise ModelFileError(
            f"{name} holds weights in the format {format_} ({row['bits']} bits), which this "
            f"ComfyUI does not load: ComfyUI {row['since']} or newer does. Update ComfyUI, or "
            "choose another file of this model."
        )
    if layers:
        return
    for row in _facts().foreign:
        if all(any(tensor.endswith(end) for tensor in header.tensors) for end in row["ends"]):
            raise ModelFileError(
                f"{name} holds weights in the format {row['name']}, which ComfyUI does not load. "
                f"Load it with {row['loader']}, or choose another file of this model."
            )


def is_format(dtype: str) -> bool:
    """Whether a data type is one that `with_formats` wrote."""
    return dtype in _facts().own


class _Facts(NamedTuple):
    own: dict[str, dict[str, Any]]
    foreign: list[dict[str, Any]]


@functools.cache
def _facts() -> _Facts:
    data = json.loads(Path(__file__).with_name("formats.json").read_text(encoding="utf-8"))
    return _Facts({row["format"]: row for row in data["own"]}, data["foreign"])
