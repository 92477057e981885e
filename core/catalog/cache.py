"""The files that the pack itself downloaded: their last use, and a cap on their size.

Nothing else is ever removed, and these only when the user gives a limit. A list of what would be
done comes first; what is done is that list, less what changed meanwhile.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal, NamedTuple

from sqlalchemy import delete, select, update

from ..errors import ModelFileError
from ..hubs.entries import RemoteVersion
from ..storage import Database
from ..storage.tables import DownloadRow
from .hashing import HASH_BLOCK, Stop
from .library import Catalog
from .scan import absolute
from .store import chunks, write

PACKED = ".gz"
"""Added to the name of a compressed file."""

_LEVEL = 1  # of zlib: weights are nearly noise, more effort gains nothing
_SAMPLES, _SAMPLE_BYTES = 8, 256 * 1024
_LEAST_GAIN = 0.02  # of the size: below it compressing is not worth the waiting


class CachedFile(NamedTuple):
    """A file that the pack downloaded."""

    path: str
    """Of the model file, absolute, also while only its compressed form is there."""
    folder: str
    size: int
    """Bytes on disk now."""
    packed: bool
    last_used_at: datetime
    pinned: bool
    """The user wants to keep it as it is."""
    source: str
    """`civitai:123@456` or `huggingface:owner/name@revision`."""


class Limits(NamedTuple):
    """What the user allows the downloaded files to take. By default nothing is ever touched."""

    cap_bytes: int | None = None
    """Most bytes of all together."""
    keep_recent: int | None = None
    """Most files: those used last."""
    compress_after: timedelta | None = None
    """Files unused for longer are compressed, which ComfyUI cannot load until they are restored."""


class Action(NamedTuple):
    """One thing to do."""

    kind: Literal["remove", "compress"]
    file: CachedFile
    frees: int
    """Bytes; estimated from samples for `compress`."""


class CleanupPlan(NamedTuple):
    """What would be done, to be shown before anything is."""

    actions: tuple[Action, ...]
    kept: tuple[CachedFile, ...]
    """Used last first."""
    bytes_now: int
    bytes_after: int
    over: int
    """Bytes by which the files that may not be touched exceed the cap."""


class CleanupReport(NamedTuple):
    """What was done."""

    removed: tuple[Action, ...]
    compressed: tuple[Action, ...]
    """`frees` is exact here."""
    freed_bytes: int
    left_alone: tuple[tuple[CachedFile, str], ...]
    """Files that were planned for and not touched, and why."""


def plan_cleanup(
    files: Iterable[CachedFile],
    limits: Limits,
    *,
    now: datetime,
    in_use: Collection[str] = (),
    gain: Callable[[CachedFile], int] = lambda file: 0,
) -> CleanupPlan:
    """What keeping to the limits takes; pure.

    The files used least recently go first. Both limits hold at once, so that the most recently
    used files remain that fit both. Pinned files and those in use count, and stay; the others
    make room for them.

    Args:
        files: those that are there.
        in_use: paths that are loaded or planned at the moment.
        gain: bytes that compressing a file would free; asked only of those old enough.
    """
    recent = sorted(files, key=lambda file: file.last_used_at, reverse=True)
    held = [file for file in recent if file.pinned or file.path in in_use]
    room = float("inf") if limits.cap_bytes is None else float(limits.cap_bytes)
    places = float("inf") if limits.keep_recent is None else float(limits.keep_recent)
    room -= sum(file.size for file in held)
    places -= len(held)
    over = max(0, -int(room)) if room < 0 else 0
    kept: list[CachedFile] = []
    actions: list[Action] = []
    full = False
    for file in recent:
        if file in held:
            kept.append(file)
        elif full or file.size > room or places < 1:
            full = True  # older ones are no better: what is kept is what was used last
            actions.append(Action("remove", file, file.size))
        else:
            room -= file.size
            places -= 1
            kept.append(file)
            old = limits.compress_after is not None and now - file.last_used_at > (
                limits.compress_after
            )
            if old and not file.packed and (saved := gain(file)) > 0:
                actions.append(Action("compress", file, saved))
    actions.sort(key=lambda action: action.file.last_used_at)
    bytes_now = sum(file.size for file in recent)
    freed = sum(action.frees for action in actions)
    return CleanupPlan(tuple(actions), tuple(kept), bytes_now, bytes_now - freed, over)


class DiskCache:
    """The downloaded files of a catalog. Safe to share between threads.

    Args:
        database: the open database.
        catalog: knows the files' hashes.
        now: the time, with its zone.
    """

    def __init__(
        self, database: Database, catalog: Catalog, *, now: Callable[[], datetime]
    ) -> None:
        self._database = database
        self._catalog = catalog
        self._now = now

    def add(
        self, path: str | os.PathLike[str], folder: str, version: RemoteVersion, sha256: str
    ) -> None:
        """Mark a file as downloaded by the pack just now, with the hash it was verified by; it
        is not hashed again. Not for a file that was there before: that one is the user's.

        Raises:
            ModelFileError: the file is not there.
            StorageError: the database cannot be written.
        """
        place = absolute(path)
        try:
            status = Path(place).stat()
        except OSError as error:
            raise ModelFileError(f"{place} cannot be read: {error.strerror or error}.") from error
        self._catalog.know_hash(place, folder, sha256)
        self._catalog.remember([version])
        now = self._now()
        row = DownloadRow(
            path=place,
            folder=folder,
            size=status.st_size,
            mtime_ns=status.st_mtime_ns,
            sha256=sha256.lower(),
            hub=version.hub,
            model_id=version.model_id,
            version_id=version.version_id,
            downloaded_at=now,
            last_used_at=now,
            pinned=False,
            packed_size=None,
        )
        write(self._database, lambda session: session.merge(row))

    def touch(self, paths: Iterable[str | os.PathLike[str]]) -> None:
        """Note that files are used now. Those that the pack did not download are left out."""
        places = [absolute(path) for path in paths]
        now = self._now()

        def work(session) -> None:
            for chunk in chunks(places):
                used = update(DownloadRow).where(DownloadRow.path.in_(chunk))
                session.execute(used.values(last_used_at=now))

        write(self._database, work)

    def pin(self, path: str | os.PathLike[str], *, pinned: bool) -> None:
        """Keep a downloaded file whatever the limits, or no longer."""
        place = absolute(path)
        pin = update(DownloadRow).where(DownloadRow.path == place).values(pinned=pinned)
        write(self._database, lambda session: session.execute(pin))

    def files(self) -> list[CachedFile]:
        """The downloaded files that are there and unchanged, used last first. One that was
        changed since is the user's."""
        with self._database.session(read_only=True) as session:
            rows = session.scalars(select(DownloadRow).order_by(DownloadRow.last_used_at.desc()))
            present = [(row, _size_on_disk(row)) for row in rows]
        return [
            CachedFile(
                row.path,
                row.folder,
                size,
                row.packed_size is not None,
                row.last_used_at,
                row.pinned,
                f"{row.hub}:{row.model_id}@{row.version_id}",
            )
            for row, size in present
            if size is not None
        ]

    def plan(
        self, limits: Limits, *, in_use: Collection[str | os.PathLike[str]] = ()
    ) -> CleanupPlan:
        """The dry run: what keeping to the limits would take. Touches nothing."""
        used = {absolute(path) for path in in_use}
        return plan_cleanup(
            self.files(), limits, now=self._now(), in_use=used, gain=_estimated_gain
        )

    def clean(
        self,
        plan: CleanupPlan,
        *,
        in_use: Collection[str | os.PathLike[str]] = (),
        stop: Stop | None = None,
    ) -> CleanupReport:
        """Do what a plan says, less what is no longer so: a file that was used, pinned, changed
        or moved since, or is in use, is left alone."""
        used = {absolute(path) for path in in_use}
        removed: list[Action] = []
        compressed: list[Action] = []
        alone: list[tuple[CachedFile, str]] = []
        for action in plan.actions:
            if stop is not None and stop():
                break
            with self._database.session(read_only=True) as session:
                row = session.get(DownloadRow, action.file.path)
            if action.file.path in used:
                alone.append((action.file, "it is in use"))
            elif row is None or _size_on_disk(row) is None:
                alone.append((action.file, "it was changed, moved or removed meanwhile"))
            elif row.pinned or row.last_used_at != action.file.last_used_at:
                alone.append((action.file, "it was used or pinned meanwhile"))
            else:
                try:
                    if action.kind == "remove":
                        self._remove(row)
                        removed.append(action)
                    else:
                        compressed.append(action._replace(frees=self._compress(row, stop)))
                except (OSError, ModelFileError) as error:
                    alone.append((action.file, str(error)))
        freed = sum(action.frees for action in (*removed, *compressed))
        return CleanupReport(tuple(removed), tuple(compressed), freed, tuple(alone))

    def compressed(self, path: str | os.PathLike[str]) -> bool:
        """Whether a file has to be restored before it can be loaded."""
        place = absolute(path)
        with self._database.session(read_only=True) as session:
            row = session.get(DownloadRow, place)
        return row is not None and row.packed_size is not None and _size_on_disk(row) is not None

    def restore(self, path: str | os.PathLike[str], *, stop: Stop | None = None) -> Path:
        """Bring a compressed file back, checked against its hash; a no-op when it is there.

        Raises:
            ModelFileError: it was never compressed by the pack, or what comes out is not what
                went in; nothing is removed then.
        """
        place = absolute(path)
        with self._database.session(read_only=True) as session:
            row = session.get(DownloadRow, place)
        if Path(place).is_file():  # never compressed, or cut off before the original went
            return Path(place)
        if row is None or row.packed_size is None:
            raise ModelFileError(f"{place} is not there, compressed or not. Download it again.")
        part = Path(place + ".part")
        try:
            with gzip.open(place + PACKED, "rb") as packed, part.open("wb") as file:
                if _copy(packed, file, stop) != row.sha256:
                    raise ModelFileError(
                        f"{place}{PACKED} does not hold the file with SHA-256 {row.sha256}. "
                        "Remove it and download the model again."
                    )
                file.flush()
                os.fsync(file.fileno())
            os.utime(part, ns=(row.mtime_ns, row.mtime_ns))
            part.replace(place)
        except (OSError, EOFError, zlib.error) as error:
            raise ModelFileError(f"{place}{PACKED} cannot be restored: {error}.") from error
        finally:
            part.unlink(missing_ok=True)
        self._set_packed(place, None, Path(place).stat().st_mtime_ns)
        self._catalog.know_hash(place, row.folder, row.sha256)
        Path(place + PACKED).unlink(missing_ok=True)
        return Path(place)

    def _remove(self, row: DownloadRow) -> None:
        Path(row.path + (PACKED if row.packed_size is not None else "")).unlink()
        gone = delete(DownloadRow).where(DownloadRow.path == row.path)
        write(self._database, lambda session: session.execute(gone))

    def _compress(self, row: DownloadRow, stop: Stop | None) -> int:
        part, target = Path(row.path + PACKED + ".part"), Path(row.path + PACKED)
        if target.exists():
            raise ModelFileError(f"{target} is in the way: rename it.")
        try:
            with Path(row.path).open("rb") as file, gzip.open(part, "wb", _LEVEL) as packed:
                _copy(file, packed, stop)
            with gzip.open(part, "rb") as packed:
                if _copy(packed, None, stop) != row.sha256:
                    raise ModelFileError("what was compressed is not what was downloaded")
            with part.open("rb+") as done:
                os.fsync(done.fileno())
            size = part.stat().st_size
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        self._set_packed(row.path, size, row.mtime_ns)
        Path(row.path).unlink()
        return row.size - size

    def _set_packed(self, path: str, size: int | None, mtime_ns: int) -> None:
        packed = update(DownloadRow).where(DownloadRow.path == path)
        values = packed.values(packed_size=size, mtime_ns=mtime_ns)
        write(self._database, lambda session: session.execute(values))


def _size_on_disk(row: DownloadRow) -> int | None:
    """Bytes of the file that the pack left there; None when it is not there as it was."""
    with suppress(OSError):
        if row.packed_size is not None:
            size = Path(row.path + PACKED).stat().st_size
            return size if size == row.packed_size else None
        status = Path(row.path).stat()
        if (status.st_size, status.st_mtime_ns) == (row.size, row.mtime_ns):
            return row.size
    return None


def _estimated_gain(file: CachedFile) -> int:
    """Bytes that compressing would free, from samples all over the file."""
    read = left = 0
    try:
        with Path(file.path).open("rb") as weights:
            for number in range(_SAMPLES):
                weights.seek(file.size * number // _SAMPLES)
                piece = weights.read(_SAMPLE_BYTES)
                read += len(piece)
                left += len(zlib.compress(piece, _LEVEL))
    except OSError:
        return 0
    share = 1.0 - left / read if read else 0.0
    return int(file.size * share) if share >= _LEAST_GAIN else 0


def _copy(source, target, stop: Stop | None) -> str:
    digest = hashlib.sha256()
    while block := source.read(HASH_BLOCK):
        if stop is not None and stop():
            raise ModelFileError("it was stopped")
        digest.update(block)
        if target is not None:
            target.write(block)
    return digest.hexdigest()
