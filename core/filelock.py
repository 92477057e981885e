"""One writer a file, across threads and processes."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_log = logging.getLogger(__name__)

# The `filelock` package is not used: its releases before 2026 neither remove the lock file nor
# notice that another process removed it, which lets two writers in at once.
if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def one_writer(path: Path, wait: Callable[[], object]) -> Iterator[None]:
    """Hold the lock file at `path`; remove it at the end. A killed process lets go of it.

    On a disk that knows no locks (some network shares) a warning is logged and nothing held.

    Args:
        path: the lock file; its folder must exist.
        wait: called each time another holds the lock. It sleeps; what it raises ends the wait.

    Raises:
        OSError: the lock file cannot be made.
    """
    while (descriptor := _try(path)) is None:
        wait()
    try:
        yield
    finally:
        if sys.platform == "win32":  # an open file cannot be removed; one that waits opened it
            os.close(descriptor)
            with suppress(OSError):
                path.unlink()
        else:
            with suppress(OSError):
                path.unlink()  # while held, so that whoever waits sees that it is gone
            os.close(descriptor)


def _try(path: Path) -> int | None:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except PermissionError:
        if sys.platform == "win32" and path.exists():
            return None  # being removed by its last holder
        raise
    try:
        _lock(descriptor)
    except (BlockingIOError, PermissionError):  # held by another
        os.close(descriptor)
        return None
    except OSError as error:
        _log.warning(
            "%s cannot be locked (%s): do not download the same file twice at once.",
            path,
            error.strerror or error,
        )
        return descriptor
    with suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
    os.close(descriptor)  # its last holder removed it before we had it
    return None
