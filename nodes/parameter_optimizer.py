"""ParameterOptimizer: PromptAnalysis + ModelInfo -> SamplingPlan."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .sockets import (
    CATEGORY,
    LoraPlanSocket,
    PromptAnalysisSocket,
    SamplingPlanSocket,
    model_info_input,
)

AUTO = "auto"
NO_LIMIT = 0.0
GIB = 1024**3
TASKS = {"text to image": "t2i", "edit": "edit", "refine": "refine"}


class ParameterOptimizer(io.ComfyNode):
    """Chooses steps, CFG, sampler, scheduler and size for a prompt and a model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..core import host

        return io.Schema(
            node_id="ParameterOptimizer",
            display_name="Parameter Optimizer",
            category=CATEGORY,
            description="Chooses sampling parameters by model family, prompt and priority. "
            "Whatever you set yourself is kept.",
            inputs=[
                PromptAnalysisSocket.Input("analysis"),
                model_info_input(),
                io.Combo.Input(
                    "priority",
                    options=["SPEED", "BALANCED", "QUALITY", "MEMORY"],
                    default="BALANCED",
                    tooltip="SPEED: fewer steps. QUALITY: more steps, and a second pass where it "
                    "helps. MEMORY: as BALANCED, with the least memory.",
                ),
                io.Int.Input(
                    "batch_size", default=1, min=1, max=4096, tooltip="Images made at once."
                ),
                io.Int.Input("steps", default=0, min=0, max=10000, tooltip="0: chosen for you."),
                io.Float.Input(
                    "cfg", default=-1.0, min=-1.0, max=100.0, step=0.1, tooltip="-1: chosen."
                ),
                io.Combo.Input("sampler", options=[AUTO, *host.sampler_names()], default=AUTO),
                io.Combo.Input("scheduler", options=[AUTO, *host.scheduler_names()], default=AUTO),
                io.Int.Input(
                    "width", default=0, min=0, max=16384, step=8, tooltip="Pixels. 0: chosen."
                ),
                io.Int.Input(
                    "height", default=0, min=0, max=16384, step=8, tooltip="Pixels. 0: chosen."
                ),
                io.Int.Input(
                    "clip_skip",
                    default=0,
                    min=0,
                    max=24,
                    tooltip="1: last text encoder layer, 2: the one before. 0: chosen.",
                ),
                io.Float.Input(
                    "guidance",
                    default=-1.0,
                    min=-1.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Embedded guidance, for models such as Flux dev. -1: chosen.",
                ),
                io.Float.Input(
                    "shift",
                    default=-1.0,
                    min=-1.0,
                    max=100.0,
                    step=0.01,
                    tooltip="Time shift of flow-matching models. -1: chosen.",
                ),
                LoraPlanSocket.Input(
                    "lora_plan",
                    optional=True,
                    tooltip="So that Lightning, Turbo, LCM and Hyper LoRAs change steps and CFG.",
                ),
                io.Combo.Input(
                    "task",
                    options=list(TASKS),
                    default="text to image",
                    optional=True,
                    tooltip="edit: also inpainting and control. refine: a second pass over an "
                    "image. Experts sample these otherwise.",
                ),
                io.Float.Input(
                    "max_seconds",
                    default=NO_LIMIT,
                    min=0.0,
                    max=1e6,
                    step=1.0,
                    optional=True,
                    tooltip="Predicted time a run may take, loading not counted. 0: no limit.",
                ),
                io.Float.Input(
                    "max_vram_gb",
                    default=NO_LIMIT,
                    min=0.0,
                    max=4096.0,
                    step=0.1,
                    optional=True,
                    tooltip="Predicted peak of VRAM in GiB (of RAM on a processor). 0: no limit.",
                ),
                io.Combo.Input(
                    "second_pass",
                    options=["auto", "on", "off"],
                    default="auto",
                    optional=True,
                    tooltip="Scale the image up and sample it once more. auto: where priority "
                    "QUALITY and the prompt ask for it, and the limits allow it.",
                ),
            ],
            outputs=[
                SamplingPlanSocket.Output("sampling_plan", display_name="sampling plan"),
                io.Int.Output("steps_out", display_name="steps"),
                io.Float.Output("cfg_out", display_name="cfg"),
                # Wildcards: a typed COMBO output fits KSampler or KSamplerSelect, never both,
                # and which one depends on ComfyUI's version.
                io.AnyType.Output("sampler_out", display_name="sampler"),
                io.AnyType.Output("scheduler_out", display_name="scheduler"),
                io.Int.Output("width_out", display_name="width"),
                io.Int.Output("height_out", display_name="height"),
                io.Int.Output("batch_size_out", display_name="batch size"),
                io.Float.Output(
                    "guidance_out",
                    display_name="guidance",
                    tooltip="0 where the model takes no embedded guidance.",
                ),
                io.Float.Output(
                    "shift_out", display_name="shift", tooltip="0 where the model's own is kept."
                ),
                io.String.Output("explanation", display_name="explanation"),
                io.Int.Output(
                    "clip_skip_out",
                    display_name="clip skip",
                    tooltip="As people count it: 1 is the last layer. 0 where the model's own is "
                    "kept.",
                ),
                io.Float.Output(
                    "estimated_seconds",
                    display_name="estimated seconds",
                    tooltip="Predicted time, loading not counted.",
                ),
                io.Float.Output(
                    "estimated_vram_gb",
                    display_name="estimated VRAM",
                    tooltip="Predicted peak in GiB; of RAM on a processor.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(
        cls, max_seconds: float | None = NO_LIMIT, max_vram_gb: float | None = NO_LIMIT, **_: Any
    ) -> str:
        from ..core.services import services

        learned = services().records.learning_revision()
        if (max_seconds, max_vram_gb) == (NO_LIMIT, NO_LIMIT):
            return learned
        # None: wired in. A limit that was kept by a wrong prediction is looked at again.
        return f"{learned}, {services().tuning.cost_revision()}"

    @classmethod
    def execute(
        cls,
        analysis,
        model_info,
        priority: str,
        batch_size: int,
        steps: int,
        cfg: float,
        sampler: str,
        scheduler: str,
        width: int,
        height: int,
        clip_skip: int,
        guidance: float,
        shift: float,
        lora_plan=None,
        task: str = "text to image",
        max_seconds: float = NO_LIMIT,
        max_vram_gb: float = NO_LIMIT,
        second_pass: str = "auto",
    ) -> io.NodeOutput:
        from ..core.services import services
        from ..core.tuning import Limits, SamplingOverrides, report

        plan = services().tuning.optimize(
            analysis,
            model_info,
            priority=priority,
            batch_size=batch_size,
            lora_plan=lora_plan,
            task=TASKS[task],
            limits=Limits(
                seconds=max_seconds or None,
                memory_bytes=round(max_vram_gb * GIB) or None,
            ),
            second_pass=second_pass,
            overrides=SamplingOverrides(
                steps=steps or None,
                cfg=None if cfg < 0 else cfg,
                sampler=None if sampler == AUTO else sampler,
                scheduler=None if scheduler == AUTO else scheduler,
                width=width or None,
                height=height or None,
                clip_skip=clip_skip or None,
                guidance=None if guidance < 0 else guidance,
                shift=None if shift < 0 else shift,
            ),
        )
        return io.NodeOutput(
            plan,
            plan.steps,
            plan.cfg,
            plan.sampler,
            plan.scheduler,
            plan.width,
            plan.height,
            plan.batch_size,
            plan.guidance or 0.0,
            plan.shift or 0.0,
            report(plan),
            plan.clip_skip or 0,
            plan.estimate.seconds if plan.estimate else 0.0,
            plan.estimate.memory_bytes / GIB if plan.estimate else 0.0,
        )
