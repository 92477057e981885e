"""What is given up when a run is out of memory: one rung of a ladder after another. Pure.

Each rung leaves less to be given up, so the ladder ends.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Literal, NamedTuple, get_args

Stage = Literal["load", "encode", "sample", "refine", "decode"]
"""What a run was at when it ran out."""
RungName = Literal["room", "placement", "int8", "tiled_decode", "images_at_once"]


_AUTO = "AUTO"
_CHEAPER = ("CPU_OFFLOAD", "SEQUENTIAL")
"""Strategies with less on the device than AUTO, the nearest first."""


class Setup(NamedTuple):
    """How a run is carried out, as far as the ladder changes it."""

    strategy: str = "AUTO"
    int8: bool = False
    tiled_decode: bool = False
    images_at_once: int = 1


class Spare(NamedTuple):
    """What could still be given up."""

    room: bool = False
    """Whether other models were unloaded just now, for the first time in this run."""
    cheaper: tuple[str, ...] = ()
    """Strategies with less on the device than the present one, the nearest first."""
    int8: bool = False
    """Whether the model can be loaded at int8, and that would leave less in memory."""
    tiles: bool = False
    """Whether the image is larger than a tile."""


class Step(NamedTuple):
    """The next thing to try."""

    rung: RungName
    setup: Setup
    done: str
    """What is done instead, for people: a clause."""
    changes: str
    """What that does to the image: a sentence."""


def cheaper_than(strategy: str) -> tuple[str, ...]:
    """Strategies with less on a device of its own memory, the nearest first; empty for one that
    only a person chooses."""
    below = (_AUTO, *_CHEAPER)
    return below[below.index(strategy) + 1 :] if strategy in below else ()


def next_step(stage: Stage, setup: Setup, spare: Spare) -> Step | None:
    """The next lower rung for a run that is out of memory; None when nothing is left to give up.

    Args:
        stage: where it ran out; rungs that cannot help there are left out.
        setup: what it ran out with.
    """
    for rung in _rungs():
        if stage not in rung.stages:
            continue
        lower = _lower(rung.name, setup, spare)
        if lower is not None:
            return Step(rung.name, lower, rung.done.format(**lower._asdict()), rung.changes)
    return None


def _lower(rung: RungName, setup: Setup, spare: Spare) -> Setup | None:
    if rung == "room":
        return setup if spare.room else None
    if rung == "placement":
        return setup._replace(strategy=spare.cheaper[0]) if spare.cheaper else None
    if rung == "int8":
        return setup._replace(int8=True) if spare.int8 and not setup.int8 else None
    if rung == "tiled_decode":
        return setup._replace(tiled_decode=True) if spare.tiles and not setup.tiled_decode else None
    if setup.images_at_once > 1:
        return setup._replace(images_at_once=setup.images_at_once // 2)
    return None


class _Rung(NamedTuple):
    name: RungName
    stages: frozenset[Stage]
    done: str
    changes: str


@functools.cache
def _rungs() -> tuple[_Rung, ...]:
    data = json.loads(Path(__file__).with_name("recovery.json").read_text(encoding="utf-8"))
    rungs = tuple(
        _Rung(row["name"], frozenset(row["stages"]), row["done"], row["changes"])
        for row in data["rungs"]
    )
    assert {rung.name for rung in rungs} == set(get_args(RungName)), "recovery.json has them all"
    return rungs
