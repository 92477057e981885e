"""Answers of language models, kept in the database."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone

from sqlalchemy import delete, func, select

from ..storage import Database
from ..storage.tables import LanguageModelAnswer

MOST_ANSWERS = 5_000
"""Kept at most, about 1 KB each; those not used for the longest time go first."""


def _utc_now() -> datetime:
    return datetime.now(timezone.utc)


class StoredAnswers:
    """An AnswerCache that outlives ComfyUI. Safe to share between threads.

    Its methods raise StorageError.
    """

    def __init__(
        self,
        database: Database,
        *,
        most: int = MOST_ANSWERS,
        now: Callable[[], datetime] = _utc_now,
    ) -> None:
        self._database = database
        self._most = most
        self._now = now

    def get(self, key: str) -> str | None:
        """The answer kept under a key."""
        with self._database.session() as session:
            row = session.get(LanguageModelAnswer, key)
            if row is None:
                return None
            row.used_at = self._now()
            return row.answer

    def put(self, key: str, answer: str) -> None:
        """Keep an answer in place of an earlier one under this key."""
        table = LanguageModelAnswer
        with self._database.session() as session:
            session.merge(table(key=key, answer=answer, used_at=self._now()))
            session.flush()
            too_many = (session.scalar(select(func.count()).select_from(table)) or 0) - self._most
            if too_many > 0:
                oldest = select(table.key).order_by(table.used_at, table.key).limit(too_many)
                keys = session.scalars(oldest).all()
                session.execute(delete(table).where(table.key.in_(keys)))
