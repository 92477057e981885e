"""What models there are, on disk and on the hubs: headers, families, libraries, hashes, search,
and the cache of downloaded files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .background import BackgroundScan, ScanStatus
from .entries import (
    LoraEntry,
    LoraLibrary,
    ModelEntry,
    ModelLibrary,
    TagCount,
    TriggerWord,
    UnreadableFile,
)
from .families import (
    MOST_BY_NAME,
    Detection,
    Family,
    accelerator,
    all_families,
    detect_checkpoint,
    detect_lora,
    detect_lora_name,
    detect_model,
    detect_name,
    family,
    family_of_base_model,
    family_of_comfy_class,
    lora_fit,
    named_size,
    named_steps,
    trained_size,
)
from .hashing import Hashes, Throttle
from .headers import SafetensorsHeader, TensorInfo, read_header
from .library import Catalog, EnrichReport, ScanProgress, ScanReport
from .merging import Edit, made_edit
from .search import Hit, ModelSearch, SearchResult

if TYPE_CHECKING:
    from .cache import CachedFile, CleanupPlan, CleanupReport, DiskCache, Limits
    from .registry import Registry, VersionRecord

__all__ = [
    "MOST_BY_NAME",
    "BackgroundScan",
    "CachedFile",
    "Catalog",
    "CleanupPlan",
    "CleanupReport",
    "Detection",
    "DiskCache",
    "Edit",
    "EnrichReport",
    "Family",
    "Hashes",
    "Hit",
    "Limits",
    "LoraEntry",
    "LoraLibrary",
    "ModelEntry",
    "ModelLibrary",
    "ModelSearch",
    "Registry",
    "SafetensorsHeader",
    "ScanProgress",
    "ScanReport",
    "ScanStatus",
    "SearchResult",
    "TagCount",
    "TensorInfo",
    "Throttle",
    "TriggerWord",
    "UnreadableFile",
    "VersionRecord",
    "accelerator",
    "all_families",
    "detect_checkpoint",
    "detect_lora",
    "detect_lora_name",
    "detect_model",
    "detect_name",
    "family",
    "family_of_base_model",
    "family_of_comfy_class",
    "lora_fit",
    "made_edit",
    "named_size",
    "named_steps",
    "read_header",
    "trained_size",
]

_WITH_DATABASE = {  # these load SQLAlchemy, so only when they are asked for
    "cache": ("CachedFile", "CleanupPlan", "CleanupReport", "DiskCache", "Limits"),
    "registry": ("Registry", "VersionRecord"),
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    for module, names in _WITH_DATABASE.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
