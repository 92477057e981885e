"""The vectors of a library's LoRAs: made in the background, kept in a file beside the database.

A vector belongs to the texts it was made from, so a renamed file keeps it, a changed title makes a
new one, and a library is opened again without computing anything.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ..catalog.entries import LoraLibrary
from ..embedding import Encoder, Opened
from ..filelock import one_writer
from ..plan import Clause, Notice
from .index import Floats
from .keeping import Kept
from .text import spelt_out
from .vectors import (
    Alignment,
    Halves,
    LoraVectors,
    Similarity,
    Texts,
    alignment,
    telling_parts,
    texts_of,
)

log = logging.getLogger(__name__)

_DIGEST = 16
_AT_ONCE = 16
"""LoRAs encoded together. Small, so that a stop is heeded soon."""
_WORTH_WAITING = 256
"""LoRAs without vectors that a prompt waits for: some seconds on a processor."""
_PAUSE = 0.05
_State = Literal["not started", "opening", "reading", "ready", "off", "failed"]


class VectorFile:
    """Aligned vectors by the texts they were made from, added at the end of one file.

    A head that names the alignment, then records of a digest and half-precision numbers. A file
    of another alignment is written anew. What a killed process left half written at the end is
    overwritten by the next one. One writer at a time; readers need no lock.
    """

    def __init__(self, path: Path, aligned: Alignment) -> None:
        self._path = path
        width = aligned.name.shape[1]
        of_loras = (aligned.name, aligned.description)
        self._head = _digest(*(part.astype(np.float32).tobytes() for part in of_loras))
        self._record = np.dtype([("digest", f"V{_DIGEST}"), ("vector", np.float16, width)])
        self._places: dict[bytes, int] = {}
        """Of each known digest, its record in the file."""
        self._records = 0
        self._read()

    def __len__(self) -> int:
        return len(self._places)

    def get(self, texts: Sequence[Texts]) -> Halves:
        """float16 [LoRAs, n], read from the file; NaN where there is no vector yet."""
        found = np.full((len(texts), self._record["vector"].shape[0]), np.nan, np.float16)
        places = np.array([self._places.get(_key(each), -1) for each in texts], np.int64)
        # Another version of this pack may have written the file anew meanwhile.
        whole = self._whole() or 0
        there = (places >= 0) & (places < whole)
        if there.any():
            kept = np.memmap(self._path, self._record, "r", _DIGEST, whole)
            found[there] = kept["vector"][places[there]]
        return found

    def missing(self, texts: Sequence[Texts]) -> list[Texts]:
        """The texts without a vector, each once."""
        return [each for each in dict.fromkeys(texts) if _key(each) not in self._places]

    def add(self, texts: Sequence[Texts], vectors: Floats) -> None:
        """Keep the vectors of texts. Raises OSError."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        records = np.zeros(len(texts), self._record)
        records["digest"] = np.array([_key(each) for each in texts], f"V{_DIGEST}")
        records["vector"] = vectors
        pause = threading.Event()
        with one_writer(self._path.with_suffix(".lock"), lambda: pause.wait(0.05)):
            whole = self._whole()
            with self._path.open("wb" if whole is None else "r+b") as file:
                if whole is None:
                    file.write(self._head)
                file.seek(_DIGEST + (whole or 0) * self._record.itemsize)
                file.write(records.tobytes())
        if (whole or 0) == self._records:
            self._take(records["digest"])
        else:  # another process added some too
            self._read()

    def _whole(self) -> int | None:
        """Whole records in the file; None where it is missing or of another alignment."""
        if not self._path.is_file():
            return None
        with self._path.open("rb") as file:
            if file.read(_DIGEST) != self._head:
                return None
        return (self._path.stat().st_size - _DIGEST) // self._record.itemsize

    def _read(self) -> None:
        self._places, self._records = {}, 0
        if whole := self._whole():
            self._take(np.memmap(self._path, self._record, "r", _DIGEST, whole)["digest"])

    def _take(self, digests: npt.NDArray[np.void]) -> None:
        self._places |= {bytes(each): self._records + at for at, each in enumerate(digests)}
        self._records += len(digests)


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

    def __init__(
        self,
        path: Path,
        open_encoder: Callable[[], Opened],
        read_alignment: Callable[[], Alignment] = alignment,
    ) -> None:
        """
        Args:
            path: the file of vectors; made when first needed.
            open_encoder: loads the embedding model; called once.
            read_alignment: what the vectors are aligned by; called when first needed.
        """
        self._path = path
        self._open = open_encoder
        self._read_alignment = read_alignment
        self._lock = threading.RLock()
        self._encoder: Encoder | None = None
        self._file: VectorFile | None = None
        self._matrices: Kept[tuple[int, LoraVectors]] = Kept()
        """Vectors in a library's order, and how many the file had then."""
        self._thread: threading.Thread | None = None
        self._complete: Kept[bool] = Kept()
        """The libraries whose vectors are all made."""
        self._checkpoint: tuple[str, Floats | None] = ("", None)
        """The latest checkpoint's name and vector."""
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
        checkpoint: str = "",
        check: Callable[[], object] = lambda: None,
    ) -> Similarity | None:
        """How near each LoRA is to the prompt, in the library's order; None where words alone
        decide. Starts to make the vectors that are missing.

        Args:
            checkpoint: the stem of its file's name; empty where it is not known.
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
        asked = self._read_alignment().of_prompt(encoder.encode_parts(parts))
        named = self._of_checkpoint(checkpoint, encoder)
        return Similarity(asked, self._vectors(library, file), named)

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
            encoder, file = opened.encoder, VectorFile(self._path, self._read_alignment())
            with self._lock:
                self._encoder, self._file = encoder, file
        wanted = list(dict.fromkeys(texts_of(entry) for entry in library.entries))
        unread = file.missing(wanted)
        done, total = len(wanted) - len(unread), len(wanted)
        self._say("reading", done, total)
        for at in range(0, len(unread), _AT_ONCE):
            if self._stop.is_set():
                return
            some = unread[at : at + _AT_ONCE]
            names, descriptions = (encoder.encode(column) for column in zip(*some, strict=True))
            file.add(some, self._read_alignment().of_loras(names, descriptions))
            self._say("reading", done + at + len(some), total)
        with self._lock:
            self._complete.put(library, True)
            self._revision += self._asked_early
            self._asked_early = False
            self._say("ready", total, total)

    def _say(self, state: _State, done: int, total: int, problem: str = "") -> None:
        with self._lock:
            self._status = MeaningStatus(state, done, total, problem)

    def _of_checkpoint(self, checkpoint: str, encoder: Encoder) -> Floats | None:
        """Its vector; kept, as one prompt after the other is for the same checkpoint."""
        if not (text := spelt_out(checkpoint)):
            return None
        with self._lock:
            name, vector = self._checkpoint
        if vector is None or name != text:
            vector = self._read_alignment().of_checkpoint(encoder.encode([text])[0])
            with self._lock:
                self._checkpoint = text, vector
        return vector

    def _vectors(self, library: LoraLibrary, file: VectorFile) -> LoraVectors:
        """The vectors of the library's LoRAs."""
        count = len(file)
        kept = self._matrices.get(library)
        if kept is None or kept[0] != count:
            found = LoraVectors.of(file.get([texts_of(entry) for entry in library.entries]))
            kept = self._matrices.put(library, (count, found))
        return kept[1]


def _key(texts: Texts) -> bytes:
    return _digest(*(text.encode("utf-8", "surrogatepass") for text in texts))


def _digest(*parts: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=_DIGEST)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()
