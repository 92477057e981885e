"""What people think of the images, and what that teaches.

Loaded when first used, as the database is heavy to import.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .loras import rated_loras
    from .models import rated_models
    from .ratings import NOT_RATED, Rating, RatingResult, rating_of, record_rating, revision
    from .settings import rated_settings

__all__ = [
    "NOT_RATED",
    "Rating",
    "RatingResult",
    "rated_loras",
    "rated_models",
    "rated_settings",
    "rating_of",
    "record_rating",
    "revision",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    homes = {"rated_loras": "loras", "rated_models": "models", "rated_settings": "settings"}
    home = homes.get(name, "ratings")
    return getattr(import_module(f".{home}", __name__), name)
