"""Hugging Face and CivitAI: search, look-up, credentials, safety, and verified downloads.

Downloads are in `hubs.download`, which is not imported here: it imports requests.
"""

from __future__ import annotations

from .civitai import Civitai
from .credentials import Credentials
from .entries import (
    Hub,
    MinedSettings,
    ModelKind,
    RemoteFile,
    RemoteVersion,
    SearchPage,
    SearchQuery,
)
from .http import Effects, Pace
from .huggingface import (
    CachedRepository,
    DiffusersPart,
    HuggingFace,
    cached_repositories,
    delete_cached,
    diffusers_files,
)
from .references import (
    CivitaiReference,
    HashReference,
    HuggingFaceReference,
    Reference,
    parse_reference,
)
from .safety import SafetyRules, blocked_by

__all__ = [
    "CachedRepository",
    "Civitai",
    "CivitaiReference",
    "Credentials",
    "DiffusersPart",
    "Effects",
    "HashReference",
    "Hub",
    "HuggingFace",
    "HuggingFaceReference",
    "MinedSettings",
    "ModelKind",
    "Pace",
    "Reference",
    "RemoteFile",
    "RemoteVersion",
    "SafetyRules",
    "SearchPage",
    "SearchQuery",
    "blocked_by",
    "cached_repositories",
    "delete_cached",
    "diffusers_files",
    "parse_reference",
]
