from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from intelligent_generation.core.errors import SaveError, StorageError
from intelligent_generation.core.generating.png import RECORD_KEY, read_png_text
from intelligent_generation.core.generating.records import (
    FOREIGN_OWNER_PATIENCE,
    Owner,
    SaveLocation,
    load_generation,
    recent,
    recover,
    save_generation,
)
from intelligent_generation.core.plan import Generation
from intelligent_generation.core.storage import Database
from intelligent_generation.core.storage.tables import GenerationRow, LoraDecision, SaveIntent
from PIL import Image
from sqlalchemy import select, update

NOON = datetime(2026, 8, 1, 12, tzinfo=timezone.utc)
HOST_TEXT = {"prompt": json.dumps({"1": "灯台"}), "workflow": json.dumps({"nodes": []})}

# Saves two images in a process of its own; `step` is where it dies, is refused, or reports.
SAVE = """
import os, sys, json
from datetime import datetime, timezone
from pathlib import Path
import numpy as np
from intelligent_generation.core.generating.records import SaveLocation, save_generation
from intelligent_generation.core.plan import Generation
from intelligent_generation.core.storage import Database

url, directory, record, how = sys.argv[1:]
pixels = np.random.default_rng(1).integers(0, 256, (2, 400, 400, 3), dtype=np.uint8)

def die(step):
    if step == how:
        os._exit(9)

def wait(step):
    print(step, flush=True)
    sys.stdin.readline()

database = Database.open(url)
if how == "small files only":
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
saved = save_generation(
    database,
    Generation.from_json(Path(record).read_text(encoding="utf-8")),
    list(pixels) if how != "small files only" else [pixels[0] * 0, pixels[1]],
    SaveLocation(Path(directory), "", "output", "image", 1),
    {},
    embed_metadata=True,
    now=datetime.now(timezone.utc),
    checkpoint=wait if how == "wait" else die,
)
print(json.dumps([image.filename for image in saved.images]), flush=True)
"""


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'pack.db'}"


@pytest.fixture
def database(url: str):
    opened = Database.open(url)
    yield opened
    opened.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "output" / "day 1"
    made.mkdir(parents=True)
    return made


@pytest.fixture
def save(database, folder) -> Callable[..., Generation]:
    def save_in_folder(generation: Generation, *, images: int = 1, **changes) -> Generation:
        arguments = {
            "location": SaveLocation(folder, "day 1", "output", "image", 1),
            "host_text": HOST_TEXT,
            "embed_metadata": True,
            "now": NOON,
            **changes,
        }
        pixels = np.random.default_rng(2).integers(0, 256, (images, 16, 24, 3), dtype=np.uint8)
        return save_generation(database, generation, list(pixels), **arguments)

    return save_in_folder


@pytest.fixture
def run_save(url, folder, tmp_path, make_generation):
    def start(how: str, id: str = "crashed") -> subprocess.Popen[str]:
        record = tmp_path / f"{id}.json"
        record.write_text(make_generation(id).to_json(), encoding="utf-8")
        return subprocess.Popen(
            [sys.executable, "-c", SAVE, url, str(folder), str(record), how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def intents(database: Database) -> list[str]:
    with database.session(read_only=True) as session:
        return list(session.scalars(select(SaveIntent.generation_id)))


def assert_consistent(database: Database, folder: Path) -> None:
    """No image without a record, no record of a missing image, nothing left over."""
    assert intents(database) == []
    recorded = [image.filename for one in recent(database, 100) for image in one.images]
    assert files(folder) == sorted(recorded)
    for name in recorded:
        with Image.open(folder / name) as image:
            image.load()


# --------------------------------------------------------------------------- saving


def test_images_and_record_are_saved(save, database, folder, make_generation):
    saved = save(make_generation(), images=3)
    assert [image.model_dump() for image in saved.images] == [
        {"filename": f"image_0000{n}_.png", "subfolder": "day 1", "type": "output"}
        for n in (1, 2, 3)
    ]
    assert load_generation(database, "g1") == saved
    assert_consistent(database, folder)


def test_the_png_holds_the_record_and_the_hosts_text(save, folder, make_generation):
    saved = save(make_generation(), images=2)
    for image in saved.images:
        text = read_png_text((folder / image.filename).read_bytes())
        assert text == {**HOST_TEXT, RECORD_KEY: saved.to_json()}


def test_without_metadata_the_png_holds_no_text(save, database, folder, make_generation):
    saved = save(make_generation(), embed_metadata=False)
    assert read_png_text((folder / saved.images[0].filename).read_bytes()) == {}
    assert load_generation(database, "g1") == saved


def test_saving_off_stores_the_record_alone(save, database, folder, make_generation):
    saved = save(make_generation(), location=None)
    assert saved.images == ()
    assert load_generation(database, "g1") == saved
    assert files(folder) == []


def test_what_can_be_searched_later(save, database, make_generation):
    save(make_generation())
    with database.session(read_only=True) as session:
        row = session.get_one(GenerationRow, "g1")
        loras = session.scalars(select(LoraDecision).order_by(LoraDecision.position)).all()
    assert (row.created_at, row.mode, row.family, row.seed) == (
        NOON,
        "AUTO",
        "sd15",
        str(2**64 - 1),
    )
    assert row.prompt == "灯台, crépuscule"
    assert [
        (lora.position, lora.name, lora.sha256, lora.model_strength, lora.clip_strength)
        for lora in loras
    ] == [
        (0, "styles/ink.safetensors", "a" * 64, 0.8, 0.7),
        (1, "Ānime.safetensors", None, -1.0, 0.0),
    ]
    assert [(lora.origin, lora.confidence) for lora in loras] == [
        ("recommended", 0.9),
        ("prompt_tag", 1.0),
    ]


def test_the_newest_records_come_first(save, database, make_generation):
    for id, moment in [
        ("b", "2026-08-01T12:00:00Z"),
        ("a", "2026-08-01T11:59:59+00:00"),
        ("c", "2026-08-01T13:30:00+02:00"),
    ]:
        save(make_generation(id, created_at=moment), location=None)
    assert [one.id for one in recent(database, 10)] == ["b", "a", "c"]
    assert [one.id for one in recent(database, 2)] == ["b", "a"]
    assert load_generation(database, "unknown") is None
    assert load_generation(database, " a\n") is not None


def test_the_images_number_goes_into_the_name(save, folder, make_generation):
    save(
        make_generation(),
        images=2,
        location=SaveLocation(folder, "day 1", "temp", "x%batch_num%", 9),
    )
    assert files(folder) == ["x0_00009_.png", "x1_00010_.png"]


def test_names_that_are_taken_are_passed_over(save, database, folder, make_generation):
    (folder / "image_00002_.png").write_bytes(b"theirs")
    saved = save(make_generation(), images=2)
    assert [image.filename for image in saved.images] == ["image_00003_.png", "image_00004_.png"]
    assert (folder / "image_00002_.png").read_bytes() == b"theirs"
    assert load_generation(database, "g1") == saved


def test_a_name_taken_by_another_process_at_the_last_moment_is_not_overwritten(
    save, database, folder, make_generation
):
    def take(step: str) -> None:
        if step == "declared" and not (folder / "image_00002_.png").exists():
            (folder / "image_00002_.png").write_bytes(b"theirs")

    saved = save(make_generation(), images=2, checkpoint=take)
    assert [image.filename for image in saved.images] == ["image_00003_.png", "image_00004_.png"]
    assert (folder / "image_00002_.png").read_bytes() == b"theirs"
    assert len(files(folder)) == 3
    embedded = read_png_text((folder / "image_00003_.png").read_bytes())[RECORD_KEY]
    assert Generation.from_json(embedded) == saved == load_generation(database, "g1")
    assert intents(database) == []


def test_two_processes_that_save_at_once_take_different_names(
    run_save, database, folder, make_generation
):
    both = [run_save("wait", id) for id in ("one", "two")]
    steps = [process.stdout.readline() for process in both]
    assert steps == ["declared\n", "declared\n"]
    intended = [json.loads(digests) for digests in every_digest(database)]
    assert list(intended[0]) == list(intended[1])
    for process in both:
        out, err = process.communicate("\n" * 20, timeout=60)
        assert process.returncode == 0, err
        assert len(json.loads(out.splitlines()[-1])) == 2
    assert len(files(folder)) == 4
    assert_consistent(database, folder)


def every_digest(database: Database) -> list[str]:
    with database.session(read_only=True) as session:
        return list(session.scalars(select(SaveIntent.digests)))


# --------------------------------------------------------------------------- failing


@pytest.mark.parametrize(
    ("step", "kept"),
    [
        ("declared", []),
        ("reserved", []),
        ("written image_00001_.png", []),
        ("named image_00001_.png", ["image_00001_.png"]),
        ("written image_00002_.png", ["image_00001_.png"]),
        ("named image_00002_.png", ["image_00001_.png", "image_00002_.png"]),
        ("complete", ["image_00001_.png", "image_00002_.png"]),
    ],
)
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_keeps_and_records_what_is_complete(
    save, database, folder, make_generation, step, kept, error
):
    def interrupt(at: str) -> None:
        if at == step:
            raise error

    with pytest.raises(error):
        save(make_generation(), images=2, checkpoint=interrupt)
    assert files(folder) == kept
    record = load_generation(database, "g1")
    assert (record is None) == (kept == [])
    assert_consistent(database, folder)


def test_a_missing_folder_is_named_and_nothing_is_recorded(save, database, folder, make_generation):
    away = folder / "not there"
    with pytest.raises(SaveError, match=r"not there.*No file was left"):
        save(make_generation(), location=SaveLocation(away, "", "output", "image", 1))
    assert recent(database, 1) == ()
    assert_consistent(database, folder)


def test_a_name_too_long_for_the_disk_is_told(save, database, folder, make_generation):
    with pytest.raises(SaveError, match="filename_prefix"):
        save(make_generation(), location=SaveLocation(folder, "", "output", "n" * 300, 1))
    assert_consistent(database, folder)


@pytest.mark.skipif(os.name == "nt", reason="Windows limits the whole path")
def test_the_longest_name_the_disk_can_hold_is_saved(save, database, folder, make_generation):
    stem = "n" * (255 - len("_00001_.png"))
    save(make_generation(), location=SaveLocation(folder, "", "output", stem, 1))
    assert files(folder) == [f"{stem}_00001_.png"]
    assert_consistent(database, folder)


@pytest.mark.skipif(
    os.name == "nt" or os.geteuid() == 0, reason="permissions do not bind an administrator"
)
def test_a_folder_without_write_permission_is_named(save, database, folder, make_generation):
    folder.chmod(0o555)
    try:
        with pytest.raises(SaveError, match=r"day 1.*writable"):
            save(make_generation())
    finally:
        folder.chmod(0o755)
    assert_consistent(database, folder)


@pytest.fixture
def folder_sync_fails(monkeypatch) -> Callable[[int], None]:
    """Have the system refuse to flush folders, with this error."""
    sync = os.fsync

    def fail_with(number: int) -> None:
        def fsync(descriptor: int) -> None:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(number, os.strerror(number))
            sync(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)

    return fail_with


@pytest.mark.skipif(os.name == "nt", reason="Windows flushes no folders")
def test_a_file_system_that_cannot_flush_folders_will_do(
    save, database, folder, make_generation, folder_sync_fails
):
    folder_sync_fails(errno.EINVAL)
    save(make_generation())
    assert files(folder) == ["image_00001_.png"]
    assert_consistent(database, folder)


@pytest.mark.skipif(os.name == "nt", reason="Windows flushes no folders")
def test_a_disk_that_fails_to_flush_a_folder_is_told(
    save, database, folder, make_generation, folder_sync_fails
):
    folder_sync_fails(errno.EIO)
    with pytest.raises(SaveError, match=r"Saved before that: image_00001_\.png"):
        save(make_generation())
    assert_consistent(database, folder)


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot limit the size of files")
def test_a_full_disk_is_told_and_leaves_only_what_was_complete(run_save, database, folder):
    # The limit lets the first image, all black, through and stops the second, all noise, midway.
    process = run_save("small files only")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "SaveError" in err
    assert f"could not be saved in {folder}" in err
    assert "Saved before that: image_00001_.png. Free space" in err
    assert files(folder) == ["image_00001_.png"]
    record = load_generation(database, "crashed")
    assert record is not None
    assert [image.filename for image in record.images] == ["image_00001_.png"]
    assert_consistent(database, folder)


def test_a_database_that_fails_first_leaves_no_file(save, folder, make_generation, database):
    save(make_generation())
    before = files(folder)
    with database.session() as session:
        session.connection().exec_driver_sql("DROP TABLE save_intents")
    with pytest.raises(StorageError):
        save(make_generation("g2"))
    assert files(folder) == before


def test_a_database_that_fails_last_is_put_right_by_the_next_start(
    save, database, folder, make_generation
):
    hidden = "ALTER TABLE generations RENAME TO {}"

    def hide(step: str) -> None:
        if step == "complete":
            with database.session() as session:
                session.connection().exec_driver_sql(hidden.format("away"))

    with pytest.raises(StorageError):
        save(make_generation(), images=2, checkpoint=hide)
    assert len(files(folder)) == 2
    with database.session() as session:
        session.connection().exec_driver_sql("ALTER TABLE away RENAME TO generations")
    (result,) = recover(database, now=NOON, alive=lambda owner: False)
    assert result.kept == ("image_00001_.png", "image_00002_.png")
    assert_consistent(database, folder)


# --------------------------------------------------------------------------- crashing


@pytest.mark.parametrize(
    ("step", "kept"),
    [
        ("declared", ()),
        ("reserved", ()),
        ("written image_00001_.png", ()),
        ("named image_00001_.png", ("image_00001_.png",)),
        ("written image_00002_.png", ("image_00001_.png",)),
        ("named image_00002_.png", ("image_00001_.png", "image_00002_.png")),
        ("complete", ("image_00001_.png", "image_00002_.png")),
    ],
)
def test_what_a_crash_left_is_put_right(run_save, database, folder, caplog, step, kept):
    process = run_save(step)
    process.communicate(timeout=60)
    assert process.returncode == 9
    assert intents(database) == ["crashed"]
    assert load_generation(database, "crashed") is None

    (result,) = recover(database, now=datetime.now(timezone.utc))
    assert (result.generation_id, result.kept) == ("crashed", kept)
    assert set(result.kept) | set(result.dropped) == {"image_00001_.png", "image_00002_.png"}
    record = load_generation(database, "crashed")
    assert tuple(i.filename for i in record.images if record) == kept if record else kept == ()
    assert_consistent(database, folder)
    assert "crashed" in caplog.text

    assert recover(database, now=datetime.now(timezone.utc)) == ()


def test_a_process_killed_in_the_middle_of_writing_leaves_no_torn_image(run_save, database, folder):
    process = run_save("wait")
    assert process.stdout.readline() == "declared\n"
    for step in ("reserved", "written image_00001_.png"):
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == f"{step}\n"
    process.kill()
    process.communicate(timeout=60)
    (part,) = folder.glob(".*.part")
    part.write_bytes(part.read_bytes()[:1000])

    (result,) = recover(database, now=datetime.now(timezone.utc))
    assert result.kept == ()
    assert files(folder) == []
    assert_consistent(database, folder)


def test_the_save_of_a_living_process_is_left_alone(run_save, database, folder):
    process = run_save("wait")
    assert process.stdout.readline() == "declared\n"
    assert recover(database, now=datetime.now(timezone.utc)) == ()
    assert intents(database) == ["crashed"]
    _, err = process.communicate("\n" * 20, timeout=60)
    assert process.returncode == 0, err
    assert_consistent(database, folder)


def crash(save, generation: Generation, step: str, database: Database, **owner) -> None:
    """Leaves behind what a crash at `step` leaves, with another owner."""

    class Dead(BaseException):
        pass

    kept: list[SaveIntent] = []
    folder_then: dict[Path, bytes] = {}

    def stop(at: str) -> None:
        if at == step:
            with database.session(read_only=True) as session:
                kept.append(session.get_one(SaveIntent, generation.id))
            folder_then.update({p: p.read_bytes() for p in Path(kept[0].directory).iterdir()})
            raise Dead

    with pytest.raises(Dead):
        save(generation, images=2, checkpoint=stop)
    with database.session() as session:
        for table, key in (
            (LoraDecision, LoraDecision.generation_id),
            (GenerationRow, GenerationRow.id),
        ):
            for row in session.scalars(select(table).where(key == generation.id)):
                session.delete(row)
            session.flush()
        fields = {c.key: getattr(kept[0], c.key) for c in SaveIntent.__table__.columns}
        session.add(SaveIntent(**{**fields, **owner}))
    for path, content in folder_then.items():
        path.write_bytes(content)


def test_a_process_id_that_was_used_again_is_not_the_owner(save, database, folder, make_generation):
    crash(save, make_generation(), "named image_00001_.png", database)
    assert recover(database, now=NOON) == ()  # this very process lives
    with database.session() as session:
        session.execute(update(SaveIntent).values(owner_started=1.0))
    (result,) = recover(database, now=NOON)
    assert result.kept == ("image_00001_.png",)
    assert_consistent(database, folder)


def test_another_computers_save_is_settled_only_when_old_and_its_files_are_here(
    save, database, folder, make_generation
):
    crash(save, make_generation(), "reserved", database, owner_host="elsewhere")
    soon, later = NOON + timedelta(minutes=1), NOON + 2 * FOREIGN_OWNER_PATIENCE

    def never_asked(owner: Owner) -> bool:
        raise AssertionError(owner)

    assert recover(database, now=soon, alive=never_asked) == ()
    away = folder.rename(folder.parent / "away")
    assert recover(database, now=later, alive=never_asked) == ()
    folder.mkdir()
    assert recover(database, now=later, alive=never_asked) == ()
    folder.rmdir()
    away.rename(folder)
    (result,) = recover(database, now=later, alive=never_asked)
    assert result.kept == ()
    assert_consistent(database, folder)


def test_a_folder_that_is_away_for_now_waits(save, database, folder, make_generation):
    crash(save, make_generation(), "complete", database)
    away = folder.rename(folder.parent / "away")
    assert recover(database, now=NOON, alive=lambda owner: False) == ()
    away.rename(folder)
    (result,) = recover(database, now=NOON, alive=lambda owner: False)
    assert len(result.kept) == 2
    assert_consistent(database, folder)


def test_a_file_that_someone_put_under_a_planned_name_is_not_touched(
    save, database, folder, make_generation
):
    crash(save, make_generation(), "declared", database)
    (folder / "image_00001_.png").write_bytes(b"theirs")
    (result,) = recover(database, now=NOON, alive=lambda owner: False)
    assert result.kept == ()
    assert files(folder) == ["image_00001_.png"]
    assert load_generation(database, "g1") is None
    assert intents(database) == []


def test_one_save_that_cannot_be_put_right_does_not_stop_the_others(
    save, database, folder, make_generation, caplog
):
    crash(save, make_generation("a"), "complete", database)
    (folder / ".a-0.part").mkdir()  # cannot be removed as a file
    crash_at = folder.parent / "other"
    crash_at.mkdir()
    crash(
        lambda *args, **kw: save(
            *args, location=SaveLocation(crash_at, "", "output", "image", 1), **kw
        ),
        make_generation("b"),
        "complete",
        database,
    )
    results = recover(database, now=NOON, alive=lambda owner: False)
    assert [result.generation_id for result in results] == ["b"]
    assert "next start tries again" in caplog.text
    (folder / ".a-0.part").rmdir()
    results = recover(database, now=NOON, alive=lambda owner: False)
    assert [result.generation_id for result in results] == ["a"]
