"""HubModelLoader: model files -> MODEL, CLIP, VAE, ModelInfo."""

from __future__ import annotations

from typing import Any, NamedTuple

from comfy_api.latest import io

from .sockets import CATEGORY, MemoryPlanSocket, ModelInfoSocket, PromptAnalysisSocket

LOCAL = "local"
AUTOMATIC = "automatic"
AUTO = "auto"
"""For `model`: the pack chooses among the checkpoints."""
VARIANTS = [
    *("turbo", "lightning", "lcm", "hyper", "dmd", "flash", "distilled"),
    *("turbo-merge", "lightning-merge"),
    *("base", "dev", "fast", "krea", "edit"),
]


class HubModelLoader(io.ComfyNode):
    """Loads a checkpoint, or a diffusion model with its text encoders and VAE, from disk or hub."""

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
            description="Loads a model and says what it is: family, variant, sizes. Downloads it "
            "first where you allow that.",
            inputs=[
                io.Combo.Input(
                    "source",
                    options=[LOCAL, "Hugging Face", "CivitAI"],
                    default=LOCAL,
                    tooltip="local: the file in model. The others: what reference names.",
                ),
                io.Combo.Input(
                    "model",
                    options=[AUTO, *models],
                    tooltip="A checkpoint, or a diffusion model alone. auto: the checkpoint that "
                    "suits the prompt, your LoRAs, this machine and your ratings. Read when source "
                    "is local.",
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
                    "says, then its name; set it where both are wrong.",
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
                    "memory_plan",
                    optional=True,
                    tooltip="Which data type the weights are loaded in. Unlinked: AUTO.",
                ),
                io.String.Input(
                    "reference",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="A model's address on the hub, hf:owner/name/file, civitai:123, an AIR "
                    "or a hash. Text encoders and a VAE may stand on lines of their own.",
                ),
                io.Boolean.Input(
                    "allow_download",
                    default=False,
                    optional=True,
                    tooltip="Off: what is missing is not downloaded, and an error says what it is, "
                    "its size and its licence.",
                ),
                PromptAnalysisSocket.Input(
                    "analysis",
                    optional=True,
                    tooltip="What model = auto goes by. Unlinked: it chooses for any prompt.",
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
                io.String.Output(
                    "explanation",
                    display_name="explanation",
                    tooltip="What the model is, and where auto chose it, why and what lost.",
                ),
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip="What was loaded in which data type, what came from the model pool, "
                    "and what the pool holds.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(
        cls, source: str | None, model: str | None, reference: str | None = ""
    ) -> bool | str:
        """Naming `model` here replaces ComfyUI's list check by an error that helps."""
        from ..core import host
        from ..core.errors import IntelligentGenerationError
        from ..core.memory import choose_model

        if source is None or model is None or reference is None:
            return True  # linked: known only when the node runs
        try:
            if source == LOCAL:
                _no_reference(reference)
                if model != AUTO:
                    choose_model(model=model, installed=host.model_names)
            else:
                from ..core.services import model_references

                model_references(source, reference)
        except IntelligentGenerationError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> str:
        from ..core.services import services

        if any(inputs.get(name, "") is None for name in ("source", "model", "vae", "variant",
                                                         "reference")):  # fmt: skip
            return ""  # linked: what comes through the link is in ComfyUI's own key
        wanted = _wanted(**inputs)
        if wanted.references:
            return services().models.fetched_stamp(wanted.references, **wanted.others)
        if wanted.model == AUTO:
            return services().models.checkpoint_revision()
        models = services().models
        return models.stamp(models.choose_model(model=wanted.model, **wanted.others))

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        from ..core.generating import describe_model_choice
        from ..core.services import services

        wanted = _wanted(**inputs)
        if wanted.references:
            choice = services().models.fetch_model(
                wanted.references, allow_download=wanted.allow_download, **wanted.others
            )
        elif wanted.model == AUTO:
            choice = services().models.choose_checkpoint(
                inputs.get("analysis"), inputs.get("memory_plan"), **wanted.others
            )
        else:
            choice = services().models.choose_model(model=wanted.model, **wanted.others)
        loaded = services().models.load_model(choice, inputs.get("memory_plan"))
        return io.NodeOutput(
            loaded.model,
            loaded.clip,
            loaded.vae,
            loaded.info,
            loaded.info.family,
            describe_model_choice(loaded.info),
            loaded.report,
        )


class _Wanted(NamedTuple):
    model: str
    references: tuple[Any, ...]
    """Empty for a local file."""
    allow_download: bool
    others: dict[str, Any]
    """Text encoders, VAE and variant that were chosen from the lists."""


def _wanted(
    source: str,
    model: str,
    vae: str = AUTOMATIC,
    variant: str = AUTOMATIC,
    text_encoder_1: str | None = AUTOMATIC,
    text_encoder_2: str | None = AUTOMATIC,
    text_encoder_3: str | None = AUTOMATIC,
    memory_plan: Any = None,
    reference: str = "",
    allow_download: bool = False,
    analysis: Any = None,
) -> _Wanted:
    from ..core.services import model_references

    if source == LOCAL:
        _no_reference(reference)
    encoders = (text_encoder_1, text_encoder_2, text_encoder_3)
    return _Wanted(
        model,
        () if source == LOCAL else model_references(source, reference),
        allow_download,
        {
            "vae": None if vae == AUTOMATIC else vae,
            "text_encoders": tuple(name for name in encoders if name not in (None, AUTOMATIC)),
            "variant": {AUTOMATIC: None, "none": ""}.get(variant, variant),
        },
    )


def _no_reference(reference: str) -> None:
    from ..core.errors import SettingError

    if reference.strip():
        raise SettingError(
            "There is a reference, but source is local, which does not read it. Set source to the "
            "hub it is for, or clear reference."
        )
