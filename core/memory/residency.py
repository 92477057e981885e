"""The pool of models that stay in RAM from one workflow to the next.

It holds each model as it was loaded and lends it out as clones, so that whatever nodes do to a
clone (LoRAs, options) never reaches the next workflow. A model is in use as long as anybody, such
as ComfyUI's cache of the last workflow, holds a clone. `pool.py` decides what stays.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ..errors import ModelFileError
from .pool import PoolLimits, PoolSettings, Resident, make_room, pool_limits
from .resources import human_bytes

log = logging.getLogger(__name__)


class Keepable(Protocol):
    """A loaded model that can be lent out."""

    @property
    def bytes(self) -> int:
        """RAM that its weights take when they are not on a device."""
        ...

    @property
    def in_use(self) -> bool:
        """Whether anybody holds what was lent."""
        ...

    def lend(self) -> Any:
        """The model for one more user."""
        ...

    def let_go(self) -> None:
        """Forget the model, so that its memory is free once nobody uses it."""
        ...


class FileStamp(NamedTuple):
    """A file as it is at one moment."""

    path: str
    size: int
    modified: int
    """ns since 1970."""


class ModelKey(NamedTuple):
    """What makes a loaded model: the same key gives the same weights."""

    files: tuple[FileStamp, ...]
    options: tuple[str, ...]
    """What it was loaded as and in, e.g. `checkpoint`, `int8`."""

    @property
    def id(self) -> str:
        return hashlib.sha256(repr(self).encode()).hexdigest()[:12]


def file_stamp(path: Path) -> FileStamp:
    """The stamp of a file now. Raises ModelFileError: it is not there."""
    try:
        status = path.stat()
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}.") from error
    return FileStamp(str(path), status.st_size, status.st_mtime_ns)


class KeptModel(NamedTuple):
    """One model of the pool, for people."""

    id: str
    files: tuple[str, ...]
    options: tuple[str, ...]
    bytes: int
    uses: int
    in_use: bool


class PoolState(NamedTuple):
    """The pool at one moment."""

    limits: PoolLimits
    settings: PoolSettings
    models: tuple[KeptModel, ...]
    """The one used last comes first."""
    hits: int
    misses: int
    evictions: int

    @property
    def bytes(self) -> int:
        return sum(model.bytes for model in self.models)


@dataclass
class _Entry:
    key: ModelKey
    model: Keepable
    last_used: int
    uses: int = 1


class ModelPool:
    """Models in RAM, by key. `lend` and `settle` are for the thread that runs prompts, the others
    for any."""

    def __init__(
        self, settings: PoolSettings, *, total_ram: int, free_ram: Callable[[], int]
    ) -> None:
        self._free_ram = free_ram
        self._total = total_ram
        self._free_at_first = free_ram()
        self._lock = threading.RLock()
        self._entries: dict[str, _Entry] = {}
        self._unwanted: set[str] = set()
        self._clock = 0
        self._hits = self._misses = self._evictions = 0
        self._settings = settings

    # ------------------------------------------------------------------ use

    def has(self, key: ModelKey) -> bool:
        with self._lock:
            return key.id in self._entries

    def lend(self, key: ModelKey, needs: int, load: Callable[[], Keepable]) -> Any:
        """The model of a key: from the pool, else loaded, for which others make room first.

        Args:
            needs: bytes that loading it will take.
            load: its errors pass through; the pool is then as it was but for what made room.
        """
        self._drop_replaced(key)
        lent = self.take(key)
        if lent is not None:
            return lent
        with self._lock:
            self._misses += 1
        keep = self._make_room(needs)
        model = load()
        # What it really takes may be more than what its file said.
        keep = self._make_room(model.bytes, loaded=True) and keep
        lent = model.lend()
        if keep:
            self._keep(key, model)
        return lent

    def take(self, key: ModelKey) -> Any | None:
        """The model of a key for one more user; None when it is not in the pool."""
        self.carry_out()
        with self._lock:
            entry = self._entries.get(key.id)
            if entry is None:
                return None
            self._clock += 1
            entry.last_used = self._clock
            entry.uses += 1
            self._hits += 1
            return entry.model.lend()

    def add(self, key: ModelKey, model: Keepable) -> bool:
        """Keep a model that somebody else loaded; whether it is kept."""
        self.carry_out()
        self._drop_replaced(key)
        with self._lock:
            self._misses += 1
        keep = self._make_room(model.bytes, loaded=True)
        if keep:
            self._keep(key, model)
        return keep

    def settle(self) -> None:
        """Get back into the limits: what was in use may not be now, and other programs may have
        taken RAM."""
        self.carry_out()
        self._make_room(0)

    def give_way(self) -> int:
        """Let go of every model that is not in use, for somebody who is out of memory; the bytes
        that were let go."""
        with self._lock:
            unused = [one for one in self._residents() if not one.in_use]
        for one in unused:
            self._evict(one.id)
        return sum(one.bytes for one in unused)

    # ------------------------------------------------------------------ wishes of others

    def unload(self, ids: Iterable[str] | None = None) -> tuple[str, ...]:
        """Wish models away, all of them with None; `carry_out` does it. The ids that are there."""
        with self._lock:
            there = tuple(i for i in self._entries if ids is None or i in set(ids))
            self._unwanted |= set(there)
            return there

    def carry_out(self) -> None:
        """Let go of the models that `unload` named."""
        with self._lock:
            unwanted, self._unwanted = self._unwanted, set()
            gone = [self._entries.pop(i) for i in unwanted if i in self._entries]
        for entry in gone:
            _let_go(entry)

    def change(self, settings: PoolSettings) -> None:
        """Take other settings; models over a smaller budget go at the next use."""
        with self._lock:
            self._settings = settings

    # ------------------------------------------------------------------ state

    @property
    def evictable_bytes(self) -> int:
        """RAM that the pool would give back to who needs it."""
        with self._lock:
            return sum(one.bytes for one in self._residents() if not one.in_use)

    def state(self) -> PoolState:
        """What the pool holds and has done."""
        with self._lock:
            entries = sorted(self._entries.values(), key=lambda one: -one.last_used)
            models = tuple(
                KeptModel(
                    entry.key.id,
                    tuple(stamp.path for stamp in entry.key.files),
                    entry.key.options,
                    entry.model.bytes,
                    entry.uses,
                    entry.model.in_use,
                )
                for entry in entries
            )
            return PoolState(
                self._limits(), self._settings, models, self._hits, self._misses, self._evictions
            )

    # ------------------------------------------------------------------ helpers

    def _limits(self) -> PoolLimits:
        return pool_limits(self._total, self._free_at_first, self._settings)

    def _residents(self) -> list[Resident]:
        return [
            Resident(id_, one.model.bytes, one.last_used, one.uses, one.model.in_use)
            for id_, one in self._entries.items()
        ]

    def _keep(self, key: ModelKey, model: Keepable) -> None:
        with self._lock:
            self._clock += 1
            self._entries[key.id] = _Entry(key, model, self._clock)

    def _make_room(self, new: int, *, loaded: bool = False) -> bool:
        # What is loaded already has taken its RAM.
        free = self._free_ram() + (new if loaded else 0)
        with self._lock:
            limits = self._limits()
            room = make_room(
                self._residents(),
                new=new,
                budget=limits.budget,
                free=free,
                reserve=limits.reserve,
                policy=self._settings.policy,
            )
        for id_ in room.evict:
            self._evict(id_)
        return room.keep

    def _evict(self, id_: str) -> None:
        with self._lock:
            entry = self._entries.pop(id_, None)
            if entry is None:
                return
            self._evictions += 1
        _let_go(entry)

    def _drop_replaced(self, key: ModelKey) -> None:
        # A file that was written anew since is another model; nobody asks for the old one again.
        now = {stamp.path: stamp for stamp in key.files}
        with self._lock:
            old = [
                id_
                for id_, entry in self._entries.items()
                if any(now.get(stamp.path, stamp) != stamp for stamp in entry.key.files)
            ]
            self._unwanted |= set(old)
        if old:
            self.carry_out()


def pool_report(state: PoolState) -> str:
    """The pool for people: its limits, what it holds, what it has done."""
    budget = human_bytes(state.limits.budget)
    lines = [
        f"Model pool: {human_bytes(state.bytes)} of {budget} ({state.limits.reason}), "
        f"{state.settings.policy}; {state.hits} hits, {state.misses} misses, "
        f"{state.evictions} evictions"
    ]
    lines += [
        f"  {', '.join(Path(path).name for path in model.files)}: {human_bytes(model.bytes)}, "
        f"{model.options[-1]}, used {model.uses} times{', in use' if model.in_use else ''}"
        for model in state.models
    ]
    return "\n".join(lines)


def _let_go(entry: _Entry) -> None:
    names = ", ".join(Path(stamp.path).name for stamp in entry.key.files)
    log.info("Intelligent Generation: %s leaves the model pool.", names)
    entry.model.let_go()
