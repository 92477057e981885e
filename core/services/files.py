"""The model files on disk: where they are, their hashes, and those that the pack downloaded."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

from .. import host
from ..catalog import CleanupPlan, CleanupReport, DiskCache
from ..catalog import Limits as CacheLimits
from ..errors import IntelligentGenerationError, ModelFileError, SettingError
from ..plan import FileRef, GenerationPlan
from .data import Data

log = logging.getLogger(__name__)


class Files:
    """The files of the model folders. Safe to use from several threads."""

    def __init__(self, data: Data) -> None:
        self._data = data
        self._lock = threading.RLock()
        self._hashing: dict[Path, threading.Thread] = {}
        self._in_use: dict[str, list[Path]] = {}
        self._cleanup: tuple[str, CleanupPlan] | None = None

    def locate(self, file: FileRef) -> FileRef:
        """The file as it is on disk, wherever it was moved to. Raises ModelFileError."""
        return self._data.catalog.find(file, stop=host.check_interrupt)[0]

    def sha256(self, file: FileRef) -> str:
        """The hash of a file, computed where it is not known. Raises ModelFileError."""
        path = self._data.catalog.path(file)
        with self._lock:
            running = self._hashing.pop(path, None)
        while running is not None and running.is_alive():
            host.check_interrupt()
            running.join(timeout=0.05)
        return self._data.catalog.sha256(path, stop=host.check_interrupt)

    def hash_in_background(self, path: Path) -> None:
        """Begin to hash a file, so that its hash is there for the record."""

        def work() -> None:
            try:
                self._data.catalog.sha256(path)
            except IntelligentGenerationError as error:
                # Whoever needs the hash asks again and gets the error.
                log.debug("Hashing %s in the background failed: %s", path, error)

        with self._lock:
            running = self._hashing.get(path)
            if running is None or not running.is_alive():
                # A daemon: ComfyUI's shutdown must not wait for it.
                self._hashing[path] = threading.Thread(target=work, daemon=True)
                self._hashing[path].start()

    def with_hashes(self, plan: GenerationPlan) -> GenerationPlan:
        """The plan with the SHA-256 of every file in it."""

        def hashed(file: FileRef) -> FileRef:
            if file.sha256:
                return file
            try:
                size = self._data.catalog.path(file).stat().st_size
                return file.model_copy(update={"sha256": self.sha256(file), "size": size})
            except ModelFileError as error:
                # Moved or replaced while it was used: the image is there, its record is not whole.
                log.warning("Intelligent Generation: %s is not in the record: %s", file, error)
                return file

        parts = tuple(
            part.model_copy(update={"files": tuple(map(hashed, part.files))})
            for part in plan.model.parts
        )
        loras = tuple(
            lora.model_copy(update={"file": hashed(lora.file)}) for lora in plan.loras.loras
        )
        return plan.model_copy(
            update={
                "model": plan.model.model_copy(update={"parts": parts}),
                "loras": plan.loras.model_copy(update={"loras": loras}),
            }
        )

    # ------------------------------------------------------------------ downloads

    @property
    def disk_cache(self) -> DiskCache:
        """The files that the pack downloaded."""
        now = partial(datetime.now, timezone.utc)
        return DiskCache(self._data.database, self._data.catalog, now=now)

    def used(self, what: str, files: Sequence[FileRef]) -> None:
        """Note that files are in use, in place of those noted before as the same thing."""
        paths = []
        for file in files:
            with suppress(ModelFileError):  # removed while it was used
                paths.append(self._data.catalog.path(file))
        with self._lock:
            self._in_use[what] = paths
        self.disk_cache.touch(paths)

    def plan_cleanup(self, limits: CacheLimits) -> tuple[str, CleanupPlan]:
        """What keeping the downloaded files to the limits would take, and an id to do it by."""
        plan = self.disk_cache.plan(limits, in_use=self._files_in_use())
        with self._lock:
            self._cleanup = (uuid.uuid4().hex, plan)
            return self._cleanup

    def clean_up(self, plan_id: str) -> CleanupReport:
        """Do what the last `plan_cleanup` listed, less what changed since.

        Raises:
            SettingError: that plan is not the last one, or was done already.
        """
        with self._lock:
            if self._cleanup is None or self._cleanup[0] != plan_id:
                raise SettingError(
                    "This is not the last dry run, or it was done already. Ask for a new one."
                )
            _, plan = self._cleanup
            self._cleanup = None
        return self.disk_cache.clean(plan, in_use=self._files_in_use())

    def _files_in_use(self) -> list[Path]:
        with self._lock:
            return [path for paths in self._in_use.values() for path in paths]
