"""HubModelLoader: model files -> MODEL, CLIP, VAE, ModelInfo."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .sockets import CATEGORY, MemoryPlanSocket, ModelInfoSocket

AUTOMATIC = "automatic"
VARIANTS = ["turbo", "lightning", "lcm", "hyper", "dmd"]


class HubModelLoader(io.ComfyNode):
    """Loads a checkpoint, or a diffusion model with its text encoders and VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..core import host

        models = [
            f"{folder}/{name}"
            for folder in ("checkpoints", "diffusion_models")
            for name in host.model_names(folder)
        ]
        encoders = [AUTOMATIC, *host.model_names("text_encoders")]
        return io.Schema(
            node_id="HubModelLoader",
            display_name="Hub Model Loader",
            category=CATEGORY,
            description="Loads a model and says what it is: family, variant, sizes.",
            inputs=[
                io.Combo.Input(
                    "source",
                    options=["local", "Hugging Face", "CivitAI"],
                    default="local",
                    tooltip="Where the model is. This version loads local files.",
                ),
                io.Combo.Input(
                    "model",
                    options=models,
                    tooltip="A checkpoint, or a diffusion model alone.",
                ),
                io.Combo.Input(
                    "vae",
                    options=[AUTOMATIC, *host.model_names("vae")],
                    default=AUTOMATIC,
                    tooltip="automatic: the VAE inside the checkpoint.",
                ),
                io.Combo.Input(
                    "variant",
                    options=[AUTOMATIC, "none", *VARIANTS],
                    default=AUTOMATIC,
                    tooltip="Distilled models need few steps and CFG 1. automatic: what the file "
                    "itself says; set it when only the file's name says so.",
                ),
                *(
                    io.Combo.Input(
                        f"text_encoder_{number}",
                        options=encoders,
                        default=AUTOMATIC,
                        optional=True,
                        tooltip="automatic: the text encoder inside the checkpoint.",
                    )
                    for number in (1, 2, 3)
                ),
                MemoryPlanSocket.Input(
                    "memory_plan", optional=True, tooltip="AUTO leaves placement to ComfyUI."
                ),
            ],
            outputs=[
                io.Model.Output("model_out", display_name="MODEL"),
                io.Clip.Output("clip_out", display_name="CLIP"),
                io.Vae.Output("vae_out", display_name="VAE"),
                ModelInfoSocket.Output("model_info", display_name="model info"),
                io.String.Output(
                    "family", display_name="family", tooltip="For example sd15, sdxl, flux-dev."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, source: str | None, model: str | None) -> bool | str:
        """Naming `model` here replaces ComfyUI's list check by an error that helps."""
        from ..core import host
        from ..core.errors import IntelligentGenerationError
        from ..core.memory import choose_model

        if source is None or model is None:
            return True  # linked: known only when the node runs
        try:
            choose_model(source=source, model=model, installed=host.model_names)
        except IntelligentGenerationError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> str:
        from ..core.services import services

        if any(inputs.get(name) is None for name in ("source", "model", "vae", "variant")):
            return ""  # linked: what comes through the link is in ComfyUI's own key
        return services().stamp(_choice(**inputs))

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        from ..core.services import services

        loaded = services().load_model(_choice(**inputs))
        return io.NodeOutput(loaded.model, loaded.clip, loaded.vae, loaded.info, loaded.info.family)


def _choice(
    source: str,
    model: str,
    vae: str = AUTOMATIC,
    variant: str = AUTOMATIC,
    text_encoder_1: str | None = AUTOMATIC,
    text_encoder_2: str | None = AUTOMATIC,
    text_encoder_3: str | None = AUTOMATIC,
    memory_plan: Any = None,
):
    from ..core.services import services

    encoders = (text_encoder_1, text_encoder_2, text_encoder_3)
    return services().choose_model(
        source=source,
        model=model,
        vae=None if vae == AUTOMATIC else vae,
        text_encoders=tuple(name for name in encoders if name is not None and name != AUTOMATIC),
        variant={AUTOMATIC: None, "none": ""}.get(variant, variant),
    )
