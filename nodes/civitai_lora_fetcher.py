"""CivitAILoRAFetcher: LoraPlan and references -> a plan with every LoRA on disk, applied if
wanted."""

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
            description="Passes a LoRA plan on with all its files checked, adds LoRAs you name by "
            "address or id, and applies all to MODEL and CLIP for use in any graph. Downloads "
            "where you allow that.",
            inputs=[
                LoraPlanSocket.Input("lora_plan", optional=True),
                LoraStackSocket.Input(
                    "lora_stack",
                    optional=True,
                    tooltip="LoRAs from another pack's stack node, applied after the plan's.",
                ),
                io.Model.Input("model", optional=True),
                io.Clip.Input("clip", optional=True),
                io.String.Input(
                    "references",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="LoRAs of CivitAI or Hugging Face, one a line: address, civitai:123, "
                    "hf:owner/name/file, AIR or hash. A strength may follow after a blank.",
                ),
                io.Boolean.Input(
                    "allow_download",
                    default=False,
                    optional=True,
                    tooltip="Off: what is missing is not downloaded, and an error says what it is, "
                    "its size and its licence.",
                ),
                io.Combo.Input(
                    "mode",
                    options=["AUTO", "ASSISTED"],
                    default="AUTO",
                    optional=True,
                    tooltip="ASSISTED: what is missing stays pending in the plan, and nothing is "
                    "downloaded or applied, until you approve the plan.",
                ),
                io.String.Input(
                    "plan",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="ASSISTED: the LoRA plan you approve, as JSON, edited or not. It takes "
                    "the place of lora_plan, lora_stack and references.",
                ),
            ],
            outputs=[
                LoraPlanSocket.Output("lora_plan_out", display_name="LoRA plan"),
                LoraStackSocket.Output("lora_stack_out", display_name="LORA_STACK"),
                io.Model.Output("model_out", display_name="MODEL"),
                io.Clip.Output("clip_out", display_name="CLIP"),
                io.String.Output("report", display_name="report"),
                io.String.Output("plan_text", display_name="LoRA plan as JSON"),
            ],
        )

    @classmethod
    def validate_inputs(
        cls, references: str | None = "", mode: str | None = "AUTO", plan: str | None = ""
    ) -> bool | str:
        """A line that names nothing and a text that is no plan are refused before anything runs."""
        from ..core.errors import IntelligentGenerationError
        from ..core.recommending import approved_plan
        from ..core.services import lora_references

        try:  # None: linked, known only when the node runs
            if references:
                lora_references(references)
            if mode is not None and plan:
                approved_plan(mode, plan)
        except IntelligentGenerationError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> str:
        from ..core.services import services

        return services().loras.lora_revision()

    @classmethod
    def execute(
        cls,
        lora_plan=None,
        lora_stack=None,
        model=None,
        clip=None,
        references: str = "",
        allow_download: bool = False,
        mode: Any = "AUTO",
        plan: str = "",
    ) -> io.NodeOutput:
        from ..core import host
        from ..core.recommending import approved_plan, to_stack
        from ..core.services import lora_references, services

        fetched = services().lora_fetching.fetch_loras(
            lora_plan,
            lora_stack or (),
            model,
            clip,
            lora_references(references),
            allow_download=allow_download,
            mode=mode,
            approved=approved_plan(mode, plan),
        )
        unwired = "CivitAILoRAFetcher gives {0} only when its {0} input is wired."

        def applied(given: Any, result: Any, name: str) -> Any:
            if given is None:
                return host.blocked(unwired.format(name))
            # What waits for approval ends the run there, without an error; the plan goes on.
            return host.blocked(None) if fetched.plan.pending else result

        return io.NodeOutput(
            fetched.plan,
            to_stack(fetched.plan),
            applied(model, fetched.model, "MODEL"),
            applied(clip, fetched.clip, "CLIP"),
            fetched.report,
            fetched.plan.to_json(indent=2),
        )
