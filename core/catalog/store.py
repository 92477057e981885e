"""The catalog's rows in the database: what was read from which file, while it is unchanged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from ..storage import Database
from ..storage.tables import ModelFile
from .scan import Found

_CHUNK = 500  # bound parameters in one statement: SQLite's old limit is 999

_COLUMNS = (
    ModelFile.path,
    ModelFile.size,
    ModelFile.mtime_ns,
    ModelFile.sha256,
    ModelFile.digest,
    ModelFile.digest_version,
    ModelFile.problem,
)


class Row(NamedTuple):
    """One row of `ModelFile` without its folder."""

    path: str
    size: int
    mtime_ns: int
    sha256: str | None
    digest: str | None
    digest_version: int
    problem: str | None

    def is_of(self, file: Found) -> bool:
        """Whether it was read from the file as it is now."""
        return (self.size, self.mtime_ns) == (file.size, file.mtime_ns)


class FileStore:
    """Reads and writes rows. Safe to use from several threads and processes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def folder(self, folder: str) -> dict[str, Row]:
        """Every row of a folder key, by path."""
        with self._database.session(read_only=True) as session:
            # By the connection, past the ORM: a fifth of the time of reading a large library.
            rows = session.connection().execute(select(*_COLUMNS).where(ModelFile.folder == folder))
            return {row[0]: Row._make(row) for row in rows}

    def paths(self, paths: Sequence[str]) -> dict[str, Row]:
        """The rows of these paths, by path."""
        with self._database.session(read_only=True) as session:
            return _rows(session, paths)

    def save(self, folder: str, rows: Sequence[Row], gone: Sequence[str] = ()) -> None:
        """Write rows in full, and delete those of paths that are gone."""

        def write(session: Session) -> None:
            for chunk in _chunks(gone):
                session.execute(delete(ModelFile).where(ModelFile.path.in_(chunk)))
            known = _rows(session, [row.path for row in rows])
            values = [row._asdict() | {"folder": folder} for row in rows]
            if new := [value for value in values if value["path"] not in known]:
                session.execute(insert(ModelFile), new)
            if old := [value for value in values if value["path"] in known]:
                session.execute(update(ModelFile), old)

        if rows or gone:
            self._write(write)

    def save_sha256(self, folder: str, file: Found, sha256: str) -> None:
        """Write the hash of a file; a digest of the same state of the file stays."""

        def write(session: Session) -> None:
            row = _rows(session, [file.path]).get(file.path)
            if row is not None and row.is_of(file):
                session.execute(
                    update(ModelFile).where(ModelFile.path == file.path).values(sha256=sha256)
                )
                return
            session.execute(delete(ModelFile).where(ModelFile.path == file.path))
            row = Row(file.path, file.size, file.mtime_ns, sha256, None, 0, None)
            session.execute(insert(ModelFile), [row._asdict() | {"folder": folder}])

        self._write(write)

    def _write(self, write) -> None:
        try:
            with self._database.session() as session:
                write(session)
        except IntegrityError:
            # Another process wrote one of the rows first (not SQLite, which locks): they are
            # there now, so that the second try updates them.
            with self._database.session() as session:
                write(session)


def _rows(session: Session, paths: Sequence[str]) -> dict[str, Row]:
    found: dict[str, Row] = {}
    for chunk in _chunks(paths):
        rows = session.execute(select(*_COLUMNS).where(ModelFile.path.in_(chunk)))
        found.update((row[0], Row._make(row)) for row in rows)
    return found


def _chunks(items: Sequence[str]) -> Iterable[Sequence[str]]:
    return (items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK))
