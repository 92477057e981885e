"""The catalog's rows in the database: what was read from which file, while it is unchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import NamedTuple, TypeVar

from sqlalchemy import case, delete, exists, insert, null, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from ..storage import Database
from ..storage.tables import CatalogState, DownloadRow, ModelEdit, ModelFile, RemoteFileRow
from .scan import Found

T = TypeVar("T")

CHUNK = 500
"""Bound parameters in one statement: SQLite's old limit is 999."""

_FACTS = "facts"

_COLUMNS = (
    ModelFile.path,
    ModelFile.size,
    ModelFile.mtime_ns,
    ModelFile.sha256,
    ModelFile.digest,
    ModelFile.digest_version,
    ModelFile.problem,
    ModelFile.header_hash,
    ModelFile.autov3,
    ModelFile.sidecar_stamp,
    ModelFile.sidecar,
    ModelFile.merged,
)

_KNOWN = (
    ModelFile.path,
    ModelFile.size,
    ModelFile.mtime_ns,
    ModelFile.sha256,
    ModelFile.digest_version,
    ModelFile.problem,
    ModelFile.sidecar_stamp,
    case((ModelFile.digest.is_(None), 0), (ModelFile.merged.is_(None), 1), else_=0),
)
_TEXT = case((ModelFile.merged != "", ModelFile.merged), else_=ModelFile.digest)


class Row(NamedTuple):
    """One row of `ModelFile` without its folder."""

    path: str
    size: int
    mtime_ns: int
    sha256: str | None = None
    digest: str | None = None
    digest_version: int = 0
    problem: str | None = None
    header_hash: str | None = None
    autov3: str | None = None
    sidecar_stamp: str | None = None
    sidecar: str | None = None
    merged: str | None = None

    def is_of(self, file: Found) -> bool:
        """Whether it was read from the file as it is now."""
        return (self.size, self.mtime_ns) == (file.size, file.mtime_ns)


class Known(NamedTuple):
    """What has to be known of a row to tell whether it still holds, and its entry."""

    path: str
    size: int
    mtime_ns: int
    sha256: str | None
    digest_version: int
    problem: str | None
    sidecar_stamp: str | None
    unmerged: int
    """1 when `merged` has to be made anew."""
    text: str | None
    """The packed entry, merged where anything was merged; None when it was not asked for."""


class FileStore:
    """Reads and writes rows. Safe to use from several threads and processes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def known(self, folder: str, *, texts: bool) -> dict[str, Known]:
        """What is known of every file of a folder key, by path."""
        text = _TEXT if texts else null()
        with self._database.session(read_only=True) as session:
            # By the connection, past the ORM: a fifth of the time of reading a large library.
            query = select(*_KNOWN, text).where(ModelFile.folder == folder)
            rows = session.connection().execute(query).all()
        return {row[0]: tuple.__new__(Known, row) for row in rows}

    def paths(self, paths: Sequence[str]) -> dict[str, Row]:
        """The rows of these paths, by path."""
        with self._database.session(read_only=True) as session:
            return _rows(session, paths)

    def save(self, folder: str, rows: Sequence[Row]) -> None:
        """Write rows in full."""

        def work(session: Session) -> None:
            known = _rows(session, [row.path for row in rows])
            values = [row._asdict() | {"folder": folder} for row in rows]
            if new := [value for value in values if value["path"] not in known]:
                session.execute(insert(ModelFile), new)
            if old := [value for value in values if value["path"] in known]:
                session.execute(update(ModelFile), old)

        if rows:
            write(self._database, work)

    def save_merged(self, merged: Sequence[tuple[str, str]]) -> None:
        """Write `merged` of these paths."""
        if merged:
            values = [{"path": path, "merged": text} for path, text in merged]
            write(self._database, lambda session: session.execute(update(ModelFile), values))

    def remove(self, gone: Sequence[str], moved: Sequence[tuple[str, str]] = ()) -> None:
        """Delete the rows of paths that are gone; edits and downloads follow files that moved.

        Args:
            gone: paths, those moved away included.
            moved: old and new path of each file that was moved.
        """

        def work(session: Session) -> None:
            for old, new in moved:
                session.execute(delete(DownloadRow).where(DownloadRow.path == new))
                for table in (ModelEdit, DownloadRow):
                    session.execute(update(table).where(table.path == old).values(path=new))
            for chunk in chunks(gone):
                session.execute(delete(ModelFile).where(ModelFile.path.in_(chunk)))

        if gone:
            write(self._database, work)

    def save_hashes(self, folder: str, file: Found, sha256: str, autov3: str | None) -> None:
        """Write the hashes of a file; a digest of the same state of the file stays.

        What is known by hash, from hubs and from the user, belongs to the file from now on.
        """

        def work(session: Session) -> None:
            row = _rows(session, [file.path]).get(file.path)
            if row is not None and row.is_of(file):
                values = {"sha256": sha256, "autov3": row.autov3 if autov3 is None else autov3}
                session.execute(
                    update(ModelFile).where(ModelFile.path == file.path).values(**values)
                )
            else:
                session.execute(delete(ModelFile).where(ModelFile.path == file.path))
                fresh = Row(file.path, file.size, file.mtime_ns, sha256, autov3=autov3)
                session.execute(insert(ModelFile), [fresh._asdict() | {"folder": folder}])
            session.execute(
                update(ModelEdit)
                .where(
                    ModelEdit.path == file.path,
                    ModelEdit.size == file.size,
                    ModelEdit.mtime_ns == file.mtime_ns,
                    ModelEdit.sha256.is_(None),
                )
                .values(sha256=sha256)
            )
            said = select(
                or_(
                    exists().where(ModelEdit.sha256 == sha256),
                    exists().where(RemoteFileRow.sha256 == sha256),
                )
            )
            if session.execute(said).scalar_one():
                reset(session, [sha256])

        write(self._database, work)

    def facts(self) -> int:
        """How often anything new was said of any file by a hub or the user."""
        with self._database.session(read_only=True) as session:
            query = select(CatalogState.value).where(CatalogState.name == _FACTS)
            return session.connection().execute(query).scalar() or 0

    def without_hash(self, folder: str) -> list[Row]:
        """The readable files of a folder key that have not been hashed, smallest first."""
        query = (
            select(*_COLUMNS)
            .where(
                ModelFile.folder == folder,
                ModelFile.sha256.is_(None),
                ModelFile.problem.is_(None),
            )
            .order_by(ModelFile.size, ModelFile.path)
        )
        with self._database.session(read_only=True) as session:
            return [Row._make(row) for row in session.connection().execute(query)]

    def by_sha256(self, hashes: Sequence[str]) -> list[tuple[str, Row]]:
        """Folder keys and rows of the files with these hashes."""
        found: list[tuple[str, Row]] = []
        with self._database.session(read_only=True) as session:
            for chunk in chunks(hashes):
                query = select(ModelFile.folder, *_COLUMNS).where(ModelFile.sha256.in_(chunk))
                rows = session.connection().execute(query)
                found += [(row[0], Row._make(row[1:])) for row in rows]
        return found

    def by_short_hash(self, digits: str) -> list[tuple[str, Row]]:
        """Folder keys and rows of the files whose SHA-256 begins with `digits`, or whose AutoV3
        they are; lower case."""
        query = select(ModelFile.folder, *_COLUMNS).where(
            or_(
                ModelFile.sha256.between(digits, digits + "g"),  # "g" follows every hex digit
                ModelFile.autov3 == digits,
            )
        )
        with self._database.session(read_only=True) as session:
            rows = session.connection().execute(query).all()
        return [(row[0], Row._make(row[1:])) for row in rows]

    def to_ask(self, folder: str, before: datetime) -> list[Row]:
        """The readable files of a folder key with a hash, their own or one that another tool
        noted, of which no hub was asked since `before`."""
        query = select(*_COLUMNS).where(
            ModelFile.folder == folder,
            ModelFile.problem.is_(None),
            or_(ModelFile.sha256.is_not(None), ModelFile.sidecar.is_not(None)),
            or_(ModelFile.asked_at.is_(None), ModelFile.asked_at < before),
        )
        with self._database.session(read_only=True) as session:
            return [Row._make(row) for row in session.connection().execute(query)]

    def save_asked(self, paths: Sequence[str], found: Sequence[str], now: datetime) -> None:
        """Note that a hub was asked of these files, and have those it knew merged anew."""

        def work(session: Session) -> None:
            for chunk in chunks(paths):
                asked = update(ModelFile).where(ModelFile.path.in_(chunk))
                session.execute(asked.values(asked_at=now))
            reset(session, (), found)

        write(self._database, work)

    def sizes_of_lost(self) -> set[int]:
        """Sizes of contents that the user edited or the pack downloaded, and that no file is
        known to have now: a file of that size may be one of them."""
        with self._database.session(read_only=True) as session:
            found: set[int] = set()
            for table in (ModelEdit, DownloadRow):
                lost = ~exists().where(ModelFile.sha256 == table.sha256)
                query = select(table.size).where(table.sha256.is_not(None), lost)
                found.update(session.scalars(query))
            return found


def write(database: Database, work: Callable[[Session], T]) -> T:
    """Do `work` in one transaction, once more when another process wrote a row of it first.

    (Not in SQLite, which locks.) The row is there then, so that the second try updates it.
    """
    try:
        with database.session() as session:
            return work(session)
    except IntegrityError:
        with database.session() as session:
            return work(session)


def reset(session: Session, hashes: Iterable[str], paths: Sequence[str] = ()) -> int:
    """Have the entries of files with these hashes, or at these paths, merged anew.

    Returns:
        How many there are. When there are any, `FileStore.facts` grows.
    """
    count = 0
    for column, values in ((ModelFile.sha256, list(hashes)), (ModelFile.path, paths)):
        for chunk in chunks(values):
            done = session.execute(update(ModelFile).where(column.in_(chunk)).values(merged=None))
            count += done.rowcount  # pyright: ignore[reportAttributeAccessIssue]
    if count:
        grown = session.execute(
            update(CatalogState)
            .where(CatalogState.name == _FACTS)
            .values(value=CatalogState.value + 1)
        )
        if not grown.rowcount:  # pyright: ignore[reportAttributeAccessIssue]
            session.execute(insert(CatalogState).values(name=_FACTS, value=1))
    return count


def chunks(items: Sequence[T]) -> Iterable[Sequence[T]]:
    """The items in pieces that fit into one statement."""
    return (items[start : start + CHUNK] for start in range(0, len(items), CHUNK))


def _rows(session: Session, paths: Sequence[str]) -> dict[str, Row]:
    found: dict[str, Row] = {}
    for chunk in chunks(paths):
        rows = session.execute(select(*_COLUMNS).where(ModelFile.path.in_(chunk)))
        found.update((row[0], Row._make(row)) for row in rows)
    return found
