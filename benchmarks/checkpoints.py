"""The choice of a checkpoint against the one that people really used with a prompt.

    bench.py checkpoints --pairs FILE

FILE has a JSON object a line with `prompt`, `checkpoint` (a file name) and `origin`. For each
prompt the used checkpoint is put among others that people used; how often it comes first tells
what the style factor is worth. LoRAs, memory and ratings are left out, as nothing is known of them.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..core.catalog import ModelEntry
from ..core.errors import IntelligentGenerationError, ModelFileError
from ..core.plan import FileRef, PromptAnalysis
from ..core.prompting import analyze
from ..core.recommending import LoraSupport, MemoryLimits, choose_checkpoint

OTHERS = 4
"""Checkpoints that the used one is put among."""
ORIGINS = ("user_gallery", "checkpoint_showcase")
ROOM = MemoryLimits(24 * 2**30, 64 * 2**30, own_memory=True)
RESAMPLES = 1000


def main(arguments: Sequence[str]) -> dict[str, Any]:
    """How often the used checkpoint is chosen, beside chance; with a bootstrap interval over
    checkpoints, as prompts of one are alike."""
    parser = argparse.ArgumentParser(prog="bench.py checkpoints")
    parser.add_argument("--pairs", type=Path, required=True)
    options = parser.parse_args(arguments)
    rows = [
        row
        for row in map(json.loads, options.pairs.read_text(encoding="utf-8").splitlines())
        if row["origin"] in ORIGINS and row.get("checkpoint")
    ]
    names = sorted({row["checkpoint"] for row in rows})
    hits: dict[str, list[float]] = {}
    by_style: dict[str, list[float]] = {}
    for row in rows:
        draw = random.Random(row["id"])
        others = draw.sample([name for name in names if name != row["checkpoint"]], OTHERS)
        try:
            analysis = analyze(row["prompt"])
            hit = _hit(analysis, row["checkpoint"], others)
        except IntelligentGenerationError:
            continue  # a prompt of LoRA tags alone, or none of the five is usable
        hits.setdefault(row["checkpoint"], []).append(hit)
        by_style.setdefault(analysis.intent.style, []).append(hit)
    share, low, high = _interval(hits)
    return {
        "prompts": sum(map(len, hits.values())),
        "checkpoints": len(hits),
        "used_first": share,
        "interval": [low, high],
        "by_style": {
            style: [len(values), round(float(np.mean(values)), 3)]
            for style, values in sorted(by_style.items())
        },
        "chance": 1 / (OTHERS + 1),
    }


def _hit(analysis: PromptAnalysis, used: str, others: Sequence[str]) -> float:
    """1 where the used one is chosen alone; shared where it is as good as others."""
    entries = [_entry(name) for name in (used, *others)]

    def score(entry: ModelEntry) -> float:
        try:
            return choose_checkpoint(
                [entry], analysis, loras=lambda _: LoraSupport(), memory=ROOM
            ).score
        except ModelFileError:
            return float("-inf")

    scores = [score(entry) for entry in entries]
    best = max(scores)
    if best == float("-inf"):
        raise ModelFileError("None of them is for pictures from text.")
    return float(scores[0] == best) / scores.count(best)


def _entry(name: str) -> ModelEntry:
    file = FileRef(folder="checkpoints", name=f"{name}.safetensors", size=2 * 2**30)
    return ModelEntry(file, name, "sd15", None, 1.0, "as the pair says")


def _interval(hits: dict[str, list[float]]) -> tuple[float, float, float]:
    sums = np.array([[sum(values), len(values)] for values in hits.values()])
    draws = np.random.default_rng(0).integers(len(sums), size=(RESAMPLES, len(sums)))
    totals = sums[draws].sum(axis=1)
    low, high = np.quantile(totals[:, 0] / totals[:, 1], [0.025, 0.975])
    share = sums[:, 0].sum() / sums[:, 1].sum()
    return round(float(share), 4), round(float(low), 4), round(float(high), 4)
