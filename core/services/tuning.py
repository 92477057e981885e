"""Sampling parameters, and what runs with them cost on this machine."""

from __future__ import annotations

from typing import Any

from .. import host
from ..catalog import accelerator
from ..learning import rated_settings
from ..memory import info_of
from ..plan import LoraPlan, ModelInfo, PromptAnalysis, SamplingPlan
from ..tuning import (
    NO_LIMITS,
    Costs,
    Limits,
    SamplingOverrides,
    Speed,
    cost_revision,
    machine_speed,
    measured_runs,
    model_key,
    optimize,
)
from .data import Data

NO_OVERRIDES = SamplingOverrides()


class Tuning:
    """Plans the sampling. Safe to use from several threads."""

    def __init__(self, data: Data) -> None:
        self._data = data

    def optimize(
        self,
        analysis: PromptAnalysis,
        model: Any,
        *,
        priority: Any = "BALANCED",
        batch_size: int = 1,
        lora_plan: LoraPlan | None = None,
        task: Any = "t2i",
        overrides: SamplingOverrides = NO_OVERRIDES,
        limits: Limits = NO_LIMITS,
        second_pass: Any = "auto",
    ) -> SamplingPlan:
        """The sampling plan for a prompt and a model (ModelInfo or MODEL)."""
        info = info_of(model)
        return optimize(
            analysis,
            info,
            priority=priority,
            overrides=overrides,
            wish=second_pass,
            costs=self.costs(info),
            limits=limits,
            ratings=rated_settings(
                self._data.database,
                family=info.family,
                variant=info.variant,
                style=analysis.intent.style,
                priority=priority,
            ),
            batch_size=batch_size,
            accelerators=self._accelerators(lora_plan),
            task=task,
            samplers=host.sampler_names(),
            schedulers=host.scheduler_names(),
            sigma_nodes=host.sigma_nodes(),
        )

    def costs(self, info: ModelInfo) -> Costs:
        """What runs of a model cost here. The first call for a data type measures the machine."""
        part = info.part("diffusion_model")
        dtype = "float32" if part is None else part.dtype
        machine = host.machine_key()
        speed = machine_speed(
            self._data.database, machine, dtype, measure=lambda: Speed(*host.measure_speed(dtype))
        )
        return Costs(info, speed, measured_runs(self._data.database, machine, model_key(info)))

    def cost_revision(self) -> str:
        """Changes when a run takes another time than was predicted for it."""
        return cost_revision(self._data.database)

    def _accelerators(self, plan: LoraPlan | None) -> tuple[str, ...]:
        """Variants of the plan's acceleration LoRAs, such as `lcm` or `lightning 4`."""
        if plan is None or not plan.loras:
            return ()
        variants = {e.file.name: e.variant for e in self._data.catalog.loras().entries if e.variant}
        names = (lora.file.name for lora in plan.loras)
        found = (accelerator(name, variants.get(name)) for name in names)
        return tuple(one for one in found if one is not None)
