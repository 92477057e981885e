"""What the pack adds to ComfyUI's start."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..scripts.comfyui import find_comfyui, prepare_base


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Time loading ComfyUI's custom nodes with the pack and without, in fresh processes.

    Each process imports ComfyUI and its built-in nodes as main.py does, untimed, then loads the
    custom nodes of a base directory that holds the pack or nothing. The two kinds alternate
    after one untimed process of each, which writes Python's bytecode.

    `added_seconds` is the median of the pairs' differences; `imported_packages` what the pack
    imported that ComfyUI had not, besides itself.

    Args:
        argv: `--repeats` pairs of processes (5).

    Raises:
        RuntimeError: ComfyUI could not load the pack.
    """
    parser = argparse.ArgumentParser(prog="import_time", description="What the pack adds to start.")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(argv)
    comfyui = find_comfyui()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        bare = prepare_base(Path(directory, "without"), pack=None).path
        full = prepare_base(Path(directory, "with")).path
        pairs = []
        for number in range(options.repeats + 1):
            pair = _measure(comfyui, bare), _measure(comfyui, full)
            if not pair[1]["pack_loaded"]:
                raise RuntimeError("ComfyUI could not load the pack; start it to see its log.")
            if number:
                pairs.append(pair)
    return {
        "added_seconds": _median(full["seconds"] - bare["seconds"] for bare, full in pairs),
        "with_pack_seconds": _median(full["seconds"] for _, full in pairs),
        "without_pack_seconds": _median(bare["seconds"] for bare, _ in pairs),
        "repeats": options.repeats,
        "imported_packages": pairs[0][1]["packages"],
    }


def _measure(comfyui: Path, base: Path) -> dict[str, Any]:
    script = Path(__file__).with_name("_host_process.py")
    # Bytecode is written and read as in a person's ComfyUI.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    result = subprocess.run(
        [sys.executable, str(script), str(comfyui), str(base)],
        cwd=base,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        raise RuntimeError(f"ComfyUI could not be loaded:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def _median(values: Any) -> float:
    return round(statistics.median(values), 4)
