"""How well time and memory of a run are predicted, on a real ComfyUI."""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..core.plan import Generation, RunCost
from ..scripts.comfyui import Client, ComfyUI, Prompt, link_model, prepare_base
from ..scripts.demonstration import auto_prompt
from ..scripts.sample_models import sample_model
from ..scripts.workflow_api import node_of, with_inputs

LOG = logging.getLogger("costs")
TIME_GOAL, MEMORY_GOAL = 0.25, 0.15
GOAL_SHARE = 0.9
"""Of the runs that count, how many have to be within a goal: not the median alone, and not each
one, as a machine that others use too slows down by more at times."""
UNCOUNTED = 2
"""Runs of a configuration before those that count: the first is worked out, the second rests on
one that warmed up."""
SUBJECTS = ("lighthouse", "harbour", "market", "forest", "castle", "river", "bridge", "meadow")


class Configuration(NamedTuple):
    """What runs have in common."""

    model: str
    size: int
    batch: int
    steps: tuple[int, ...]
    """Taken in turn: a prediction must hold for other steps too."""


CONFIGURATIONS = (
    Configuration("small-sd15.safetensors", 128, 1, (8, 12)),
    Configuration("small-sd15.safetensors", 256, 1, (4, 6)),
    Configuration("small-sd15.safetensors", 192, 2, (4, 6)),
    Configuration("small-sd15-b.safetensors", 192, 1, (8, 10)),
)


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Run each configuration several times, by turns, each time with another prompt and seed.

    By turns is the harder order: ComfyUI lets go of one model for the next. Errors are those that
    the record of a run tells: predicted over measured, less 1. Third and later runs of each
    configuration count; `goals_met` where `GOAL_SHARE` of them are within both goals. `load` is
    the mean number of processes that waited for a processor, by the machine's processors: above 1,
    times are shared with others.

    Args:
        argv: `--rounds` (8).
    """
    parser = argparse.ArgumentParser(prog="costs", description="Predictions against measurements.")
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args(argv)
    found: dict[Configuration, list[RunCost]] = {one: [] for one in CONFIGURATIONS}
    loads = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        base = prepare_base(Path(directory))
        for model in {one.model for one in CONFIGURATIONS}:
            link_model(sample_model(model), base.models("checkpoints"))
        with ComfyUI(base, cpu=True) as host:
            client = host.client()
            info = client.object_info()
            for number in range(options.rounds):
                for one, costs in found.items():
                    costs.append(_run(client, _prompt(info, one, number)))
                    loads.append(_load())
                    LOG.info("%s round %d: %s", one, number, costs[-1])
    counted = [cost for costs in found.values() for cost in costs[UNCOUNTED:]]
    summary = _summary(counted)
    return {
        **summary,
        "goals_met": all(
            (summary[f"{what}_within_goal"] or 0) >= GOAL_SHARE for what in ("time", "memory")
        ),
        "first_runs": _summary([costs[0] for costs in found.values()]),
        "configurations": [
            {"model": one.model, "size": one.size, "batch": one.batch, **_summary(c[UNCOUNTED:])}
            for one, c in found.items()
        ],
        "rounds": options.rounds,
        "load": None if None in loads else round(statistics.mean(filter(None, loads)), 2),
    }


def _prompt(info: dict[str, Any], one: Configuration, number: int) -> Prompt:
    prompt = auto_prompt(
        info,
        text=f"a {SUBJECTS[number % len(SUBJECTS)]} at dusk, view {number}",
        checkpoint=one.model,
        seed=number,
        size=(one.size, one.size),
    )
    steps = one.steps[number % len(one.steps)]
    return with_inputs(prompt, "ParameterOptimizer", {"steps": steps, "batch_size": one.batch})


def _run(client: Client, prompt: Prompt) -> RunCost:
    run = client.run(prompt)
    (generation_id,) = run.outputs[node_of(prompt, "IntelligentSampler")]["generation_id"]
    path = f"/intelligent_generation/generations/{generation_id}"
    cost = Generation.from_data(client.get(path).json()).cost
    assert cost is not None, "every run is recorded with its cost"
    return cost


def _load() -> float | None:
    if not hasattr(os, "getloadavg"):
        return None
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def _summary(costs: Sequence[RunCost]) -> dict[str, Any]:
    times = [abs(cost.time_error) for cost in costs]
    memories = [abs(cost.memory_error) for cost in costs if cost.memory_error is not None]
    return {
        "runs": len(costs),
        "time_error_median": round(statistics.median(times), 3) if times else None,
        "time_within_goal": _share(times, TIME_GOAL),
        "memory_error_median": round(statistics.median(memories), 3) if memories else None,
        "memory_within_goal": _share(memories, MEMORY_GOAL),
    }


def _share(errors: Sequence[float], goal: float) -> float | None:
    return round(sum(e <= goal for e in errors) / len(errors), 3) if errors else None
