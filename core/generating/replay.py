"""A record -> the ComfyUI prompt that makes its image again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import ModelFileError, PlanError
from ..hubs.wording import where_to_get
from ..plan import FileRef, Generation, GenerationPlan, ModelInfo, PlannedLora
from .png import RECORD_KEY, read_png_text

_AUTOMATIC = "automatic"
"""HubModelLoader's word for what lies inside the model file."""

_TEXT_ENCODER_INPUTS = 3


def generation_from_png(data: bytes) -> Generation:
    """The record in a PNG that IntelligentSampler saved.

    Raises:
        PlanError: not a PNG, a PNG without a record, or a record that cannot be read.
    """
    text = read_png_text(data).get(RECORD_KEY)
    if text is None:
        raise PlanError(
            "This PNG holds no record of Intelligent Generation. Take the file as "
            "IntelligentSampler saved it: other nodes write none, and programs and sites that "
            "convert or shrink images remove it."
        )
    return Generation.from_json(text)


def replay_prompt(plan: GenerationPlan, *, locate: Callable[[FileRef], FileRef]) -> dict[str, Any]:
    """An API prompt (for ComfyUI's `/prompt`) that makes the image of a plan again.

    HubModelLoader loads the model, in the data type that it was loaded in where that was chosen;
    IntelligentSampler runs the plan in MANUAL.

    Args:
        locate: finds a recorded file on disk, by hash before name, and returns it as it is
            called now. Its errors pass through.

    Raises:
        PlanError: the model came from other nodes or was patched by them, so that the record
            cannot say how to load it.
    """
    model = _located(plan.model, locate)
    loras = tuple(_located_lora(lora, locate) for lora in plan.loras.loras)
    # Where weights are held is a matter of the machine that repeats the image.
    plan = plan.model_copy(
        update={
            "model": model,
            "loras": plan.loras.model_copy(update={"loras": loras}),
            "memory": None,
        }
    )
    prompt = {
        "1": {"class_type": "HubModelLoader", "inputs": _loader_inputs(model)},
        "2": {
            "class_type": "IntelligentSampler",
            "inputs": {
                "model": ["1", 0],
                "clip": ["1", 1],
                "vae": ["1", 2],
                "mode": "MANUAL",
                "seed": plan.seed,
                "save": "output",
                "filename_prefix": "IntelligentGeneration",
                "plan": plan.to_json(),
            },
        },
    }
    if model.weight_dtype != "auto":
        prompt["3"] = {
            "class_type": "MemoryStrategy",
            "inputs": {"strategy": "AUTO", "weight_dtype": model.weight_dtype},
        }
        prompt["1"]["inputs"]["memory_plan"] = ["3", 0]
    return prompt


def _located_lora(lora: PlannedLora, locate: Callable[[FileRef], FileRef]) -> PlannedLora:
    try:
        return lora.model_copy(update={"file": locate(lora.file), "pending": False})
    except ModelFileError as error:
        if lora.remote is None:
            raise
        raise ModelFileError(f"{error} {where_to_get(lora.remote)}") from error


def _located(model: ModelInfo, locate: Callable[[FileRef], FileRef]) -> ModelInfo:
    if model.carried_patches:
        raise _not_from_record(
            model, f"{model.carried_patches} of its weights were patched by other nodes"
        )
    now = {file: locate(file) for file in model.files}
    return model.model_copy(
        update={
            "parts": tuple(
                part.model_copy(update={"files": tuple(now[file] for file in part.files)})
                for part in model.parts
            )
        }
    )


def _loader_inputs(model: ModelInfo) -> dict[str, Any]:
    main, *others = _files(model, "diffusion_model")
    encoders = _own_files(model, "text_encoder", "text_encoders", main)
    vae = _own_files(model, "vae", "vae", main)
    if others or len(encoders) > _TEXT_ENCODER_INPUTS or len(vae) > 1:
        raise _not_from_record(model, "it has more files than HubModelLoader loads")
    # The plan itself carries the variant; the loader's own guess changes no weight.
    inputs: dict[str, Any] = {
        "source": "local",
        "model": f"{main.folder}/{main.name}",
        "vae": vae[0].name if vae else _AUTOMATIC,
        "variant": _AUTOMATIC,
    }
    for index in range(_TEXT_ENCODER_INPUTS):
        name = encoders[index].name if index < len(encoders) else _AUTOMATIC
        inputs[f"text_encoder_{index + 1}"] = name
    return inputs


def _files(model: ModelInfo, role: str) -> tuple[FileRef, ...]:
    part = model.part(role)
    if part is None or not part.files:
        raise _not_from_record(model, f"its {role} was made by another node")
    return part.files


def _own_files(model: ModelInfo, role: str, folder: str, main: FileRef) -> tuple[FileRef, ...]:
    """Files of a part to name in the loader; none when it lies inside the main file."""
    files = _files(model, role)
    if files == (main,):
        return ()
    if any(file.folder != folder for file in files):
        raise _not_from_record(model, f"its {role} lies inside another model file")
    return files


def _not_from_record(model: ModelInfo, why: str) -> PlanError:
    return PlanError(
        f"The image cannot be made again from the record alone: of the model {model.name}, {why}. "
        "Load the workflow in the PNG instead (drag the PNG into ComfyUI)."
    )
