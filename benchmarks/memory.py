"""What memory strategies and data types cost and save."""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..scripts.comfyui import find_comfyui, prepare_base
from ..scripts.sample_models import SMALL_MODEL, sample_model
from ..scripts.world import files
from . import _memory_full, _memory_pool, _memory_process
from .world import compare_weight_dtypes

ROUNDS = {"int8": 9, "sizes": 1, "strategies": 5, "attention": 5}


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Measure memory and what saves it, in one process of ComfyUI on its CPU; `switch` and `soak`
    measure the model pool, see _memory_pool.py.

    - `int8`: int8 beside fp16, fp8 and GGUF's Q8_0.
      `bytes_of_fp16`: bytes of the diffusion models of SD 1.5 and SDXL at full size at int8, as a
      share of those in fp16, counted over the real architecture's shapes.
      `predicted_noise_error`: ||noise - noise in fp32|| / ||noise in fp32|| of one step.
      `layer_error`: the same for the output of each quantized layer alone, given the input that
      it has in fp32. q8_0 is GGUF's scheme on the same weights, not its code.
      `seconds_a_step`: median, one step in turn for each data type.
    - `sizes`: where SD 1.5, SDXL, Flux dev and Qwen-Image of full size go on cards of 4 to 24 GB,
      and the peak, as the planner predicts them. Not measured on a GPU.
    - `strategies`: seconds an image under each strategy, as a ratio to FULL_GPU.
    - `attention`: seconds of one call of each attention function that is there.
    - `world`: the reward of images at int8 and fp8 less that of the same images at fp16, in the
      small world: mean difference and its 95 % interval.

    Args:
        argv: one of these; `--model world` (the trained small world) or `random` (random weights);
            `--rounds`; `--prompts` (100) for world.

    Raises:
        RuntimeError: the process failed; with the end of what it said.
    """
    others = {**_memory_pool.KINDS, "full": _memory_full.full}
    if argv and argv[0] in others:
        return others[argv[0]](argv[1:])
    parser = argparse.ArgumentParser(prog="memory", description="Strategies and data types.")
    parser.add_argument("what", choices=[*ROUNDS, "world", *others])
    parser.add_argument("--model", choices=["world", "random"], default=None)
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--prompts", type=int, default=100)
    options = parser.parse_args(argv)
    if options.what == "world":
        if options.prompts < 2:
            parser.error("give two prompts or more: an interval needs them")
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
        return compare_weight_dtypes(("int8", "fp8"), "fp16", options.prompts)
    # The small world's diffusion model reads no attention of SD 1.5's kind, so placement is
    # measured on random weights of that shape.
    default = "random" if options.what == "strategies" else "world"
    model = options.model or default
    checkpoint = files.checkpoint() if model == "world" else sample_model(SMALL_MODEL)
    rounds = options.rounds or ROUNDS[options.what]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        base = prepare_base(Path(directory), pack=None)
        done = subprocess.run(
            [sys.executable, _memory_process.__file__, str(find_comfyui()), str(base.path),
             options.what, str(checkpoint), str(rounds)],
            capture_output=True,
            text=True,
            check=False,
        )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"The measuring process failed:\n{done.stderr[-3000:]}")
    return {"model": model} | json.loads(done.stdout.splitlines()[-1])
