"""What loading at int8 costs and saves, beside fp16, fp8 and GGUF's Q8_0."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..scripts.comfyui import find_comfyui, prepare_base
from ..scripts.sample_models import SMALL_MODEL, sample_model
from ..scripts.world import files
from . import _memory_pool, _memory_process


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Measure int8, in one process of ComfyUI on its CPU; `switch` and `soak` measure the model
    pool, see _memory_pool.py.

    `bytes_of_fp16`: bytes of the diffusion models of SD 1.5 and SDXL at full size at int8, as a
    share of those in fp16, counted over the real architecture's shapes.
    `predicted_noise_error`: ||noise - noise in fp32|| / ||noise in fp32|| of one step.
    `layer_error`: the same for the output of each quantized layer alone, given the input that
    it has in fp32. q8_0 is GGUF's scheme on the same weights, not its code.
    `seconds_a_step`: median, one step in turn for each data type.

    Args:
        argv: `int8`; `--model world` (the trained small world) or `random` (random weights);
            `--rounds` (9).

    Raises:
        RuntimeError: the process failed; with the end of what it said.
    """
    if argv and argv[0] in _memory_pool.KINDS:
        return _memory_pool.KINDS[argv[0]](argv[1:])
    parser = argparse.ArgumentParser(prog="memory", description="Int8 beside other types.")
    parser.add_argument("what", choices=["int8", *_memory_pool.KINDS])
    parser.add_argument("--model", choices=["world", "random"], default="world")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args(argv)
    checkpoint = files.checkpoint() if options.model == "world" else sample_model(SMALL_MODEL)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        base = prepare_base(Path(directory), pack=None)
        done = subprocess.run(
            [sys.executable, _memory_process.__file__, str(find_comfyui()), str(base.path),
             str(checkpoint), str(options.rounds)],
            capture_output=True,
            text=True,
            check=False,
        )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"The measuring process failed:\n{done.stderr[-3000:]}")
    return {"model": options.model} | json.loads(done.stdout.splitlines()[-1])
