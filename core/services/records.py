"""The images that were made: their records, ratings and replays."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from ..errors import SettingError, UnknownGenerationError
from ..generating import generation_from_png, load_generation, recent, replay_prompt
from ..learning import NOT_RATED, record_rating, revision
from ..plan import Generation
from .data import Data
from .files import Files


class Records:
    """What was made."""

    def __init__(self, data: Data, files: Files) -> None:
        self._data = data
        self._files = files

    def generation(self, generation_id: str) -> Generation:
        """The record with this id. Raises UnknownGenerationError."""
        found = load_generation(self._data.database, generation_id)
        if found is None:
            raise UnknownGenerationError(
                f"There is no generation {generation_id!r}. The ids of the newest are listed at "
                "/intelligent_generation/generations."
            )
        return found

    def recent(self, limit: int) -> tuple[Generation, ...]:
        """The newest records, newest first."""
        return recent(self._data.database, limit)

    def rate(self, generation_id: str | None, rating: int, comment: str) -> str:
        """Store a rating; what was done, in words. Raises SettingError, UnknownGenerationError."""
        if generation_id is None and rating != NOT_RATED:
            raise SettingError(
                "There is nothing to rate: link IntelligentSampler's generation, or give a "
                "generation_id."
            )
        return record_rating(
            self._data.database,
            generation_id or "",
            rating,
            comment,
            now=datetime.now(timezone.utc),
        ).message

    def learning_revision(self) -> str:
        """Changes when a rating is added or changed."""
        return revision(self._data.database)

    def replay(self, generation_id: str) -> dict[str, Any]:
        """An API prompt that makes a recorded image again. Raises as `generation` and
        `replay_prompt` do."""
        return self._replay(self.generation(generation_id))

    def replay_png(self, data: bytes) -> dict[str, Any]:
        """The same from the bytes of a PNG that IntelligentSampler saved."""
        return self._replay(generation_from_png(data))

    def replay_json(self, data: bytes) -> dict[str, Any]:
        """The same from a Generation as JSON."""
        return self._replay(Generation.from_json(data.decode("utf-8", errors="replace")))

    def _replay(self, generation: Generation) -> dict[str, Any]:
        return replay_prompt(generation.plan, locate=self._files.locate)
