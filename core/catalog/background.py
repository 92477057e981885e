"""The catalog kept up to date by a thread of its own, with its progress to be looked at."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Literal, NamedTuple

from ..errors import IntelligentGenerationError
from .hashing import Throttle
from .library import ByHashes, Catalog, ScanProgress, ScanReport

log = logging.getLogger(__name__)

Phase = Literal["idle", "scanning", "hashing", "asking", "done", "stopped", "failed"]


class ScanStatus(NamedTuple):
    """What the thread does now."""

    phase: Phase
    folder: str = ""
    done: int = 0
    total: int = 0
    """Files; what they are counts for the phase: to be read, hashed, or asked of."""
    report: ScanReport | None = None
    """Of the scan, once it is through."""
    error: str = ""
    """Why it failed."""


class BackgroundScan:
    """Scan, then hash what needs it, then ask a hub what it knows of the files.

    Args:
        catalog: is used from the thread.
        hash_files: hash the files of `Catalog.without_hash`; else only those of a content that
            has a history and no file.
        by_hashes: see `Catalog.enrich`; None asks nobody.
        throttle: leaves time to others while hashing.
        on_change: called with every new status, in the thread.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        hash_files: bool = False,
        by_hashes: ByHashes | None = None,
        throttle: Throttle | None = None,
        on_change: Callable[[ScanStatus], object] = lambda status: None,
    ) -> None:
        self._catalog = catalog
        self._hash_files = hash_files
        self._by_hashes = by_hashes
        self._throttle = throttle or Throttle()
        self._on_change = on_change
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._status = ScanStatus("idle")

    @property
    def status(self) -> ScanStatus:
        return self._status

    def start(self) -> bool:
        """Begin, unless it runs already; whether it began."""
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                return False
            self._stop.clear()
            self._thread = threading.Thread(target=self._run, name="catalog scan", daemon=True)
            self._thread.start()
            return True

    def stop(self) -> None:
        """End at the next file or block; what was read and hashed is kept."""
        self._stop.set()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until it has ended; whether it has."""
        thread = self._thread
        if thread is None:
            return True
        thread.join(timeout)
        return not thread.is_alive()

    def _run(self) -> None:
        try:
            self._work()
        except IntelligentGenerationError as error:
            log.warning("Reading the model folders in the background failed: %s", error)
            self._tell(ScanStatus("failed", report=self._status.report, error=str(error)))
        except Exception as error:
            log.exception("Reading the model folders in the background failed.")
            self._tell(ScanStatus("failed", report=self._status.report, error=repr(error)))

    def _work(self) -> None:
        stop = self._stop.is_set

        def scanning(progress: ScanProgress) -> None:
            self._tell(ScanStatus("scanning", progress.folder, progress.done, progress.total))

        self._tell(ScanStatus("scanning"))
        report = self._catalog.scan(on_progress=scanning, stop=stop)
        if not stop():
            self._catalog.hash_missing(
                lost_only=not self._hash_files,
                on_progress=lambda done, total: self._tell(
                    ScanStatus("hashing", done=done, total=total, report=report)
                ),
                stop=stop,
                throttle=self._throttle,
            )
        if self._by_hashes is not None and not stop():
            self._catalog.enrich(
                self._by_hashes,
                on_progress=lambda done, total: self._tell(
                    ScanStatus("asking", done=done, total=total, report=report)
                ),
                stop=stop,
            )
        self._tell(ScanStatus("stopped" if stop() else "done", report=report))

    def _tell(self, status: ScanStatus) -> None:
        self._status = status
        self._on_change(status)
