"""Which models made the images that people rated."""

from __future__ import annotations

from ..recommending import RatedModel
from ..storage import Database
from .records import rated_records

NEWEST = 500
"""Ratings that are looked at: tastes and models change."""


def rated_models(database: Database) -> tuple[RatedModel, ...]:
    """The model, style and rating of rated images, newest first.

    An image that was made twice counts once. Raises StorageError.
    """
    found: dict[str, RatedModel] = {}
    for rating, image_key, record in rated_records(database, newest=NEWEST):
        plan = record["plan"]
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
