"""Which LoRAs made the images that people rated, and for what prompts."""

from __future__ import annotations

import json

from sqlalchemy import select

from ..recommending import RatedLora
from ..storage import Database
from ..storage.tables import GenerationRow, RatingRow

NEWEST = 500
"""Ratings that are looked at: tastes and models change."""


def rated_loras(database: Database, *, family: str) -> tuple[RatedLora, ...]:
    """The LoRAs that rated images of a family of models were made with, newest first.

    An image that was made twice counts once. Raises StorageError.
    """
    query = (
        select(RatingRow.rating, GenerationRow.image_key, GenerationRow.record)
        .join(GenerationRow, GenerationRow.id == RatingRow.generation_id)
        .where(GenerationRow.family == family)
        .order_by(RatingRow.updated_at.desc())
        .limit(NEWEST)
    )
    with database.session(read_only=True) as session:
        rows = session.execute(query).all()
    found: dict[str, tuple[RatedLora, ...]] = {}
    for rating, image_key, record in rows:
        generation = json.loads(record)
        applied = [lora["file"]["name"] for lora in generation["applied"]]
        analysis = generation["plan"]["analysis"]
        concepts = frozenset(concept["text"].lower() for concept in analysis["concepts"])
        found.setdefault(
            image_key,
            tuple(
                RatedLora(name, concepts, analysis["intent"]["style"], rating, len(applied))
                for name in applied
            ),
        )
    return tuple(lora for loras in found.values() for lora in loras)
