"""What was worked out of the libraries that were used last."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Generic, TypeVar

from ..catalog.entries import LoraEntry, LoraLibrary

T = TypeVar("T")

LIBRARIES = 3
"""Kept: the LoRAs on disk, the offers of the hubs alone, and both together."""


class Kept(Generic[T]):
    """One value for each of the libraries used last. Safe to use from several threads.

    A revision names a library's content. Its entries are compared too, which guards callers
    (tests above all) that make two libraries under one name; that costs little where the entries
    are the same objects.
    """

    def __init__(self, most: int = LIBRARIES) -> None:
        self._most = most
        self._values: OrderedDict[str, tuple[tuple[LoraEntry, ...], T]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, library: LoraLibrary) -> T | None:
        """The value kept for a library, if there is one."""
        with self._lock:
            entries, value = self._values.get(library.revision, (None, None))
            if entries != library.entries:
                return None
            self._values.move_to_end(library.revision)
            return value

    def put(self, library: LoraLibrary, value: T) -> T:
        """Keep a value for a library in place of an older one; gives the value."""
        with self._lock:
            self._values[library.revision] = (library.entries, value)
            self._values.move_to_end(library.revision)
            while len(self._values) > self._most:
                self._values.popitem(last=False)
        return value
