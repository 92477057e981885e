"""Which settings people rated, for choosing the next ones."""

from __future__ import annotations

from ..plan import Priority, StyleIntent
from ..storage import Database
from ..tuning import RatedSettings
from .records import rated_records

NEWEST = 200
"""Ratings that are looked at: tastes and models change."""


def rated_settings(
    database: Database,
    *,
    family: str,
    variant: str | None,
    style: StyleIntent,
    priority: Priority,
) -> tuple[RatedSettings, ...]:
    """The settings of rated images of a kind of model, a style and a priority, newest first.

    An image that was made twice counts once. Raises StorageError.
    """
    found: dict[str, RatedSettings] = {}
    for rating, image_key, record in rated_records(database, newest=NEWEST, family=family):
        plan = record["plan"]
        sampling = plan["sampling"]
        kind = plan["model"].get("variant"), plan["analysis"]["intent"]["style"]
        if kind == (variant, style) and sampling.get("priority", "BALANCED") == priority:
            settings = RatedSettings(
                steps=sampling["steps"],
                cfg=sampling["cfg"],
                sampler=sampling["sampler"],
                scheduler=sampling["scheduler"],
                rating=rating,
            )
            found.setdefault(image_key, settings)
    return tuple(found.values())
