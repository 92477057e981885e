"""The catalog of model files on disk: LoRA library, hashes, and finding a file again."""

from __future__ import annotations

import difflib
import gc
import hashlib
import os
import threading
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

from ..errors import LoraError, ModelFileError
from ..plan import FileRef
from .digest import DIGEST_VERSION, describe, pack, unpack
from .entries import LoraEntry, LoraLibrary, UnreadableFile
from .families import has_lora_weights
from .headers import HeaderError, load_header
from .scan import READABLE, Found, Listing, absolute, list_files, stem

if TYPE_CHECKING:
    from ..storage import Database
    from .store import FileStore, Row

LORAS = "loras"
"""ComfyUI's folder key of LoRA files."""

FOLDERS = ("checkpoints", "diffusion_models", "text_encoders", "vae", LORAS)
"""The folder keys the pack reads."""

HASH_BLOCK = 4 * 1024 * 1024
"""Bytes hashed between two looks at `stop`."""

_SAMPLE = 64  # files whose reading tells whether the disk is slow
_SLOW_DISK = 4.0  # wall time over processor time from which threads pay
_THREADS = 8

Folders = Callable[[str], Sequence[Path]]
"""ComfyUI's directories for a folder key; earlier ones win."""


class Catalog:
    """What model files there are. Safe to share between threads.

    Headers and hashes are kept in the database and hold while a file's size and time of change
    stay the same; nothing is ever written into a model folder.

    Args:
        database: the open database.
        folders: ComfyUI's directories for a folder key such as `loras`.
    """

    def __init__(self, database: Database, folders: Folders) -> None:
        self._database = database
        self._folders = folders
        self._lock = threading.Lock()
        self._library: LoraLibrary | None = None
        self._lora_paths: dict[str, str] = {}  # of `_library`, by name

    @cached_property
    def _store(self) -> FileStore:
        from .store import FileStore  # here, because it loads SQLAlchemy

        return FileStore(self._database)

    def revision(self, folder: str) -> str:
        """Changes when a file of the folder is added, removed or modified. Looks at the disk
        only: 5,000 files take a few hundredths of a second."""
        return self._list(folder).revision()

    def loras(self) -> LoraLibrary:
        """All LoRA files, read or known to be unreadable.

        Only files that are new or changed since the last time, in this process or another, are
        opened. The same object comes back while nothing changes.

        Raises:
            StorageError: the database cannot be read or written.
        """
        with self._lock:
            listing = self._list(LORAS)
            revision = listing.revision()
            if self._library is None or self._library.revision != revision:
                with _collector_paused():
                    library, complete = self._read_library(listing, revision)
                self._library = library if complete else None
                return library
            return self._library

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
        return _ref(folder, found, self._known_sha256([found]).get(found.path))

    def find(
        self,
        file: FileRef,
        *,
        on_progress: Callable[[int, int], None] | None = None,
        stop: Callable[[], object] | None = None,
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
                return _ref(file.folder, named, sha256), Path(named.path)
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
                return _ref(file.folder, found, sha256), Path(found.path)
        raise ModelFileError(self._not_found(file, named, listing))

    def sha256(
        self,
        path: str | os.PathLike[str],
        *,
        on_progress: Callable[[int, int], None] | None = None,
        stop: Callable[[], object] | None = None,
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
        place = absolute(path)
        try:
            before = _stat(place)
            if known := self._known_sha256([before]).get(place):
                return known
            digest = _hash(place, before.size, on_progress, stop)
            after = _stat(place)
        except OSError as error:
            raise ModelFileError(f"{place} cannot be read: {error.strerror or error}.") from error
        if after != before:
            raise ModelFileError(
                f"{place} changed while it was read. Wait until it is complete, then try again."
            )
        self._store.save_sha256(self._folder_of(place), before, digest)
        self._remember(before, digest)
        return digest

    # ----------------------------------------------------------------------- inside

    def _list(self, folder: str) -> Listing:
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

    def _remember(self, file: Found, sha256: str) -> None:
        with self._lock:
            if self._library is None:
                return
            self._library = self._library._replace(
                entries=tuple(
                    entry._replace(file=entry.file.model_copy(update={"sha256": sha256}))
                    if self._lora_paths.get(entry.file.name) == file.path
                    else entry
                    for entry in self._library.entries
                )
            )

    def _read_library(self, listing: Listing, revision: str) -> tuple[LoraLibrary, bool]:
        """The library, and whether it holds until a file changes."""
        from .store import Row

        rows = self._store.folder(LORAS)
        entries: list[LoraEntry] = []
        unreadable = list(listing.problems)
        stale: list[Found] = []
        self._lora_paths = {name: file.path for name, file in listing.files.items()}
        for file in listing.files.values():
            row = rows.get(file.path)
            if not file.name.lower().endswith(READABLE):
                unreadable.append(UnreadableFile(file.name, "is a pickle; " + _PICKLE))
            elif row is None or not row.is_of(file) or row.digest_version != DIGEST_VERSION:
                stale.append(file)
            elif row.problem is not None:
                unreadable.append(UnreadableFile(file.name, row.problem))
            else:
                try:
                    entries.append(unpack(row.digest or "", _ref(LORAS, file, row.sha256)))
                except ValueError:
                    stale.append(file)

        complete = not listing.problems
        fresh: list[Row] = []
        for file, outcome in zip(stale, _read_all(stale), strict=True):
            row = rows.get(file.path)
            sha256 = row.sha256 if row is not None and row.is_of(file) else None
            digest = problem = None
            if isinstance(outcome, LoraEntry):
                entry = outcome._replace(file=_ref(LORAS, file, sha256))
                entries.append(entry)
                digest = pack(entry)
            else:
                problem = str(outcome)
                unreadable.append(UnreadableFile(file.name, problem))
                if outcome.passing:
                    complete = False  # not the file's fault: look again next time
                    continue
            fresh.append(
                Row(file.path, file.size, file.mtime_ns, sha256, digest, DIGEST_VERSION, problem)
            )
        self._store.save(LORAS, fresh, _gone(rows, listing))
        library = LoraLibrary(
            tuple(sorted(entries, key=lambda entry: entry.file.name)),
            tuple(sorted(unreadable)),
            revision,
        )
        return library, complete


@contextmanager
def _collector_paused() -> Iterator[None]:
    # Thousands of small tuples are made, and all of them stay: searching them for garbage again
    # and again took a third of the time.
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


_PICKLE = "pickle files are not loaded, as they can run code: convert it to safetensors"


def _read_lora(file: Found) -> LoraEntry | HeaderError:
    try:
        header = load_header(file.path)
        if not has_lora_weights(header):
            return HeaderError("holds no LoRA weights: it is another kind of model file")
        return describe(header, _ref(LORAS, file, None))
    except HeaderError as problem:
        return problem


def _read_all(files: Sequence[Found]) -> list[LoraEntry | HeaderError]:
    """Read one after the other, or side by side where the disk is what takes the time.

    On a local disk the interpreter's lock makes threads slower (5,000 files: 2.4 s with four,
    1.6 s without); a share or a hard disk that keeps the first files waiting gains from them.
    """
    sample, rest = files[:_SAMPLE], files[_SAMPLE:]
    wall, busy = time.perf_counter(), time.thread_time()
    outcomes = [_read_lora(file) for file in sample]
    wall, busy = time.perf_counter() - wall, time.thread_time() - busy
    if wall < _SLOW_DISK * busy or not rest:
        return outcomes + [_read_lora(file) for file in rest]
    with ThreadPoolExecutor(_THREADS, "catalog") as pool:
        return outcomes + list(pool.map(_read_lora, rest))


def _gone(rows: Iterable[str], listing: Listing) -> list[str]:
    # A directory that is not there at the moment (a drive unplugged) keeps its rows.
    present = {file.path for file in listing.files.values()}
    roots = tuple(root.rstrip(os.sep) + os.sep for root in listing.roots)
    return [path for path in rows if path not in present and path.startswith(roots)]


def _ref(folder: str, file: Found, sha256: str | None) -> FileRef:
    return FileRef(folder=folder, name=file.name, size=file.size, sha256=sha256)


def _stat(path: str, name: str = "") -> Found:
    status = Path(path).stat()
    if not Path(path).is_file():
        raise FileNotFoundError(path)
    return Found(name, path, status.st_size, status.st_mtime_ns)


def _hash(
    path: str,
    size: int,
    on_progress: Callable[[int, int], None] | None,
    stop: Callable[[], object] | None,
) -> str:
    digest = hashlib.sha256()
    done = 0
    buffer = memoryview(bytearray(min(HASH_BLOCK, max(size, 1))))
    with Path(path).open("rb", buffering=0) as file:
        while True:
            if stop is not None and stop():
                raise ModelFileError(f"Hashing {path} was stopped.")
            count = file.readinto(buffer)
            if not count:
                return digest.hexdigest()
            digest.update(buffer[:count])
            done += count
            if on_progress is not None:
                on_progress(done, size)


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
