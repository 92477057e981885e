"""MemoryStrategy: the machine and wishes -> MemoryPlan, and MODEL, CLIP, VAE that keep to it."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .sockets import CATEGORY, MemoryPlanSocket


class MemoryStrategy(io.ComfyNode):
    """Says what memory policy a run follows, and applies it to what is wired in."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MemoryStrategy",
            display_name="Memory Strategy",
            category=CATEGORY,
            description="Decides where the parts of a model are held, in which data type they are "
            "loaded, and how much VRAM a run may take. Applies that to MODEL, CLIP and VAE of any "
            "loader.",
            inputs=[
                io.Combo.Input(
                    "strategy",
                    options=["AUTO", "FULL_GPU", "CPU_OFFLOAD", "SEQUENTIAL", "DISK_OFFLOAD"],
                    default="AUTO",
                    tooltip="AUTO: together in VRAM where the parts fit, else in turn. "
                    "FULL_GPU: all whole in VRAM. CPU_OFFLOAD: text encoders and VAE run on the "
                    "processor. SEQUENTIAL: one part at a time in VRAM. DISK_OFFLOAD: likewise, "
                    "weights stay in the file.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=["auto", "fp16", "bf16", "fp8", "int8", "int4"],
                    default="auto",
                    optional=True,
                    tooltip="What HubModelLoader loads models in. auto: as the file has them; at "
                    "int8 when a model does not fit otherwise. int4: where ComfyUI has a 4-bit "
                    "format itself.",
                ),
                io.Float.Input(
                    "max_vram_gb",
                    default=0.0,
                    min=0.0,
                    max=1024.0,
                    step=0.1,
                    optional=True,
                    tooltip="VRAM a run may take, weights and computing together. 0: no limit.",
                ),
                io.Model.Input("model", optional=True, tooltip="A MODEL of any loader."),
                io.Clip.Input("clip", optional=True, tooltip="Its CLIP."),
                io.Vae.Input("vae", optional=True, tooltip="Its VAE."),
            ],
            outputs=[
                MemoryPlanSocket.Output("memory_plan", display_name="memory plan"),
                io.String.Output(
                    "report", display_name="report", tooltip="The machine and the policy, in words."
                ),
                io.Model.Output("model_out", display_name="MODEL"),
                io.Clip.Output("clip_out", display_name="CLIP"),
                io.Vae.Output("vae_out", display_name="VAE"),
            ],
        )

    @classmethod
    def execute(
        cls,
        strategy: str,
        weight_dtype: str = "auto",
        max_vram_gb: float = 0.0,
        model: Any = None,
        clip: Any = None,
        vae: Any = None,
    ) -> io.NodeOutput:
        from ..core import host
        from ..core.services import services

        plan, report = services().memory.plan_memory(strategy, weight_dtype, max_vram_gb)
        placed = services().memory.place(plan, model, clip, vae)
        unwired = "MemoryStrategy gives {0} only when its {0} input is wired."
        outputs = (
            host.blocked(unwired.format(name)) if part is None else part
            for name, part in zip(("MODEL", "CLIP", "VAE"), placed, strict=True)
        )
        return io.NodeOutput(plan, report, *outputs)
