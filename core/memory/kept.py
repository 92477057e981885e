"""Weights that were made at int8 or int4, kept on disk so that they need not be made again.

An entry holds what was made of one model's files, as a safetensors file of its own. It is found by
the files' paths, sizes and times and by the rules that it was made by, and the SHA-256 of each
tensor is checked as it is read: what does not agree is never used, but made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from ..errors import ModelFileError
from ..filelock import one_writer
from .quantization import Int8Weight, quantize, rules_digest
from .residency import FileStamp
from .resources import human_bytes
from .streaming import StreamedFile, stream

log = logging.getLogger(__name__)

_VERSION = 1
"""Raise it when the same weight is made otherwise than before."""
_SUFFIX = ".safetensors"
_NAMES = {torch.int8: "I8", torch.uint8: "U8", torch.float32: "F32"}
_ENTRY_BYTES = 400
"""Room in the header for a tensor beside its name: type, shape, offsets, digest."""
_MOST_PARTS = 3

Packed = Mapping[str, torch.Tensor]
PackInt4 = Callable[[str, str, torch.Tensor], "Packed | None"]


class Makers(NamedTuple):
    """What makes weights smaller while a model is loaded; see `host.FileToQuantize`."""

    int8: Callable[[str, str, torch.Tensor], Int8Weight | None]
    int4: PackInt4 | None


class KeptWeights:
    """The entries in one folder, under a limit of bytes; safe for several processes."""

    def __init__(self, folder: Path, limit: Callable[[], int]) -> None:
        """
        Args:
            folder: made when first needed.
            limit: bytes that all entries may take; 0 turns this off.
        """
        self._folder = folder
        self._limit = limit

    @contextmanager
    def makers(
        self,
        files: Sequence[FileStamp],
        tensors: Sequence[str],
        needs: int,
        tell: Callable[[str], None],
        int4: PackInt4 | None = None,
    ) -> Iterator[Makers]:
        """What makes the weights of some files: from their entry where there is a good one, else
        anew, and then they are kept once the block ends without an error.

        Nothing that is wrong with the disk or an entry ends the load: it is told, and weights
        are made.

        Args:
            files: together they are one load; the files as they are now.
            tensors: names of their tensors.
            needs: bytes that the entry will take.
            tell: called with what people should know, a sentence.
            int4: packs a weight in 4 bits, where that is wanted.
        """
        limit = self._limit()
        if limit <= 0:
            yield Makers(quantize, int4)
            return
        name = ", ".join(Path(one.path).name for one in files)
        path = self._path(files, "int8" if int4 is None else "int4")
        entry = _open(path, name, tell)
        if entry is not None:
            yield _reading(entry, int4)
            if entry.bad:
                with suppress(OSError):
                    path.unlink()
                tell(
                    f"What was kept of {name} is damaged ({entry.bad}). Those weights were made "
                    "again, and all will be kept again at the next load."
                )
            else:
                tell(f"{name} was read as it had been made before.")
            return
        with ExitStack() as held:
            writer = self._writer(held, path, tensors, needs, limit, name, tell)
            if writer is None:
                yield Makers(quantize, int4)
                return
            yield _writing(writer, int4)
            writer.finish(tell, name)

    def trim(self, limit: int) -> None:
        """Remove what was used least recently until the entries take no more than `limit`."""
        rows = []
        with suppress(OSError):
            for path in self._folder.glob(f"*{_SUFFIX}"):
                with suppress(OSError):
                    status = path.stat()
                    rows.append((status.st_mtime_ns, path, status.st_size))
        held = sum(size for _, _, size in rows)
        for _, path, size in sorted(rows):
            if held <= limit:
                break
            with suppress(OSError):  # in use on Windows, or another process was first
                path.unlink()
                held -= size

    @property
    def bytes(self) -> int:
        """What the entries take."""
        with suppress(OSError):
            return sum(path.stat().st_size for path in self._folder.glob(f"*{_SUFFIX}"))
        return 0

    def _path(self, files: Sequence[FileStamp], form: str) -> Path:
        paths = _digest(form, *(one.path for one in files))
        exact = _digest(str(_VERSION), rules_digest(), *(repr(tuple(one)) for one in files))
        return self._folder / f"{paths}-{exact}{_SUFFIX}"

    def _writer(
        self,
        held: ExitStack,
        path: Path,
        tensors: Sequence[str],
        needs: int,
        limit: int,
        name: str,
        tell: Callable[[str], None],
    ) -> _Writer | None:
        reserve = sum(_MOST_PARTS * (2 * len(one) + _ENTRY_BYTES) for one in tensors)
        needs += reserve
        if needs > limit:
            tell(
                f"{name} takes {human_bytes(needs)} and is not kept on disk: the limit "
                f"(quantized_disk_gb) is {human_bytes(limit)}."
            )
            return None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(one_writer(path.with_suffix(".lock"), _give_up))
            self._remove_leftovers(path, tell, name)
            self.trim(limit - needs)
            writer = _Writer(path, reserve, most=limit - self.bytes)
        except _BusyError:
            return None  # another process keeps it just now
        except OSError as error:
            tell(_not_kept(name, error))
            return None
        held.callback(writer.abandon)
        return writer

    def _remove_leftovers(self, path: Path, tell: Callable[[str], None], name: str) -> None:
        stem = path.stem.split("-")[0]
        for old in self._folder.glob(f"{stem}-*{_SUFFIX}"):
            if old != path:
                with suppress(OSError):
                    old.unlink()
                    tell(f"{name} or the rules for int8 changed, so what was kept is made again.")
        for part in self._folder.glob("*.part"):
            # Of a process that ended while it wrote; one that still writes holds its lock.
            lock = part.with_name(f"{part.name.split('.')[0]}.lock")
            with suppress(OSError, _BusyError):
                if lock.stem == path.stem:
                    part.unlink()
                else:
                    with one_writer(lock, _give_up):
                        part.unlink()


class _BusyError(Exception):
    """Another process holds the lock."""


def _give_up() -> None:
    raise _BusyError


def _not_kept(name: str, error: OSError) -> str:
    problem = error.strerror or error
    return f"{name} could not be kept on disk: {problem}. It is loaded all the same."


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:32]


# --------------------------------------------------------------------------- reading


class _Entry:
    def __init__(self, file: StreamedFile, digests: Mapping[str, str]) -> None:
        self.file = file
        self.digests = digests
        self.bad = ""

    def get(self, part: str, name: str, keys: Sequence[str]) -> dict[str, torch.Tensor] | None:
        """Copies of the tensors that were made of a weight; None where one is not good."""
        found = {}
        for key in keys:
            full = f"{part}/{name}/{key}"
            kept = self.file.tensors.get(full)
            if kept is None:
                return None
            copied = kept.clone()
            self.file.release(kept)
            if _sha256(copied) != self.digests.get(full):
                self.bad = full
                return None
            found[key] = copied
        return found


def _open(path: Path, name: str, tell: Callable[[str], None]) -> _Entry | None:
    if not path.is_file():
        return None
    try:
        file = stream(path)
        digests = json.loads(file.metadata["sha256"])
        os.utime(path)  # used last now
        return _Entry(file, digests)
    except (ModelFileError, OSError, KeyError, ValueError) as error:
        with suppress(OSError):
            path.unlink()
        tell(f"What was kept of {name} is damaged and is made again: {error}")
        return None


def _reading(entry: _Entry, int4: PackInt4 | None) -> Makers:
    def at_int8(part: str, name: str, weight: torch.Tensor) -> Int8Weight | None:
        kept = entry.get(part, name, Int8Weight._fields)
        return quantize(part, name, weight) if kept is None else Int8Weight(**kept)

    def at_int4(part: str, name: str, weight: torch.Tensor) -> Packed | None:
        assert int4 is not None
        kept = entry.get(part, name, _INT4_KEYS)
        if kept is None:
            return int4(part, name, weight)
        return {**kept, "weight_scale": kept["weight_scale"].view(torch.float8_e4m3fn)}

    return Makers(at_int8, at_int4 if int4 else None)


_INT4_KEYS = ("weight", "weight_scale", "weight_scale_2")


# --------------------------------------------------------------------------- writing


class _Writer:
    """Writes an entry tensor by tensor; it gets its name when it is whole."""

    def __init__(self, path: Path, reserve: int, *, most: int) -> None:
        self._path = path
        self._reserve = -(-reserve // 8) * 8
        self._most = most
        self._part = path.with_name(f"{path.stem}.{os.getpid()}-{secrets.token_hex(4)}.part")
        self._header: dict[str, Any] = {}
        self._digests: dict[str, str] = {}
        self._end = 0
        self._problem: OSError | None = None
        self._file: BinaryIO | None = self._part.open("xb")
        self._file.seek(8 + self._reserve)

    def add(self, part: str, name: str, made: Packed) -> None:
        if self._file is None:
            return
        try:
            for key, tensor in made.items():
                self._add(f"{part}/{name}/{key}", tensor)
        except OSError as error:
            self._problem = error
            self.abandon()

    def _add(self, name: str, tensor: torch.Tensor) -> None:
        assert self._file is not None
        if tensor.dtype not in _NAMES:
            tensor = tensor.view(torch.uint8)
        if self._end + tensor.nbytes + self._reserve > self._most:
            raise OSError("it is larger than was foreseen, and the limit is reached")
        self._file.write(_bytes(tensor))
        self._header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [self._end, self._end + tensor.nbytes],
        }
        self._digests[name] = _sha256(tensor)
        self._end += tensor.nbytes

    def finish(self, tell: Callable[[str], None], name: str) -> None:
        """Let the entry be found, all of it."""
        try:
            if self._file is not None:
                self._header["__metadata__"] = {"sha256": json.dumps(self._digests)}
                text = json.dumps(self._header, separators=(",", ":")).encode()
                if len(text) > self._reserve:
                    raise OSError("its header is longer than was foreseen")
                self._file.seek(0)
                self._file.write(self._reserve.to_bytes(8, "little") + text.ljust(self._reserve))
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
                self._part.replace(self._path)
                tell(f"{name} is kept on disk as it was made ({human_bytes(self._end)}).")
        except OSError as error:
            self._problem = error
        if self._problem is not None:
            tell(_not_kept(name, self._problem))

    def abandon(self) -> None:
        """Remove what is not whole; nothing after `finish`."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None
            with suppress(OSError):
                self._part.unlink()


def _writing(writer: _Writer, int4: PackInt4 | None) -> Makers:
    def at_int8(part: str, name: str, weight: torch.Tensor) -> Int8Weight | None:
        made = quantize(part, name, weight)
        if made is not None:
            writer.add(part, name, made._asdict())
        return made

    def at_int4(part: str, name: str, weight: torch.Tensor) -> Packed | None:
        assert int4 is not None
        made = int4(part, name, weight)
        if made is not None:
            writer.add(part, name, made)
        return made

    return Makers(at_int8, at_int4 if int4 else None)


def _bytes(tensor: torch.Tensor) -> Any:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy()


def _sha256(tensor: torch.Tensor) -> str:
    return hashlib.sha256(_bytes(tensor)).hexdigest()
