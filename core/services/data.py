"""The database and the catalog, opened at first use, never at ComfyUI's start."""

from __future__ import annotations

import threading
from datetime import datetime, timezone

from .. import host
from ..catalog import Catalog
from ..generating import recover
from ..storage import Database


class Data:
    """The pack's data in one process. Safe to use from several threads."""

    def __init__(self, database_url: str) -> None:
        self._database_url = database_url
        self._lock = threading.RLock()
        self._database: Database | None = None
        self._catalog: Catalog | None = None

    @property
    def database(self) -> Database:
        """Opened, upgraded and recovered from crashes at first use. Raises StorageError."""
        with self._lock:
            if self._database is None:
                database = Database.open(self._database_url)
                recover(database, now=datetime.now(timezone.utc))
                self._database = database
            return self._database

    @property
    def catalog(self) -> Catalog:
        """The model files that ComfyUI has folders for. Raises StorageError."""
        with self._lock:
            if self._catalog is None:
                self._catalog = Catalog(self.database, host.model_folders)
            return self._catalog
