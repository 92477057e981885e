"""Weights that a hub has in pieces, put together into the one file that ComfyUI loads."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ..errors import DownloadError
from ..filelock import one_writer
from .download import replace
from .http import never

JOINED_FROM = "joined_from"
"""Key in the joined file's `__metadata__`: the SHA-256 of its pieces, in order, with blanks."""

_BLOCK = 1 << 20
_SPARE_BYTES = 64 << 20
_LONGEST_HEADER = 100_000_000  # the safetensors library's own limit


class _Piece(NamedTuple):
    path: Path
    tensors: dict[str, Any]
    metadata: dict[str, str]
    starts: int
    """Of the tensors' bytes."""
    size: int
    """Of the tensors' bytes."""


def join(
    pieces: Sequence[Path],
    target: Path,
    marks: Sequence[str],
    *,
    stop: Callable[[], object] = never,
    wait: Callable[[], object] = never,
    free: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
) -> str:
    """Write the tensors of sound safetensors files into one, and remove the pieces; its SHA-256.

    The file gets its name when it is complete. A target that is there is left as it is, and its
    pieces are removed.

    Args:
        marks: what `joined_from` says, a word for each piece.
        stop: asked before each block; what it raises ends it, and the pieces stay.
        wait: called while another process does the same.

    Raises:
        DownloadError: a piece cannot be read, two hold a tensor of one name, or the disk is full
            or cannot be written.
    """
    fresh = target.with_name(f"{target.name}.join")
    try:
        with one_writer(fresh.with_name(f"{fresh.name}.lock"), wait):
            if not target.exists():
                parts = [_read(path) for path in pieces]
                needed, there = sum(part.size for part in parts), free(target.parent)
                if needed + _SPARE_BYTES > there:
                    raise DownloadError(
                        f"Putting {target.name} together needs {needed / 1e9:.2f} GB, and the disk "
                        f"of {target.parent} has {there / 1e9:.2f} GB free. Its pieces are there: "
                        "free some space and run again."
                    )
                try:
                    digest = _write(fresh, parts, marks, stop)
                    replace(fresh, target)
                finally:
                    fresh.unlink(missing_ok=True)
            else:
                with target.open("rb") as file:
                    digest = _digest(file)
        for path in pieces:
            path.unlink(missing_ok=True)
        return digest
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DownloadError(
            f"{target} cannot be put together: {reason}. See that its folder is writable and its "
            "disk has room, and run again."
        ) from error


def joined_from(path: Path) -> tuple[str, ...]:
    """What a joined file was made of; nothing for any other file."""
    try:
        metadata = _read(path).metadata
    except (OSError, DownloadError):
        return ()
    marks = metadata.get(JOINED_FROM, "")
    return tuple(marks.split()) if isinstance(marks, str) else ()


def _read(path: Path) -> _Piece:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            if not 0 < length <= _LONGEST_HEADER:
                raise ValueError
            table = json.loads(file.read(length))
            metadata = table.pop("__metadata__", None) or {}
            size = max((row["data_offsets"][1] for row in table.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DownloadError(f"{path} is no sound safetensors file. Delete it.") from None
    return _Piece(path, table, metadata, 8 + length, size)


def _write(
    fresh: Path, parts: Sequence[_Piece], marks: Sequence[str], stop: Callable[[], object]
) -> str:
    table: dict[str, Any] = {"__metadata__": {**parts[0].metadata, JOINED_FROM: " ".join(marks)}}
    before = 0
    for part in parts:
        for name, row in part.tensors.items():
            if name in table:
                raise DownloadError(
                    f"{part.path.name} has a tensor {name} that another piece has too: the "
                    "repository is damaged. Choose another version."
                )
            start, end = row["data_offsets"]
            table[name] = {**row, "data_offsets": [before + start, before + end]}
        before += part.size
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with fresh.open("wb") as out:

        def put(block: bytes) -> None:
            out.write(block)
            digest.update(block)

        put(len(text).to_bytes(8, "little") + text)
        for part in parts:
            left = part.size
            with part.path.open("rb") as file:
                file.seek(part.starts)
                while left and (block := file.read(min(_BLOCK, left))):
                    stop()
                    put(block)
                    left -= len(block)
            if left:
                raise DownloadError(f"{part.path} is cut short. Delete it, and run again.")
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest()


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := file.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()
