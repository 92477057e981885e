"""Where ComfyUI keeps files: models, the user's folder, images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import folder_paths
from comfy.cli_args import args

from ..errors import HostError, ModelFileError, SaveError

USER_DIRECTORY = "intelligent_generation"
"""Name of the protected user folder; ComfyUI prefixes it with `__` and never serves it."""


def model_folders(folder: str) -> list[Path]:
    """ComfyUI's directories for a folder key such as `loras`, the default one first.

    Raises:
        HostError: ComfyUI has no such folder key.
    """
    try:
        return [Path(path) for path in folder_paths.get_folder_paths(folder)]
    except KeyError as error:
        raise HostError(
            f"This ComfyUI has no model folder called {folder!r}. Update ComfyUI."
        ) from error


def model_names(folder: str) -> list[str]:
    """Names of the safetensors files in a model folder, with forward slashes on every system."""
    names = (name.replace(os.sep, "/") for name in folder_paths.get_filename_list(folder))
    return [name for name in names if name.lower().endswith((".safetensors", ".sft"))]


def file_stamp(folder: str, name: str) -> tuple[int, int]:
    """Size in bytes and modification time in ns of a model file: changes when the file does.

    Raises:
        ModelFileError: the file is not there.
    """
    path = folder_paths.get_full_path(folder, name)
    if path is None:
        raise ModelFileError(f"{name} is no longer in the {folder} folder.")
    status = Path(path).stat()
    return status.st_size, status.st_mtime_ns


def user_directory() -> Path:
    """The pack's protected folder, made if missing: `user/__intelligent_generation`."""
    path = Path(folder_paths.get_system_user_directory(USER_DIRECTORY))
    path.mkdir(parents=True, exist_ok=True)
    return path


class SavePlace(NamedTuple):
    """Where ComfyUI wants the next image: `directory/filename_counter_.png`."""

    directory: Path
    filename: str
    counter: int
    subfolder: str


def save_place(prefix: str, kind: str, width: int, height: int) -> SavePlace:
    """The next free place for an image, by ComfyUI's own naming (`%date%`-like parts included).

    Args:
        prefix: `filename_prefix` as SaveImage takes it; may hold a subfolder.
        kind: `output` or `temp`.

    Raises:
        SaveError: the prefix leaves the folder, or is not a usable name.
    """
    root = (
        folder_paths.get_output_directory()
        if kind == "output"
        else folder_paths.get_temp_directory()
    )
    Path(root).mkdir(parents=True, exist_ok=True)
    try:
        directory, filename, counter, subfolder, _ = folder_paths.get_save_image_path(
            prefix, str(Path(root).absolute()), width, height
        )
    except Exception as error:
        # ComfyUI raises a bare Exception with a multi-line report; the reason is always the name.
        raise SaveError(
            f"filename_prefix {prefix!r} cannot be used inside the {kind} folder {root}: it must "
            "be a relative name without '..'. Change filename_prefix."
        ) from error
    return SavePlace(Path(directory), filename, counter, subfolder)


def metadata_enabled() -> bool:
    """False when ComfyUI was started with --disable-metadata."""
    return not args.disable_metadata
