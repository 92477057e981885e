"""What a run costs on this machine: seconds, and peak memory in bytes.

Before a model has run here, its cost is worked out from its parameters, the pixels, and the
measured speed of the machine (cost.json has the factors and their sources). Each run then
corrects that: the same configuration is predicted from its own latest runs, another size of the
same model by how far off the working-out was at the nearest size, another model by how far off
it was for the models that have run. Medians, so that one slow run changes little.
"""

from __future__ import annotations

import functools
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..plan import ModelInfo, RunCost, SamplingPlan, Timings

LATEST = 5
"""Runs that a prediction rests on, the newest ones."""
_MIB = 1024**2
_CELL = 64
"""Pixels of an image for which ComfyUI's estimate of working memory counts one unit."""
_UNGUIDED_CFG = 1.0


class Speed(NamedTuple):
    """How fast the machine computes with one data type, as a short benchmark measured it."""

    flops: float
    """Floating-point operations a second, multiplying matrices."""
    bandwidth: float
    """Bytes a second, reading and writing memory."""
    value_bytes: int
    """Size of one value of the data type that is computed in."""


class Pass(NamedTuple):
    """One sampling of one image."""

    width: int
    height: int
    steps: int
    sampler: str


class Work(NamedTuple):
    """What a run does, as far as its cost depends on it."""

    passes: tuple[Pass, ...]
    batch: int
    guided: bool
    """Whether the model is evaluated with the negative text too (CFG other than 1)."""
    memory: str = "AUTO"
    """Name of the memory strategy."""

    @property
    def configuration(self) -> str:
        """Runs of one model with the same configuration cost the same, steps apart."""
        sizes = "+".join(f"{one.width}x{one.height}" for one in self.passes)
        return f"{sizes} batch {self.batch}{' guided' if self.guided else ''} {self.memory}"

    @property
    def pixels(self) -> int:
        """Of the largest pass, the whole batch."""
        return self.batch * max(one.width * one.height for one in self.passes)


class Cost(NamedTuple):
    """What a run takes."""

    seconds: float
    memory_bytes: int
    runs: int = 0
    """Measured runs of this very configuration that the figures rest on."""
    error: float | None = None
    """Median share by which the predictions for those runs were off in time."""


class Measured(NamedTuple):
    """A run that was measured, beside what had been worked out for it."""

    model: str
    """`model_key` of its model."""
    configuration: str
    pixels: int
    worked_out: Parts
    sampling_seconds: float
    other_seconds: float
    """LoRAs, text and decoding."""
    memory_bytes: int | None
    predicted_seconds: float

    @property
    def seconds(self) -> float:
        return self.sampling_seconds + self.other_seconds


class Parts(NamedTuple):
    """A cost as worked out from sizes and speed alone."""

    sampling_seconds: float
    other_seconds: float
    weight_bytes: int
    working_bytes: int


def model_key(model: ModelInfo) -> str:
    """Models with the same key cost the same: family, parameters and data type."""
    part = model.part("diffusion_model")
    size = "unknown size" if part is None else f"{part.parameters} {part.dtype}"
    return f"{model.family} {size}"


def work_of(plan: SamplingPlan, memory: str = "AUTO") -> Work:
    """The work of a sampling plan under a memory strategy."""
    passes = [Pass(plan.width, plan.height, plan.steps, plan.sampler)]
    guided = plan.cfg != _UNGUIDED_CFG
    if plan.second_pass is not None:
        second = plan.second_pass
        passes.append(Pass(second.width, second.height, second.steps, second.sampler))
        guided = guided or second.cfg != _UNGUIDED_CFG
    return Work(tuple(passes), plan.batch_size, guided, memory)


class Costs:
    """The cost model of one model on one machine.

    Made from the runs measured on this machine, newest first, those of other models among them.
    """

    def __init__(self, model: ModelInfo, speed: Speed, runs: Sequence[Measured]) -> None:
        self._work_out = _worker(model, speed)
        own = model_key(model)
        self._own = [run for run in runs if run.model == own]
        others = [run for run in runs if run.model != own][:LATEST]
        self._others = Corrections.of(others)
        self._exact: dict[str, list[Measured]] = {}
        for run in self._own:
            self._exact.setdefault(run.configuration, []).append(run)
        self._corrections: dict[tuple[str, int], Corrections] = {}

    def worked_out(self, work: Work) -> Parts:
        """What the sizes and the machine's speed alone say."""
        return self._work_out(work)

    def __call__(self, work: Work) -> Cost:
        """The predicted cost of a run. Quick after the first call for a configuration."""
        configuration = work.configuration
        parts = self._work_out(work)
        same = self._exact.get(configuration, [])[:LATEST]
        corrections = self._corrections_for(configuration, work.pixels)
        seconds = parts.sampling_seconds * corrections.sampling
        seconds += parts.other_seconds * corrections.other + corrections.other_added
        memory = _settled([run.memory_bytes for run in same if run.memory_bytes is not None])
        if memory is None:
            memory = parts.weight_bytes + parts.working_bytes * corrections.working
        return Cost(seconds, round(memory), len(same), _error(same))

    def _corrections_for(self, configuration: str, pixels: int) -> Corrections:
        key = configuration, pixels
        if key not in self._corrections:
            self._corrections[key] = self._find_corrections(configuration, pixels)
        return self._corrections[key]

    def _find_corrections(self, configuration: str, pixels: int) -> Corrections:
        if same := self._exact.get(configuration):
            return Corrections.of(same[:LATEST])
        if not self._own:
            return self._others
        nearest = min(self._own, key=lambda run: abs(math.log(run.pixels / pixels)))
        return Corrections.of(self._exact[nearest.configuration][:LATEST])


class Corrections(NamedTuple):
    """Factors on what was worked out."""

    sampling: float = 1.0
    other: float = 1.0
    other_added: float = 0.0
    """Seconds that came besides where nothing could be worked out."""
    working: float = 1.0

    @classmethod
    def of(cls, runs: Sequence[Measured]) -> Corrections:
        """The settled factors of runs, newest first."""
        sampling = [
            run.sampling_seconds / run.worked_out.sampling_seconds
            for run in runs
            if run.worked_out.sampling_seconds > 0
        ]
        known = [run for run in runs if run.worked_out.other_seconds > 0]
        working = [
            max(0, run.memory_bytes - run.worked_out.weight_bytes) / run.worked_out.working_bytes
            for run in runs
            if run.memory_bytes is not None and run.worked_out.working_bytes > 0
        ]
        other = _settled([run.other_seconds / run.worked_out.other_seconds for run in known])
        added = None if known else _settled([run.other_seconds for run in runs])
        return cls(
            sampling=_or(_settled(sampling), 1.0),
            other=_or(other, 1.0),
            other_added=_or(added, 0.0),
            working=_or(_settled(working), 1.0),
        )


def _settled(values: Sequence[float]) -> float | None:
    """The median, newest first; of two values the newer, as a first run loads and warms up."""
    if len(values) <= 2:
        return values[0] if values else None
    return statistics.median(values)


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _error(runs: Sequence[Measured]) -> float | None:
    errors = [abs(run.predicted_seconds / run.seconds - 1) for run in runs if run.seconds > 0]
    return statistics.median(errors) if errors else None


def evaluations(sampler: str, steps: int) -> int:
    """How often a sampler evaluates the model in so many steps."""
    each = _facts().evaluations.get(sampler, 1)
    return each * (steps - 1) + 1


def _worker(model: ModelInfo, speed: Speed) -> Callable[[Work], Parts]:
    facts = _facts()
    factors = facts.families.get(model.family) or facts.any_family
    parts = {part.role: part for part in model.parts}
    sizes = {role: (part.parameters, part.bytes) for role, part in parts.items()}
    parameters, weights = sizes.get("diffusion_model", (0, 0))
    vae_parameters, vae_bytes = sizes.get("vae", (0, 0))
    text_parameters, text_bytes = sizes.get("text_encoder", (0, 0))
    all_weights = weights + vae_bytes + text_bytes
    encode = text_parameters * facts.encode_flops / speed.flops + text_bytes / speed.bandwidth

    @functools.cache
    def evaluation(pixels: int) -> float:
        return parameters * pixels * factors.flops / speed.flops + weights / speed.bandwidth

    def work_out(work: Work) -> Parts:
        copies = work.batch * (2 if work.guided else 1)
        sampling = sum(
            evaluations(one.sampler, one.steps) * evaluation(copies * one.width * one.height)
            for one in work.passes
        )
        largest = max(one.width * one.height for one in work.passes)
        final = work.batch * work.passes[-1].width * work.passes[-1].height
        decode = vae_parameters * final * facts.decode_flops / speed.flops
        per_unit = speed.value_bytes * 0.01 * factors.activation * _MIB
        decoding = final * facts.decode_values * speed.value_bytes if vae_parameters else 0
        working = max(copies * largest / _CELL * per_unit, decoding)
        return Parts(sampling, encode + decode, all_weights, round(working))

    return work_out


class _Factors(NamedTuple):
    flops: float
    activation: float


class _Facts(NamedTuple):
    families: Mapping[str, _Factors]
    any_family: _Factors
    decode_flops: float
    decode_values: float
    encode_flops: float
    evaluations: Mapping[str, int]


@functools.cache
def _facts() -> _Facts:
    data: dict[str, Any] = json.loads(
        Path(__file__).with_name("cost.json").read_text(encoding="utf-8")
    )

    def factors(row: Mapping[str, Any]) -> _Factors:
        return _Factors(row["flops"], row["activation"])

    return _Facts(
        families={name: factors(row) for row in data["families"] for name in row["families"]},
        any_family=factors(data["any_family"]),
        decode_flops=data["decode"]["flops"],
        decode_values=data["decode"]["activation"],
        encode_flops=data["encode"]["flops"],
        evaluations=data["evaluations"]["samplers"],
    )


def measured(
    model: ModelInfo, work: Work, costs: Costs, cost: RunCost, timings: Timings
) -> Measured:
    """What a run of a model cost, beside what was predicted for it."""
    sampling = timings.sample + timings.refine
    return Measured(
        model=model_key(model),
        configuration=work.configuration,
        pixels=work.pixels,
        worked_out=costs.worked_out(work),
        sampling_seconds=sampling,
        other_seconds=timings.total - sampling,
        memory_bytes=cost.memory_bytes,
        predicted_seconds=cost.predicted_seconds,
    )
