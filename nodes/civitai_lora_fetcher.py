"""CivitAILoRAFetcher: LoraPlan -> the same plan with every LoRA on disk, applied if wanted."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .sockets import CATEGORY, LoraPlanSocket, LoraStackSocket


class CivitAILoRAFetcher(io.ComfyNode):
    """Makes the plan's LoRAs present and applies them to MODEL and CLIP where wired in."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CivitAILoRAFetcher",
            display_name="CivitAI LoRA Fetcher",
            category=CATEGORY,
            description="Passes a LoRA plan on with all its files checked, and applies it to MODEL "
            "and CLIP for use in any graph. Fetching from CivitAI comes with a later version.",
            inputs=[
                LoraPlanSocket.Input("lora_plan", optional=True),
                LoraStackSocket.Input(
                    "lora_stack",
                    optional=True,
                    tooltip="LoRAs from another pack's stack node, applied after the plan's.",
                ),
                io.Model.Input("model", optional=True),
                io.Clip.Input("clip", optional=True),
            ],
            outputs=[
                LoraPlanSocket.Output("lora_plan_out", display_name="LoRA plan"),
                LoraStackSocket.Output("lora_stack_out", display_name="LORA_STACK"),
                io.Model.Output("model_out", display_name="MODEL"),
                io.Clip.Output("clip_out", display_name="CLIP"),
                io.String.Output("report", display_name="report"),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> str:
        from ..core.services import services

        return services().lora_revision()

    @classmethod
    def execute(cls, lora_plan=None, lora_stack=None, model=None, clip=None) -> io.NodeOutput:
        from ..core import host
        from ..core.recommending import to_stack
        from ..core.services import services

        fetched = services().fetch_loras(lora_plan, lora_stack or (), model, clip)
        unwired = "CivitAILoRAFetcher gives {0} only when its {0} input is wired."
        return io.NodeOutput(
            fetched.plan,
            to_stack(fetched.plan),
            host.blocked(unwired.format("MODEL")) if model is None else fetched.model,
            host.blocked(unwired.format("CLIP")) if clip is None else fetched.clip,
            fetched.report,
        )
