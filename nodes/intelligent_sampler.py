"""IntelligentSampler: the plans -> image, latent, record and explanation."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .sockets import (
    CATEGORY,
    GenerationSocket,
    LoraPlanSocket,
    MemoryPlanSocket,
    PromptAnalysisSocket,
    SamplingPlanSocket,
)

RANDOM_SEED = -1


class IntelligentSampler(io.ComfyNode):
    """Applies the LoRAs, encodes, samples, decodes, saves, records and explains."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..core.limits import MAX_SEED

        return io.Schema(
            node_id="IntelligentSampler",
            display_name="Intelligent Sampler",
            category=CATEGORY,
            description="Makes the image of a plan, saves it with the whole plan inside, keeps a "
            "record, and explains every choice. Plans that are not wired in are made here.",
            is_output_node=True,
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            inputs=[
                io.Model.Input("model"),
                io.Clip.Input("clip"),
                io.Vae.Input("vae"),
                io.Combo.Input(
                    "mode",
                    options=["AUTO", "MANUAL"],
                    default="AUTO",
                    tooltip="AUTO runs the plans that are wired in. MANUAL runs the plan text "
                    "below and only says what AUTO would have done.",
                ),
                io.Int.Input(
                    "seed",
                    default=RANDOM_SEED,
                    min=RANDOM_SEED,
                    max=MAX_SEED,
                    tooltip="-1: a new random seed for each run. 0 is a seed like any other.",
                ),
                io.Combo.Input(
                    "save",
                    options=["output", "temp", "off"],
                    default="output",
                    tooltip="Where the image goes. off: nothing is written; the run is recorded.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="IntelligentGeneration",
                    tooltip="As in SaveImage; may hold a subfolder and %date:yyyy-MM-dd%.",
                ),
                io.String.Input(
                    "plan",
                    multiline=True,
                    default="",
                    tooltip="MANUAL only. A whole plan from a record or PNG, or just the fields to "
                    'change, for example {"sampling": {"steps": 35}}.',
                ),
                PromptAnalysisSocket.Input("analysis", optional=True),
                LoraPlanSocket.Input("lora_plan", optional=True),
                SamplingPlanSocket.Input("sampling_plan", optional=True),
                MemoryPlanSocket.Input("memory_plan", optional=True),
            ],
            outputs=[
                io.Image.Output("image_out", display_name="IMAGE"),
                io.Latent.Output("latent_out", display_name="LATENT"),
                GenerationSocket.Output("generation", display_name="generation"),
                io.String.Output("explanation", display_name="explanation"),
                io.String.Output("generation_id", display_name="generation id"),
                io.Int.Output("seed_out", display_name="seed"),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, seed: int | None = None, plan: str | None = None, **_: Any) -> Any:
        from ..core.generating import names_seed
        from ..core.services import services

        if seed == RANDOM_SEED and not names_seed(plan or ""):
            return float("nan")  # equals nothing, itself included: ComfyUI runs the node again
        # LoRAs that the prompt or the plan text names are found and read here.
        return services().loras.lora_revision()

    @classmethod
    def execute(
        cls,
        model,
        clip,
        vae,
        mode: str,
        seed: int,
        save: str,
        filename_prefix: str,
        plan: str,
        analysis=None,
        lora_plan=None,
        sampling_plan=None,
        memory_plan=None,
    ) -> io.NodeOutput:
        from ..core.services import SamplerRequest, services

        result = services().generating.generate(
            SamplerRequest(
                model=model,
                clip=clip,
                vae=vae,
                mode=mode,
                seed=None if seed == RANDOM_SEED else seed,
                save=save,
                filename_prefix=filename_prefix,
                plan_text=plan,
                analysis=analysis,
                lora_plan=lora_plan,
                sampling_plan=sampling_plan,
                memory_plan=memory_plan,
                workflow_prompt=cls.hidden.prompt,
                extra_pnginfo=cls.hidden.extra_pnginfo,
            )
        )
        generation = result.generation
        return io.NodeOutput(
            result.image,
            result.latent,
            generation,
            generation.explanation,
            generation.id,
            generation.plan.seed,
            ui={
                "images": [image.model_dump() for image in generation.images],
                "text": [generation.explanation],
                "generation_id": [generation.id],
            },
        )
