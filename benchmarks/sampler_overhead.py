"""What IntelligentSampler adds to the stock graph for the same image."""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..core.plan import Generation
from ..scripts.comfyui import Client, ComfyUI, Prompt, Run, link_model, prepare_base
from ..scripts.demonstration import auto_prompt
from ..scripts.sample_library import write_library
from ..scripts.sample_models import SMALL_MODEL, sample_model
from ..scripts.workflow_api import node_of, with_inputs

SIZE = (64, 64)
STEPS = 2
KEEP_BOTH = ("--cache-lru", "100")
"""By default ComfyUI forgets one graph's models when it runs the other; then both would load
theirs each time, which is not what is compared here."""


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Run both graphs in one ComfyUI, in alternation, each pair with the same new seed.

    Both load the same checkpoint and LoRAs, encode the same text, sample, decode and save a PNG.
    A new seed makes sampling, decoding and saving run again, in both graphs and in nothing else;
    loaders, LoRAs and text come from ComfyUI's caches in the stock graph, and from what
    IntelligentSampler keeps in ours. Times are ComfyUI's own, from the start of the run to its
    end. The size is small, so that the difference does not drown in the sampling.

    `added_ms` is the median of the pairs' differences.

    Args:
        argv: `--pairs` (30).

    Raises:
        RuntimeError: the two graphs did not make the same image, so that the times say nothing.
    """
    parser = argparse.ArgumentParser(prog="sampler_overhead", description="Ours over stock.")
    parser.add_argument("--pairs", type=int, default=30)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        base = prepare_base(Path(directory))
        checkpoint = link_model(sample_model(SMALL_MODEL), base.models("checkpoints"))
        write_library(base.models("loras"))
        with ComfyUI(base, cpu=True, arguments=KEEP_BOTH) as host:
            client = host.client()
            prompt = auto_prompt(
                client.object_info(),
                text="a lighthouse at dusk, watercolor",
                checkpoint=checkpoint,
                seed=0,
                size=SIZE,
            )
            ours = with_inputs(prompt, "ParameterOptimizer", {"steps": STEPS})
            record = _record(client, client.run(ours), ours)
            stock = _stock_twin(record, checkpoint)
            _check_same(client, client.run(ours), client.run(stock))
            pairs = []
            for seed in range(1, options.pairs + 1):
                ours = with_inputs(ours, "IntelligentSampler", {"seed": seed})
                stock["sampler"]["inputs"]["seed"] = seed
                first, second = (ours, stock) if seed % 2 else (stock, ours)
                times = {id(graph): _milliseconds(client.run(graph)) for graph in (first, second)}
                pairs.append((times[id(ours)], times[id(stock)]))
    differences = [mine - theirs for mine, theirs in pairs]
    return {
        "added_ms": round(statistics.median(differences), 1),
        "ours_ms": statistics.median(mine for mine, _ in pairs),
        "stock_ms": statistics.median(theirs for _, theirs in pairs),
        "quartiles_ms": [round(q, 1) for q in statistics.quantiles(differences, n=4)],
        "pairs": options.pairs,
        "steps": STEPS,
        "size": list(SIZE),
        "loras": len(record.applied),
    }


def _record(client: Client, run: Run, prompt: Prompt) -> Generation:
    (generation_id,) = run.outputs[node_of(prompt, "IntelligentSampler")]["generation_id"]
    path = f"/intelligent_generation/generations/{generation_id}"
    return Generation.from_data(client.get(path).json())


def _stock_twin(record: Generation, checkpoint: str) -> Prompt:
    sampling = record.plan.sampling
    model, clip = ["checkpoint", 0], ["checkpoint", 1]
    prompt: Prompt = {"checkpoint": _node("CheckpointLoaderSimple", ckpt_name=checkpoint)}
    for number, lora in enumerate(record.plan.loras.loras):
        key = f"lora-{number}"
        prompt[key] = _node(
            "LoraLoader",
            model=model,
            clip=clip,
            lora_name=lora.file.name,
            strength_model=lora.model_strength,
            strength_clip=lora.clip_strength,
        )
        model, clip = [key, 0], [key, 1]
    (text,) = record.plan.loras.segments
    prompt["positive"] = _node("CLIPTextEncode", text=text, clip=clip)
    prompt["negative"] = _node("CLIPTextEncode", text="", clip=clip)
    prompt["latent"] = _node(
        "EmptyLatentImage", width=sampling.width, height=sampling.height, batch_size=1
    )
    prompt["sampler"] = _node(
        "KSampler",
        model=model,
        positive=["positive", 0],
        negative=["negative", 0],
        latent_image=["latent", 0],
        seed=record.plan.seed,
        steps=sampling.steps,
        cfg=sampling.cfg,
        sampler_name=sampling.sampler,
        scheduler=sampling.scheduler,
        denoise=1.0,
    )
    prompt["decode"] = _node("VAEDecode", samples=["sampler", 0], vae=["checkpoint", 2])
    prompt["save"] = _node("SaveImage", images=["decode", 0], filename_prefix="stock")
    return prompt


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def _check_same(client: Client, ours: Run, stock: Run) -> None:
    mine, theirs = (
        Image.open(io.BytesIO(client.view(run.images()[0]))).tobytes() for run in (ours, stock)
    )
    if mine != theirs:
        raise RuntimeError("The two graphs made different images; the comparison is void.")


def _milliseconds(run: Run) -> float:
    times = {kind: data["timestamp"] for kind, data in run.history["status"]["messages"]}
    return times["execution_success"] - times["execution_start"]
