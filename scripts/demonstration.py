"""What demo.py runs once everything is installed: the AUTO workflow on a real ComfyUI."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import secrets
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import workflow_api
from .comfyui import (
    PACK,
    Base,
    ComfyUI,
    ComfyUIError,
    Progress,
    Prompt,
    Run,
    has_usable_gpu,
    link_model,
    prepare_base,
)
from .demo import MAX_SEED, parse
from .sample_library import write_library
from .sample_models import cache_directory, sample_model

WORKFLOW = PACK / "workflows" / "auto.json"
SMALL_MODEL = "small-sd15.safetensors"
SMALL_SIZE = (256, 256)


def main(arguments: Sequence[str]) -> int:
    """Run the demo; gives the exit code. Errors are printed for people, without a traceback."""
    options = parse(arguments)
    try:
        _run(options)
    except (ComfyUIError, workflow_api.WorkflowError, OSError) as error:
        print(f"\nThe demo failed. {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    return 0


def _run(options: argparse.Namespace) -> None:
    started = time.monotonic()
    base = prepare_base(_base_directory())
    model = _prepare_models(base, options.model)
    cpu = not has_usable_gpu()
    print(f"starting ComfyUI{' on the CPU' if cpu else ''} (log: {base.log})", flush=True)
    with ComfyUI(base, cpu=cpu, port=options.port) as host:
        print(f"ComfyUI answers at {host.url} after {host.start_seconds:.1f} s", flush=True)
        if options.prompt:
            client = host.client()
            prompt = auto_prompt(
                client.object_info(),
                text=options.prompt,
                negative=options.negative,
                checkpoint=model,
                seed=secrets.randbelow(MAX_SEED + 1) if options.seed is None else options.seed,
                size=options.size or (SMALL_SIZE if options.model is None else None),
            )
            run = client.run(prompt, on_progress=_Display(prompt))
            _print_explanation(prompt, run)
            for image in run.images():
                print(f"image: {_save(client.view(image), options.output, image['filename'])}")
            print(f"{time.monotonic() - started:.1f} s in all", flush=True)
        if options.serve:
            print(f"ComfyUI keeps running at {host.url}; Ctrl-C stops it", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                while host.running:
                    time.sleep(0.5)  # Ctrl-C ends it on Windows too, unlike a wait for an event


def _base_directory() -> Path:
    # Another ComfyUI gets another one: its database may be of another version.
    own = os.environ.get("COMFYUI_PATH")
    suffix = f"-{hashlib.sha256(own.encode()).hexdigest()[:8]}" if own else ""
    return cache_directory() / f"demo{suffix}"


def _prepare_models(base: Base, checkpoint: Path | None) -> str:
    if checkpoint is not None:
        return link_model(checkpoint, base.models("checkpoints"))
    print("preparing the small model and the LoRA library", flush=True)
    write_library(base.models("loras"))
    return link_model(sample_model(SMALL_MODEL), base.models("checkpoints"))


def auto_prompt(
    object_info: dict[str, Any],
    *,
    text: str,
    checkpoint: str,
    negative: str = "",
    seed: int,
    size: tuple[int, int] | None,
) -> Prompt:
    """The bundled AUTO workflow for /prompt, with these values in it.

    `checkpoint` is a name below models/checkpoints; `size` is width and height in pixels, None
    to have them chosen.
    """
    prompt = workflow_api.to_prompt(json.loads(WORKFLOW.read_text(encoding="utf-8")), object_info)
    changes: dict[str, dict[str, Any]] = {
        "PromptAnalyzer": {"prompt": text, "negative_prompt": negative},
        "HubModelLoader": {"model": f"checkpoints/{checkpoint}"},
        "IntelligentSampler": {"seed": seed},
    }
    if size is not None:
        changes["ParameterOptimizer"] = {"width": size[0], "height": size[1]}
    for class_type, values in changes.items():
        prompt = workflow_api.with_inputs(prompt, class_type, values)
    return prompt


class _Display:
    """Prints each node as it runs, and its sampling steps in place on a terminal."""

    def __init__(self, prompt: Prompt) -> None:
        self._titles = {key: node["_meta"]["title"] for key, node in prompt.items()}
        self._live = sys.stdout.isatty()
        self._previews = 0

    def __call__(self, progress: Progress) -> None:
        title = self._titles.get(progress.node, progress.node)
        if progress.kind == "node":
            print(f"  {title}", flush=True)
        elif progress.kind == "preview":
            self._previews += 1
        elif progress.kind == "step":
            last = progress.value == progress.total
            text = f"    step {progress.value} of {progress.total}, {self._previews} previews"
            if self._live:
                print(f"\r{text}", end="\n" if last else "", flush=True)
            elif last or progress.value % 5 == 0:
                print(text, flush=True)


def _print_explanation(prompt: Prompt, run: Run) -> None:
    sampler = workflow_api.node_of(prompt, "IntelligentSampler")
    print()
    for text in run.outputs.get(sampler, {}).get("text", ()):
        print(text)
    print()


def _save(image: bytes, folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.resolve() / name
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    partial.write_bytes(image)
    partial.replace(path)
    return path


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
