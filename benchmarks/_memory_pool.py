"""The model pool in a running ComfyUI: switching between models, and a soak. See memory.py."""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

from ..scripts.comfyui import ComfyUI, Prompt, link_model, prepare_base
from ..scripts.demonstration import auto_prompt
from ..scripts.sample_models import (
    SMALL_MODEL,
    random_fill,
    sample_model,
    sd15_checkpoint,
    write_safetensors,
)
from ..scripts.workflow_api import node_of, with_inputs

MEMORY = "/intelligent_generation/memory"
BLOCKS = 60
"""Transformer blocks added to each of the small model's three transformers: 1.2 GB in fp16."""
SIZE = 64
STEPS = 4
GIB = 2**30
COUNTER = Path(__file__).with_name("_patcher_count.py")


def switch(argv: Sequence[str]) -> dict[str, Any]:
    """Two checkpoints of 1.2 GB by turns: the pool, stock ComfyUI, and stock with --cache-lru.

    Each host first runs both, then one of them with new seeds (`same`), then both by turns
    (`switched`), which is timed while the system holds the files in its cache, and once more
    after it was told to drop them (`cold`), which shows what is read from disk.

    Args:
        argv: `--runs` (6) of each kind.
    """
    parser = argparse.ArgumentParser(prog="memory switch")
    parser.add_argument("--runs", type=int, default=6)
    runs = parser.parse_args(argv).runs
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        files = [_large_checkpoint(Path(directory) / f"{name}.safetensors", seed)
                 for seed, name in enumerate("ab")]  # fmt: skip
        hosts = {
            "pool": _switch_host(Path(directory) / "pool", files, "HubModelLoader", (), runs),
            "stock": _switch_host(
                Path(directory) / "stock", files, "CheckpointLoaderSimple", (), runs
            ),
            "stock_cache_lru": _switch_host(
                Path(directory) / "lru", files, "CheckpointLoaderSimple", ("--cache-lru", "100"),
                runs,
            ),
        }  # fmt: skip
        size = files[0].stat().st_size
    return {"checkpoint_bytes": size, "load": os.getloadavg()[0], **hosts}


def _switch_host(
    path: Path, files: Sequence[Path], loader: str, arguments: Sequence[str], runs: int
) -> dict[str, Any]:
    base = prepare_base(path) if loader == "HubModelLoader" else prepare_base(path, pack=None)
    names = [link_model(file, base.models("checkpoints")) for file in files]
    with ComfyUI(base, cpu=True, arguments=arguments) as host:
        client = host.client()
        process = psutil.Process(host.pid)
        seeds = iter(range(10_000))

        def run(name: str) -> _Taken:
            before = process.io_counters()
            done = client.run(_graph(loader, name, next(seeds)), timeout=1800)
            after = process.io_counters()
            times = {kind: data["timestamp"] for kind, data in done.history["status"]["messages"]}
            return _Taken(
                (times["execution_success"] - times["execution_start"]) / 1000,
                after.read_bytes - before.read_bytes,
                after.read_chars - before.read_chars,
            )

        for name in names:
            run(name)
        run(names[1])
        same = [run(names[1]) for _ in range(runs)]
        switched = [run(names[number % 2]) for number in range(runs)]
        cold = []
        for number in range(runs):
            for file in files:
                _drop_from_cache(file)
            cold.append(run(names[number % 2]))
    return {
        "switched_over_same": _median(switched) / _median(same),
        "seconds_same": _median(same),
        "seconds_switched": _median(switched),
        "seconds_cold": _median(cold),
        "read_bytes_of_a_cold_switch": max(one.read_bytes for one in cold),
        "read_calls_bytes_of_a_switch": max(one.read_chars for one in switched),
    }


class _Taken(NamedTuple):
    seconds: float
    read_bytes: int
    """From the disk."""
    read_chars: int
    """By calls of read, also from the system's cache; mapped files are not among them."""


def _median(runs: Sequence[_Taken]) -> float:
    return statistics.median(run.seconds for run in runs)


def _graph(loader: str, name: str, seed: int) -> Prompt:
    inputs: dict[str, Any] = {"ckpt_name": name}
    if loader == "HubModelLoader":
        inputs = {"source": "local", "model": f"checkpoints/{name}", "vae": "automatic",
                  "variant": "automatic"}  # fmt: skip

    def node(class_type: str, **given: Any) -> dict[str, Any]:
        return {"class_type": class_type, "inputs": given}

    return {
        "1": {"class_type": loader, "inputs": inputs},
        "2": node("CLIPTextEncode", clip=["1", 1], text="a lighthouse at dusk"),
        "3": node("CLIPTextEncode", clip=["1", 1], text=""),
        "4": node("EmptyLatentImage", width=SIZE, height=SIZE, batch_size=1),
        "5": node(
            "KSampler", model=["1", 0], positive=["2", 0], negative=["3", 0],
            latent_image=["4", 0], seed=seed, steps=STEPS, cfg=5.0, sampler_name="euler",
            scheduler="normal", denoise=1.0,
        ),
        "6": node("VAEDecode", samples=["5", 0], vae=["1", 2]),
        "7": node("PreviewImage", images=["6", 0]),
    }  # fmt: skip


def _large_checkpoint(path: Path, seed: int) -> Path:
    tensors = sd15_checkpoint(seed)
    fill = random_fill(100 + seed)
    first = "transformer_blocks.0."
    for name, tensor in list(tensors.items()):
        if first not in name:
            continue
        for number in range(1, BLOCKS + 1):
            other = name.replace(first, f"transformer_blocks.{number}.")
            if tensor.ndim == 1:
                tensors[other] = tensor
            else:
                # Small at the end of each branch, so that so many of them change little.
                ends = "to_out" in name or "net.2" in name
                made = fill(*tensor.shape) * (0.01 if ends else 1.0)
                tensors[other] = made.astype(np.float16)
    write_safetensors(path, tensors, {})
    return path


def _drop_from_cache(file: Path) -> None:
    if hasattr(os, "posix_fadvise"):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def soak(argv: Sequence[str]) -> dict[str, Any]:
    """Many runs of AUTO, each with one of five models by chance, in a pool that holds two.

    After each run the pool must hold what an LRU of two would. Slope and patchers are those after
    the warm-up; the slope comes with the half of its 95 % interval, as if what one run adds to
    RSS said nothing of the next. ComfyUI keeps the history of 10,000 prompts, some 20 kB each with
    their texts; it is cleared after each run, so that what is left is what leaks.

    Args:
        argv: `--runs` (200), `--warm-up` (40).

    Raises:
        RuntimeError: the pool broke a promise of LRU.
    """
    parser = argparse.ArgumentParser(prog="memory soak")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--warm-up", type=int, default=40)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        base = prepare_base(Path(directory))
        (base.path / "custom_nodes" / COUNTER.name).write_bytes(COUNTER.read_bytes())
        names = [link_model(sample_model(SMALL_MODEL), base.models("checkpoints"))]
        for seed in range(1, 5):
            names.append(f"model-{seed}.safetensors")
            write_safetensors(base.models("checkpoints") / names[-1], sd15_checkpoint(seed), {})
        with ComfyUI(base, cpu=True) as host:
            rows, state = _soak(host, names, options.runs)
    settled = rows[options.warm_up :]
    return {
        "runs": options.runs,
        "rss_slope_kb_a_run": _slope([row.rss / 1024 for row in settled]),
        "rss_mb": [round(f(row.rss for row in settled) / 2**20) for f in (min, max)],
        "patchers": sorted({row.patchers for row in settled}),
        "lru_promises_kept": len(rows),
        "hits": state["hits"],
        "misses": state["misses"],
        "evictions": state["evictions"],
        "load": os.getloadavg()[0],
    }


class _Row(NamedTuple):
    rss: int
    patchers: int


def _soak(host: ComfyUI, names: Sequence[str], runs: int) -> tuple[list[_Row], dict[str, Any]]:
    client = host.client()
    process = psutil.Process(host.pid)
    prompt = auto_prompt(
        client.object_info(), text="a lighthouse at dusk, watercolor", checkpoint=names[0], seed=0,
        size=(SIZE, SIZE),
    )  # fmt: skip
    prompt = with_inputs(prompt, "ParameterOptimizer", {"steps": 1})
    prompt = with_inputs(prompt, "IntelligentSampler", {"save": "off"})
    sampler = node_of(prompt, "IntelligentSampler")
    prompt["count"] = {"class_type": "PatcherCount", "inputs": {"after": [sampler, 4]}}
    chance = random.Random(0)
    expected: list[str] = []
    rows: list[_Row] = []
    state: dict[str, Any] = {}
    for number in range(runs):
        name = chance.choice(names)
        prompt = with_inputs(prompt, "HubModelLoader", {"model": f"checkpoints/{name}"})
        prompt = with_inputs(prompt, "IntelligentSampler", {"seed": number})
        done = client.run(prompt)
        client.request("POST", "/history", {"clear": True}).raise_for_status()
        expected = [name, *(other for other in expected if other != name)][:2]
        state = client.get(MEMORY).json()["pool"]
        held = [Path(model["files"][0]).name for model in state["models"]]
        if number == 0:
            budget = state["models"][0]["bytes"] * 2.4 / GIB
            answer = client.request("PUT", MEMORY, {"budget_gb": budget, "policy": "lru"})
            answer.raise_for_status()
        if held != expected:
            raise RuntimeError(f"After run {number} the pool holds {held}, LRU {expected}.")
        (patchers,) = done.outputs["count"]["patchers"]
        rows.append(_Row(process.memory_info().rss, patchers))
    return rows, state


def _slope(values: Sequence[float]) -> tuple[float, float]:
    fit, covariance = np.polyfit(np.arange(len(values)), np.asarray(values, float), 1, cov=True)
    return round(float(fit[0]), 1), round(1.96 * float(covariance[0][0]) ** 0.5, 1)


KINDS: dict[str, Callable[[Sequence[str]], dict[str, Any]]] = {"switch": switch, "soak": soak}
