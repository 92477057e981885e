"""From starting ComfyUI to the first image of the AUTO workflow, and where the time goes."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..scripts.comfyui import ComfyUI, Progress, Prompt, has_usable_gpu, link_model, prepare_base
from ..scripts.demonstration import auto_prompt
from ..scripts.sample_library import write_library
from ..scripts.sample_models import SMALL_MODEL, sample_model


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Start ComfyUI on an empty base directory and make one image with the small model.

    The model and the LoRA library are made before the clock starts; the pack's database is new.

    Args:
        argv: `--prompt`, `--width` and `--height` in pixels (256).

    Returns:
        `total_seconds` from starting the process to holding the PNG; `start_seconds` to its
        first answer; `ready_seconds` to the start of the sampler, with the model loaded and all
        plans made; `first_image_seconds` from queueing to the PNG, and of that
        `node_seconds` by node; `steps` sampled.
    """
    parser = argparse.ArgumentParser(prog="startup", description="From start to first image.")
    parser.add_argument("--prompt", default="a lighthouse at dusk, watercolor")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--height", type=int, default=256)
    options = parser.parse_args(argv)
    cpu = not has_usable_gpu()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        base = prepare_base(Path(directory))
        checkpoint = link_model(sample_model(SMALL_MODEL), base.models("checkpoints"))
        write_library(base.models("loras"))
        started = time.monotonic()
        with ComfyUI(base, cpu=cpu) as host:
            client = host.client()
            prompt = auto_prompt(
                client.object_info(),
                text=options.prompt,
                checkpoint=checkpoint,
                seed=0,
                size=(options.width, options.height),
            )
            clock = _NodeClock(prompt)
            queued = time.monotonic()
            run = client.run(prompt, on_progress=clock)
            for image in run.images():
                client.view(image)
            ended = time.monotonic()
    return {
        "total_seconds": round(ended - started, 2),
        "start_seconds": round(host.start_seconds, 2),
        "ready_seconds": round(clock.start_of("IntelligentSampler") - started, 2),
        "first_image_seconds": round(ended - queued, 2),
        "node_seconds": clock.seconds(ended),
        "steps": max((step.total for step in run.steps), default=0),
        "width": options.width,
        "height": options.height,
        "device": "cpu" if cpu else "gpu",
    }


class _NodeClock:
    def __init__(self, prompt: Prompt) -> None:
        self._classes = {key: node["class_type"] for key, node in prompt.items()}
        self._starts: list[tuple[str, float]] = []

    def __call__(self, progress: Progress) -> None:
        if progress.kind == "node":
            self._starts.append((self._classes[progress.node], time.monotonic()))

    def start_of(self, name: str) -> float:
        return next(start for node, start in self._starts if node == name)

    def seconds(self, ended: float) -> dict[str, float]:
        ends = [*(start for _, start in self._starts[1:]), ended]
        return {
            name: round(end - start, 3)
            for (name, start), end in zip(self._starts, ends, strict=True)
        }
