"""Ratings of generations: one a generation, the latest counts."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ..errors import SettingError, UnknownGenerationError
from ..storage import Database
from ..storage.tables import GenerationRow, RatingRow

NOT_RATED = 0
WORST, BEST = 1, 5


class Rating(NamedTuple):
    """A stored rating."""

    rating: int
    """1 (bad) to 5 (excellent)."""
    comment: str
    updated_at: datetime
    """UTC."""


class RatingResult(NamedTuple):
    """What `record_rating` did."""

    stored: bool
    message: str
    """A sentence for people."""


def record_rating(
    database: Database, generation_id: str, rating: int, comment: str = "", *, now: datetime
) -> RatingResult:
    """Store a rating from 1 to 5, in place of an earlier one of the same generation.

    A rating of 0 means not rated: nothing is stored or looked up, and an earlier rating stays.
    `now` is aware.

    Raises:
        SettingError: the rating is not a whole number from 0 to 5.
        UnknownGenerationError: no generation has this id.
        StorageError: the database cannot be written.
    """
    if isinstance(rating, bool) or not isinstance(rating, int) or not 0 <= rating <= BEST:
        raise SettingError(
            f"rating is {rating!r}. Use {WORST} (bad) to {BEST} (excellent), or {NOT_RATED} for "
            "not rated."
        )
    comment = comment.strip()
    if rating == NOT_RATED:
        lost = " The comment was not stored either: it needs a rating." if comment else ""
        return RatingResult(False, f"Not rated (rating {NOT_RATED}): nothing was stored.{lost}")
    generation_id = generation_id.strip()
    with database.session() as session:
        # The lock is for databases with several writers at once; SQLite has one anyway.
        known = (
            select(GenerationRow.image_key)
            .where(GenerationRow.id == generation_id)
            .with_for_update()
        )
        image_key = session.scalar(known)
        if image_key is None:
            raise UnknownGenerationError(
                f"No generation has the id {generation_id!r}. Copy it from the Generation output "
                "of IntelligentSampler, or link that output; a run that failed has no record."
            )
        row = session.get(RatingRow, generation_id)
        done = f"Rated {rating} of {BEST}: generation {generation_id}."
        if row is None:
            row = RatingRow(generation_id=generation_id, changes=0)
            session.add(row)
        elif (row.rating, row.comment) == (rating, comment):
            return RatingResult(True, f"{done} It was rated so before.")
        else:
            done += f" It was {row.rating} before."
        news = row.changes > 0 or not _same_image_rated_so(session, image_key, rating)
        row.rating, row.comment, row.updated_at = rating, comment, now
        row.changes += news
    return RatingResult(True, done)


def rating_of(database: Database, generation_id: str) -> Rating | None:
    """The stored rating of a generation; None when it has none. Raises StorageError."""
    with database.session(read_only=True) as session:
        row = session.get(RatingRow, generation_id.strip())
    return None if row is None else Rating(row.rating, row.comment, row.updated_at)


def revision(database: Database) -> str:
    """Changes whenever a rating is added or changed; the same otherwise, and also when an image
    is rated as the same image from another run was already. Raises StorageError.

    Reads one index, for the fingerprints of nodes that learn from ratings.
    """
    with database.session(read_only=True) as session:
        return str(session.scalar(select(func.sum(RatingRow.changes))) or 0)


def _same_image_rated_so(session: Session, image_key: str, rating: int) -> bool:
    """Whether the same image, made by another run, has this rating: then it teaches nothing new.

    Without this, a rating left standing in a workflow with a fixed seed would change what is
    learned with each run, and so have the same image made and rated again and again.
    """
    twin = (
        select(RatingRow.generation_id)
        .join(GenerationRow, GenerationRow.id == RatingRow.generation_id)
        .where(GenerationRow.image_key == image_key, RatingRow.rating == rating)
        .limit(1)
    )
    with session.no_autoflush:
        return session.scalar(twin) is not None
