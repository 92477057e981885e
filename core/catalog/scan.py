"""Listing model files as ComfyUI lists them, with sizes and times, by `os.scandir`."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from .entries import UnreadableFile

READABLE = (".safetensors", ".sft")
PICKLES = (".ckpt", ".pt", ".pt2", ".bin", ".pth", ".pkl")
"""The other extensions that ComfyUI lists in its model folders."""
SIDECARS = (".metadata.json", ".civitai.info", ".rgthree-info.json")
"""Other tools' files beside a model, best first: ComfyUI-Lora-Manager's and that of the CivitAI
helpers are named after the model's stem, rgthree-comfy's after its whole name."""


class Found(NamedTuple):
    """One file of a model folder."""

    name: str
    """Below the folder's directory, forward slashes."""
    path: str
    """Absolute."""
    size: int
    mtime_ns: int
    sidecars: str = ""
    """Names, sizes and times of other tools' files beside it; empty without any."""


class Listing(NamedTuple):
    """The files of a model folder."""

    files: Mapping[str, Found]
    """By name, sorted; of equal names the one in the earlier directory, as in ComfyUI."""
    roots: tuple[str, ...]
    """The directories that could be listed, absolute."""
    problems: tuple[UnreadableFile, ...]
    """Subdirectories that could not be listed, and names that are not valid text."""

    def revision(self) -> str:
        """Changes when any file is added, removed, moved or modified; the same otherwise."""
        text = "\n".join(
            f"{f.name}\0{f.path}\0{f.size}\0{f.mtime_ns}\0{f.sidecars}" for f in self.files.values()
        )
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def list_files(directories: Sequence[Path]) -> Listing:
    """The model files below the directories of one folder key.

    Links to directories are followed, as ComfyUI does; one that leads back to its own parent is
    not. A directory that does not exist counts as empty.
    """
    files: dict[str, Found] = {}
    roots: list[str] = []
    problems: list[UnreadableFile] = []
    for directory in directories:
        root = absolute(directory)
        if not Path(root).is_dir():
            continue
        roots.append(root)
        found: list[Found] = []
        _walk(root, "", os.path.realpath(root), (), found, problems)
        for file in found:
            files.setdefault(file.name, file)
    return Listing({name: files[name] for name in sorted(files)}, tuple(roots), tuple(problems))


def _walk(
    directory: str,
    prefix: str,
    real: str,
    links_in: tuple[str, ...],
    found: list[Found],
    problems: list[UnreadableFile],
) -> None:
    # `real` is `directory` with links resolved; `links_in` are the real directories of the links
    # that led here.
    try:
        with os.scandir(directory) as entries:
            rows = {entry.name: entry for entry in entries}
    except OSError as error:
        problems.append(
            UnreadableFile(prefix or directory, f"cannot be listed: {error.strerror or error}")
        )
        return
    with_sidecars = any(name.endswith(SIDECARS) for name in rows)
    for name, entry in rows.items():
        if not _is_text(name):
            shown = (prefix + name).encode("utf-8", "backslashreplace").decode()
            problems.append(UnreadableFile(shown, "has a name that is not valid text: rename it"))
            continue
        try:
            if name.lower().endswith(_MODELS) and entry.is_file():
                status = entry.stat()
                beside = _sidecars(name, rows) if with_sidecars else ""
                found.append(
                    Found(prefix + name, entry.path, status.st_size, status.st_mtime_ns, beside)
                )
            elif entry.is_dir() and name != ".git":
                inner, links = f"{real.rstrip(os.sep)}{os.sep}{name}", links_in
                if _is_link(entry):
                    inner, links = os.path.realpath(entry.path), (*links_in, real)
                    if any(_within(place, inner) for place in links):
                        continue
                _walk(entry.path, f"{prefix}{name}/", inner, links, found, problems)
        except OSError:  # removed between listing and looking
            continue


_MODELS = (*READABLE, *PICKLES)


def _is_text(name: str) -> bool:
    # Neither the database nor ComfyUI's browser side can carry lone surrogates.
    if name.isascii():
        return True
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _sidecars(name: str, rows: Mapping[str, os.DirEntry[str]]) -> str:
    stamps: list[str] = []
    for beside in sidecar_names(name):
        if beside in rows:
            with suppress(OSError):
                status = rows[beside].stat()
                stamps.append(f"{beside}/{status.st_size}/{status.st_mtime_ns}")
    return "/".join(stamps)  # which no name holds, and, unlike a zero byte, every database takes


def sidecar_names(name: str) -> tuple[str, ...]:
    """The names that other tools' files beside a model file have, in the order of SIDECARS."""
    short = stem(name)
    return (f"{short}.metadata.json", f"{short}.civitai.info", f"{name}.rgthree-info.json")


def absolute(path: str | os.PathLike[str]) -> str:
    """The absolute form of a path as it is kept in the database, links not resolved."""
    return os.path.abspath(path)  # noqa: PTH100 - Path.absolute() would leave ".." in it


def _is_link(entry: os.DirEntry[str]) -> bool:
    # A junction of Windows is a link, but no symbolic one. os.DirEntry.is_junction() is of 3.12.
    attributes = getattr(entry.stat(follow_symlinks=False), "st_file_attributes", 0)
    return entry.is_symlink() or bool(attributes & stat.FILE_ATTRIBUTE_REPARSE_POINT)


def _within(path: str, ancestor: str) -> bool:
    return path == ancestor or path.startswith(ancestor.rstrip(os.sep) + os.sep)


def stem(name: str) -> str:
    """A name without its model file extension, if it has one."""
    for extension in (*READABLE, *PICKLES):
        if name.lower().endswith(extension):
            return name[: -len(extension)]
    return name
