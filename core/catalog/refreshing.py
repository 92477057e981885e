"""Bringing what is known of a folder's files up to date: reading, moving, merging."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import NamedTuple

from .digest import DIGEST_VERSION, pack, unpack, unpack_model
from .entries import LoraEntry, ModelEntry, UnreadableFile
from .hashing import Stop
from .headers import HeaderError
from .merging import Said, merge
from .reading import LORAS, Reading, batches, collector_paused, file_ref, read_all
from .registry import Asked, Registry
from .scan import READABLE, Found, Listing
from .sidecars import SidecarFacts, pack_facts, read_sidecars, unpack_facts
from .store import FileStore, Known, Row

_BATCH = 500  # files between two writes: what an interrupted scan loses at most
_SECOND = 1_000_000_000
_PICKLE = (
    "is a pickle; pickle files are not loaded, as they can run code: convert it to safetensors"
)


class Work(NamedTuple):
    """How the files of a folder stand to what is known of them."""

    unchanged: list[tuple[Found, Known]]
    stale: list[Found]
    """New or changed: their headers are to be read."""
    unmerged: list[Found]
    """Of which others say something new."""
    unreadable: list[UnreadableFile]
    """Known to be, and unchanged."""
    gone: list[str]


class Step(NamedTuple):
    """What became known of one batch of files."""

    files: int
    entries: list[LoraEntry | ModelEntry]
    unreadable: list[UnreadableFile]
    passing: bool
    """Some could not be opened this time, and are not known to be bad."""
    moved: int


def compare(store: FileStore, folder: str, listing: Listing, *, texts: bool) -> Work:
    """What there is to do for the files listed. `texts` loads the entries of unchanged files."""
    with collector_paused():
        return _compared(store.known(folder, texts=texts), listing)


def _compared(rows: Mapping[str, Known], listing: Listing) -> Work:
    work = Work([], [], [], list(listing.problems), _gone(rows, listing))
    for file in listing.files.values():
        row = rows.get(file.path)
        if not file.name.lower().endswith(READABLE):
            work.unreadable.append(UnreadableFile(file.name, _PICKLE))
        elif row is None or row[1:3] != file[2:4] or row.digest_version != DIGEST_VERSION:
            work.stale.append(file)
        elif row.problem is not None:
            work.unreadable.append(UnreadableFile(file.name, row.problem))
        elif row.unmerged or (row.sidecar_stamp or "") != file.sidecars:
            work.unmerged.append(file)
        else:
            work.unchanged.append((file, row))
    return work


def refresh(
    store: FileStore,
    registry: Registry,
    folder: str,
    work: Work,
    *,
    stop: Stop | None = None,
    guard: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Iterator[Step]:
    """Read what is new or changed, merge what others say, and keep it, batch by batch; at the
    end forget what is gone. `guard` is held while a batch is worked on; `stop` ends it after
    one."""
    keep = _Keeper(store, registry, folder, work.gone if work.stale else ())
    with closing(read_all(folder, work.stale)) as outcomes:
        for kind, files in ((keep.read, work.stale), (keep.merge, work.unmerged)):
            for batch in batches(iter(files), _BATCH):
                with guard(), collector_paused():
                    step = kind(batch, outcomes)
                yield step
                if stop is not None and stop():
                    return
    if work.gone:
        store.remove(work.gone)


class _Keeper:
    def __init__(
        self, store: FileStore, registry: Registry, folder: str, gone: Sequence[str]
    ) -> None:
        self._store = store
        self._registry = registry
        self._folder = folder
        self._lost = _by_content(store.paths(gone)) if gone else {}

    def read(self, files: Sequence[Found], outcomes: Iterator[Reading | HeaderError]) -> Step:
        before = self._store.paths([file.path for file in files])
        read: list[tuple[Found, Row, LoraEntry | ModelEntry]] = []
        bad: list[tuple[Row, UnreadableFile]] = []
        moved: list[tuple[str, str]] = []
        passing: list[UnreadableFile] = []
        for file, outcome in zip(files, outcomes, strict=False):
            known = before.get(file.path)
            known = known if known is not None and known.is_of(file) else None
            if isinstance(outcome, HeaderError):
                problem = UnreadableFile(file.name, str(outcome))
                if outcome.passing:
                    passing.append(problem)  # not the file's fault: look again next time
                else:
                    bad.append((_row(file, known)._replace(problem=problem.problem), problem))
                continue
            if known is None and (old := self._moved_here(file, outcome.fingerprint)):
                moved.append((old.path, file.path))
                known = old
            row = _row(file, known)._replace(
                digest=pack(outcome.entry), header_hash=outcome.fingerprint
            )
            read.append((file, row, outcome.entry))
        if moved:
            self._store.remove([old for old, _ in moved], moved)
        rows, entries = self._merged(read)
        self._store.save(self._folder, [*rows, *(row for row, _ in bad)])
        problems = [*passing, *(problem for _, problem in bad)]
        return Step(len(files), entries, problems, bool(passing), len(moved))

    def merge(self, files: Sequence[Found], _outcomes: object) -> Step:
        rows = self._store.paths([file.path for file in files])
        unpacked = unpack if self._folder == LORAS else unpack_model
        known: list[tuple[Found, Row, LoraEntry | ModelEntry]] = []
        for file in files:
            if (row := rows.get(file.path)) and row.digest and row.is_of(file):
                ref = file_ref(self._folder, file, row.sha256)
                known.append((file, row, unpacked(row.digest, ref)))
        changed, entries = self._merged(known)
        self._store.save(self._folder, changed)
        return Step(len(files), entries, [], passing=len(known) < len(files), moved=0)

    def _merged(
        self, read: Sequence[tuple[Found, Row, LoraEntry | ModelEntry]]
    ) -> tuple[list[Row], list[LoraEntry | ModelEntry]]:
        facts = [_facts(file, row) for file, row, _ in read]
        asked = [
            Asked(file, row.sha256, told.sha256)
            for (file, row, _), told in zip(read, facts, strict=True)
        ]
        said = self._registry.said(asked)
        rows: list[Row] = []
        entries: list[LoraEntry | ModelEntry] = []
        for (file, row, entry), told in zip(read, facts, strict=True):
            entry = entry._replace(file=file_ref(self._folder, file, row.sha256))
            text = ""
            if file.path in said or told != SidecarFacts():
                entry = merge(entry, said.get(file.path, Said())._replace(sidecar=told))
                text = pack(entry)
            entries.append(entry)
            stamp = file.sidecars or None
            packed = pack_facts(told) if stamp else None
            rows.append(row._replace(merged=text, sidecar_stamp=stamp, sidecar=packed))
        return rows, entries

    def _moved_here(self, file: Found, header_hash: str) -> Row | None:
        rows = self._lost.get((file.size, file.mtime_ns, header_hash), [])
        name = Path(file.path).name
        same_name = [row for row in rows if Path(row.path).name == name]
        # Files out of one archive may share size and whole second; a fraction of one is telling.
        told = same_name or (rows if file.mtime_ns % _SECOND else [])
        if len(told) != 1:
            return None
        (old,) = told
        rows.remove(old)
        return old


def _by_content(rows: Mapping[str, Row]) -> dict[tuple[int, int, str], list[Row]]:
    found: dict[tuple[int, int, str], list[Row]] = {}
    for row in rows.values():
        if row.header_hash:
            found.setdefault((row.size, row.mtime_ns, row.header_hash), []).append(row)
    return found


def _row(file: Found, known: Row | None) -> Row:
    """A fresh row of a file, with the hashes of the row of the same content."""
    sha256, autov3 = (known.sha256, known.autov3) if known is not None else (None, None)
    return Row(
        file.path, file.size, file.mtime_ns, sha256, None, DIGEST_VERSION, autov3=autov3, merged=""
    )


def _facts(file: Found, row: Row) -> SidecarFacts:
    if not file.sidecars:
        return SidecarFacts()
    if row.sidecar_stamp == file.sidecars and row.sidecar:
        return unpack_facts(row.sidecar)
    return read_sidecars(file.path)


def _gone(rows: Iterable[str], listing: Listing) -> list[str]:
    # A directory that is not there at the moment (a drive unplugged) keeps its rows.
    present = {file.path for file in listing.files.values()}
    roots = tuple(root.rstrip(os.sep) + os.sep for root in listing.roots)
    return [path for path in rows if path not in present and path.startswith(roots)]
