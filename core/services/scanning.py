"""Reading the model folders in the background."""

from __future__ import annotations

import threading

from ..catalog import BackgroundScan, ScanStatus
from .data import Data
from .hubs import Hubs


class Scanning:
    """The scan of the model folders, one at once. Safe to use from several threads."""

    def __init__(self, data: Data, hubs: Hubs) -> None:
        self._data = data
        self._hubs = hubs
        self._lock = threading.RLock()
        self._scan: BackgroundScan | None = None

    def start_scan(self, *, hash_files: bool = False, ask_civitai: bool = False) -> bool:
        """Read the model folders in the background; whether that began, as one scan runs at once.

        Args:
            hash_files: also hash the LoRA files whose hash is not known.
            ask_civitai: then send the known hashes to CivitAI, to learn what it knows of the files.
        """
        with self._lock:
            if self._scan is not None and not self._scan.join(0):
                return False
            by_hashes = self._hubs.fetcher.civitai().by_hashes if ask_civitai else None
            self._scan = BackgroundScan(
                self._data.catalog, hash_files=hash_files, by_hashes=by_hashes
            )
            return self._scan.start()

    def stop_scan(self) -> None:
        """End the scan at the next file or block."""
        with self._lock:
            if self._scan is not None:
                self._scan.stop()

    def scan_status(self) -> ScanStatus:
        with self._lock:
            return ScanStatus("idle") if self._scan is None else self._scan.status
