"""The vectors of a library's LoRAs: made in the background, kept in a file beside the database.

A vector belongs to the text it was made from, so a renamed file keeps it, a changed title makes a
new one, and a library is opened again without computing anything.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from ..catalog.entries import LoraLibrary
from ..embedding import Encoder, Opened
from ..filelock import one_writer
from ..plan import Clause, Notice
from .index import Floats
from .keeping import Kept
from .vectors import Similarity, product, similarity, telling_parts, texts_of

log = logging.getLogger(__name__)

_DIGEST = 16
_AT_ONCE = 16
"""LoRAs encoded together. Small, so that a stop is heeded soon."""
_WORTH_WAITING = 256
"""LoRAs without vectors that a prompt waits for: some seconds on a processor."""
_PAUSE = 0.05
_PROJECTION = "projection.safetensors"
_State = Literal["not started", "opening", "reading", "ready", "off", "failed"]


@cache
def projection() -> Floats:
    """[DIMENSIONS, n]: the n principal directions in which LoRAs differ most, so that a vector
    takes a third of the memory. Fitted by benchmarks/recommend_fit.py."""
    return load_file(Path(__file__).with_name(_PROJECTION))["projection"].astype(np.float32)


def projected(vectors: Floats) -> Floats:
    """The vectors, unit ones again, in the principal directions; zeros stay zeros."""
    short = product(vectors, projection())
    return short / np.maximum(np.linalg.norm(short, axis=1, keepdims=True), 1e-9)


class VectorFile:
    """Vectors by the text they were made from, added at the end of one file.

    Records of a digest and half-precision numbers. What a killed process left half written at the
    end is overwritten by the next one. One writer at a time; readers need no lock.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        width = projection().shape[1]
        self._record = np.dtype([("digest", f"V{_DIGEST}"), ("vector", np.float16, width)])
        self._known: dict[bytes, int] = {}
        self._parts: list[npt.NDArray[np.float16]] = [np.zeros((0, width), np.float16)]
        self._read()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, texts: Sequence[str]) -> Floats:
        """float32 [texts, n]; NaN where a text has no vector yet."""
        places = np.array([self._known.get(_digest(text), -1) for text in texts], np.int64)
        if len(self._parts) > 1:
            self._parts = [np.concatenate(self._parts)]
        found = np.full((len(texts), self._parts[0].shape[1]), np.nan, np.float32)
        found[places >= 0] = self._parts[0][places[places >= 0]]
        return found

    def missing(self, texts: Sequence[str]) -> list[str]:
        """The texts without a vector, each once; an empty one needs none."""
        return [t for t in dict.fromkeys(texts) if t and _digest(t) not in self._known]

    def add(self, texts: Sequence[str], vectors: Floats) -> None:
        """Keep the vectors of texts. Raises OSError."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        records = np.zeros(len(texts), self._record)
        records["digest"] = np.array([_digest(text) for text in texts], f"V{_DIGEST}")
        records["vector"] = vectors
        pause = threading.Event()
        with one_writer(self._path.with_suffix(".lock"), lambda: pause.wait(0.05)):
            self._path.touch()
            with self._path.open("r+b") as file:
                whole = self._path.stat().st_size // self._record.itemsize
                file.seek(whole * self._record.itemsize)
                file.write(records.tobytes())
        if whole == sum(map(len, self._parts)):
            self._take(records)
        else:  # another process added some too
            self._read()

    def _read(self) -> None:
        if not self._path.is_file():
            return
        data = self._path.read_bytes()
        self._known, self._parts = {}, self._parts[:1]
        self._parts[0] = self._parts[0][:0]
        self._take(np.frombuffer(data, self._record, len(data) // self._record.itemsize))

    def _take(self, records: npt.NDArray[np.void]) -> None:
        at = sum(map(len, self._parts))
        self._parts.append(np.ascontiguousarray(records["vector"]))
        self._known |= {bytes(d): at + i for i, d in enumerate(records["digest"])}


class MeaningStatus(NamedTuple):
    """How far the vectors are."""

    state: _State
    done: int
    """LoRAs with vectors, those with the same texts counted once."""
    total: int
    problem: str = ""
    """Why it is off or failed, in words for people."""


def meaning_notice(status: MeaningStatus) -> Notice | None:
    """What to say of a recommendation that was made by words alone, or partly so."""
    if status.state == "ready":
        return None
    if status.state in ("off", "failed"):
        message = f"LoRAs were compared by words alone. {status.problem}"
        return Notice(level="info", code="words_alone", message=message)
    message = (
        f"{status.done} of {status.total} LoRAs are ready to be compared by meaning; the others "
        "were compared by words alone. The rest is being read in the background."
    )
    return Notice(level="info", code="meaning_incomplete", message=message)


class Meaning:
    """Compares prompts with LoRAs by meaning. Safe to use from several threads.

    The encoder is opened at the first use and vectors are made in the background. The first
    prompt waits for the encoder and for a few vectors; where many are missing it does not, and
    words alone decide for LoRAs without one.
    """

    def __init__(self, path: Path, open_encoder: Callable[[], Opened]) -> None:
        """
        Args:
            path: the file of vectors; made when first needed.
            open_encoder: loads the embedding model; called once.
        """
        self._path = path
        self._open = open_encoder
        self._lock = threading.RLock()
        self._encoder: Encoder | None = None
        self._file: VectorFile | None = None
        self._matrices: Kept[tuple[int, tuple[Floats, Floats]]] = Kept()
        """Vectors in a library's order, and how many the file had then."""
        self._thread: threading.Thread | None = None
        self._complete: Kept[bool] = Kept()
        """The libraries whose vectors are all made."""
        self._stop = threading.Event()
        self._status = MeaningStatus("not started", 0, 0)
        self._asked_early = False
        self._revision = 0

    def status(self) -> MeaningStatus:
        """How far the vectors are."""
        with self._lock:
            return self._status

    def revision(self) -> str:
        """Changes when vectors are done that a prompt did not wait for."""
        with self._lock:
            return str(self._revision)

    def similarity(
        self,
        library: LoraLibrary,
        clauses: Sequence[Clause],
        check: Callable[[], object] = lambda: None,
    ) -> Similarity | None:
        """How near each LoRA is to the prompt, in the library's order; None where words alone
        decide. Starts to make the vectors that are missing.

        Args:
            check: called while waiting; what it raises ends the wait.
        """
        self.start(library)
        while self._busy() and (
            (status := self.status()).state in ("not started", "opening")
            or status.total - status.done <= _WORTH_WAITING
        ):
            check()
            self.wait(_PAUSE)
        with self._lock:
            encoder, file = self._encoder, self._file
            self._asked_early |= self._busy()
        parts = telling_parts(clauses)
        if encoder is None or file is None or not len(file) or not parts:
            return None
        return similarity(projected(encoder.encode_parts(parts)), *self._vectors(library, file))

    def start(self, library: LoraLibrary) -> None:
        """Make the vectors that the library lacks, in the background."""
        with self._lock:
            if self._busy() or self._status.state == "off" or self._complete.get(library):
                return
            self._stop.clear()
            # A daemon: ComfyUI's shutdown must not wait for it.
            self._thread = threading.Thread(target=self._work, args=(library,), daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the work at the next few texts; what was made is kept."""
        self._stop.set()

    def wait(self, seconds: float | None = None) -> MeaningStatus:
        """Wait until what runs in the background is done."""
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join(seconds)
        return self.status()

    def _busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _work(self, library: LoraLibrary) -> None:
        try:
            self._make(library)
        except Exception as error:
            # Words alone go on; the next prompt tries again.
            log.warning("Intelligent Generation cannot compare by meaning: %s", error)
            self._say("failed", 0, len(library.entries), str(error))

    def _make(self, library: LoraLibrary) -> None:
        encoder, file = self._encoder, self._file
        if encoder is None or file is None:
            self._say("opening", 0, len(library.entries))
            opened = self._open()
            if opened.encoder is None:
                self._say("off", 0, len(library.entries), opened.problem)
                return
            encoder, file = opened.encoder, VectorFile(self._path)
            with self._lock:
                self._encoder, self._file = encoder, file
        wanted = list(dict.fromkeys(texts_of(entry) for entry in library.entries))
        unread = [texts for texts in wanted if file.missing(texts)]
        total = len(wanted)
        self._say("reading", total - len(unread), total)
        for at in range(0, len(unread), _AT_ONCE):
            if self._stop.is_set():
                return
            some = unread[at : at + _AT_ONCE]
            missing = file.missing([text for texts in some for text in texts])
            file.add(missing, projected(encoder.encode(missing)))
            self._say("reading", total - len(unread) + at + len(some), total)
        with self._lock:
            self._complete.put(library, True)
            self._revision += self._asked_early
            self._asked_early = False
            self._say("ready", total, total)

    def _say(self, state: _State, done: int, total: int, problem: str = "") -> None:
        with self._lock:
            self._status = MeaningStatus(state, done, total, problem)

    def _vectors(self, library: LoraLibrary, file: VectorFile) -> tuple[Floats, Floats]:
        """The vectors of the library's names and of its descriptions, in its order."""
        count = len(file)
        kept = self._matrices.get(library)
        if kept is None or kept[0] != count:
            texts = [texts_of(entry) for entry in library.entries]
            found = file.get([t.name for t in texts]), file.get([t.description for t in texts])
            kept = self._matrices.put(library, (count, found))
        return kept[1]


def _digest(text: str) -> bytes:
    # Of the directions too: vectors along others are no vectors of this text.
    return hashlib.blake2b(
        text.encode("utf-8", "surrogatepass"), digest_size=_DIGEST, key=_directions()
    ).digest()


@cache
def _directions() -> bytes:
    return hashlib.blake2b(projection().tobytes(), digest_size=_DIGEST).digest()
