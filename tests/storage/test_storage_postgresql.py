"""What the tests beside this one hold of SQLite, on a PostgreSQL server.

Run when INTELLIGENT_GENERATION_TEST_POSTGRESQL_URL names a database, such as
`postgresql+psycopg://user@127.0.0.1/name`, whose user may create schemas. Each test has a schema
of its own, and drops it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from intelligent_generation.core.catalog import Catalog, DiskCache, Edit
from intelligent_generation.core.hubs import RemoteFile, RemoteVersion, SearchQuery
from intelligent_generation.core.hubs.entries import MinedSettings
from intelligent_generation.core.plan import FileRef
from intelligent_generation.core.storage import Database, database
from intelligent_generation.core.storage.tables import Base, ModelFile
from intelligent_generation.core.tuning import cost_revision, measured_runs
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.engine import make_url

SERVER = os.environ.get("INTELLIGENT_GENERATION_TEST_POSTGRESQL_URL", "")
pytestmark = pytest.mark.skipif(
    not SERVER, reason="INTELLIGENT_GENERATION_TEST_POSTGRESQL_URL names no PostgreSQL database"
)
NOW = datetime(2026, 8, 1, 12, 30, tzinfo=timezone.utc)
OPEN = (
    "import sys; from intelligent_generation.core.storage import Database as D; D.open(sys.argv[1])"
)


@pytest.fixture
def url() -> Iterator[str]:
    schema = f"ig_{uuid.uuid4().hex[:12]}"
    admin = create_engine(SERVER, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE SCHEMA {schema}"))
    address = make_url(SERVER).update_query_dict({"options": f"-csearch_path={schema}"})
    yield address.render_as_string(hide_password=False)
    with admin.connect() as connection:
        connection.execute(text(f"DROP SCHEMA {schema} CASCADE"))
    admin.dispose()


@pytest.fixture
def opened(url: str) -> Iterator[Database]:
    database = Database.open(url)
    yield database
    database.close()


def tables_in(opened: Database) -> set[str]:
    with opened.session(read_only=True) as session:
        return set(inspect(session.connection()).get_table_names())


def test_the_migrations_and_the_tables_agree(opened: Database) -> None:
    assert tables_in(opened) == {*Base.metadata.tables, database.VERSION_TABLE}
    with opened.session() as session:
        context = MigrationContext.configure(
            session.connection(),
            opts={"version_table": database.VERSION_TABLE, "compare_server_default": True},
        )
        assert compare_metadata(context, Base.metadata) == []


def test_every_migration_goes_down_and_up_again_with_rows_in_it(opened: Database) -> None:
    with opened.session() as session:
        session.add(
            ModelFile(path="/m/é.safetensors", folder="loras", size=2**40, mtime_ns=2**60,
                      digest="{}", digest_version=1)
        )  # fmt: skip
    for target in ("0002", "0001", database.HEAD_REVISION):
        with opened.session() as session:
            database.migrate(session.connection(), target)
    with opened.session(read_only=True) as session:
        assert session.get_one(ModelFile, "/m/é.safetensors").size == 2**40
    with opened.session() as session:
        database.migrate(session.connection(), "base")
    assert tables_in(opened) == {database.VERSION_TABLE}


def test_processes_that_open_the_same_new_database_at_once_all_succeed(url: str) -> None:
    started = [subprocess.Popen([sys.executable, "-c", OPEN, url], stderr=subprocess.PIPE)
               for _ in range(3)]  # fmt: skip
    ends = [(process.communicate(timeout=120)[1], process.returncode) for process in started]
    assert [code for _, code in ends] == [0, 0, 0], ends


def version(id: str, **fields: object) -> RemoteVersion:
    file = RemoteFile("civitai", "https://x/1", "ink.safetensors", 5, fields.pop("sha256", None))
    return RemoteVersion(
        **{"hub": "civitai", "model_id": "1", "version_id": id, "name": "Ink 水彩", "kind": "lora",
           "base_model": "SD 1.5", "family": "sd15", "files": (file,), "tags": ("style", "100%_a"),
           "downloads": 7, **fields}
    )  # fmt: skip


def test_the_catalog_scans_hashes_edits_finds_and_follows(opened: Database, tmp_path: Path) -> None:
    catalog = Catalog(opened, lambda folder: [tmp_path / folder], now=lambda: NOW)
    path = tmp_path / "loras" / "ink.safetensors"
    path.parent.mkdir()
    path.write_bytes(_lora())
    path.with_name("ink.civitai.info").write_text('{"trainedWords": ["inkwash"]}')
    report = catalog.scan()
    assert (report.files, report.read, report.unreadable) == (1, 1, 0)
    hashes = catalog.hashes(path)
    catalog.remember([version("2", sha256=hashes.sha256), version("3", downloads=None)])
    catalog.registry.set_mined("civitai", "1", "2", MinedSettings(4, weight=0.65))
    catalog.edit(FileRef(folder="loras", name="ink.safetensors"), Edit(("fog",), None))
    (entry,) = catalog.loras().entries
    assert [word.text for word in entry.trigger_words] == ["fog"]
    assert entry.recommended_weight == 0.65 and entry.downloads == 7
    moved = path.with_name("renamed.safetensors")
    path.rename(moved)
    assert catalog.scan().moved == 1
    (entry,) = catalog.loras().entries
    assert entry.file.name == "renamed.safetensors" and entry.trigger_words[0].text == "fog"
    for query in (SearchQuery("水彩"), SearchQuery(tags=("100%_a",)), SearchQuery("ink")):
        found = catalog.registry.find(query._replace(kind="lora"))
        assert [one.version_id for one in found] == ["2", "3"], query
    assert catalog.registry.find(SearchQuery("%")) == catalog.registry.find(SearchQuery())
    cache = DiskCache(opened, catalog, now=lambda: NOW + timedelta(days=1))
    cache.add(moved, "loras", version("2", sha256=hashes.sha256), hashes.sha256)
    cache.touch([moved])
    (file,) = cache.files()
    assert file.last_used_at == NOW + timedelta(days=1)


def test_threads_that_learn_the_same_at_once_do_not_fail(opened: Database, tmp_path: Path) -> None:
    catalog = Catalog(opened, lambda folder: [tmp_path / folder], now=lambda: NOW)
    failures: list[BaseException] = []

    def learn() -> None:
        try:
            for id in range(5):
                catalog.remember([version(str(id))])
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=learn) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(catalog.registry.versions("civitai", "1")) == 5
    assert (measured_runs(opened, "cpu", "m"), cost_revision(opened)) == ((), "0")


def _lora() -> bytes:
    head = (b'{"__metadata__":{"ss_base_model_version":"sd_v1"},'
            b'"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight":'
            b'{"dtype":"F16","shape":[2,2],"data_offsets":[0,8]}}')  # fmt: skip
    return len(head).to_bytes(8, "little") + head + b"\0" * 8
