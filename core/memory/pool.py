"""Which models stay in RAM: pure decisions of the pool, its default limits and its settings.

`residency.py` carries them out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

from ..errors import SettingError
from .resources import human_bytes

Policy = Literal["lru", "lfu", "size"]
"""What goes first: lru the model not used for longest, lfu the one used least often, size the
largest. Ties go to the one not used for longest."""

_GIB = 2**30
_MOST_RESERVE = 4 * _GIB
_RESERVED_SHARE = 8
_SHARE = 2


class Resident(NamedTuple):
    """A model in the pool, as far as decisions go."""

    id: str
    bytes: int
    last_used: int
    """Number of the use: larger is later."""
    uses: int
    in_use: bool
    """Whether anybody but the pool holds it."""


class Room(NamedTuple):
    """What to do for a model that is to come."""

    evict: tuple[str, ...]
    """Ids, in the order of going."""
    keep: bool
    """Whether the new one stays in the pool; False when it is larger than the whole budget."""


class PoolLimits(NamedTuple):
    """How much RAM the pool may hold, in bytes, and why."""

    budget: int
    reserve: int
    """Kept free for everything else on the machine."""
    reason: str


class PoolSettings(NamedTuple):
    """What the user set."""

    budget_gb: float | None = None
    """GiB; 0 turns the pool off; None: from the machine."""
    policy: Policy = "lru"
    quantized_disk_gb: float = 0.0
    """GiB of disk for weights that were made at int8 or int4; 0: none are kept."""


def make_room(
    models: Sequence[Resident],
    *,
    new: int = 0,
    budget: int,
    free: int,
    reserve: int,
    policy: Policy,
) -> Room:
    """Which models go before one of `new` bytes is loaded; with 0, to get back into the limits.

    Models go while those kept and the new one are over the budget, and while loading it would
    leave less than the reserve of free RAM. One that is in use never goes: it would stay in
    memory all the same.

    Args:
        new, budget, free, reserve: bytes; free is RAM that can be had now.
    """
    keep = new <= budget
    limit = budget - new if keep else budget
    short = new + reserve - free
    held = sum(model.bytes for model in models)
    evict: list[str] = []
    freed = 0
    for model in sorted((m for m in models if not m.in_use), key=_ORDERS[policy]):
        if held - freed <= limit and freed >= short:
            break
        evict.append(model.id)
        freed += model.bytes
    return Room(tuple(evict), keep)


_ORDERS: dict[Policy, Callable[[Resident], tuple[int, ...]]] = {
    "lru": lambda model: (model.last_used,),
    "lfu": lambda model: (model.uses, model.last_used),
    "size": lambda model: (-model.bytes, model.last_used),
}


def pool_limits(total: int, free: int, settings: PoolSettings) -> PoolLimits:
    """The pool's limits on a machine.

    The reserve is an eighth of the RAM, 4 GiB at most. Without a budget of the user's it is half
    of the RAM, or less where less is free beside the reserve when ComfyUI starts to load models.

    Args:
        total, free: bytes of RAM, and of it what can be had now.
    """
    reserve = min(total // _RESERVED_SHARE, _MOST_RESERVE)
    if settings.budget_gb is not None:
        return PoolLimits(round(settings.budget_gb * _GIB), reserve, "set by you")
    half, rest = total // _SHARE, max(0, free - reserve)
    if half <= rest:
        return PoolLimits(half, reserve, f"half of the {human_bytes(total)} of RAM")
    return PoolLimits(
        rest,
        reserve,
        f"the {human_bytes(free)} of RAM that were free at first use, less a reserve of "
        f"{human_bytes(reserve)}",
    )


def read_settings(path: Path) -> PoolSettings:
    """The stored settings; the defaults where there are none.

    Raises:
        SettingError: the file cannot be read, or holds something else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return PoolSettings()
    except (OSError, ValueError) as error:
        raise SettingError(
            f"The settings of the model pool in {path} cannot be read: {error}. Correct the file "
            "or delete it."
        ) from error
    try:
        return made_settings(data, PoolSettings())
    except SettingError as error:
        raise SettingError(f"{path}: {error} Correct the file or delete it.") from error


def write_settings(path: Path, settings: PoolSettings) -> None:
    """Store settings. Raises SettingError: the file cannot be written."""
    partial = path.with_name(f"{path.name}.part")
    try:
        partial.write_text(json.dumps(settings._asdict()), encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise SettingError(
            f"The settings of the model pool cannot be stored in {path}: {error.strerror or error}."
        ) from error


def made_settings(given: Any, before: PoolSettings) -> PoolSettings:
    """Settings from JSON; what it leaves out stays as it was before.

    Raises:
        SettingError: an unknown name, or a value that is none.
    """
    known = PoolSettings._fields
    if not isinstance(given, dict) or not set(given) <= set(known):
        raise SettingError(f"The model pool's settings are an object of {', '.join(known)}.")
    budget = given.get("budget_gb", before.budget_gb)
    number = isinstance(budget, (int, float)) and not isinstance(budget, bool)
    if budget is not None and not (number and 0 <= budget <= _MOST_GB):
        raise SettingError(
            f"budget_gb must be null or a number of GiB from 0 to {_MOST_GB}, not {budget!r}."
        )
    policy = given.get("policy", before.policy)
    if policy not in get_args(Policy):
        raise SettingError(f"policy must be one of lru, lfu, size, not {policy!r}.")
    disk = given.get("quantized_disk_gb", before.quantized_disk_gb)
    if isinstance(disk, bool) or not isinstance(disk, (int, float)) or not 0 <= disk <= _MOST_GB:
        raise SettingError(
            f"quantized_disk_gb must be a number of GiB from 0 (off) to {_MOST_GB}, not {disk!r}."
        )
    budget = None if budget is None else float(budget)
    return PoolSettings(budget, cast(Policy, policy), float(disk))


_MOST_GB = 1_000_000
