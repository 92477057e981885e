"""Reading the headers of many model files, one by one or side by side."""

from __future__ import annotations

import gc
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from statistics import median
from typing import NamedTuple

from ..plan import FileRef
from .digest import describe, describe_model
from .entries import LoraEntry, ModelEntry
from .families import has_lora_weights
from .headers import HeaderError, load_header
from .scan import Found

LORAS = "loras"
"""ComfyUI's folder key of LoRA files."""

_SAMPLE = 64  # files whose reading tells whether the disk is slow
_SLOW_DISK = 0.003  # seconds waited for a file, in the middle of the sample, for threads to pay
_THREADS = 8


class Reading(NamedTuple):
    """What a header says."""

    entry: LoraEntry | ModelEntry
    fingerprint: str
    """Of the header, see SafetensorsHeader."""


def read_all(folder: str, files: Sequence[Found]) -> Generator[Reading | HeaderError, None, None]:
    """What each file says, or why it cannot be read, in order.

    One after the other, or side by side where the disk is what takes the time: on a local disk
    the interpreter's lock makes threads slower (5,000 files: 2.4 s with four, 1.6 s without); a
    share or a hard disk that keeps the first files waiting gains from them. The median tells it
    from a busy processor, which holds up a few files for long.
    """
    read = partial(_read, folder)
    sample, rest = files[:_SAMPLE], files[_SAMPLE:]
    waits: list[float] = []
    for file in sample:
        wall, busy = time.perf_counter(), time.thread_time()
        outcome = read(file)
        waits.append(time.perf_counter() - wall - (time.thread_time() - busy))
        yield outcome
    if not rest or median(waits) < _SLOW_DISK:
        yield from map(read, rest)
        return
    pool = ThreadPoolExecutor(_THREADS, "catalog")
    try:
        yield from pool.map(read, rest)
    finally:  # whoever asked may have had enough
        pool.shutdown(cancel_futures=True)


def file_ref(folder: str, file: Found, sha256: str | None) -> FileRef:
    return FileRef(folder=folder, name=file.name, size=file.size, sha256=sha256)


@contextmanager
def collector_paused() -> Iterator[None]:
    """No search for garbage: thousands of small objects are made, and few are garbage that only
    a search would find. The searching took a third of the time, and a full one holds up every
    other thread, ComfyUI's answers among them, for a tenth of a second or more."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def no_full_collections() -> Iterator[None]:
    """No search for garbage through all of memory, which holds up every other thread for a tenth
    of a second or more; unless somebody asks for one. New garbage is found as ever, unlike with
    `collector_paused`, so this may take minutes."""
    before = gc.get_threshold()
    without = (*before[:2], _NEVER)
    gc.set_threshold(*without)
    try:
        yield
    finally:
        if gc.get_threshold() == without:  # else somebody set it meanwhile
            gc.set_threshold(*before)


_NEVER = 1_000_000_000  # collections of the middle generation before a full one


def batches(items: Iterator, size: int) -> Iterator[list]:
    while batch := list(islice(items, size)):
        yield batch


def _read(folder: str, file: Found) -> Reading | HeaderError:
    try:
        header = load_header(file.path)
        if folder != LORAS:
            entry = describe_model(header, file_ref(folder, file, None))
        elif has_lora_weights(header):
            entry = describe(header, file_ref(folder, file, None))
        else:
            return HeaderError("holds no LoRA weights: it is another kind of model file")
        return Reading(entry, header.fingerprint)
    except HeaderError as problem:
        return problem
