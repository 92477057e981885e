"""LoRARecommender: PromptAnalysis + the LoRA library -> LoraPlan."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .sockets import (
    CATEGORY,
    LoraPlanSocket,
    LoraStackSocket,
    PromptAnalysisSocket,
    model_info_input,
)


class LoRARecommender(io.ComfyNode):
    """Chooses the LoRAs of the library that fit a prompt and a model, and says why."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..core.limits import MAX_LORAS, MIN_CONFIDENCE

        return io.Schema(
            node_id="LoRARecommender",
            display_name="LoRA Recommender",
            category=CATEGORY,
            description="Finds the installed LoRAs that fit the prompt and the model. LoRAs you "
            "named in the prompt or wired in keep their place and strength.",
            inputs=[
                PromptAnalysisSocket.Input("analysis"),
                model_info_input(),
                io.Int.Input(
                    "max_loras",
                    default=MAX_LORAS,
                    min=0,
                    max=10,
                    tooltip="How many LoRAs the plan may hold, yours included. Yours are never "
                    "left out.",
                ),
                io.Float.Input(
                    "min_confidence",
                    default=MIN_CONFIDENCE,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="A LoRA below this confidence is not chosen.",
                ),
                io.Boolean.Input(
                    "allow_style_mixing",
                    default=True,
                    tooltip="Off: at most one style LoRA.",
                ),
                io.String.Input(
                    "blocked_tags",
                    default="",
                    tooltip="Comma-separated. A LoRA with one of these tags is never chosen.",
                ),
                io.Boolean.Input(
                    "allow_nsfw",
                    default=False,
                    tooltip="Off: LoRAs tagged as adult content are never chosen.",
                ),
                LoraStackSocket.Input(
                    "lora_stack",
                    optional=True,
                    tooltip="LoRAs from another pack's stack node. They are kept as they are.",
                ),
                io.Boolean.Input(
                    "include_remote",
                    default=False,
                    optional=True,
                    tooltip="On: words of your prompt are sent to CivitAI and Hugging Face, to "
                    "find LoRAs for what none of yours serves. Nothing is downloaded here.",
                ),
            ],
            outputs=[
                LoraPlanSocket.Output("lora_plan", display_name="LoRA plan"),
                LoraStackSocket.Output("lora_stack_out", display_name="LORA_STACK"),
                io.String.Output(
                    "text",
                    display_name="prompt",
                    tooltip="The prompt with the trigger words that the LoRAs need.",
                ),
                io.String.Output("explanation", display_name="explanation"),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, include_remote: bool | None = False, **_: Any) -> str:
        from ..core.services import services

        revisions = (
            services().loras.lora_revision(),
            services().records.learning_revision(),
            services().loras.meaning_revision(),
        )
        seen = " ".join(revisions)
        return f"{seen} {services().loras.remote_revision()}" if include_remote else seen

    @classmethod
    def execute(
        cls,
        analysis,
        model_info,
        max_loras: int,
        min_confidence: float,
        allow_style_mixing: bool,
        blocked_tags: str,
        allow_nsfw: bool,
        lora_stack=None,
        include_remote: bool = False,
    ) -> io.NodeOutput:
        from ..core.generating import describe_loras
        from ..core.recommending import RecommendSettings, to_stack
        from ..core.services import services

        plan = services().loras.recommend(
            analysis,
            model_info,
            settings=RecommendSettings(
                max_loras=max_loras,
                min_confidence=min_confidence,
                allow_style_mixing=allow_style_mixing,
                blocked_tags=tuple(tag for tag in map(str.strip, blocked_tags.split(",")) if tag),
                allow_nsfw=allow_nsfw,
            ),
            stack=lora_stack or (),
            include_remote=include_remote,
        )
        return io.NodeOutput(plan, to_stack(plan), ", ".join(plan.segments), describe_loras(plan))
