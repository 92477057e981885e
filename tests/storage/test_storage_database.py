from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from intelligent_generation.core.errors import StorageError
from intelligent_generation.core.storage import Database, database
from intelligent_generation.core.storage.tables import Base, ModelFile, SaveIntent
from sqlalchemy import inspect, select
from sqlalchemy.exc import IntegrityError, StatementError

OPEN_WHEN_TOLD = """
import sys
from intelligent_generation.core.storage import Database
from intelligent_generation.core.storage import database as _loaded
import alembic.command
print("ready", flush=True)
sys.stdin.readline()
Database.open(sys.argv[1]).close()
print("opened", flush=True)
"""


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'new folder 100%' / 'pack.db'}"


def file_of(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///"))


def model_file(path: str, **changes) -> ModelFile:
    fields = {
        "path": path,
        "folder": "loras",
        "size": 2**40,
        "mtime_ns": 1_700_000_000_123_456_789,
        "digest_version": 1,
    }
    return ModelFile(**{**fields, **changes})


def tables_in(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as connection:
        return {
            name
            for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")
        }


def test_a_new_database_is_made_with_its_folder_and_all_tables(url):
    Database.open(url).close()
    assert tables_in(file_of(url)) == {*Base.metadata.tables, database.VERSION_TABLE}


def test_the_migrations_and_the_tables_agree(url):
    opened = Database.open(url)
    with opened.session() as session:
        context = MigrationContext.configure(
            session.connection(),
            opts={"version_table": database.VERSION_TABLE, "compare_server_default": True},
        )
        assert compare_metadata(context, Base.metadata) == []


def test_the_known_head_is_the_newest_migration():
    config = Config()
    config.set_main_option("script_location", str(Path(database.__file__).parent / "migrations"))
    assert ScriptDirectory.from_config(config).get_heads() == [database.HEAD_REVISION]


def test_migrating_down_removes_every_table_and_up_brings_them_back(url):
    opened = Database.open(url)
    with opened.session() as session:
        database.migrate(session.connection(), "base")
    assert tables_in(file_of(url)) == {database.VERSION_TABLE}
    with opened.session() as session:
        database.migrate(session.connection(), database.HEAD_REVISION)
    assert tables_in(file_of(url)) == {*Base.metadata.tables, database.VERSION_TABLE}


def test_opening_an_up_to_date_database_imports_no_alembic(url):
    Database.open(url).close()
    code = (
        "import sys\n"
        "from intelligent_generation.core.storage import Database\n"
        "Database.open(sys.argv[1]).close()\n"
        "print('alembic' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, url], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_importing_the_room_loads_no_sqlalchemy():
    code = "import sys, intelligent_generation.core.storage; print('sqlalchemy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_processes_that_open_the_same_new_database_at_once_all_succeed(url):
    started = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN_WHEN_TOLD, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in started:
        out, err = process.communicate(timeout=60)
        assert (out, process.returncode) == ("opened\n", 0), err
    assert tables_in(file_of(url)) == {*Base.metadata.tables, database.VERSION_TABLE}


def test_threads_that_open_new_databases_at_once_do_not_mix_them_up(tmp_path):
    paths = [tmp_path / f"{n}.db" for n in range(4)]
    failures: list[Exception] = []

    def open_one(path: Path) -> None:
        try:
            Database.open(f"sqlite:///{path}").close()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=open_one, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert all(set(Base.metadata.tables) <= tables_in(path) for path in paths)


def test_settings_of_a_sqlite_connection(url):
    with Database.open(url).session() as session:
        pragmas = {
            name: session.connection().exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "foreign_keys", "synchronous", "busy_timeout")
        }
    assert pragmas == {
        "journal_mode": "wal",
        "foreign_keys": 1,
        "synchronous": 1,
        "busy_timeout": 30_000,
    }


def test_rows_are_kept_with_their_large_numbers_and_stay_readable_after_the_session(url):
    opened = Database.open(url)
    with opened.session() as session:
        session.add(model_file("/m/a.safetensors", size=2**62))
    opened.close()
    with Database.open(url).session(read_only=True) as session:
        row = session.get_one(ModelFile, "/m/a.safetensors")
    assert (row.size, row.mtime_ns, row.sha256) == (2**62, 1_700_000_000_123_456_789, None)


def test_an_exception_undoes_the_whole_session(url):
    opened = Database.open(url)
    with pytest.raises(KeyError), opened.session() as session:
        session.add(model_file("/m/a.safetensors"))
        session.flush()
        raise KeyError
    with opened.session() as session:
        assert session.scalars(select(ModelFile)).all() == []


def test_what_a_session_read_is_still_true_when_it_writes(url):
    opened = Database.open(url)
    with opened.session() as session:
        session.add(model_file("/m/a.safetensors", size=0))
    start = threading.Barrier(4)

    def count_up() -> None:
        start.wait()
        for _ in range(25):
            with opened.session() as session:
                row = session.get_one(ModelFile, "/m/a.safetensors")
                row.size += 1

    threads = [threading.Thread(target=count_up) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with opened.session() as session:
        assert session.get_one(ModelFile, "/m/a.safetensors").size == 100


def test_a_reader_neither_waits_for_a_writer_nor_sees_half_of_it(url):
    opened = Database.open(url)
    with opened.session() as writing:
        writing.add(model_file("/m/a.safetensors"))
        writing.flush()
        with opened.session(read_only=True) as reading:
            assert reading.scalars(select(ModelFile)).all() == []


def test_broken_constraints_are_not_disguised(url):
    opened = Database.open(url)
    with opened.session() as session:
        session.add(model_file("/m/a.safetensors"))
    with pytest.raises(IntegrityError), opened.session() as session:
        session.add(model_file("/m/a.safetensors"))


def test_times_are_utc_whatever_zone_they_came_in(url):
    opened = Database.open(url)
    moment = datetime(2026, 8, 1, 1, 30, tzinfo=timezone(timedelta(hours=2)))

    def intent(at: datetime) -> SaveIntent:
        return SaveIntent(
            generation_id="g",
            started_at=at,
            owner_host="h",
            owner_pid=1,
            owner_started=0.0,
            directory="/",
            digests="{}",
            record="{}",
        )

    with opened.session() as session:
        session.add(intent(moment))
    with opened.session() as session:
        stored = session.get_one(SaveIntent, "g").started_at
    assert stored == moment
    assert stored.utcoffset() == timedelta(0)
    with pytest.raises(StatementError, match="no time zone"), opened.session() as session:
        session.merge(intent(datetime(2026, 8, 1)))  # noqa: DTZ001


def test_a_database_from_a_newer_pack_is_left_alone_and_says_update(url):
    Database.open(url).close()
    with closing(sqlite3.connect(file_of(url))) as connection, connection:
        connection.execute(f"UPDATE {database.VERSION_TABLE} SET version_num = '9999'")
    before = file_of(url).read_bytes()
    with pytest.raises(StorageError, match=r"9999.*Update the node pack"):
        Database.open(url)
    assert file_of(url).read_bytes() == before


def test_a_failed_upgrade_leaves_no_half(url):
    file_of(url).parent.mkdir()
    with closing(sqlite3.connect(file_of(url))) as connection, connection:
        connection.execute("CREATE TABLE ratings (mine TEXT)")
    with pytest.raises(StorageError, match="ratings"):
        Database.open(url)
    assert tables_in(file_of(url)) == {"ratings"}


def test_another_programs_alembic_version_in_the_same_database_is_untouched(url):
    file_of(url).parent.mkdir()
    with closing(sqlite3.connect(file_of(url))) as connection, connection:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES ('theirs')")
    opened = Database.open(url)
    with opened.session() as session:
        found = session.connection().exec_driver_sql("SELECT version_num FROM alembic_version")
        assert found.scalars().all() == ["theirs"]
        assert inspect(session.connection()).has_table("generations")


@pytest.mark.parametrize("content", [b"this is not a database " * 400, b"\0" * 50 + b"x" * 8000])
def test_a_file_that_is_not_a_database_is_named_and_not_changed(url, content):
    file_of(url).parent.mkdir()
    file_of(url).write_bytes(content)
    with pytest.raises(StorageError) as caught:
        Database.open(url)
    assert str(file_of(url)) in str(caught.value)
    assert "Move it away" in str(caught.value)
    assert file_of(url).read_bytes() == content


def test_a_damaged_database_is_named_and_not_deleted(url):
    opened = Database.open(url)
    with opened.session() as session:
        session.add_all(model_file(f"/m/{n}.safetensors", digest="x" * 500) for n in range(200))
    opened.close()
    content = bytearray(file_of(url).read_bytes())
    content[8192:] = os.urandom(len(content) - 8192)
    file_of(url).write_bytes(content)
    with pytest.raises(StorageError, match="damaged"), Database.open(url).session() as session:
        session.scalars(select(ModelFile)).all()
    assert file_of(url).exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "occupied").write_text("a file, not a folder")
    with pytest.raises(StorageError, match=r"occupied.*writable"):
        Database.open(f"sqlite:///{tmp_path / 'occupied' / 'pack.db'}")


def test_a_path_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / "pack.db").mkdir()
    with pytest.raises(StorageError, match=r"pack\.db cannot be used"):
        Database.open(f"sqlite:///{tmp_path / 'pack.db'}")


@pytest.mark.skipif(
    os.name == "nt" or os.geteuid() == 0, reason="permissions do not bind an administrator"
)
def test_a_folder_without_write_permission_is_named(tmp_path):
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(StorageError, match=r"pack\.db.*writable"):
            Database.open(f"sqlite:///{tmp_path / 'pack.db'}")
    finally:
        tmp_path.chmod(0o755)


def test_a_full_disk_is_an_error_that_says_so_and_loses_nothing(url):
    opened = Database.open(url)
    with opened.session() as session:
        session.add(model_file("/m/kept.safetensors"))
    with pytest.raises(StorageError, match=r"full.*Free space"), opened.session() as session:
        connection = session.connection()
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        session.add(model_file("/m/large.safetensors", digest="x" * 100_000))
    opened.close()
    with Database.open(url).session() as session:
        assert session.scalars(select(ModelFile.path)).all() == ["/m/kept.safetensors"]


def test_a_database_held_by_another_program_is_an_error_that_says_so(url):
    opened = Database.open(f"{url}?timeout=0.05")
    with closing(sqlite3.connect(file_of(url))) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match="Another process"), opened.session() as session:
            session.add(model_file("/m/a.safetensors"))
    with opened.session() as session:
        session.add(model_file("/m/a.safetensors"))


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_database_in_memory_is_refused(url):
    with pytest.raises(StorageError, match="memory"):
        Database.open(url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "pack.db",
        "nothing+known://host/name",
        "postgresql://host:port/name",
        "sqlite:///a.db?timeout=soon",
    ],
)
def test_an_unusable_url_is_refused(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError, match="sqlite:///"):
        Database.open(url)


def test_a_password_is_never_in_the_message():
    with pytest.raises(StorageError) as caught:
        Database.open("nothing+known://user:hunter2@host/name")
    assert "hunter2" not in str(caught.value)


def test_what_an_older_version_knew_of_files_stays(url):
    opened = Database.open(url)
    with opened.session() as session:
        database.migrate(session.connection(), "0001")
        session.connection().exec_driver_sql(
            "INSERT INTO model_files (path, folder, size, mtime_ns, sha256, digest_version) "
            "VALUES ('/m/a.safetensors', 'loras', 5, 7, 'ab', 1)"
        )
    opened.close()
    with Database.open(url).session(read_only=True) as session:
        row = session.get_one(ModelFile, "/m/a.safetensors")
    assert (row.size, row.mtime_ns, row.sha256, row.merged) == (5, 7, "ab", None)
