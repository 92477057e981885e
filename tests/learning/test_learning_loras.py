"""Which LoRAs of rated images come back, with the prompt they were rated for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from intelligent_generation.core.learning import rated_loras, record_rating
from intelligent_generation.core.recommending import RatedLora
from intelligent_generation.core.storage import Database
from intelligent_generation.core.storage.tables import GenerationRow

NOON = datetime(2026, 11, 1, 12, tzinfo=timezone.utc)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database.open(f"sqlite:///{tmp_path / 'pack.db'}")
    yield opened
    opened.close()


def add(
    database: Database, name: str, rating: int, *loras: str, family: str = "sdxl", image: str = ""
) -> None:
    record = {
        "applied": [{"file": {"folder": "loras", "name": lora}} for lora in loras],
        "plan": {
            "analysis": {
                "intent": {"style": "ANIME"},
                "concepts": [{"category": "setting", "text": "Castle", "weight": 1.0}],
            }
        },
    }
    with database.session() as session:
        session.add(
            GenerationRow(
                id=name, created_at=NOON, schema_version=1, pack_version="0.1.0", mode="AUTO",
                prompt="", family=family, seed="0", image_key=image or name,
                record=json.dumps(record),
            )
        )  # fmt: skip
    record_rating(database, name, rating, now=NOON + timedelta(minutes=1))


def test_each_lora_of_an_image_takes_part_in_its_rating(database: Database) -> None:
    add(database, "one", 5, "ink.safetensors", "castle.safetensors")
    castle = frozenset({"castle"})
    assert rated_loras(database, family="sdxl") == (
        RatedLora("ink.safetensors", castle, "ANIME", 5, 2),
        RatedLora("castle.safetensors", castle, "ANIME", 5, 2),
    )


def test_other_families_images_without_loras_and_twins_teach_nothing(database: Database) -> None:
    add(database, "other", 5, "ink.safetensors", family="sd15")
    add(database, "plain", 5)
    assert rated_loras(database, family="sdxl") == ()
    add(database, "first", 4, "ink.safetensors", image="same")
    add(database, "again", 4, "ink.safetensors", image="same")
    assert len(rated_loras(database, family="sdxl")) == 1
