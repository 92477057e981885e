"""The catalog of model files on disk: libraries, hashes, and finding a file again."""

from __future__ import annotations

import difflib
import os
import threading
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import LoraError, ModelFileError
from ..hubs.entries import RemoteVersion
from ..plan import FileRef
from .digest import unpack, unpack_model
from .entries import LoraEntry, LoraLibrary, ModelLibrary
from .hashing import NO_AUTOV3, Hashes, Progress, Stop, Throttle, hash_file
from .merging import Edit
from .reading import LORAS, batches, collector_paused, file_ref, no_full_collections
from .scan import Found, Listing, absolute, list_files, stem
from .sidecars import SidecarFacts, unpack_facts

if TYPE_CHECKING:
    from ..storage import Database
    from .refreshing import Work
    from .registry import Registry
    from .store import FileStore, Row

FOLDERS = ("checkpoints", "diffusion_models", "text_encoders", "vae", LORAS)
"""The folder keys the pack reads."""

Folders = Callable[[str], Sequence[Path]]
"""ComfyUI's directories for a folder key; earlier ones win."""

ByHashes = Callable[[Sequence[str]], Mapping[str, RemoteVersion]]
"""Asks a hub for the versions that offer files with these SHA-256, by SHA-256."""

_ASKED_AT_ONCE = 100  # hashes in one question to a hub (CivitAI's limit)


class ScanProgress(NamedTuple):
    """How far a scan is."""

    folder: str
    done: int
    """Files of this folder that were new or changed and have been read."""
    total: int
    """Files of this folder that are new or changed."""


class ScanReport(NamedTuple):
    """What a scan found in all folders."""

    files: int
    """Files there are, unreadable ones included."""
    read: int
    """Of them new or changed, and read now."""
    moved: int
    """Of those, known before under another name."""
    unreadable: int
    gone: int
    """Files known before that are there no longer, moved ones not counted."""
    complete: bool
    """False when it was stopped, or a file could not be opened this time."""

    def plus(self, other: ScanReport) -> ScanReport:
        """Of this one's folders and another's."""
        sums = (mine + theirs for mine, theirs in zip(self[:-1], other[:-1], strict=True))
        return ScanReport(*sums, complete=self.complete and other.complete)


class EnrichReport(NamedTuple):
    """What a hub said of local files."""

    asked: int
    """Files it was asked of."""
    found: int


def _utc_now() -> datetime:
    return datetime.now(timezone.utc)


class Catalog:
    """What model files there are. Safe to share between threads.

    Headers and hashes are kept in the database and hold while a file's size and time of change
    stay the same; nothing is ever written into a model folder. A file that was moved or renamed
    keeps its hashes and all that was said of it: it is known by header, size and time, or by its
    hash.

    Args:
        database: the open database.
        folders: ComfyUI's directories for a folder key such as `loras`.
        now: the time, with its zone.
    """

    def __init__(
        self, database: Database, folders: Folders, *, now: Callable[[], datetime] = _utc_now
    ) -> None:
        self._database = database
        self._folders = folders
        self._now = now
        self._lock = threading.Lock()
        self._libraries: dict[str, _Loaded] = {}

    @cached_property
    def _store(self) -> FileStore:
        from .store import FileStore  # here, because it loads SQLAlchemy

        return FileStore(self._database)

    @cached_property
    def registry(self) -> Registry:
        """The remote versions met, and the user's edits."""
        from .registry import Registry

        return Registry(self._database)

    def revision(self, folder: str) -> str:
        """Changes when a file of the folder, or another tool's file beside it, is added, removed
        or modified, and when a hub or the user says something new of a file. Opens no file:
        5,000 take a few hundredths of a second."""
        return self._revision(self._list(folder))

    def loras(self) -> LoraLibrary:
        """All LoRA files, read or known to be unreadable.

        Only files that are new or changed since the last time, in this process or another, are
        opened. The same object comes back while nothing changes.

        Raises:
            StorageError: the database cannot be read or written.
        """
        library = self._load(LORAS)
        assert isinstance(library, LoraLibrary)
        return library

    def models(self, folder: str) -> ModelLibrary:
        """All files of a folder key other than loras; as `loras` in everything else."""
        library = self._load(folder)
        assert isinstance(library, ModelLibrary)
        return library

    def scan(
        self,
        *,
        folders: Sequence[str] = FOLDERS,
        on_progress: Callable[[ScanProgress], object] | None = None,
        stop: Stop | None = None,
    ) -> ScanReport:
        """Bring what is known of the files up to date, without loading it; hashes nothing.

        Only files that are new or changed are opened. What was read is kept every few hundred
        files, so that a scan that was stopped goes on where it ended; others may use the catalog
        meanwhile.

        Raises:
            StorageError: the database cannot be read or written.
        """
        from .refreshing import compare

        report = ScanReport(0, 0, 0, 0, 0, complete=True)
        for folder in folders:
            listing = self._list(folder)
            work = compare(self._store, folder, listing, texts=False)
            with no_full_collections():
                found = self._scan(folder, listing, work, on_progress, stop)
            report = report.plus(found)
            if stop is not None and stop():
                return report._replace(complete=False)
        return report

    def _scan(
        self,
        folder: str,
        listing: Listing,
        work: Work,
        on_progress: Callable[[ScanProgress], object] | None,
        stop: Stop | None,
    ) -> ScanReport:
        from .refreshing import refresh

        total = len(work.stale) + len(work.unmerged)
        done = moved = 0
        unreadable, complete = len(work.unreadable), not listing.problems
        steps = refresh(
            self._store, self.registry, folder, work, stop=stop, guard=lambda: self._lock
        )
        for step in steps:
            done, moved = done + step.files, moved + step.moved
            unreadable += len(step.unreadable)
            complete &= not step.passing
            if on_progress is not None:
                on_progress(ScanProgress(folder, done, total))
        return ScanReport(
            files=len(listing.files),
            read=done,
            moved=moved,
            unreadable=unreadable,
            gone=len(work.gone) - moved,
            complete=complete and done == total,
        )

    def lora_by_name(self, name: str) -> LoraEntry:
        """The LoRA that a `<lora:name>` tag or a LORA_STACK row means.

        Tried in this order: the exact name below the LoRA folder; the same without extension;
        the same in any case; the file's name alone, in any case, wherever it lies.

        Raises:
            LoraError: nothing has that name (the nearest names are listed), several files have
                it (all are listed), or the file cannot be read (and why).
        """
        library = self.loras()
        entries = {entry.file.name: entry for entry in library.entries}
        problems = {file.name: file.problem for file in library.unreadable}
        wanted = name.strip().replace("\\", "/").removeprefix("./")
        for same in _NAME_TESTS:
            target = same(wanted)
            hits = [known for known in entries if same(known) == target]
            broken = [known for known in problems if same(known) == target]
            if len(hits) == 1:
                return entries[hits[0]]
            if hits:
                raise LoraError(
                    f"LoRA {name!r} is the name of {len(hits)} files: {_listed(hits)}. "
                    "Write the one you mean with its folder."
                )
            if broken:
                raise LoraError(f"LoRA {broken[0]} {problems[broken[0]]}.")
        near = _nearest(wanted, entries)
        hint = f" Near it: {_listed(near)}." if near else ""
        raise LoraError(
            f"There is no LoRA named {name!r} among the {len(entries)} in ComfyUI's LoRA "
            f"folders.{hint}"
        )

    def path(self, file: FileRef) -> Path:
        """Where the file of that name lies now, whatever its content; see `find`.

        Raises:
            ModelFileError: the folder has no such file, or the name leads out of it.
        """
        return Path(self._named(file.folder, file.name).path)

    def ref(self, folder: str, name: str) -> FileRef:
        """A reference to a file by its name, with its size, and its hash if that is known for
        the file as it is now. Nothing is hashed.

        Raises:
            ModelFileError: the folder has no such file, or the name leads out of it.
        """
        found = self._named(folder, name)
        return file_ref(folder, found, self._known_sha256([found]).get(found.path))

    def find(
        self,
        file: FileRef,
        *,
        on_progress: Progress | None = None,
        stop: Stop | None = None,
    ) -> tuple[FileRef, Path]:
        """The file that a record refers to, by content first.

        With a hash, every file of the folder with the right size can be it, whatever its name
        now; the one of that name is looked at first. Without a size only that file and those
        whose hash is known already are compared, as else the whole folder would be read. Without
        a hash the name decides, and a known size must agree.

        Args:
            file: what was recorded.
            on_progress: called with bytes hashed and the file's size, for each file hashed.
            stop: see `sha256`.

        Returns:
            The reference as it is now (name, size, hash where known) and the path.

        Raises:
            ModelFileError: no file has that content; the message says what was looked for and
                whether a file of that name with other content is there.
        """
        named = self._stat(file.folder, file.name)
        if named is not None and file.size in (None, named.size):
            # By far the commonest case, and the only one that lists no folder.
            sha256 = self._known_sha256([named]).get(named.path)
            if file.sha256 in (None, sha256):
                return file_ref(file.folder, named, sha256), Path(named.path)
        listing = self._list(file.folder)
        if file.sha256 is None:
            raise ModelFileError(self._not_found(file, named, listing))

        wanted, last = file.sha256.lower(), _last(_clean(file.name))
        candidates = [f for f in listing.files.values() if file.size in (None, f.size)]
        known = self._known_sha256(candidates)
        # A known other hash rules a file out; without a size only the named one is worth hashing.
        possible = [
            f
            for f in candidates
            if known.get(f.path, wanted) == wanted
            and (f.path in known or f == named or file.size is not None)
        ]
        for found in sorted(
            possible, key=lambda f: (f != named, f.path not in known, _last(f.name) != last)
        ):
            sha256 = known.get(found.path) or self.sha256(
                found.path, on_progress=on_progress, stop=stop
            )
            if sha256 == wanted:
                return file_ref(file.folder, found, sha256), Path(found.path)
        raise ModelFileError(self._not_found(file, named, listing))

    def sha256(
        self,
        path: str | os.PathLike[str],
        *,
        on_progress: Progress | None = None,
        stop: Stop | None = None,
    ) -> str:
        """SHA-256 of a whole file, lower-case hex; computed once per state of the file.

        Args:
            on_progress: called with bytes done and bytes in all, after each block.
            stop: called before each block. What it raises ends the hashing, and so does
                returning something true; nothing is stored then.

        Raises:
            ModelFileError: the file is missing or unreadable, was changed meanwhile, or `stop`
                returned true.
            StorageError: the database cannot be read or written.
        """
        return self._hashes(path, on_progress, stop, autov3=False).sha256

    def hashes(
        self,
        path: str | os.PathLike[str],
        *,
        on_progress: Progress | None = None,
        stop: Stop | None = None,
        throttle: Throttle | None = None,
    ) -> Hashes:
        """All hashes by which CivitAI knows a file; computed once per state of the file, in one
        reading. Arguments and errors are those of `sha256`."""
        return self._hashes(path, on_progress, stop, autov3=True, throttle=throttle)

    def know_hash(self, path: str | os.PathLike[str], folder: str, sha256: str) -> None:
        """Keep the SHA-256 of a file that was verified by it, so that it is never hashed again.

        Raises:
            ModelFileError: the file is not there.
            StorageError: the database cannot be written.
        """
        place = absolute(path)
        try:
            file = _stat(place)
        except OSError as error:
            raise ModelFileError(f"{place} cannot be read: {error.strerror or error}.") from error
        self._store.save_hashes(folder, file, sha256.lower(), None)
        self._remember(file, sha256.lower())

    def with_hash(self, digits: str) -> list[FileRef]:
        """The files known to have a hash: a SHA-256, an AutoV2 or AutoV3, in any case. Only
        those that are still as they were when they were hashed."""
        wanted = digits.strip().lower()
        known = self._store.by_short_hash(wanted) if len(wanted) in (10, 12, 64) else []
        return self._present(known)

    def with_content(self, hashes: Iterable[str]) -> list[FileRef]:
        """The files known to have any of these SHA-256; as `with_hash`."""
        return self._present(self._store.by_sha256([sha256.lower() for sha256 in hashes]))

    def remember(self, versions: Iterable[RemoteVersion]) -> None:
        """Keep what a hub told of versions. Raises StorageError as the registry does."""
        self.registry.put(versions, now=self._now())

    def without_hash(
        self, folders: Sequence[str] = (LORAS,), *, lost_only: bool = False
    ) -> list[Path]:
        """The files worth hashing in the background, those first whose size is that of a content
        with a history and no file (`lost_only`: none but these), then the smallest. A file whose
        hash another tool noted is known well enough to ask a hub about it, and not among them."""
        lost = self._store.sizes_of_lost()
        rows = [row for folder in folders for row in self._store.without_hash(folder)]
        wanted = [row for row in rows if row.size in lost or not (lost_only or _facts(row).sha256)]
        return [Path(row.path) for row in sorted(wanted, key=lambda row: row.size not in lost)]

    def hash_missing(
        self,
        *,
        folders: Sequence[str] = (LORAS,),
        lost_only: bool = False,
        on_progress: Callable[[int, int], object] | None = None,
        stop: Stop | None = None,
        throttle: Throttle | None = None,
    ) -> int:
        """Hash the files of `without_hash`, one after the other; how many were hashed.

        Each is kept as soon as it is done, so that stopping loses one file's work at most. A
        file that cannot be read is left out.

        Args:
            on_progress: called with files done and files in all.
            stop: ends the work before the next block when it returns something true.
            throttle: leaves time to others.
        """
        paths = self.without_hash(folders, lost_only=lost_only)
        hashed = 0
        for done, path in enumerate(paths):
            if on_progress is not None:
                on_progress(done, len(paths))
            try:
                self.hashes(path, stop=stop, throttle=throttle)
                hashed += 1
            except ModelFileError:
                if stop is not None and stop():
                    break
        if on_progress is not None and paths:
            on_progress(hashed, len(paths))
        return hashed

    def enrich(
        self,
        by_hashes: ByHashes,
        *,
        folders: Sequence[str] = (LORAS, "checkpoints", "diffusion_models"),
        again_after: timedelta = timedelta(days=30),
        on_progress: Callable[[int, int], object] | None = None,
        stop: Stop | None = None,
    ) -> EnrichReport:
        """Ask a hub what it knows of the local files, by the hashes that are known; nothing is
        hashed. Each file is asked of once in `again_after`; the user's edits stay.

        Args:
            by_hashes: asks the hub, for at most 100 hashes at once.
            on_progress: called with files asked of and files in all.
            stop: ends the work before the next question when it returns something true.

        Raises:
            HubError: what `by_hashes` raises; what was learned before is kept.
            StorageError: the database cannot be read or written.
        """
        since = self._now() - again_after
        rows = [row for folder in folders for row in self._store.to_ask(folder, since)]
        hashes = {row.path: row.sha256 or _facts(row).sha256 for row in rows}
        by_hash: dict[str, list[str]] = {}
        for path, sha256 in hashes.items():
            if sha256:
                by_hash.setdefault(sha256, []).append(path)
        total = sum(map(len, by_hash.values()))
        asked = found = 0
        for chunk in batches(iter(by_hash), _ASKED_AT_ONCE):
            if stop is not None and stop():
                break
            answers = {key.lower(): version for key, version in by_hashes(chunk).items()}
            hits = [path for key in chunk if key in answers for path in by_hash[key]]
            paths = [path for key in chunk for path in by_hash[key]]
            self.registry.put(answers.values(), now=self._now())
            self._store.save_asked(paths, hits, self._now())
            asked, found = asked + len(paths), found + len(hits)
            if on_progress is not None:
                on_progress(asked, total)
        return EnrichReport(asked, found)

    def edit_of(self, file: FileRef) -> Edit:
        """What the user said of a file; empty when nothing. Raises ModelFileError as `ref`."""
        found = self._named(file.folder, file.name)
        return self.registry.edit_of(found, self._known_sha256([found]).get(found.path))

    def edit(self, file: FileRef, edit: Edit) -> None:
        """Keep what the user says of a file, in place of what was said before; `Edit()` takes it
        back. It beats every other source, and stays with the content once that is hashed.

        Raises:
            ModelFileError: the folder has no such file.
            StorageError: the database cannot be written.
        """
        found = self._named(file.folder, file.name)
        sha256 = self._known_sha256([found]).get(found.path)
        self.registry.edit(found, sha256, edit, now=self._now())

    # ----------------------------------------------------------------------- inside

    def _list(self, folder: str) -> Listing:
        with collector_paused():
            return list_files(self._folders(folder))

    def _named(self, folder: str, name: str) -> Found:
        found = self._stat(folder, name)
        if found is None:
            missing = FileRef(folder=folder, name=_clean(name))
            raise ModelFileError(self._not_found(missing, None, self._list(folder)))
        return found

    def _stat(self, folder: str, name: str) -> Found | None:
        clean = _clean(name)
        parts = PurePosixPath(clean).parts
        # Joined on Windows, a drive in any part would drop the directory before it.
        drives = any(PureWindowsPath(part).drive for part in parts)
        if not parts or clean.startswith("/") or ".." in parts or drives:
            raise ModelFileError(
                f"{name!r} is not a name below ComfyUI's {folder} folder. Choose a file from the "
                "list."
            )
        for directory in self._folders(folder):
            with suppress(OSError):
                return _stat(absolute(Path(directory, *parts)), clean)
        return None

    def _not_found(self, file: FileRef, named: Found | None, listing: Listing) -> str:
        what = f"{file.name} is not in ComfyUI's {file.folder} folder"
        if file.sha256:
            size = f" and {file.size:,} bytes" if file.size is not None else ""
            what = (
                f"No file in ComfyUI's {file.folder} folder has the content of {file.name} "
                f"(SHA-256 {file.sha256}{size})"
            )
        if named is not None:
            size = "" if file.size in (None, named.size) else f" ({named.size:,} bytes)"
            return (
                f"{what}. A file of that name is there, but its content is another{size}. "
                "Get back the recorded version, or choose the present one yourself."
            )
        same_size = [f.name for f in listing.files.values() if f.size == file.size]
        if file.sha256 is None and same_size:
            return f"{what}. A file of the same size is {_listed(same_size)}: was it renamed?"
        near = _nearest(file.name, listing.files)
        return f"{what}." + (f" Near it: {_listed(near)}." if near else " Put it there.")

    def _folder_of(self, path: str) -> str:
        for folder in FOLDERS:
            for directory in self._folders(folder):
                if Path(path).is_relative_to(absolute(directory)):
                    return folder
        return ""

    def _known_sha256(self, files: Sequence[Found]) -> dict[str, str]:
        rows = self._store.paths([file.path for file in files])
        return {
            file.path: row.sha256
            for file in files
            if (row := rows.get(file.path)) and row.sha256 and row.is_of(file)
        }

    def _hashes(
        self,
        path: str | os.PathLike[str],
        on_progress: Progress | None,
        stop: Stop | None,
        *,
        autov3: bool,
        throttle: Throttle | None = None,
    ) -> Hashes:
        place = absolute(path)
        try:
            before = _stat(place)
            row = self._store.paths([place]).get(place)
            known = row if row is not None and row.is_of(before) else None
            if known and known.sha256 and (known.autov3 is not None or not autov3):
                return Hashes(known.sha256, known.autov3 or None)
            sha256, short = hash_file(
                place, before.size, on_progress, stop, autov3=autov3, throttle=throttle
            )
            after = _stat(place)
        except OSError as error:
            raise ModelFileError(f"{place} cannot be read: {error.strerror or error}.") from error
        if after != before:
            raise ModelFileError(
                f"{place} changed while it was read. Wait until it is complete, then try again."
            )
        self._store.save_hashes(self._folder_of(place), before, sha256, short)
        self._remember(before, sha256)
        return Hashes(sha256, None if short in (None, NO_AUTOV3) else short)

    def _remember(self, file: Found, sha256: str) -> None:
        with self._lock:
            for folder, loaded in self._libraries.items():
                if file.path in loaded.paths.values():
                    self._libraries[folder] = loaded.with_hash(file.path, sha256)

    def _present(self, rows: Iterable[tuple[str, Row]]) -> list[FileRef]:
        found: list[FileRef] = []
        for folder, row in rows:
            with suppress(OSError):
                if row.is_of(_stat(row.path)) and (name := self._name_of(folder, row.path)):
                    ref = FileRef(folder=folder, name=name, size=row.size, sha256=row.sha256)
                    found.append(ref)
        return found

    def _name_of(self, folder: str, path: str) -> str | None:
        for directory in self._folders(folder):
            with suppress(ValueError):
                return Path(path).relative_to(absolute(directory)).as_posix()
        return None

    def _revision(self, listing: Listing) -> str:
        return f"{listing.revision()}-{self._store.facts()}"

    def _load(self, folder: str) -> LoraLibrary | ModelLibrary:
        with self._lock:
            listing = self._list(folder)
            revision = self._revision(listing)
            loaded = self._libraries.get(folder)
            if loaded is not None and loaded.library.revision == revision:
                return loaded.library
            with collector_paused():
                library, complete = self._read_library(folder, listing, revision)
            self._libraries.pop(folder, None)
            if complete:
                paths = {name: file.path for name, file in listing.files.items()}
                self._libraries[folder] = _Loaded(library, paths)
            return library

    def _read_library(
        self, folder: str, listing: Listing, revision: str
    ) -> tuple[LoraLibrary | ModelLibrary, bool]:
        """The library, and whether it holds until a file changes."""
        from .refreshing import compare, refresh

        work = compare(self._store, folder, listing, texts=True)
        read = unpack if folder == LORAS else unpack_model
        entries: list[Any] = []
        broken: list[Found] = []
        for file, row in work.unchanged:
            try:
                entries.append(read(row.text or "", file_ref(folder, file, row.sha256)))
            except ValueError:
                broken.append(file)
        work.stale.extend(broken)
        unreadable = work.unreadable
        complete = not listing.problems
        for step in refresh(self._store, self.registry, folder, work):
            entries += step.entries
            unreadable += step.unreadable
            complete &= not step.passing
        entries.sort(key=lambda entry: entry.file.name)
        kind = LoraLibrary if folder == LORAS else ModelLibrary
        return kind(tuple(entries), tuple(sorted(unreadable)), revision), complete


class _Loaded(NamedTuple):
    library: LoraLibrary | ModelLibrary
    paths: Mapping[str, str]
    """By name."""

    def with_hash(self, path: str, sha256: str) -> _Loaded:
        entries: tuple[Any, ...] = tuple(
            entry._replace(file=entry.file.model_copy(update={"sha256": sha256}))
            if self.paths.get(entry.file.name) == path
            else entry
            for entry in self.library.entries
        )
        return self._replace(library=self.library._replace(entries=entries))


def _facts(row: Row) -> SidecarFacts:
    return unpack_facts(row.sidecar) if row.sidecar else SidecarFacts()


def _stat(path: str, name: str = "") -> Found:
    status = Path(path).stat()
    if not Path(path).is_file():
        raise FileNotFoundError(path)
    return Found(name, path, status.st_size, status.st_mtime_ns)


def _clean(name: str) -> str:
    return name.replace("\\", "/").removeprefix("./")


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _folded(name: str) -> str:
    # macOS may store "é" as two characters where the keyboard gives one.
    return unicodedata.normalize("NFC", name).casefold()


_NAME_TESTS: tuple[Callable[[str], str], ...] = (
    lambda name: name,
    stem,
    lambda name: _folded(stem(name)),
    lambda name: _folded(_last(stem(name))),
)


def _nearest(wanted: str, names: Iterable[str]) -> list[str]:
    by_stem: dict[str, str] = {}
    for name in names:
        by_stem.setdefault(_last(stem(name)).casefold(), name)
    near = difflib.get_close_matches(_last(stem(wanted)).casefold(), by_stem, n=3, cutoff=0.5)
    return [by_stem[key] for key in near]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:8])
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"
