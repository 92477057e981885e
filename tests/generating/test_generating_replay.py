from __future__ import annotations

import json

import numpy as np
import pytest
from intelligent_generation.core.errors import ModelFileError, PlanError
from intelligent_generation.core.generating.png import RECORD_KEY, encode_png
from intelligent_generation.core.generating.replay import generation_from_png, replay_prompt
from intelligent_generation.core.plan import FileRef, GenerationPlan, ModelPart

BLACK = np.zeros((8, 8, 3), np.uint8)


def part(role, *files: FileRef) -> ModelPart:
    return ModelPart(role=role, files=files, dtype="float16", parameters=10, bytes=20)


def file(folder: str, name: str) -> FileRef:
    return FileRef(folder=folder, name=name)


def where_it_was(file: FileRef) -> FileRef:
    return file


def test_a_record_comes_out_of_the_png_as_it_went_in(make_generation):
    generation = make_generation()
    png = encode_png(BLACK, {"prompt": "{}", RECORD_KEY: generation.to_json()})
    assert generation_from_png(png) == generation


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"not a png", "not a readable PNG"),
        (encode_png(BLACK, {"prompt": "{}"}), "no record"),
        (encode_png(BLACK, {RECORD_KEY: "{"}), "not JSON"),
        (encode_png(BLACK, {RECORD_KEY: '{"schema_version": 99}'}), "Update the node pack"),
        (encode_png(BLACK, {RECORD_KEY: '{"kind": "Generation"}'}), "cannot be used"),
    ],
)
def test_a_png_without_a_usable_record_says_why(data, message):
    with pytest.raises(PlanError, match=message):
        generation_from_png(data)


def test_a_checkpoint_is_loaded_whole_and_the_plan_run_as_it_is(make_generation):
    plan = make_generation().plan
    prompt = replay_prompt(plan, locate=where_it_was)
    assert prompt["1"] == {
        "class_type": "HubModelLoader",
        "inputs": {
            "source": "local",
            "model": "checkpoints/sd/small.safetensors",
            "vae": "automatic",
            "variant": "automatic",
            "text_encoder_1": "automatic",
            "text_encoder_2": "automatic",
            "text_encoder_3": "automatic",
        },
    }
    sampler = prompt["2"]["inputs"]
    assert prompt["2"]["class_type"] == "IntelligentSampler"
    assert [sampler[name] for name in ("model", "clip", "vae")] == [["1", 0], ["1", 1], ["1", 2]]
    assert (sampler["mode"], sampler["seed"]) == ("MANUAL", 2**64 - 1)
    assert GenerationPlan.from_json(sampler["plan"]) == plan
    assert json.loads(json.dumps(prompt)) == prompt


def test_parts_of_their_own_are_named_in_their_inputs(make_generation):
    model = {
        "parts": (
            part("diffusion_model", file("diffusion_models", "flux/dev.safetensors")),
            part(
                "text_encoder",
                file("text_encoders", "clip_l.safetensors"),
                file("text_encoders", "t5.safetensors"),
            ),
            part("vae", file("vae", "ae.safetensors")),
        )
    }
    loader = replay_prompt(make_generation(model=model).plan, locate=where_it_was)["1"]["inputs"]
    assert loader == {
        "source": "local",
        "model": "diffusion_models/flux/dev.safetensors",
        "vae": "ae.safetensors",
        "variant": "automatic",
        "text_encoder_1": "clip_l.safetensors",
        "text_encoder_2": "t5.safetensors",
        "text_encoder_3": "automatic",
    }


def test_a_data_type_that_was_chosen_is_asked_for_again(make_generation):
    prompt = replay_prompt(
        make_generation(model={"weight_dtype": "int8"}).plan, locate=where_it_was
    )
    link, output = prompt["1"]["inputs"]["memory_plan"]
    assert output == 0
    assert prompt[link] == {
        "class_type": "MemoryStrategy",
        "inputs": {"strategy": "AUTO", "weight_dtype": "int8"},
    }


def test_files_that_were_renamed_are_named_as_they_are_now(make_generation):
    def renamed(file: FileRef) -> FileRef:
        return file.model_copy(update={"name": f"moved/{file.name}"})

    plan = make_generation().plan
    prompt = replay_prompt(plan, locate=renamed)
    assert prompt["1"]["inputs"]["model"] == "checkpoints/moved/sd/small.safetensors"
    assert prompt["1"]["inputs"]["vae"] == "automatic"
    replayed = GenerationPlan.from_json(prompt["2"]["inputs"]["plan"])
    assert [lora.file.name for lora in replayed.loras.loras] == [
        "moved/styles/ink.safetensors",
        "moved/Ānime.safetensors",
    ]
    assert {file.name for file in replayed.model.files} == {"moved/sd/small.safetensors"}
    assert [lora.file.sha256 for lora in replayed.loras.loras] == ["a" * 64, None]


def test_a_file_that_is_gone_is_the_locators_error(make_generation):
    def gone(file: FileRef) -> FileRef:
        raise ModelFileError(f"{file.name} is missing")

    with pytest.raises(ModelFileError, match="is missing"):
        replay_prompt(make_generation().plan, locate=gone)


MAIN = file("checkpoints", "a.safetensors")


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ({"parts": ()}, "diffusion_model was made by another node"),
        ({"parts": (part("diffusion_model"),)}, "diffusion_model was made by another node"),
        (
            {"parts": (part("diffusion_model", MAIN), part("text_encoder", MAIN))},
            "vae was made by another node",
        ),
        (
            {
                "parts": (
                    part("diffusion_model", MAIN),
                    part("text_encoder"),
                    part("vae", MAIN),
                )
            },
            "text_encoder was made by another node",
        ),
        (
            {
                "parts": (
                    part("diffusion_model", MAIN),
                    part("text_encoder", MAIN),
                    part("vae", file("checkpoints", "b.safetensors")),
                )
            },
            "vae lies inside another model file",
        ),
        (
            {
                "parts": (
                    part("diffusion_model", MAIN),
                    part("text_encoder", *(file("text_encoders", f"{n}") for n in range(4))),
                    part("vae", MAIN),
                )
            },
            "more files than HubModelLoader loads",
        ),
        ({"carried_patches": 3}, "patched by other nodes"),
    ],
)
def test_a_model_the_record_cannot_load_points_to_the_workflow(make_generation, model, why):
    with pytest.raises(PlanError, match=rf"{why}.*workflow in the PNG"):
        replay_prompt(make_generation(model=model).plan, locate=where_it_was)
