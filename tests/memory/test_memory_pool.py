"""The pool's decisions, limits and settings, with values."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from intelligent_generation.core.errors import SettingError
from intelligent_generation.core.memory.pool import (
    PoolSettings,
    Resident,
    Room,
    made_settings,
    make_room,
    pool_limits,
    read_settings,
    write_settings,
)

GIB = 2**30
PLENTY = 1000


def resident(id_: str, bytes_: int = 2, *, last: int = 0, uses: int = 1, in_use: bool = False):
    return Resident(id_, bytes_, last, uses, in_use)


THREE = (
    resident("old, large, often", 4, last=1, uses=9),
    resident("middle", 2, last=2, uses=2),
    resident("new, seldom", 3, last=3, uses=1),
)


def room(models, *, new=0, budget=9, free=PLENTY, reserve=0, policy="lru") -> Room:
    return make_room(models, new=new, budget=budget, free=free, reserve=reserve, policy=policy)


def test_nothing_goes_while_the_new_one_fits_beside_the_others():
    assert room(THREE, new=2, budget=11) == Room((), keep=True)


@pytest.mark.parametrize(
    ("policy", "first"),
    [("lru", "old, large, often"), ("lfu", "new, seldom"), ("size", "old, large, often")],
)
def test_the_policy_says_who_goes_first(policy: str, first: str):
    assert room(THREE, new=2, policy=policy).evict == (first,)


def test_as_many_go_as_are_in_the_way_and_no_more():
    assert room(THREE, new=6).evict == ("old, large, often", "middle")


def test_ties_go_to_the_one_not_used_for_longest():
    models = [resident("b", last=2), resident("a", last=1), resident("c", last=3)]
    for policy in ("lfu", "size"):
        assert room(models, new=5, policy=policy).evict == ("a",)


def test_a_model_in_use_never_goes():
    models = [resident("used", last=1, in_use=True), resident("free", last=2)]
    assert room(models, new=5, budget=6) == Room(("free",), keep=True)
    assert room(models, budget=0, free=0, reserve=9).evict == ("free",)


def test_one_larger_than_the_budget_is_not_kept_and_drives_nobody_out():
    assert room(THREE, new=10) == Room((), keep=False)


def test_memory_that_others_took_drives_models_out_within_the_budget():
    assert room(THREE, free=1, reserve=3).evict == ("old, large, often",)
    assert room(THREE, new=2, budget=11, free=3, reserve=4).evict == ("old, large, often",)
    assert room(THREE, new=10, free=9, reserve=0) == Room(("old, large, often",), keep=False)


@pytest.mark.parametrize("policy", ["lru", "lfu", "size"])
def test_whatever_comes_the_budget_is_kept_by_what_is_not_in_use(policy: str):
    chance = random.Random(0)
    for _ in range(500):
        models = [
            resident(
                str(number), chance.randint(1, 5), last=number, uses=chance.randint(1, 9),
                in_use=chance.random() < 0.2,
            )
            for number in range(chance.randint(0, 6))
        ]  # fmt: skip
        new, budget = chance.randint(0, 8), chance.randint(0, 12)
        free, reserve = chance.randint(0, 12), chance.randint(0, 4)
        found = room(models, new=new, budget=budget, free=free, reserve=reserve, policy=policy)
        left = [model for model in models if model.id not in found.evict]
        assert found.keep == (new <= budget)
        assert all(model in left for model in models if model.in_use)
        held = sum(model.bytes for model in left) + (new if found.keep else 0)
        back = sum(model.bytes for model in models) - sum(model.bytes for model in left)
        evictable = [model for model in left if not model.in_use]
        assert not evictable or (held <= budget and free + back >= new + reserve)


def test_the_default_budget_is_half_of_the_ram_or_what_is_free_beside_the_reserve():
    limits = pool_limits(32 * GIB, 30 * GIB, PoolSettings())
    assert (limits.budget, limits.reserve) == (16 * GIB, 4 * GIB)
    assert "half of the 32.0 GiB" in limits.reason
    busy = pool_limits(16 * GIB, 5 * GIB, PoolSettings())
    assert (busy.budget, busy.reserve) == (3 * GIB, 2 * GIB)
    assert "5.0 GiB of RAM that were free" in busy.reason
    assert pool_limits(16 * GIB, GIB, PoolSettings()).budget == 0
    own = pool_limits(16 * GIB, GIB, PoolSettings(budget_gb=1.5))
    assert own.budget == GIB * 3 // 2
    assert own.reason == "set by you"


def test_settings_are_kept_and_changed_one_by_one(tmp_path: Path):
    path = tmp_path / "pool.json"
    assert read_settings(path) == PoolSettings(None, "lru")
    settings = made_settings({"budget_gb": 12}, PoolSettings(policy="size"))
    write_settings(path, settings)
    assert read_settings(path) == PoolSettings(12.0, "size")
    assert made_settings({"budget_gb": None}, settings) == PoolSettings(None, "size")


@pytest.mark.parametrize(
    "given",
    [
        [], {"budget": 3}, {"budget_gb": -1}, {"budget_gb": "3"}, {"budget_gb": True},
        {"budget_gb": float("nan")}, {"policy": "fifo"}, {"policy": None},
    ],
)  # fmt: skip
def test_settings_that_are_none_are_refused(given: object):
    with pytest.raises(SettingError):
        made_settings(given, PoolSettings())


def test_a_damaged_settings_file_is_named(tmp_path: Path):
    path = tmp_path / "pool.json"
    for text in ("{", '{"policy": "fifo"}'):
        path.write_text(text)
        with pytest.raises(SettingError, match="delete it"):
            read_settings(path)
