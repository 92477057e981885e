"""The hashes by which the hubs know a file, and reading whole files without being in the way."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..errors import ModelFileError

HASH_BLOCK = 4 * 1024 * 1024
"""Bytes hashed between two looks at `stop`."""

NO_AUTOV3 = ""
"""Kept for a file that has no AutoV3: it is not safetensors."""

Progress = Callable[[int, int], object]
"""Called with bytes done and bytes in all."""
Stop = Callable[[], object]


class Hashes(NamedTuple):
    """Lower-case hex, as kept; the hubs compare without case."""

    sha256: str
    """Of the whole file."""
    autov3: str | None
    """First 12 digits of the SHA-256 of what follows a safetensors header; the same after only
    the header was edited. None for other files."""

    @property
    def autov2(self) -> str:
        """First 10 digits of the SHA-256."""
        return self.sha256[:10]


class Throttle:
    """Leaves the disk and a core to others: works a share of the time, waits the rest.

    Args:
        share: of the time spent working, in (0, 1].
        busy: true while the machine is needed for something better, e.g. sampling.
        clock: seconds, monotonic.
        sleep: waits for so many seconds.
    """

    def __init__(
        self,
        share: float = 0.5,
        *,
        busy: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        if not 0.0 < share <= 1.0:
            raise ValueError(f"share is {share}, not in (0, 1]")
        self._share = share
        self._busy = busy
        self._clock = clock
        self._sleep = sleep
        self._since: float | None = None

    def start(self) -> None:
        """Begin to count: what was before is no work of ours."""
        self._since = self._clock()

    def wait(self, stop: Stop | None = None) -> None:
        """Called after each piece of work; ends early when `stop` says so."""
        now = self._clock()
        worked = now - (now if self._since is None else self._since)
        if self._share < 1.0 and worked > 0.0:
            self._sleep(min(worked * (1.0 / self._share - 1.0), _LONGEST_WAIT))
        while self._busy() and not (stop is not None and stop()):
            self._sleep(_BUSY_WAIT)
        self._since = self._clock()


_LONGEST_WAIT = 1.0  # seconds, after a disk that answered late
_BUSY_WAIT = 0.25


def hash_file(
    path: str,
    size: int,
    on_progress: Progress | None = None,
    stop: Stop | None = None,
    *,
    autov3: bool = False,
    throttle: Throttle | None = None,
) -> tuple[str, str | None]:
    """SHA-256 of a whole file and, where asked for, its AutoV3, in one reading.

    Returns:
        Both in lower-case hex; the second is NO_AUTOV3 for a file that is not safetensors, None
        when it was not asked for.

    Raises:
        ModelFileError: `stop` returned something true.
        OSError: the file cannot be read.
    """
    whole, payload = hashlib.sha256(), hashlib.sha256()
    buffer = memoryview(bytearray(min(HASH_BLOCK, max(size, 1))))
    done = 0
    starts: int | None = None  # of the payload
    if throttle is not None:
        throttle.start()
    with Path(path).open("rb", buffering=0) as file:
        if autov3:
            starts = _payload_start(file.read(9), size)
            file.seek(0)
        while True:
            if stop is not None and stop():
                raise ModelFileError(f"Hashing {path} was stopped.")
            count = file.readinto(buffer)
            if not count:
                break
            whole.update(buffer[:count])
            if starts is not None and done + count > starts:
                payload.update(buffer[max(starts - done, 0) : count])
            done += count
            if on_progress is not None:
                on_progress(done, size)
            if throttle is not None:
                throttle.wait(stop)
    if not autov3:
        return whole.hexdigest(), None
    return whole.hexdigest(), NO_AUTOV3 if starts is None else payload.hexdigest()[:12]


def _payload_start(start: bytes, size: int) -> int | None:
    end = 8 + int.from_bytes(start[:8], "little")
    return end if start[8:9] == b"{" and end <= size else None
