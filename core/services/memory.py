"""The memory of this machine: its plan, the models that stay in RAM, what ran out before."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .. import host
from ..errors import ModelFileError, SettingError
from ..memory import (
    FreeMemory,
    ModelPool,
    Placed,
    PoolState,
    made_settings,
    place,
    plan_memory,
    pool_report,
    read_free,
    read_machine,
    read_ram,
    read_resources,
    read_settings,
    report,
    report_resources,
    write_settings,
)
from ..memory.kept import KeptWeights
from ..memory.recovery import Setup
from ..memory.remembered import LOADING, Fallback, forget, recall, remember
from ..memory.residency import ModelKey, file_stamp
from ..plan import FileRef, MemoryPlan
from .data import Data

log = logging.getLogger(__name__)


class Memory:
    """What is kept in memory, and by which plan. Safe to use from several threads."""

    def __init__(self, data: Data) -> None:
        self._data = data
        self._lock = threading.RLock()
        self._pool: ModelPool | None = None
        self._stock_keys: dict[str, ModelKey] = {}

    def plan_memory(
        self, strategy: str, weight_dtype: str, max_vram_gb: float = 0.0
    ) -> tuple[MemoryPlan, str]:
        """The memory policy of this machine and a report for people."""
        machine = host.HostMachine()
        plan = plan_memory(
            read_machine(machine),
            strategy=strategy,
            weight_dtype=weight_dtype,
            max_vram_gb=max_vram_gb,
        )
        text = "\n".join(
            (
                report(plan, read_free(machine)),
                report_resources(read_resources(machine)),
                pool_report(self.pool.state()),
            )
        )
        log.info("Intelligent Generation: %s", text)
        return plan, text

    def place(self, plan: MemoryPlan, model: Any, clip: Any, vae: Any) -> Placed:
        """MODEL, CLIP and VAE of any loader, kept to the plan. Raises as `memory.place` does."""
        return place(plan, model, clip, vae, self.free_memory())

    def free_memory(self) -> FreeMemory:
        """What can be had for a model that is to be loaded."""
        free = read_free(host.HostMachine(), evictable=host.evictable_vram())
        return free._replace(ram=free.ram + self.pool.evictable_bytes)

    def give_way(self) -> int:
        """Unload what nothing uses now, ours and ComfyUI's; the bytes that gave back."""
        return self.pool.give_way() + host.unload_others()

    # ------------------------------------------------------------------ model pool

    @property
    def pool(self) -> ModelPool:
        """The models that stay in RAM. Raises SettingError: its settings file is damaged."""
        with self._lock:
            if self._pool is None:
                machine = host.HostMachine()
                self._pool = ModelPool(
                    read_settings(_pool_settings()),
                    total_ram=read_ram(machine).total,
                    free_ram=lambda: read_ram(machine).free,
                )
            return self._pool

    @property
    def kept_weights(self) -> KeptWeights:
        """Weights at int8 and int4 that stay on disk, where the settings allow that."""
        return KeptWeights(host.user_directory() / "quantized", self._disk_limit)

    def _disk_limit(self) -> int:
        return round(self.pool.state().settings.quantized_disk_gb * 1024**3)

    def state(self) -> tuple[PoolState, list[host.Residency]]:
        """What the model pool holds, and what ComfyUI has loaded for computing."""
        return self.pool.state(), host.residency()

    def set_pool(self, given: Any) -> None:
        """Change the pool's settings, for good. Raises SettingError."""
        with self._lock:
            settings = made_settings(given, self.pool.state().settings)
            write_settings(_pool_settings(), settings)
            self.pool.change(settings)
        self.kept_weights.trim(self._disk_limit())

    def unload(self, ids: Sequence[str] | None = None) -> bool:
        """Take models out of the pool, all of them with None; whether it is done already.

        It is not while a prompt runs; then `finish_unloading` does it, or the next load.

        Raises:
            SettingError: an id that is not in the pool.
        """
        unknown = set(ids or ()) - set(self.pool.unload(ids))
        if unknown:
            raise SettingError(
                f"The model pool holds no {', '.join(sorted(unknown))}. GET "
                "/intelligent_generation/memory lists the ids."
            )
        return self.finish_unloading()

    def finish_unloading(self) -> bool:
        """Do what `unload` could not do yet; False while a prompt runs."""
        return host.when_idle(self.pool.carry_out)

    def settle_pool(self) -> None:
        """Bring the pool back into its limits, if it holds anything. After a prompt."""
        if self._pool is not None:
            self._pool.settle()

    # ------------------------------------------------------------------ stock loaders

    def keep_outputs(self, request: str, parts: Sequence[str], outputs: Sequence[Any]) -> None:
        """Keep what a stock loader loaded, and put clones in its place.

        Args:
            request: what tells this call of the loader from others.
            parts: what each output is: model, clip or vae.
            outputs: the node's outputs, each a list of values.
        """
        if any(len(values) != 1 for values in outputs):
            return
        loaded = host.LoadedModel(None, None, None)._replace(
            **{part: values[0] for part, values in zip(parts, outputs, strict=True)}
        )
        files = host.files_of(loaded)
        if not files:
            return
        key = ModelKey(tuple(file_stamp(file) for file in files), ("stock loader", request))
        kept = host.KeptModel(loaded)
        if self.pool.add(key, kept):
            self._stock_keys[request] = key
            lent = kept.lend()
            for part, values in zip(parts, outputs, strict=True):
                values[0] = getattr(lent, part)

    def kept_outputs(self, request: str, parts: Sequence[str]) -> list[list[Any]] | None:
        """What the pool has of an earlier call of a stock loader; None where it has nothing, or
        a file has changed since."""
        key = self._stock_keys.get(request)
        if key is None:
            return None
        try:
            now = tuple(file_stamp(Path(stamp.path)) for stamp in key.files)
        except ModelFileError:
            now = ()
        lent = self.pool.take(key) if now == key.files else None
        if lent is None:
            del self._stock_keys[request]
            self.pool.unload([key.id])
            self.pool.carry_out()
            return None
        return [[getattr(lent, part)] for part in parts]

    # ------------------------------------------------------------------ what ran out before

    def recall(self, model: str, configuration: str, free: int) -> Fallback | None:
        """What a configuration of a model worked with on this machine after it had run out; see
        `memory.remembered`."""
        now = datetime.now(timezone.utc)
        machine = host.machine_key()
        return recall(self._data.database, machine, model, configuration, free=free, now=now)

    def remember(self, model: str, configuration: str, setup: Setup, free: int) -> None:
        """Keep what a configuration of a model worked with."""
        fallback = Fallback(setup, free, datetime.now(timezone.utc))
        remember(self._data.database, host.machine_key(), model, configuration, fallback)

    def recall_loading(self, file: FileRef, free: int) -> Fallback | None:
        """What loading a file worked with after it had run out."""
        return self.recall(_key_of(file), LOADING, free)

    def remember_loading(self, file: FileRef, setup: Setup, free: int) -> None:
        """Keep what loading a file worked with."""
        self.remember(_key_of(file), LOADING, setup, free)

    def forget_fallbacks(self) -> int:
        """Forget what ran out of memory before; how many configurations that were."""
        return forget(self._data.database)


def own_plan() -> MemoryPlan:
    """The memory plan of this machine where no MemoryStrategy says otherwise."""
    return plan_memory(read_machine(host.HostMachine()))


def _key_of(file: FileRef) -> str:
    return f"{file.folder}/{file.name}"


def _pool_settings() -> Path:
    return host.user_directory() / "model_pool.json"
