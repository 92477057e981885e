"""MemoryStrategy: the machine -> MemoryPlan."""

from __future__ import annotations

from comfy_api.latest import io

from .sockets import CATEGORY, MemoryPlanSocket


class MemoryStrategy(io.ComfyNode):
    """Reads the machine and says what memory policy a run follows."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MemoryStrategy",
            display_name="Memory Strategy",
            category=CATEGORY,
            description="Reads VRAM and RAM and decides in which data type models are "
            "loaded. AUTO leaves ComfyUI's own management alone and reports what it does.",
            inputs=[
                io.Combo.Input(
                    "strategy",
                    options=["AUTO"],
                    default="AUTO",
                    tooltip="AUTO: ComfyUI manages memory itself.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=["auto", "fp16", "bf16", "fp8", "int8"],
                    default="auto",
                    optional=True,
                    tooltip="What HubModelLoader loads models in. auto: as the file has them; at "
                    "int8 when a model does not fit otherwise.",
                ),
            ],
            outputs=[
                MemoryPlanSocket.Output("memory_plan", display_name="memory plan"),
                io.String.Output(
                    "report", display_name="report", tooltip="The machine and the policy, in words."
                ),
            ],
        )

    @classmethod
    def execute(cls, strategy: str, weight_dtype: str = "auto") -> io.NodeOutput:
        from ..core.services import services

        plan, report = services().plan_memory(strategy, weight_dtype)
        return io.NodeOutput(plan, report)
