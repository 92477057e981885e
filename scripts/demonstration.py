"""What demo.py runs once everything is installed: the AUTO workflow on a real ComfyUI."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import secrets
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from . import workflow_api
from .comfyui import (
    PACK,
    Base,
    Client,
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
from .sample_library import write_other_families
from .sample_models import cache_directory
from .world import files as world

WORKFLOW = PACK / "workflows" / "auto.json"
STOCK_SETTINGS = {"steps": 20, "cfg": 8.0, "sampler_name": "euler", "scheduler": "normal"}
"""The values that a new KSampler node has in ComfyUI."""
SHOWN_PIXELS = 512
"""Height of each picture where two are shown beside each other."""


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
            _make_images(host.client(), model, options)
            print(f"{time.monotonic() - started:.1f} s in all", flush=True)
        if options.serve:
            print(f"ComfyUI keeps running at {host.url}; Ctrl-C stops it", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                while host.running:
                    time.sleep(0.5)  # Ctrl-C ends it on Windows too, unlike a wait for an event


def _make_images(client: Client, model: str, options: argparse.Namespace) -> None:
    seed = secrets.randbelow(MAX_SEED + 1) if options.seed is None else options.seed
    prompt = auto_prompt(
        client.object_info(),
        text=options.prompt,
        negative=options.negative,
        checkpoint=model,
        seed=seed,
        size=options.size,
    )
    run = client.run(prompt, on_progress=_Display(prompt))
    _print_explanation(prompt, run)
    made = [(client.view(image), str(image["filename"])) for image in run.images()]
    for data, name in made:
        print(f"image: {_save(data, options.output, name)}")
    if options.model is not None and not options.compare:
        return
    first, name = made[0]
    with Image.open(io.BytesIO(first)) as image:
        size = image.size
    stock = client.run(
        stock_prompt(
            text=options.prompt, negative=options.negative, checkpoint=model, seed=seed, size=size
        )
    )
    both = side_by_side(first, client.view(stock.images()[0]))
    path = _save(both, options.output, f"{Path(name).stem}-beside-stock.png")
    settings = ", ".join(f"{key} {value}" for key, value in STOCK_SETTINGS.items())
    print(f"beside the same seed with stock settings ({settings}) and no LoRA: {path}")


def _base_directory() -> Path:
    # Another ComfyUI gets another one: its database may be of another version.
    own = os.environ.get("COMFYUI_PATH")
    suffix = f"-{hashlib.sha256(own.encode()).hexdigest()[:8]}" if own else ""
    return cache_directory() / f"demo-world{suffix}"


def _prepare_models(base: Base, checkpoint: Path | None) -> str:
    if checkpoint is not None:
        return link_model(checkpoint, base.models("checkpoints"))
    print("preparing the small world: a model trained for this demo, and its LoRAs", flush=True)
    for file in world.loras():
        link_model(file, base.models("loras"))
    write_other_families(base.models("loras"))
    return link_model(world.checkpoint(), base.models("checkpoints"))


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


def stock_prompt(
    *, text: str, checkpoint: str, negative: str = "", seed: int, size: tuple[int, int]
) -> Prompt:
    """What a stock graph makes of a prompt: ComfyUI's default KSampler values, no LoRA.

    `checkpoint` is a name below models/checkpoints; `size` is width and height in pixels.
    """
    width, height = size
    return {
        "loader": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint}},
        "positive": {
            "class_type": "CLIPTextEncode",
            "inputs": {"text": text, "clip": ["loader", 1]},
        },
        "negative": {
            "class_type": "CLIPTextEncode",
            "inputs": {"text": negative, "clip": ["loader", 1]},
        },
        "latent": {
            "class_type": "EmptyLatentImage",
            "inputs": {"width": width, "height": height, "batch_size": 1},
        },
        "sampler": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["loader", 0],
                "positive": ["positive", 0],
                "negative": ["negative", 0],
                "latent_image": ["latent", 0],
                "seed": seed,
                "denoise": 1.0,
                **STOCK_SETTINGS,
            },
        },
        "decode": {
            "class_type": "VAEDecode",
            "inputs": {"samples": ["sampler", 0], "vae": ["loader", 2]},
        },
        "save": {
            "class_type": "SaveImage",
            "inputs": {"images": ["decode", 0], "filename_prefix": "stock"},
        },
    }


def side_by_side(left: bytes, right: bytes) -> bytes:
    """Two images of one size as one PNG, AUTO's left and the stock one right, with captions.

    Small images are enlarged by whole factors, so that they can be seen.
    """
    images = [Image.open(io.BytesIO(data)).convert("RGB") for data in (left, right)]
    factor = max(1, SHOWN_PIXELS // images[0].height)
    width, height = (side * factor for side in images[0].size)
    margin, line = 12, 28
    canvas = Image.new("RGB", (2 * width + 3 * margin, height + 2 * margin + line), "white")
    draw = ImageDraw.Draw(canvas)
    captions = ("Intelligent Generation, AUTO", "stock settings, no LoRA")
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        at = margin + number * (width + margin)
        canvas.paste(image.resize((width, height), Image.Resampling.LANCZOS), (at, margin + line))
        draw.text((at, margin), caption, fill="black", font=ImageFont.load_default(18))
    out = io.BytesIO()
    canvas.save(out, "PNG")
    return out.getvalue()


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
