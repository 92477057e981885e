"""The records of rated images, for all that is learned from them."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from sqlalchemy import select

from ..storage import Database
from ..storage.tables import GenerationRow, RatingRow


class RatedRecord(NamedTuple):
    """A rated image."""

    rating: int
    """1 to 5."""
    image_key: str
    """The same for the same image, made by another run."""
    record: dict[str, Any]
    """Its Generation as JSON."""


def rated_records(
    database: Database, *, newest: int, family: str | None = None
) -> list[RatedRecord]:
    """The rated images of a family of models, or of all, the last rated first, `newest` at most.

    Raises StorageError.
    """
    query = (
        select(RatingRow.rating, GenerationRow.image_key, GenerationRow.record)
        .join(GenerationRow, GenerationRow.id == RatingRow.generation_id)
        .order_by(RatingRow.updated_at.desc())
        .limit(newest)
    )
    if family is not None:
        query = query.where(GenerationRow.family == family)
    with database.session(read_only=True) as session:
        rows = session.execute(query).all()
    return [RatedRecord(rating, key, json.loads(record)) for rating, key, record in rows]
