"""What ran out of memory before, so that it is not tried again where it cannot work."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import delete, func, select

from ..storage import Database
from ..storage.tables import MemoryFallbackRow
from .recovery import Setup

LOADING = "loading"
"""The configuration under which loads are kept; their model is the file."""
KEPT_FOR = timedelta(days=30)
_MORE = 1.25


class Fallback(NamedTuple):
    """What a run ended with after it had run out of memory."""

    setup: Setup
    free_bytes: int
    """What could be had when it began."""
    at: datetime


def remember(
    database: Database, machine: str, model: str, configuration: str, fallback: Fallback
) -> None:
    """Keep what a configuration of a model worked with. `fallback.at` is aware. StorageError."""
    setup = fallback.setup
    with database.session() as session:
        session.merge(
            MemoryFallbackRow(
                machine=machine,
                model=model[:255],
                configuration=configuration[:255],
                strategy=setup.strategy,
                int8=setup.int8,
                tiled_decode=setup.tiled_decode,
                images_at_once=setup.images_at_once,
                free_bytes=fallback.free_bytes,
                failed_at=fallback.at,
            )
        )


def recall(
    database: Database, machine: str, model: str, configuration: str, *, free: int, now: datetime
) -> Fallback | None:
    """What that configuration worked with after it had run out; None where it is worth trying
    as it is: it never ran out, long ago, or when a quarter less memory could be had than now.

    Raises:
        StorageError: the database cannot be read.
    """
    with database.session(read_only=True) as session:
        row = session.get(MemoryFallbackRow, (machine, model[:255], configuration[:255]))
    if row is None or now - row.failed_at > KEPT_FOR or free > row.free_bytes * _MORE:
        return None
    setup = Setup(row.strategy, row.int8, row.tiled_decode, row.images_at_once)
    return Fallback(setup, row.free_bytes, row.failed_at)


def forget(database: Database) -> int:
    """Forget all of it; how many there were. StorageError."""
    with database.session() as session:
        count = session.scalar(select(func.count()).select_from(MemoryFallbackRow))
        session.execute(delete(MemoryFallbackRow))
    return count or 0
