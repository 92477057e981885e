"""What IntelligentSampler does: decide on a plan, run it, save, record and explain."""

from __future__ import annotations

import json
import secrets
import uuid
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import host
from ..errors import IntelligentGenerationError, LoraError, ModelFileError, PlanError
from ..generating import (
    SaveLocation,
    difference,
    edit_plan,
    explain,
    save_generation,
    with_real_model,
)
from ..memory import describe_model
from ..plan import (
    Generation,
    GenerationPlan,
    LoraPlan,
    MemoryPlan,
    ModelInfo,
    PlannedLora,
    PlanObject,
    PromptAnalysis,
    RunCost,
    SamplingPlan,
)
from ..recommending import RecommendSettings, made_for, without_pending
from ..tuning import add_run, measured, work_of
from ..version import pack_version
from .data import Data
from .files import Files
from .loras import Loras
from .running import Running
from .tuning import Tuning

if TYPE_CHECKING:
    import torch


class SamplerRequest(NamedTuple):
    """What IntelligentSampler was given."""

    model: Any
    clip: Any
    vae: Any
    mode: Any
    seed: int | None
    """None: draw one."""
    save: Any
    filename_prefix: str
    plan_text: str
    analysis: PromptAnalysis | None
    lora_plan: LoraPlan | None
    sampling_plan: SamplingPlan | None
    memory_plan: MemoryPlan | None
    workflow_prompt: Any
    """The API prompt being run, for the PNG."""
    extra_pnginfo: Any
    """ComfyUI's own metadata (the workflow), for the PNG; None from a bare API call."""


class SamplerResult(NamedTuple):
    """What IntelligentSampler gives."""

    image: torch.Tensor
    latent: dict[str, Any]
    generation: Generation


class Generating:
    """Makes images."""

    def __init__(
        self, data: Data, files: Files, loras: Loras, tuning: Tuning, running: Running
    ) -> None:
        self._data = data
        self._files = files
        self._loras = loras
        self._tuning = tuning
        self._running = running

    def generate(self, request: SamplerRequest) -> SamplerResult:
        """Run a plan: sample, save, record, explain.

        Raises:
            PlanError: AUTO with a plan text, or a plan that is not complete.
            IntelligentGenerationError: see `generating.run` and `save_generation`.
        """
        plan, differences = self._decide(request)
        host.check_interrupt()
        costs = self._tuning.costs(plan.model)
        work = work_of(plan.sampling, plan.memory.strategy if plan.memory else "AUTO")
        predicted = costs(work)
        plan, sampled, conceded = self._running.run(
            plan, host.LoadedModel(request.model, request.clip, request.vae), work.configuration
        )
        self._files.used("model", plan.model.files)
        self._files.used("loras", [lora.file for lora in sampled.loras.applied])
        cost = RunCost(
            predicted_seconds=predicted.seconds,
            seconds=sampled.timings.total,
            predicted_memory_bytes=predicted.memory_bytes,
            memory_bytes=sampled.memory_bytes,
            runs=predicted.runs,
        )
        skipped = (*plan.loras.skipped, *sampled.loras.skipped)
        notices = (
            *plan.analysis.notices,
            *plan.model.notices,
            *plan.loras.notices,
            *plan.sampling.notices,
            *sampled.loras.notices,
            *conceded,
        )
        plan = self._files.with_hashes(plan)
        generation = Generation(
            id=uuid.uuid4().hex,
            created_at=datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            mode=request.mode,
            plan=plan,
            applied=sampled.loras.applied,
            timings=sampled.timings,
            cost=cost,
            explanation=explain(
                plan,
                mode=request.mode,
                skipped=skipped,
                notices=notices,
                differences=differences,
                timings=sampled.timings,
                cost=cost,
            ),
            differences=differences,
            notices=notices,
            pack_version=pack_version(),
            host=host.describe(),
        )
        generation = self._save(request, generation, sampled.image)
        add_run(
            self._data.database,
            generation.id,
            host.machine_key(),
            measured(plan.model, work, costs, cost, sampled.timings),
            now=datetime.now(timezone.utc),
        )
        return SamplerResult(sampled.image, sampled.latent, generation)

    def _decide(self, request: SamplerRequest) -> tuple[GenerationPlan, tuple[str, ...]]:
        """The plan to run, and for MANUAL what AUTO would have done otherwise."""
        manual = request.mode == "MANUAL"
        if manual and not request.plan_text.strip():
            raise PlanError("mode is MANUAL, but there is no plan text. Give one, or use AUTO.")
        if not manual and request.plan_text.strip():
            raise PlanError(
                "There is a plan text, but mode is AUTO, which does not read it. Set mode to "
                "MANUAL, or clear the plan text."
            )
        if not manual and request.analysis is None:
            raise PlanError(
                "Nothing says what to make: wire PromptAnalyzer's analysis in, or set mode to "
                "MANUAL and give a plan text."
            )
        info = describe_model(request.model, request.clip, request.vae)
        parts: dict[str, Any] = {"model": info, "memory": request.memory_plan}
        parts["seed"] = secrets.randbelow(2**32) if request.seed is None else request.seed
        auto: GenerationPlan | None = None
        differences: tuple[str, ...] = ()
        try:
            if request.analysis is not None:
                parts |= self._auto_parts(request, request.analysis, info)
                auto = GenerationPlan(**parts)
        except IntelligentGenerationError as error:
            if not manual:
                raise
            differences = (f"failed: {error}",)
        if not manual:
            assert auto is not None
            return auto, ()
        base = {
            name: value.model_dump(mode="json") if isinstance(value, PlanObject) else value
            for name, value in parts.items()
            if value is not None
        }
        taken = with_real_model(edit_plan(base, request.plan_text), info, sha256=self._files.sha256)
        if auto is not None:
            differences = difference(taken, auto, compare_seed=request.seed is not None)
        return taken, differences

    def _auto_parts(
        self, request: SamplerRequest, analysis: PromptAnalysis, info: ModelInfo
    ) -> dict[str, Any]:
        loras = request.lora_plan
        if loras is None:
            loras = self._own_loras_only(analysis, info)
        elif not loras.segments:
            # From a LORA_STACK alone: it has LoRAs and no text.
            own = self._own_loras_only(analysis, info)
            tags = {lora.file.name for lora in own.loras}
            twice = [lora.file.name for lora in loras.loras if lora.file.name in tags]
            if twice:
                raise LoraError(
                    f"LoRA {twice[0]} is named twice, in the prompt and in the LORA_STACK. Take "
                    "one out."
                )
            loras = loras.model_copy(
                update={"segments": own.segments, "loras": own.loras + loras.loras}
            )
        elif not made_for(loras.segments, analysis.segments):
            raise PlanError(
                "lora_plan was made from another prompt than analysis. Wire both from the same "
                "PromptAnalyzer."
            )
        loras = without_pending(self._found(loras), analysis.segments)
        sampling = request.sampling_plan or self._tuning.optimize(analysis, info, lora_plan=loras)
        return {"analysis": analysis, "loras": loras, "sampling": sampling}

    def _own_loras_only(self, analysis: PromptAnalysis, info: ModelInfo) -> LoraPlan:
        # Without LoRARecommender nothing is chosen, but the user's tags still count.
        return self._loras.recommend(analysis, info, settings=RecommendSettings(max_loras=0))

    def _found(self, plan: LoraPlan) -> LoraPlan:
        """The plan with those pending LoRAs that are on disk by now."""

        def found(lora: PlannedLora) -> PlannedLora:
            if not lora.pending or not lora.file.sha256:
                return lora
            try:
                file = self._files.locate(lora.file)
            except ModelFileError:
                return lora
            return lora.model_copy(update={"file": file, "pending": False})

        return plan.model_copy(update={"loras": tuple(map(found, plan.loras))})

    def _save(
        self, request: SamplerRequest, generation: Generation, image: torch.Tensor
    ) -> Generation:
        location = None
        if request.save != "off":
            height, width = image.shape[1:3]
            place = host.save_place(request.filename_prefix, request.save, width, height)
            location = SaveLocation(
                directory=place.directory,
                subfolder=place.subfolder,
                type=request.save,
                stem=place.filename,
                counter=place.counter,
            )
        text = {} if request.workflow_prompt is None else {"prompt": request.workflow_prompt}
        text |= request.extra_pnginfo or {}
        return save_generation(
            self._data.database,
            generation,
            host.to_pixels(image),
            location,
            {key: json.dumps(value) for key, value in text.items()},
            embed_metadata=host.metadata_enabled(),
            now=datetime.now(timezone.utc),
        )
