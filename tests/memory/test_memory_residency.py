"""The pool at work, with plain objects for models."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
from intelligent_generation.core.errors import ModelFileError
from intelligent_generation.core.memory.pool import PoolSettings
from intelligent_generation.core.memory.residency import (
    ModelKey,
    ModelPool,
    file_stamp,
    pool_report,
)

GIB = 2**30


class Clone:
    """What a pool lends."""


class Model:
    def __init__(self, size: int) -> None:
        self.bytes = size
        self.gone = False
        self._lent: list[weakref.ref[Clone]] = []

    @property
    def in_use(self) -> bool:
        return any(one() is not None for one in self._lent)

    def lend(self) -> Clone:
        assert not self.gone
        clone = Clone()
        self._lent.append(weakref.ref(clone))
        return clone

    def let_go(self) -> None:
        self.gone = True


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in "ABCDE":
        (tmp_path / name).write_text(name)
    return tmp_path


@pytest.fixture
def key(folder: Path) -> Callable[..., ModelKey]:
    def make(name: str, *options: str) -> ModelKey:
        return ModelKey((file_stamp(folder / name),), ("checkpoints", *options))

    return make


def pool_of(budget_gb: float, *, free: int = 100 * GIB, **settings: object) -> ModelPool:
    return ModelPool(
        PoolSettings(budget_gb, **settings), total_ram=100 * GIB, free_ram=lambda: free
    )


def held(pool: ModelPool) -> list[str]:
    return [Path(model.files[0]).name for model in pool.state().models]


def test_what_is_there_is_not_loaded_again(key):
    pool = pool_of(4)
    assert pool.lend(key("A"), GIB, lambda: Model(GIB)) is not None
    pool.lend(key("A"), GIB, pytest.fail)
    pool.lend(key("A", "int8"), GIB, lambda: Model(GIB // 2))
    state = pool.state()
    assert (state.hits, state.misses, state.evictions) == (1, 2, 0)
    assert state.bytes == GIB + GIB // 2
    assert [model.uses for model in state.models] == [1, 2]
    assert "A: 1.0 GiB" in pool_report(state)


def test_the_one_not_used_for_longest_makes_room_before_the_next_is_loaded(key):
    pool = pool_of(2)
    models = {}

    def load(name: str) -> Callable[[], Model]:
        def make() -> Model:
            # Before, not after: two are never held beside the one that is being loaded.
            assert sum(not model.gone for model in models.values()) < 2
            models[name] = Model(GIB)
            return models[name]

        return make

    for name in "ABACAB":
        pool.lend(key(name), GIB, load(name))
    assert held(pool) == ["B", "A"]
    assert pool.state().evictions == 2


def test_a_model_in_use_stays_and_goes_as_soon_as_it_is_not(key):
    pool = pool_of(1)
    first = pool.lend(key("A"), GIB, lambda: Model(GIB))
    second = pool.lend(key("B"), GIB, lambda: Model(GIB))
    assert held(pool) == ["B", "A"], "both are in memory, whoever counts them"
    pool.settle()
    assert held(pool) == ["B", "A"]
    del first
    pool.settle()
    assert held(pool) == ["B"]
    del second


def test_one_that_is_too_large_is_lent_and_not_kept(key):
    pool = pool_of(1)
    small = Model(GIB)
    pool.lend(key("A"), GIB, lambda: small)
    assert isinstance(pool.lend(key("B"), 3 * GIB, lambda: Model(3 * GIB)), Clone)
    assert held(pool) == ["A"]
    assert not small.gone
    # Only the loaded model tells its size.
    assert isinstance(pool.lend(key("C"), GIB, lambda: Model(2 * GIB)), Clone)
    assert held(pool) == []
    assert pool_of(0).lend(key("A"), GIB, lambda: Model(GIB)) is not None


def test_a_replaced_file_is_another_model(key, folder: Path):
    pool = pool_of(4)
    model = Model(GIB)
    pool.lend(key("A"), GIB, lambda: model)
    path = folder / "A"
    before = path.stat()
    path.write_text("Z")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    pool.lend(key("A"), GIB, lambda: Model(GIB))
    assert model.gone
    assert pool.state().misses == 2
    path.unlink()
    with pytest.raises(ModelFileError, match="A cannot be read"):
        key("A")


def test_a_load_that_fails_leaves_the_pool_as_it_was(key):
    def fail() -> Model:
        raise ModelFileError("damaged")

    pool = pool_of(4)
    pool.lend(key("A"), GIB, lambda: Model(GIB))
    with pytest.raises(ModelFileError):
        pool.lend(key("B"), GIB, fail)
    assert held(pool) == ["A"]


def test_other_programs_take_the_rams_back(key):
    free = 100 * GIB
    pool = ModelPool(PoolSettings(8), total_ram=100 * GIB, free_ram=lambda: free)
    for name in "ABC":
        pool.lend(key(name), GIB, lambda: Model(GIB))
    free = 3 * GIB + 1  # of a reserve of 4 GiB
    pool.settle()
    assert held(pool) == ["C", "B"]


def test_unloading_waits_until_it_is_carried_out(key):
    pool = pool_of(4)
    models = {name: Model(GIB) for name in "AB"}
    for name, model in models.items():
        pool.lend(key(name), GIB, lambda model=model: model)
    assert pool.unload([key("A").id, "nobody"]) == (key("A").id,)
    assert not models["A"].gone
    pool.carry_out()
    assert models["A"].gone
    assert held(pool) == ["B"]
    pool.unload()
    pool.settle()
    assert held(pool) == []


def test_everything_unused_gives_way_to_who_is_out_of_memory(key):
    pool = pool_of(4)
    used = pool.lend(key("A"), GIB, lambda: Model(GIB))
    pool.lend(key("B"), GIB, lambda: Model(GIB))
    assert pool.evictable_bytes == GIB
    assert pool.give_way() == GIB
    assert held(pool) == ["A"]
    del used


@pytest.mark.parametrize("policy", ["lru", "lfu", "size"])
def test_a_smaller_budget_or_another_policy_holds_from_the_next_use_on(key, policy: str):
    pool = pool_of(8)
    for name, size in (("A", 3), ("B", 1), ("C", 2)):
        pool.lend(key(name), size * GIB, lambda size=size: Model(size * GIB))
    pool.lend(key("A"), GIB, pytest.fail)
    pool.change(PoolSettings(5, policy))
    pool.settle()
    assert held(pool) == {"lru": ["A", "C"], "lfu": ["A", "C"], "size": ["C", "B"]}[policy]
