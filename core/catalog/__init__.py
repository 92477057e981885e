"""What models there are: headers, families, the LoRA library, hashes."""

from __future__ import annotations

from .entries import LoraEntry, LoraLibrary, TagCount, TriggerWord, UnreadableFile
from .families import (
    Detection,
    Family,
    all_families,
    detect_checkpoint,
    detect_lora,
    family,
    family_of_comfy_class,
    lora_fit,
    name_hint,
)
from .headers import SafetensorsHeader, TensorInfo, read_header
from .library import Catalog

__all__ = [
    "Catalog",
    "Detection",
    "Family",
    "LoraEntry",
    "LoraLibrary",
    "SafetensorsHeader",
    "TagCount",
    "TensorInfo",
    "TriggerWord",
    "UnreadableFile",
    "all_families",
    "detect_checkpoint",
    "detect_lora",
    "family",
    "family_of_comfy_class",
    "lora_fit",
    "name_hint",
    "read_header",
]
