"""Opening the database, bringing it up to date, and sessions on it."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    NoSuchModuleError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session

from ..errors import StorageError
from .tables import Base

HEAD_REVISION = "0005"
"""Newest file in migrations/versions. Known here so that opening a database that is up to date
imports no Alembic (0.3 s)."""

VERSION_TABLE = "ig_alembic_version"
"""Our own: ComfyUI keeps `alembic_version` for itself, perhaps in the same database."""

BUSY_TIMEOUT_SECONDS = 30.0
"""How long a writer waits for another process's write to end (SQLite); `?timeout=` in the URL
says otherwise."""

_WAL_RETRY_SECONDS = 0.02

_MIGRATIONS = Path(__file__).parent / "migrations"
_READ_ONLY = "ig_read_only"
# Alembic's `op` and `context` are one for the whole process.
_alembic_in_use = threading.Lock()


class Database:
    """An open database at the newest revision. Safe to share between threads."""

    def __init__(self, engine: Engine) -> None:
        self._writer = engine
        self._reader = engine.execution_options(**{_READ_ONLY: True})

    @classmethod
    def open(cls, url: str) -> Database:
        """Open the database at a SQLAlchemy URL, creating or upgrading its tables.

        A SQLite file is created with its folder, and is put into WAL mode with foreign keys on.
        Several processes may open the same new database at the same moment.

        Raises:
            StorageError: the URL is not usable, the file or its folder cannot be written, the
                file is not a database, or a newer version of the pack made it. Nothing is
                deleted or changed then.
        """
        try:
            address = make_url(url)
            engine = _engine(address)
        except (ArgumentError, ValueError) as error:
            raise StorageError(
                "The database URL is not one that SQLAlchemy understands. Write it like "
                "sqlite:////folder/file.db or postgresql+psycopg://user:password@host/name."
            ) from error
        except (ImportError, NoSuchModuleError) as error:
            raise StorageError(
                f"There is no driver for the database URL: {error}. Install the driver into "
                "ComfyUI's Python (psycopg for PostgreSQL), or use a sqlite:/// URL."
            ) from error
        try:
            with engine.connect() as connection:
                current = _revision(connection)
            if current != HEAD_REVISION:
                _upgrade(engine)
        except (DatabaseError, InterfaceError) as error:
            engine.dispose()
            raise _unusable(address, error) from error
        except BaseException:
            engine.dispose()
            raise
        return cls(engine)

    @contextmanager
    def session(self, *, read_only: bool = False) -> Iterator[Session]:
        """A session in one transaction: committed at the end, rolled back by an exception.

        In SQLite a session holds the one write lock from its first query on, so that what it
        read is still true when it writes; `read_only` takes no lock, sees one unchanging state, and
        must not write. Keep a writing session short, and never open one inside another. Rows
        stay readable after the end.

        Raises:
            StorageError: the database is locked for longer than the timeout, damaged, or its
                disk is full or not writable. Broken constraints come as SQLAlchemy's own
                IntegrityError.
        """
        engine = self._reader if read_only else self._writer
        try:
            with Session(engine, expire_on_commit=False) as session, session.begin():
                yield session
        except IntegrityError:
            raise
        except (DatabaseError, InterfaceError, PoolTimeoutError) as error:
            raise _unusable(self._writer.url, error) from error

    def close(self) -> None:
        """Close every connection. The object is not used afterwards."""
        self._writer.dispose()


def _engine(address: URL) -> Engine:
    if address.get_backend_name() != "sqlite":
        return create_engine(address, pool_pre_ping=True)
    _make_folder(address)
    timeout = float(str(address.query.get("timeout", BUSY_TIMEOUT_SECONDS)))
    engine = create_engine(address, connect_args={"timeout": timeout, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def configure(connection, _record) -> None:
        # Python's driver would begin transactions by itself, too late and never for DDL.
        connection.isolation_level = None
        _use_wal(connection, timeout)
        for pragma in ("foreign_keys=ON", "synchronous=NORMAL"):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        read_only = connection.get_execution_options().get(_READ_ONLY, False)
        # IMMEDIATE: a transaction that reads first and writes later fails at once, without
        # waiting, when another process wrote in between.
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine


def _use_wal(connection: sqlite3.Connection, timeout: float) -> None:
    # Of several processes that open a new file at once, those that come second are refused at
    # once: SQLite does not wait by itself for a change of the journal mode.
    deadline = time.monotonic() + timeout
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL").close()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() >= deadline:
                raise
            time.sleep(_WAL_RETRY_SECONDS)
        else:
            return


def _make_folder(address: URL) -> None:
    if address.database in (None, "", ":memory:"):
        raise StorageError(
            f"The database {address} would live in memory and be lost, and every thread would "
            "see its own. Give it a file: sqlite:////folder/file.db."
        )
    folder = Path(address.database).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"The folder for the database cannot be made: {folder}: {error.strerror}. Make it "
            "writable, or choose another with INTELLIGENT_GENERATION_DATABASE_URL."
        ) from error


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()


def _upgrade(engine: Engine) -> None:
    try:
        with _alembic_in_use, engine.begin() as connection:
            if _revision(connection) != HEAD_REVISION:
                migrate(connection, HEAD_REVISION)
    except DBAPIError:
        # Where DDL takes no lock first (PostgreSQL), another process may have won the race.
        with engine.connect() as connection:
            if _revision(connection) != HEAD_REVISION:
                raise


def migrate(connection: Connection, target: str) -> None:
    """Bring the database to revision `target` (`base` for none), up or down.

    Runs in the connection's own transaction: all or nothing.

    Raises:
        StorageError: the database is at a revision that this version does not know.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError

    config = Config(
        attributes={
            "connection": connection,
            "metadata": Base.metadata,
            "version_table": VERSION_TABLE,
        }
    )
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    current = _revision(connection)
    if current is not None:
        try:
            ScriptDirectory.from_config(config).get_revision(current)
        except CommandError as error:
            raise StorageError(
                f"The database {connection.engine.url} has revision {current}, made by a newer "
                f"version of Intelligent Generation; this one knows up to {HEAD_REVISION}. "
                "Update the node pack, or point INTELLIGENT_GENERATION_DATABASE_URL elsewhere."
            ) from error
    going_up = target != "base" and (current is None or target > current)
    (command.upgrade if going_up else command.downgrade)(config, target)


def _unusable(address: URL, error: Exception) -> StorageError:
    reason = str(getattr(error, "orig", None) or error).strip()
    if address.get_backend_name() != "sqlite":
        return StorageError(
            f"The database {address} cannot be used: {reason}. Check that its server runs, that "
            "the URL is right, and that its user may create tables."
        )
    lowered = reason.lower()
    if "not a database" in lowered or "malformed" in lowered:
        advice = (
            "The file is damaged or not a database; it was left as it is. Move it away, and a "
            "new one is made, or put a backup in its place."
        )
    elif "locked" in lowered or "busy" in lowered:
        advice = "Another process holds it. Close other programs that use the file, and try again."
    elif "full" in lowered:
        advice = "Free space on its disk, and try again."
    else:
        advice = "Make the file and its folder writable, and see that its disk works."
    return StorageError(f"The database {address.database} cannot be used: {reason}. {advice}")
