from __future__ import annotations

import subprocess
import sys
import threading
from datetime import datetime, timedelta, timezone

import pytest
from intelligent_generation.core.errors import SettingError, UnknownGenerationError
from intelligent_generation.core.learning import (
    Rating,
    rating_of,
    record_rating,
    revision,
)
from intelligent_generation.core.storage import Database
from intelligent_generation.core.storage.tables import GenerationRow, RatingRow
from sqlalchemy import func, select

NOON = datetime(2026, 8, 1, 12, tzinfo=timezone.utc)


@pytest.fixture
def database(tmp_path):
    opened = Database.open(f"sqlite:///{tmp_path / 'pack.db'}")
    with opened.session() as session:
        session.add_all(
            GenerationRow(
                id=name,
                created_at=NOON,
                schema_version=1,
                pack_version="0.1.0",
                mode="AUTO",
                prompt="a lighthouse",
                family="sd15",
                seed=str(2**64 - 1),
                image_key="same" if name in ("g6", "g7") else name,
                record="{}",
            )
            for name in ("first", "second", *(f"g{n}" for n in range(8)))
        )
    yield opened
    opened.close()


def stored(database: Database) -> int:
    with database.session(read_only=True) as session:
        return session.scalar(select(func.count()).select_from(RatingRow)) or 0


@pytest.mark.parametrize("rating", [1, 2, 3, 4, 5])
def test_a_rating_is_stored_with_its_comment_and_time(database, rating):
    result = record_rating(database, " first ", rating, " nice light\n", now=NOON)
    assert result.stored
    assert rating_of(database, "first") == Rating(rating, "nice light", NOON)
    assert rating_of(database, "second") is None


def test_rating_twice_counts_once_and_the_latest_holds(database):
    record_rating(database, "first", 2, "too dark", now=NOON)
    result = record_rating(database, "first", 5, now=NOON + timedelta(minutes=1))
    assert "It was 2 before" in result.message
    assert rating_of(database, "first") == Rating(5, "", NOON + timedelta(minutes=1))
    assert stored(database) == 1


def test_zero_stores_nothing_and_keeps_an_earlier_rating(database):
    result = record_rating(database, "first", 0, now=NOON)
    assert not result.stored
    assert stored(database) == 0
    record_rating(database, "first", 4, now=NOON)
    record_rating(database, "first", 0, now=NOON)
    assert rating_of(database, "first") == Rating(4, "", NOON)


def test_zero_needs_no_known_generation(database):
    assert not record_rating(database, "", 0, now=NOON).stored


def test_a_comment_without_a_rating_is_not_stored_and_that_is_said(database):
    result = record_rating(database, "first", 0, "lovely", now=NOON)
    assert not result.stored
    assert "comment was not stored" in result.message
    assert "comment" not in record_rating(database, "first", 0, "  ", now=NOON).message


@pytest.mark.parametrize("rating", [-1, 6, 100, 3.5, True, "5", None])
def test_any_other_rating_is_refused(database, rating):
    with pytest.raises(SettingError, match=r"1 \(bad\) to 5"):
        record_rating(database, "first", rating, now=NOON)
    assert stored(database) == 0


@pytest.mark.parametrize("name", ["unknown", "", "First"])
def test_an_unknown_generation_is_named(database, name):
    with pytest.raises(UnknownGenerationError, match=rf"'{name}'.*Copy it"):
        record_rating(database, name, 3, now=NOON)
    assert stored(database) == 0


def test_the_revision_changes_with_every_change_and_only_then(database):
    seen = [revision(database)]
    for name, rating, comment in [
        ("first", 3, ""),
        ("second", 3, ""),
        ("first", 4, ""),
        ("first", 4, "better"),
        ("second", 1, ""),
        ("first", 3, ""),
    ]:
        record_rating(database, name, rating, comment, now=NOON)
        seen.append(revision(database))
    assert len(set(seen)) == len(seen)

    record_rating(database, "first", 3, now=NOON + timedelta(days=1))
    record_rating(database, "first", 0, "not stored", now=NOON)
    assert revision(database) == seen[-1]


def test_the_same_image_rated_again_the_same_teaches_nothing_new(database):
    record_rating(database, "g6", 4, now=NOON)
    before = revision(database)
    record_rating(database, "g7", 4, "a copy", now=NOON)
    assert revision(database) == before
    assert rating_of(database, "g7") == Rating(4, "a copy", NOON)
    record_rating(database, "g7", 2, now=NOON)
    assert revision(database) != before


def test_the_revision_does_not_depend_on_the_clock(database):
    record_rating(database, "first", 3, now=NOON)
    before = revision(database)
    record_rating(database, "second", 3, now=NOON - timedelta(days=1))
    assert revision(database) != before


def test_raters_at_the_same_moment_are_all_counted(database):
    start = threading.Barrier(8)

    def rate(number: int) -> None:
        start.wait()
        for name in (f"g{number}", "first"):
            record_rating(database, name, 1 + number % 5, f"from {number}", now=NOON)

    threads = [threading.Thread(target=rate, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [rating_of(database, f"g{n}") for n in range(8)] == [
        Rating(1 + n % 5, f"from {n}", NOON) for n in range(8)
    ]
    assert stored(database) == 9
    assert revision(database) == "16"


def test_ratings_survive_closing(database, tmp_path):
    record_rating(database, "first", 5, "für später 灯台", now=NOON)
    before = revision(database)
    database.close()
    again = Database.open(f"sqlite:///{tmp_path / 'pack.db'}")
    assert rating_of(again, "first") == Rating(5, "für später 灯台", NOON)
    assert revision(again) == before


def test_importing_the_room_loads_no_sqlalchemy():
    code = "import sys, intelligent_generation.core.learning; print('sqlalchemy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
