"""SDXL and Flux dev of full size with random weights, really loaded. See memory.py."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from ..scripts.comfyui import Base, find_comfyui, prepare_base
from . import _full_process

GIB = 2**30
LEAST_FREE = GIB
"""RAM below which a measuring process is ended, before the system ends something else."""
DISK_SPARE = 2 * GIB
KEPT_GB = 40.0

_SDXL = {"model": "checkpoints/sdxl.safetensors"}
_FLUX = {
    "model": "diffusion_models/flux1-dev.safetensors",
    "text_encoders": ["clip_l.safetensors", "t5xxl_fp16.safetensors"],
    "vae": "ae.safetensors",
}


def _case(
    choice: dict[str, Any], weight_dtype: str, *steps: Sequence[Any], disk_gb: float = 0.0
) -> dict[str, Any]:
    return {
        "choice": choice,
        "weight_dtype": weight_dtype,
        "strategy": "AUTO",
        "disk_gb": disk_gb,
        "steps": steps,
    }


CASES: dict[str, dict[str, dict[str, Any]]] = {
    "sdxl": {
        "auto": _case(_SDXL, "auto"),
        "fp16": _case(
            _SDXL,
            "fp16",
            ("encode",),
            ("placed", 4.0, 512, 5.0),
            ("sample", 1024, 5.0),
            ("decode", 1024, None),
            ("decode", 1024, 4.0),
        ),
        "int8": _case(_SDXL, "int8", ("placed", 4.0, 512, 5.0)),
        "int8, kept first": _case(_SDXL, "int8", disk_gb=KEPT_GB),
        "int8, kept again": _case(_SDXL, "int8", disk_gb=KEPT_GB),
    },
    "flux-dev": {
        "auto": _case(_FLUX, "auto", ("encode",), ("sample", 256, 1.0)),
        "int8, kept first": _case(_FLUX, "int8", disk_gb=KEPT_GB),
        "int8, kept again": _case(_FLUX, "int8", ("placed", 8.0, 256, 1.0), disk_gb=KEPT_GB),
        "bf16": _case(_FLUX, "bf16", ("sample", 256, 1.0)),
    },
}
"""By model: what is loaded, and what is done with it, each in a process of its own. Sides in
pixels, limits in GiB, CFG."""


def full(argv: Sequence[str]) -> dict[str, Any]:
    """What the planner predicts for a model of full size against what is measured on a processor.

    Random weights in files as they are published are loaded by HubModelLoader's loader, each case
    in a new process with `--use-pytorch-cross-attention`, the attention that cards use. Memory is
    the private memory of that process (RssAnon), read every 5 ms. ComfyUI computes in float32
    here, where a card computes in half precision. `load` is the load average before a case.

    Args:
        argv: `--model` (both); `--case`, some of the cases; `--folder`, for the files, and
            `--keep` to leave them there (9 GB for SDXL, 50 GB for Flux dev with what is kept).

    Raises:
        RuntimeError: there is too little disk or RAM; or a process failed, with the end of what
            it said.
    """
    parser = argparse.ArgumentParser(prog="memory full")
    parser.add_argument("--model", choices=list(CASES), action="append")
    parser.add_argument("--case", action="append", help="a name of a case; all without it")
    parser.add_argument("--folder", type=Path, help="default: a temporary one")
    parser.add_argument("--keep", action="store_true", help="leave the files in --folder")
    options = parser.parse_args(argv)
    if options.keep and options.folder is None:
        parser.error("--keep needs --folder")
    models = options.model or list(CASES)
    cases = {name for model in models for name in CASES[model]}
    if not set(options.case or ()) <= cases:
        parser.error(f"--case: one of {', '.join(sorted(cases))}")
    out: dict[str, Any] = {}
    for model in models:
        folder = (options.folder or Path(tempfile.gettempdir())).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        place = folder / f"ig-full-{model}"
        try:
            out[model] = _measure(model, prepare_base(place, pack=None), options.case)
        finally:
            if not options.keep:
                shutil.rmtree(place, ignore_errors=True)
    return out


def _measure(model: str, base: Base, wanted: Sequence[str] | None) -> dict[str, Any]:
    files = {"model": model, "folder": str(base.path / "models")}
    missing = _run(base, {"what": "count", **files})["bytes"]
    free = shutil.disk_usage(base.path).free
    # int8 that is kept takes half of what the weights take.
    if missing * 1.5 + DISK_SPARE > free:
        raise RuntimeError(
            f"{model} takes {missing * 1.5 / GIB:.0f} GiB of disk, and {base.path} has "
            f"{free / GIB:.0f}. Name another folder with --folder."
        )
    started = time.perf_counter()
    out: dict[str, Any] = {"files": _run(base, {"what": "write", **files})["files"]}
    out["seconds_to_write"] = round(time.perf_counter() - started, 1)
    for name, case in CASES[model].items():
        if wanted and name not in wanted:
            continue
        load = round(os.getloadavg()[0], 1)
        out[name] = {"load_average": load, **_run(base, {"what": "load", **case})}
        print(json.dumps({model: {name: out[name]}}, indent=1), file=sys.stderr, flush=True)
    return out


def _run(base: Base, task: dict[str, Any]) -> dict[str, Any]:
    """What a measuring process prints; it is ended before the machine is out of memory."""
    script = [_full_process.__file__, str(find_comfyui()), str(base.path), json.dumps(task)]
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen([sys.executable, *script], stdout=said, stderr=errors, text=True)
        ended = False
        while process.poll() is None:
            if psutil.virtual_memory().available < LEAST_FREE:
                process.kill()
                ended = True
            time.sleep(0.2)
        said.seek(0)
        errors.seek(0)
        if ended:
            raise RuntimeError("The machine was nearly out of memory, so the process was ended.")
        if process.returncode:
            raise RuntimeError(f"The measuring process failed:\n{errors.read()[-3000:]}")
        return json.loads(said.read().splitlines()[-1])
