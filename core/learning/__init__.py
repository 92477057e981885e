"""What people think of the images, and what that teaches.

Loaded when first used, as the database is heavy to import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .ratings import NOT_RATED, Rating, RatingResult, rating_of, record_rating, revision

__all__ = ["NOT_RATED", "Rating", "RatingResult", "rating_of", "record_rating", "revision"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from . import ratings

        return getattr(ratings, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
