"""The ladder of a run that is out of memory, with values; what is remembered of it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from intelligent_generation.core.memory.recovery import Setup, Spare, cheaper_than, next_step
from intelligent_generation.core.memory.remembered import Fallback, forget, recall, remember
from intelligent_generation.core.storage import Database

NOW = datetime(2026, 11, 24, 12, tzinfo=timezone.utc)
ALL = Spare(room=True, cheaper=("CPU_OFFLOAD", "SEQUENTIAL"), int8=True, tiles=True)


def descend(stage, setup: Setup, spare: Spare) -> list[tuple[str, Setup]]:
    """Every rung until nothing is left."""
    steps = []
    while (step := next_step(stage, setup, spare)) is not None:
        setup = step.setup
        cheaper = tuple(name for name in spare.cheaper if name != setup.strategy)
        spare = spare._replace(room=False, cheaper=cheaper)
        steps.append((step.rung, setup))
        assert len(steps) < 20, "the ladder ends"
    return steps


def test_a_sampling_run_gives_up_placement_then_precision_then_the_batch():
    rungs = [rung for rung, _ in descend("sample", Setup(images_at_once=4), ALL)]
    assert rungs == [
        "room", "placement", "placement", "int8", "images_at_once", "images_at_once",
    ]  # fmt: skip


def test_decoding_gives_up_tiles_before_the_batch_and_no_precision_of_the_weights():
    steps = descend("decode", Setup(images_at_once=3), ALL._replace(room=False, cheaper=()))
    assert steps == [
        ("tiled_decode", Setup(tiled_decode=True, images_at_once=3)),
        ("images_at_once", Setup(tiled_decode=True, images_at_once=1)),
    ]


def test_a_rung_that_is_not_there_or_cannot_help_is_left_out():
    assert descend("sample", Setup(), Spare()) == []
    assert descend("load", Setup(), Spare(int8=True, tiles=True)) == [("int8", Setup(int8=True))]
    assert descend("encode", Setup(images_at_once=4), Spare(tiles=True)) == []


def test_what_is_cheaper_than_a_strategy():
    assert cheaper_than("AUTO") == ("CPU_OFFLOAD", "SEQUENTIAL")
    assert cheaper_than("CPU_OFFLOAD") == ("SEQUENTIAL",)
    assert cheaper_than("SEQUENTIAL") == cheaper_than("FULL_GPU") == ()


def test_a_step_says_what_is_done_and_what_it_changes():
    step = next_step("decode", Setup(images_at_once=4), Spare())
    assert step is not None
    assert step.done == "the batch was made 2 at a time"
    assert "ancestral" in step.changes
    placed = next_step("sample", Setup(), Spare(cheaper=("SEQUENTIAL",)))
    assert placed is not None
    assert "SEQUENTIAL" in placed.done


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database.open(f"sqlite:///{tmp_path / 'memory.db'}")


@pytest.fixture
def recalled(database: Database) -> Callable[..., Fallback | None]:
    def call(
        *, machine: str = "card", model: str = "sdxl", configuration: str = "1024",
        free: int = 1000, now: datetime = NOW,
    ) -> Fallback | None:  # fmt: skip
        return recall(database, machine, model, configuration, free=free, now=now)

    return call


def test_what_worked_is_kept_for_that_machine_model_and_configuration(database, recalled):
    kept = Fallback(Setup(tiled_decode=True, images_at_once=2), 1000, NOW)
    assert recalled() is None
    remember(database, "card", "sdxl", "1024", kept)
    assert recalled() == kept
    for other in ({"machine": "other"}, {"model": "sd15"}, {"configuration": "512"}):
        assert recalled(**other) is None
    lower = Fallback(Setup(int8=True, tiled_decode=True), 900, NOW)
    remember(database, "card", "sdxl", "1024", lower)
    assert recalled() == lower
    assert forget(database) == 1
    assert recalled() is None


def test_with_more_memory_or_after_a_month_it_is_tried_as_it_is(database, recalled):
    remember(database, "card", "sdxl", "1024", Fallback(Setup(tiled_decode=True), 1000, NOW))
    assert recalled(free=1250) is not None
    assert recalled(free=1251) is None
    assert recalled(now=NOW + timedelta(days=30)) is not None
    assert recalled(now=NOW + timedelta(days=31)) is None
