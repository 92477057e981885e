"""Which rated settings count for the next plan."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone

import pytest
from intelligent_generation.core.learning import rated_settings, record_rating
from intelligent_generation.core.storage import Database
from intelligent_generation.core.storage.tables import GenerationRow
from intelligent_generation.core.tuning import RatedSettings

NOON = datetime(2026, 11, 1, 12, tzinfo=timezone.utc)
SETTINGS = {"steps": 30, "cfg": 8.0, "sampler": "dpmpp_2m", "scheduler": "karras"}


@pytest.fixture
def database(tmp_path):
    opened = Database.open(f"sqlite:///{tmp_path / 'pack.db'}")
    yield opened
    opened.close()


def add(
    database: Database,
    name: str,
    rating: int,
    *,
    family: str = "sdxl",
    variant: str | None = None,
    style: str = "ANIME",
    priority: str = "BALANCED",
    image: str | None = None,
    after: int = 0,
    **settings,
) -> None:
    plan = {
        "model": {"variant": variant},
        "analysis": {"intent": {"style": style}},
        "sampling": {**SETTINGS, "priority": priority, **settings},
    }
    with database.session() as session:
        session.add(
            GenerationRow(
                id=name, created_at=NOON, schema_version=1, pack_version="0.1.0", mode="AUTO",
                prompt="", family=family, seed="0", image_key=image or name,
                record=json.dumps({"plan": plan}),
            )
        )  # fmt: skip
    record_rating(database, name, rating, now=NOON + timedelta(minutes=after))


def asked(database: Database, **changes) -> tuple[RatedSettings, ...]:
    kind = {"family": "sdxl", "variant": None, "style": "ANIME", "priority": "BALANCED"}
    return rated_settings(database, **(kind | changes))


def test_rated_settings_come_back_newest_first(database):
    add(database, "old", 2, cfg=4.0)
    add(database, "new", 5, steps=25, after=1)
    assert asked(database) == (
        RatedSettings(**{**SETTINGS, "steps": 25}, rating=5),
        RatedSettings(**{**SETTINGS, "cfg": 4.0}, rating=2),
    )


@pytest.mark.parametrize(
    "other",
    [
        {"family": "sd15"},
        {"variant": "lightning"},
        {"style": "PHOTOREAL"},
        {"priority": "QUALITY"},
    ],
)
def test_those_of_another_kind_of_image_teach_nothing(database, other):
    add(database, "other", 5, **other)
    assert asked(database) == ()
    assert len(asked(database, **other)) == 1


def test_the_same_image_made_twice_counts_once(database):
    add(database, "first", 5, image="same")
    add(database, "again", 5, image="same", after=1)
    assert len(asked(database)) == 1


def test_rating_again_replaces(database):
    add(database, "one", 5)
    record_rating(database, "one", 1, now=NOON + timedelta(minutes=5))
    assert [settings.rating for settings in asked(database)] == [1]
