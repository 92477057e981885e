"""CivitAI and Hugging Face: their addresses, tokens, searches and downloads."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from functools import partial

from .. import host
from ..catalog import ModelSearch, SearchResult
from ..errors import SettingError
from ..fetching import Fetcher, LoraReference, read_lora_references, read_references
from ..hubs import Credentials, Hub, HuggingFaceReference, Reference, SafetyRules, SearchQuery
from ..hubs.civitai import ENDPOINT as CIVITAI
from ..hubs.huggingface import ENDPOINT as HUGGINGFACE
from ..version import pack_version
from .data import Data
from .files import Files

HUB_SOURCES: dict[str, Hub] = {"Hugging Face": "huggingface", "CivitAI": "civitai"}
"""HubModelLoader's words for the hubs."""


class Hubs:
    """The hubs, as this machine may use them. Safe to use from several threads."""

    def __init__(self, data: Data, files: Files) -> None:
        self._data = data
        self._files = files
        self._lock = threading.RLock()
        self._fetcher: Fetcher | None = None
        self._search: ModelSearch | None = None

    @property
    def credentials(self) -> Credentials:
        """The hubs' tokens: of the environment, else in the protected user folder."""
        return Credentials(host.user_directory() / "credentials")

    @property
    def fetcher(self) -> Fetcher:
        """Turns references into files on disk; has the hubs' clients."""
        with self._lock:
            if self._fetcher is None:
                addresses = hub_addresses()
                self._fetcher = Fetcher(
                    self._data.catalog,
                    self._files.disk_cache,
                    self.credentials,
                    host.model_folders,
                    civitai=addresses["civitai"],
                    huggingface=addresses["huggingface"],
                    version=pack_version(),
                )
            return self._fetcher

    def search_models(
        self, query: SearchQuery, *, hubs: Sequence[Hub], rules: SafetyRules
    ) -> SearchResult:
        """One page of the models on disk, those known from before, and those of `hubs`."""
        with self._lock:
            if self._search is None:
                self._search = ModelSearch(self._data.catalog)
        clients = {"civitai": self.fetcher.civitai(), "huggingface": self.fetcher.huggingface()}
        return self._search.search(
            query,
            hubs={hub: partial(clients[hub].search, allow_nsfw=rules.allow_nsfw) for hub in hubs},
            rules=rules,
        )


def hub_addresses() -> dict[Hub, str]:
    """Base addresses of the hubs: those of the environment, else the well-known ones."""
    return {
        "civitai": os.environ.get("CIVITAI_ENDPOINT", "").strip() or CIVITAI,
        "huggingface": os.environ.get("HF_ENDPOINT", "").strip() or HUGGINGFACE,
    }


def model_references(source: str, text: str) -> tuple[Reference, ...]:
    """The references of HubModelLoader.

    Args:
        source: should be a key of `HUB_SOURCES`.
        text: one reference a line.

    Raises:
        SettingError: no such source, or no reference, one not understood, or one of the other
            hub.
    """
    if source not in HUB_SOURCES:
        known = ", ".join(HUB_SOURCES)
        raise SettingError(f"source must be one of local, {known}, not {source!r}.")
    references = read_references(text, tuple(hub_addresses().values()))
    if not references:
        raise SettingError(
            f"source is {source}, and reference is empty. Paste the address of a model there."
        )
    for reference in references:
        hub = "huggingface" if isinstance(reference, HuggingFaceReference) else "civitai"
        if hub != HUB_SOURCES[source]:
            other = next(name for name, id in HUB_SOURCES.items() if id == hub)
            raise SettingError(
                f"reference {reference} is for {other}, but source is {source}. Set source to "
                f"{other}, or name a model of {source}."
            )
    return references


def lora_references(text: str) -> tuple[LoraReference, ...]:
    """The references of CivitAILoRAFetcher. Raises SettingError."""
    return read_lora_references(text, tuple(hub_addresses().values()))
