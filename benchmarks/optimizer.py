"""How long choosing a plan takes."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import Any

from ..core.catalog import all_families
from ..core.plan import ModelInfo, ModelPart, Priority
from ..core.prompting import analyze
from ..core.tuning import Costs, Limits, Speed, model_key, optimize, work_of
from ..core.tuning.cost import Measured

PROMPT = (
    "1girl, anime style, magical powers, detailed Victorian mansion background, "
    "cinematic lighting, masterpiece, best quality"
)
SPEED = Speed(flops=40e12, bandwidth=500e9, value_bytes=2)
SAMPLERS = (
    *("euler", "euler_ancestral", "heun", "dpm_2", "dpmpp_sde", "dpmpp_2m", "dpmpp_2m_sde"),
    *("dpmpp_3m_sde", "dpmpp_3m_sde_gpu", "lcm", "res_multistep", "er_sde", "ddim", "uni_pc"),
    "uni_pc_bh2",
)
SCHEDULERS = ("simple", "sgm_uniform", "karras", "exponential", "ddim_uniform", "beta", "normal")
PRIORITIES: tuple[Priority, ...] = ("SPEED", "BALANCED", "QUALITY", "MEMORY")
LIMITS = (Limits(), Limits(seconds=10), Limits(seconds=10, memory_bytes=10 * 1024**3))
RUNS = 40
"""Measured runs that the cost model rests on, as many as are read from the database."""


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Time plans for every family, priority and limit, cost model included, each by itself.

    What is measured is `optimize` with a cost model made from 40 runs; reading those from the
    database is not. `median_ms` is by the clock; `processor_ms` leaves out the time in which other
    programs had the processor, and so does `slow`, the share of plans above `goal_ms`.

    Args:
        argv: `--rounds` (5), of which the first is not counted: it reads the tables.
    """
    parser = argparse.ArgumentParser(prog="optimizer", description="Milliseconds a plan.")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(argv)
    analysis = analyze(PROMPT)
    known = [name for name in all_families() if name != "unknown"]
    times: list[float] = []
    own: list[float] = []
    for number in range(options.rounds):
        for family in known:
            model = _model(family)
            runs = _runs(model)
            for priority in PRIORITIES:
                for limits in LIMITS:
                    start, processor = time.perf_counter(), time.process_time()
                    optimize(
                        analysis,
                        model,
                        samplers=SAMPLERS,
                        schedulers=SCHEDULERS,
                        priority=priority,
                        costs=Costs(model, SPEED, runs),
                        limits=limits,
                    )
                    if number:
                        times.append(1000 * (time.perf_counter() - start))
                        own.append(1000 * (time.process_time() - processor))
    goal = 5.0
    return {
        "median_ms": round(statistics.median(times), 2),
        "processor_ms": round(statistics.median(own), 2),
        "processor_p95_ms": round(statistics.quantiles(own, n=20)[-1], 2),
        "slow": round(sum(t > goal for t in own) / len(own), 4),
        "goal_ms": goal,
        "plans": len(times),
        "families": len(known),
    }


def _model(family: str) -> ModelInfo:
    sizes = (("diffusion_model", 2_600_000_000), ("text_encoder", 800_000_000), ("vae", 84_000_000))
    return ModelInfo(
        name=family,
        family=family,
        family_confidence=1.0,
        evidence="for the benchmark",
        parts=tuple(
            ModelPart.model_validate(
                {"role": role, "dtype": "float16", "parameters": count, "bytes": 2 * count}
            )
            for role, count in sizes
        ),
    )


def _runs(model: ModelInfo) -> list[Measured]:
    costs = Costs(model, SPEED, ())
    plan = optimize(analyze(PROMPT), model, samplers=SAMPLERS, schedulers=SCHEDULERS)
    work = work_of(plan)
    run = Measured(
        model=model_key(model),
        configuration=work.configuration,
        pixels=work.pixels,
        worked_out=costs.worked_out(work),
        sampling_seconds=9.0,
        other_seconds=1.0,
        memory_bytes=9 * 1024**3,
        predicted_seconds=10.0,
    )
    return [run] * RUNS
