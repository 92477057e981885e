"""One search over what is on disk, what hubs told before, and the hubs themselves."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from ..errors import HubError, SettingError
from ..hubs.entries import Hub, ModelKind, RemoteVersion, SearchPage, SearchQuery
from ..hubs.safety import SAFE, SafetyRules, blocked_by
from ..plan import Notice
from .entries import LoraEntry, ModelEntry
from .families import family_of_base_model
from .library import FOLDERS, Catalog
from .reading import LORAS
from .text import tokens

log = logging.getLogger(__name__)

HubSearch = Callable[[SearchQuery], SearchPage]

LOCAL = "local"
KNOWN = "known"

_KINDS: Mapping[str, ModelKind] = {
    "checkpoints": "checkpoint",
    "diffusion_models": "diffusion_model",
    "text_encoders": "text_encoder",
    "vae": "vae",
    LORAS: "lora",
}
_TELLING_SHARE = 0.25
"""A caption tag in fewer training images does not make a LoRA what the tag says."""
_ANY_SHARE = 0.05
"""The stricter share where minors are concerned."""


class Hit(NamedTuple):
    """One model: on disk, on a hub, or both."""

    kind: ModelKind
    title: str
    family: str
    entry: LoraEntry | ModelEntry | None
    """What is on disk; None for one that only a hub has."""
    version: RemoteVersion | None
    """What a hub says; None for one that no hub is known to have."""
    source: Hub | None
    """The hub, None for one that is only on disk."""


class SearchResult(NamedTuple):
    """One page."""

    hits: tuple[Hit, ...]
    hidden: int
    """Results left out by the safety rules."""
    notices: tuple[Notice, ...]
    """Hubs that could not be asked, and why."""
    cursor: str | None
    """Gives the next page; None at the end."""


class ModelSearch:
    """Searches a catalog and the hubs. Safe to share between threads."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._lock = threading.Lock()
        self._texts: dict[str, tuple[str, list[str]]] = {}  # by folder: revision, haystacks

    def search(
        self,
        query: SearchQuery,
        *,
        hubs: Mapping[Hub, HubSearch] | None = None,
        rules: SafetyRules = SAFE,
        local: bool = True,
        known: bool = True,
    ) -> SearchResult:
        """What all sources have, one page of each, best first.

        Every word of `query.text` must begin a word of a result's name, trigger words, tags or
        description (a hub's own search decides for what the hub finds); kind, base model, family
        and tags hold for each result. A file on disk and the version it came from are one
        result. What a hub tells is kept in the catalog. A hub that fails costs its own results
        only, and a notice says so.

        Args:
            query: `limit` is for each source; `cursor` is that of the page before.
            hubs: the hubs to ask now, by name.
            rules: what is not shown; content unsafe for minors never is.
            local: look at the files on disk.
            known: look at what hubs told before.

        Raises:
            SettingError: the cursor is not one of an earlier page.
            StorageError: the database cannot be read or written.
        """
        sources: dict[str, Callable[[SearchQuery], tuple[Sequence[Any], str | None]]] = {}
        for name, ask in (hubs or {}).items():  # first: what they tell is then known of the files
            sources[name] = partial(self._ask, ask)
        if local:
            sources[LOCAL] = self._local
        if known:
            sources[KNOWN] = self._known
        pages = _pages(query.cursor, sources)
        found: list[LoraEntry | ModelEntry] = []
        versions: dict[tuple[str, str, str], RemoteVersion] = {}
        notices: list[Notice] = []
        following: dict[str, str] = {}
        for name, cursor in pages.items():
            try:
                items, after = sources[name](query._replace(cursor=cursor))
            except HubError as error:
                log.warning("The search on %s failed: %s", name, error)
                notices.append(
                    Notice(level="warning", code="hub_search_failed", message=str(error))
                )
                continue
            if after is not None:
                following[name] = after
            for item in items:
                if isinstance(item, RemoteVersion):
                    versions.setdefault((item.hub, item.model_id, item.version_id), item)
                else:
                    found.append(item)
        hits, hidden = self._hits(query, found, versions.values(), rules)
        return SearchResult(
            tuple(_ranked(hits, query)),
            hidden,
            tuple(notices),
            json.dumps(following) if following else None,
        )

    # ----------------------------------------------------------------------- sources

    def _local(self, query: SearchQuery) -> tuple[Sequence[LoraEntry | ModelEntry], str | None]:
        words = [f" {word}" for word in tokens(query.text)]
        tags = {" ".join(tokens(tag)) for tag in query.tags}
        families = _families(query)
        found: list[LoraEntry | ModelEntry] = []
        for folder in FOLDERS:
            if query.kind not in (None, _KINDS[folder]):
                continue
            entries, texts = self._folder(folder)
            for entry, text in zip(entries, texts, strict=True):
                if (
                    all(word in text for word in words)
                    and (not families or entry.family in families)
                    and (not tags or tags <= _tags_of(entry))
                ):
                    found.append(entry)
        found.sort(key=lambda entry: (-_relevance(query, entry.title, _named(entry)), entry.title))
        return _page(found, query)

    def _folder(self, folder: str) -> tuple[Sequence[LoraEntry | ModelEntry], list[str]]:
        library = self._catalog.loras() if folder == LORAS else self._catalog.models(folder)
        with self._lock:
            revision, texts = self._texts.get(folder, ("", []))
            if revision != library.revision:
                texts = [_haystack(entry) for entry in library.entries]
                self._texts[folder] = (library.revision, texts)
        return library.entries, texts

    def _known(self, query: SearchQuery) -> tuple[Sequence[RemoteVersion], str | None]:
        versions = self._catalog.registry.find(query._replace(base_models=()))
        families = _families(query)
        fitting = [
            version
            for version in versions
            if not families or version.family in families or version.base_model in query.base_models
        ]
        return _page(fitting, query)

    def _ask(
        self, ask: HubSearch, query: SearchQuery
    ) -> tuple[Sequence[RemoteVersion], str | None]:
        page = ask(query)
        self._catalog.remember(page.versions)
        return page.versions, page.cursor

    # ----------------------------------------------------------------------- results

    def _hits(
        self,
        query: SearchQuery,
        entries: Sequence[LoraEntry | ModelEntry],
        versions: Iterable[RemoteVersion],
        rules: SafetyRules,
    ) -> tuple[list[Hit], int]:
        on_disk = self._on_disk(versions)
        told = self._catalog.registry.with_content(
            [entry.file.sha256 for entry in entries if entry.file.sha256]
        )
        hits: dict[object, Hit] = {}
        hidden = 0
        for entry in entries:
            records = told.get(entry.file.sha256 or "", ())
            version = records[0].version if records else None
            if blocked(entry, rules) or any(blocked_by(r.version, rules) for r in records):
                hidden += 1
                continue
            kind = _KINDS[entry.file.folder]
            key = (entry.file.folder, entry.file.name)
            hits[key] = Hit(kind, entry.title, entry.family, entry, version, _hub(version))
        for version in versions:
            if query.kind not in (None, version.kind):
                continue
            if blocked_by(version, rules):
                hidden += 1
                continue
            entry = on_disk.get((version.hub, version.model_id, version.version_id))
            if entry is None:
                hit = Hit(version.kind, version.name, version.family, None, version, version.hub)
                hits[version.hub, version.model_id, version.version_id] = hit
            elif not blocked(entry, rules):
                kind = _KINDS[entry.file.folder]
                hit = Hit(kind, entry.title, entry.family, entry, version, version.hub)
                hits.setdefault((entry.file.folder, entry.file.name), hit)
        return list(hits.values()), hidden

    def _on_disk(
        self, versions: Iterable[RemoteVersion]
    ) -> dict[tuple[str, str, str], LoraEntry | ModelEntry]:
        keys = {
            file.sha256.lower(): (version.hub, version.model_id, version.version_id)
            for version in versions
            for file in version.files
            if file.sha256
        }
        found: dict[tuple[str, str, str], LoraEntry | ModelEntry] = {}
        for ref in self._catalog.with_content(keys):
            entry = next((e for e in self._folder(ref.folder)[0] if e.file.name == ref.name), None)
            if entry is not None and ref.sha256:
                found[keys[ref.sha256]] = entry
        return found


def blocked(entry: LoraEntry | ModelEntry, rules: SafetyRules = SAFE) -> str | None:
    """Why a file on disk is not shown, as the end of a sentence, or None.

    The words are its title, file name, trigger words and telling tags, and a hub's marks.
    Caption tags of few images count only where minors are concerned.
    """

    def as_version(least_share: float) -> RemoteVersion:
        if isinstance(entry, LoraEntry):
            tags = [tag.text for tag in entry.tags if tag.share >= least_share]
            words = [word.text for word in entry.trigger_words]
        else:
            tags, words = list(entry.tags), []
        return RemoteVersion(
            hub="civitai",
            model_id="",
            version_id="",
            name=entry.title,
            kind=_KINDS[entry.file.folder],
            base_model="",
            family=entry.family,
            files=(),
            trigger_words=tuple(words),
            tags=(*tags, entry.file.name),
            description=entry.description,
            nsfw=entry.nsfw,
            minor_unsafe=entry.minor_unsafe,
        )

    minors_only = SafetyRules(allow_nsfw=True)
    return blocked_by(as_version(_ANY_SHARE), minors_only) or blocked_by(
        as_version(_TELLING_SHARE), rules
    )


def _hub(version: RemoteVersion | None) -> Hub | None:
    return version.hub if version is not None else None


def _families(query: SearchQuery) -> set[str]:
    return set(query.families) or {family_of_base_model(name) for name in query.base_models}


def _haystack(entry: LoraEntry | ModelEntry) -> str:
    texts = [entry.title, entry.file.name, *_named(entry), entry.description]
    if isinstance(entry, LoraEntry):
        texts += [tag.text for tag in entry.tags]
    else:
        texts += entry.tags
    return f" {' '.join(tokens(' '.join(texts)))} "


def _named(entry: LoraEntry | ModelEntry) -> list[str]:
    return [w.text for w in entry.trigger_words] if isinstance(entry, LoraEntry) else []


def _tags_of(entry: LoraEntry | ModelEntry) -> set[str]:
    tags = [t.text for t in entry.tags] if isinstance(entry, LoraEntry) else entry.tags
    return {" ".join(tokens(tag)) for tag in (*tags, *_named(entry))}


def _relevance(query: SearchQuery, title: str, triggers: Iterable[str]) -> float:
    """The words of the query in title (1 each) and trigger words (a half each), as a share."""
    wanted = set(tokens(query.text))
    if not wanted:
        return 0.0
    in_title = wanted & set(tokens(title))
    in_triggers = (wanted - in_title) & {w for text in triggers for w in tokens(text)}
    return (len(in_title) + len(in_triggers) / 2) / len(wanted)


def _ranked(hits: Iterable[Hit], query: SearchQuery) -> list[Hit]:
    def rank(hit: Hit) -> tuple[float, bool, int, str]:
        named = (
            _named(hit.entry) if hit.entry else (hit.version.trigger_words if hit.version else ())
        )
        known = hit.entry or hit.version
        liked = (known.likes if query.sort == "likes" else known.downloads) if known else None
        return -_relevance(query, hit.title, named), hit.entry is None, -(liked or 0), hit.title

    return sorted(hits, key=rank)


def _page(items: Sequence[Any], query: SearchQuery) -> tuple[Sequence[Any], str | None]:
    start = int(query.cursor or 0)
    end = start + query.limit
    return items[start:end], str(end) if end < len(items) else None


def _pages(cursor: str | None, sources: Iterable[str]) -> dict[str, str | None]:
    if cursor is None:
        return dict.fromkeys(sources)
    try:
        pages = json.loads(cursor)
        for name in (LOCAL, KNOWN):
            int(pages.get(name, 0))
        return {name: str(pages[name]) for name in sources if name in pages}
    except (ValueError, TypeError, AttributeError) as error:
        raise SettingError(
            "The cursor of this search is not one that an earlier page gave. Search anew."
        ) from error
