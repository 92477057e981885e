"""Which models made the images that people rated."""

from __future__ import annotations

import json

from sqlalchemy import select

from ..recommending import RatedModel
from ..storage import Database
from ..storage.tables import GenerationRow, RatingRow

NEWEST = 500
"""Ratings that are looked at: tastes and models change."""


def rated_models(database: Database) -> tuple[RatedModel, ...]:
    """The model, style and rating of rated images, newest first.

    An image that was made twice counts once. Raises StorageError.
    """
    query = (
        select(RatingRow.rating, GenerationRow.image_key, GenerationRow.record)
        .join(GenerationRow, GenerationRow.id == RatingRow.generation_id)
        .order_by(RatingRow.updated_at.desc())
        .limit(NEWEST)
    )
    with database.session(read_only=True) as session:
        rows = session.execute(query).all()
    found: dict[str, RatedModel] = {}
    for rating, image_key, record in rows:
        plan = json.loads(record)["plan"]
        files = [
            file
            for part in plan["model"]["parts"]
            if part["role"] == "diffusion_model"
            for file in part["files"]
        ]
        if not files:
            continue  # another pack's loader
        rated = RatedModel(
            name=files[0]["name"],
            sha256=files[0].get("sha256"),
            style=plan["analysis"]["intent"]["style"],
            rating=rating,
        )
        found.setdefault(image_key, rated)
    return tuple(found.values())
