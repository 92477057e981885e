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
                    options=["SPEED", "BALANCED", "QUALITY"],
                    default="BALANCED",
                    tooltip="SPEED: fewer steps. QUALITY: more steps.",
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
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> str:
        from ..core.services import services

        return services().learning_revision()

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
    ) -> io.NodeOutput:
        from ..core.services import services
        from ..core.tuning import SamplingOverrides

        plan = services().optimize(
            analysis,
            model_info,
            priority=priority,
            batch_size=batch_size,
            lora_plan=lora_plan,
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
            "\n".join(f"{r.field} = {r.value}: {r.text}" for r in plan.reasons),
        )
