"""Which LoRAs made the images that people rated, and for what prompts."""

from __future__ import annotations

from ..recommending import RatedLora
from ..storage import Database
from .records import rated_records

NEWEST = 500
"""Ratings that are looked at: tastes and models change."""


def rated_loras(database: Database, *, family: str) -> tuple[RatedLora, ...]:
    """The LoRAs that rated images of a family of models were made with, newest first.

    An image that was made twice counts once. Raises StorageError.
    """
    found: dict[str, tuple[RatedLora, ...]] = {}
    for rating, image_key, record in rated_records(database, newest=NEWEST, family=family):
        applied = [lora["file"]["name"] for lora in record["applied"]]
        analysis = record["plan"]["analysis"]
        concepts = frozenset(concept["text"].lower() for concept in analysis["concepts"])
        found.setdefault(
            image_key,
            tuple(
                RatedLora(name, concepts, analysis["intent"]["style"], rating, len(applied))
                for name in applied
            ),
        )
    return tuple(lora for loras in found.values() for lora in loras)
