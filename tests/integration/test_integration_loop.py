"""The whole loop on a real ComfyUI: prompt in, image out, record, explanation, replay."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import requests
from intelligent_generation.core.limits import MAX_SEED
from intelligent_generation.core.plan import Generation
from intelligent_generation.scripts.comfyui import Client, ComfyUI, Prompt, PromptFailedError
from intelligent_generation.scripts.sample_library import rows, write_lora
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

CHECKPOINT = "small-sd15.safetensors"
PROMPT = "a lighthouse at dusk, watercolor"
ROUTES = "/intelligent_generation"


def png(client: Client, run: Any) -> PngImageFile:
    (image,) = run.images()
    opened = Image.open(io.BytesIO(client.view(image)))
    assert isinstance(opened, PngImageFile)
    return opened


def pixels(client: Client, run: Any) -> np.ndarray:
    return np.asarray(png(client, run).convert("RGB"))


def with_latent_file(graph: Prompt, prefix: str) -> Prompt:
    graph["latent-file"] = {
        "class_type": "SaveLatent",
        "inputs": {"samples": ["sampler", 1], "filename_prefix": prefix},
    }
    return graph


def stock_twin(record: Generation, stock_graph: Callable[..., Prompt], prefix: str) -> Prompt:
    """The stock graph with the same plan."""
    sampling = record.plan.sampling
    (positive,) = record.plan.loras.segments
    (negative,) = record.plan.analysis.negative_segments
    graph = stock_graph(
        positive,
        negative,
        loras=[
            (lora.file.name, lora.model_strength, lora.clip_strength)
            for lora in record.plan.loras.loras
        ],
        width=sampling.width,
        height=sampling.height,
        batch_size=sampling.batch_size,
        steps=sampling.steps,
        cfg=sampling.cfg,
        sampler=sampling.sampler,
        scheduler=sampling.scheduler,
        seed=record.plan.seed,
    )
    graph["latent-file"] = {
        "class_type": "SaveLatent",
        "inputs": {"samples": ["sampler", 0], "filename_prefix": prefix},
    }
    return graph


def test_prompt_in_image_out_and_why(client: Client, auto_graph, record_of) -> None:
    run = client.run(auto_graph(PROMPT, negative="blurry"))
    record: Generation = record_of(run)
    image = png(client, run)

    titles = {lora.title for lora in record.plan.loras.loras}
    assert {"Watercolor Wash", "Lighthouses of the Coast"} <= titles
    assert {item.file.name for item in record.applied} == {
        lora.file.name for lora in record.plan.loras.loras
    }
    assert all(item.model_weights > 0 for item in record.applied)
    (encoded,) = record.plan.loras.segments
    assert encoded.startswith(PROMPT) and "wtrclr wash" in encoded

    (explanation,) = run.outputs["sampler"]["text"]
    assert explanation == record.explanation
    for said in (*titles, "steps = ", "cfg = ", "sampler = ", "seed 7", "wtrclr wash"):
        assert said in explanation
    assert all(f" {lora.model_strength:g}" in explanation for lora in record.plan.loras.loras)

    assert image.size == (64, 64)
    assert Generation.from_json(image.text["intelligent_generation"]) == record
    assert json.loads(image.text["prompt"])["sampler"]["class_type"] == "IntelligentSampler"
    assert record.plan.model.family == "sd15"
    assert [part.role for part in record.plan.model.parts] == [
        "diffusion_model", "text_encoder", "vae",
    ]  # fmt: skip
    assert all(file.sha256 and file.size for file in record.plan.model.files)
    assert all(lora.file.sha256 for lora in record.plan.loras.loras)


def test_progress_and_previews_are_those_of_the_sampler(client: Client, auto_graph) -> None:
    seen = []
    run = client.run(
        auto_graph("progress", optimizer={"steps": 3}, sampler={"seed": 1}),
        on_progress=seen.append,
    )
    steps = [(e.value, e.total) for e in seen if e.kind == "step" and e.node == "sampler"]
    assert steps[-1] == (3, 3)
    assert run.previews >= 3


@pytest.mark.parametrize(
    ("text", "negative", "options"),
    [
        (PROMPT, "", {}),
        ("a (calico:1.3) cat on a \\(wooden\\) windowsill", "blurry, (dog:1.2)", {"batch_size": 2}),
        ("quiet harbour <lora:dusk-light:0.6:0.3>", "", {"sampler": "dpmpp_2m", "cfg": 4.5}),
    ],
)
def test_latent_is_bit_identical_to_the_stock_graph(
    client: Client, auto_graph, stock_graph, record_of, latent_of, text, negative, options
) -> None:
    graph = auto_graph(text, negative=negative, optimizer=options, sampler={"seed": 11})
    run = client.run(with_latent_file(graph, "latents/ours"))
    record = record_of(run)
    assert record.plan.loras.loras, "a LoRA must take part, or the test shows little"
    twin = client.run(stock_twin(record, stock_graph, "latents/stock"))
    ours, theirs = latent_of(run), latent_of(twin)
    assert ours.shape[0] == options.get("batch_size", 1)
    assert np.array_equal(ours, theirs)

    # With a new seed the patches and texts that were kept are used again, to the same effect.
    graph["sampler"]["inputs"]["seed"] = 12
    again = client.run(graph)
    assert np.array_equal(
        latent_of(again),
        latent_of(client.run(stock_twin(record_of(again), stock_graph, "latents/stock"))),
    )
    assert not np.array_equal(latent_of(again), ours)


@pytest.mark.parametrize("node", ["SDTurboScheduler", "Flux2Scheduler"])
def test_a_scheduler_node_spaces_the_steps_as_in_the_stock_graph(
    client: Client, auto_graph, stock_graph, record_of, latent_of, node
) -> None:
    plan = json.dumps({"sampling": {"sigmas": node, "steps": 3}})
    graph = auto_graph(PROMPT, sampler={"mode": "MANUAL", "plan": plan, "seed": 5})
    run = client.run(with_latent_file(graph, "latents/ours"))
    record = record_of(run)
    assert record.plan.sampling.sigmas == node
    twin = stock_twin(record, stock_graph, "latents/stock")
    stock = twin["sampler"]["inputs"]
    own = {
        "SDTurboScheduler": {"model": stock["model"], "steps": 3, "denoise": 1.0},
        "Flux2Scheduler": {"steps": 3, "width": 64, "height": 64},
    }
    twin["sigmas"] = {"class_type": node, "inputs": own[node]}
    twin["select"] = {
        "class_type": "KSamplerSelect",
        "inputs": {"sampler_name": stock["sampler_name"]},
    }
    shared = {key: stock[key] for key in ("model", "positive", "negative", "latent_image", "cfg")}
    twin["sampler"] = {
        "class_type": "SamplerCustom",
        "inputs": {
            **shared,
            "add_noise": True,
            "noise_seed": 5,
            "sampler": ["select", 0],
            "sigmas": ["sigmas", 0],
        },
    }
    assert np.array_equal(latent_of(run), latent_of(client.run(twin)))


def test_clip_skip_and_break_are_those_of_the_stock_nodes(
    client: Client, auto_graph, stock_graph, record_of, latent_of
) -> None:
    graph = auto_graph(
        "red boat BREAK [grey] sea",
        syntax="a1111",
        recommender={"max_loras": 0},
        optimizer={"clip_skip": 2},
    )
    run = client.run(with_latent_file(graph, "latents/ours"))
    record = record_of(run)
    first, second = record.plan.loras.segments
    sampling = record.plan.sampling
    twin = stock_graph(
        first, "", width=64, height=64, steps=sampling.steps, cfg=sampling.cfg,
        sampler=sampling.sampler, scheduler=sampling.scheduler, seed=record.plan.seed,
    )  # fmt: skip
    skip = {"clip": ["checkpoint", 1], "stop_at_clip_layer": -2}
    twin["skip"] = {"class_type": "CLIPSetLastLayer", "inputs": skip}
    twin["second"] = {
        "class_type": "CLIPTextEncode", "inputs": {"text": second, "clip": ["skip", 0]},
    }  # fmt: skip
    twin["positive"]["inputs"]["clip"] = twin["negative"]["inputs"]["clip"] = ["skip", 0]
    joined = {"conditioning_to": ["positive", 0], "conditioning_from": ["second", 0]}
    twin["concat"] = {"class_type": "ConditioningConcat", "inputs": joined}
    twin["sampler"]["inputs"]["positive"] = ["concat", 0]
    twin["latent-file"] = {
        "class_type": "SaveLatent",
        "inputs": {"samples": ["sampler", 0], "filename_prefix": "latents/stock"},
    }
    assert np.array_equal(latent_of(run), latent_of(client.run(twin)))


def test_two_images_at_once_are_one_record(client: Client, auto_graph, record_of) -> None:
    run = client.run(auto_graph("two boats", optimizer={"batch_size": 2}))
    record = record_of(run)
    assert len(run.images()) == 2 == len(record.images)
    assert [image.filename for image in record.images] == [i["filename"] for i in run.images()]
    first, second = (Image.open(io.BytesIO(client.view(image))) for image in run.images())
    assert np.asarray(first).tobytes() != np.asarray(second).tobytes()


# --------------------------------------------------------------------------- seeds and caching


def test_without_a_seed_every_run_is_fresh(client: Client, auto_graph, record_of) -> None:
    graph = auto_graph("random seeds", sampler={"seed": -1})
    runs = [client.run(graph) for _ in range(2)]
    seeds = [record_of(run).plan.seed for run in runs]
    assert seeds[0] != seeds[1]
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert "sampler" in runs[1].executed and "loader" in runs[1].cached


@pytest.mark.parametrize("seed", [0, MAX_SEED])
def test_any_seed_is_a_seed(client: Client, auto_graph, record_of, seed: int) -> None:
    graph = auto_graph("one seed", sampler={"seed": seed})
    first = client.run(graph)
    assert record_of(first).plan.seed == seed
    graph["sampler"]["inputs"]["filename_prefix"] = "again"
    assert np.array_equal(pixels(client, first), pixels(client, client.run(graph)))


def test_twice_without_a_change_nothing_runs(client: Client, auto_graph) -> None:
    graph = auto_graph("nothing changes")
    first = client.run(graph)
    again = client.run(graph)
    assert again.executed == ()
    assert set(again.cached) == set(graph)
    assert again.images() == first.images()


def test_a_new_lora_is_seen_by_the_next_run(
    client: Client, comfyui: ComfyUI, auto_graph, record_of
) -> None:
    graph = auto_graph("an umbrella on a pier", sampler={"seed": 3})
    assert not record_of(client.run(graph)).plan.loras.loras
    loras = comfyui.base.models("loras")
    new = loras / "umbrella.safetensors"
    new.write_bytes((loras / "dusk-light.safetensors").read_bytes())
    try:
        run = client.run(graph)
        assert "recommender" in run.executed and "loader" in run.cached
        assert [lora.file.name for lora in record_of(run).plan.loras.loras] == [new.name]
    finally:
        new.unlink()
    assert not record_of(client.run(graph)).plan.loras.loras


def test_the_checkpoint_that_was_loaded_is_known_to_the_recommender(
    client: Client, comfyui: ComfyUI, auto_graph, record_of
) -> None:
    (row,) = (row for row in rows() if row["name"] == "oil_impasto_knife")
    row |= {
        "name": "glass_mosaic",
        "title": "Glass Mosaic",
        "trigger": "glass mosaic",
        "keywords": "style, mosaic",
        "description": f"Mosaics of glass. Tried on {CHECKPOINT.removesuffix('.safetensors')}.",
    }
    new = write_lora(row, comfyui.base.models("loras"))
    try:
        record = record_of(client.run(auto_graph("a glass mosaic of an owl", sampler={"seed": 5})))
    finally:
        new.unlink()
    assert record.plan.model.checkpoint == CHECKPOINT
    (lora,) = (lora for lora in record.plan.loras.loras if lora.file.name == new.name)
    (factor,) = (factor for factor in lora.factors if factor.name == "checkpoint")
    assert "small" in factor.detail


def test_a_rating_is_seen_by_the_next_run(client: Client, auto_graph, record_of) -> None:
    graph = auto_graph("rated twice", sampler={"seed": 4})
    record = record_of(client.run(graph))
    assert client.run(graph).executed == ()
    rated = client.post(f"{ROUTES}/generations/{record.id}/rating", {"rating": 5, "comment": "!"})
    assert rated.status_code == 200, rated.text
    run = client.run(graph)
    assert "recommender" in run.executed and "optimizer" in run.executed
    assert "loader" in run.cached and "analyzer" in run.cached


# --------------------------------------------------------------------------- records and replay


def test_the_png_alone_makes_the_image_again(
    client: Client, comfyui: ComfyUI, auto_graph, record_of
) -> None:
    run = client.run(auto_graph(PROMPT, sampler={"seed": 21}))
    (image,) = run.images()
    data = client.view(image)
    loras = comfyui.base.models("loras")
    used = record_of(run).plan.loras.loras[0].file.name
    # Renamed in between: files are found by hash before name.
    (loras / used).rename(loras / "renamed lora.safetensors")
    checkpoints = comfyui.base.models("checkpoints")
    original = checkpoints / record_of(run).plan.model.files[0].name
    moved = checkpoints / "moved" / "other name.safetensors"
    moved.parent.mkdir()
    original.rename(moved)
    try:
        prompt = post_png(client, data)
        assert prompt["1"]["inputs"]["model"] == "checkpoints/moved/other name.safetensors"
        replayed = client.run(prompt)
        assert np.array_equal(pixels(client, run), pixels(client, replayed))
        record = record_of(replayed, "2")
        assert record.mode == "MANUAL"
        assert "renamed lora.safetensors" in {item.file.name for item in record.applied}
    finally:
        moved.rename(original)
        moved.parent.rmdir()
        (loras / "renamed lora.safetensors").rename(loras / used)


def post_png(client: Client, data: bytes) -> Prompt:
    answer = client.post_bytes(f"{ROUTES}/prompt", data, "image/png")
    assert answer.status_code == 200, answer.text
    return answer.json()["prompt"]


def test_a_record_can_be_found_and_replayed_by_its_id(
    client: Client, auto_graph, record_of
) -> None:
    run = client.run(auto_graph("found by its id", sampler={"seed": 22}))
    record = record_of(run)
    listed = client.get(f"{ROUTES}/generations", limit=5).json()
    assert record.id in [item["id"] for item in listed]
    prompt = client.get(f"{ROUTES}/generations/{record.id}/prompt").json()["prompt"]
    assert np.array_equal(pixels(client, run), pixels(client, client.run(prompt)))
    with pytest.raises(requests.HTTPError) as missing:
        client.get(f"{ROUTES}/generations/absent")
    answer = missing.value.response
    assert answer is not None and answer.status_code == 404
    assert "absent" in answer.json()["error"]


@pytest.mark.parametrize("save", ["temp", "off"])
def test_save_elsewhere_or_not_at_all(
    client: Client, comfyui: ComfyUI, auto_graph, record_of, save: str
) -> None:
    before = set(comfyui.base.output.rglob("*.png"))
    run = client.run(auto_graph(f"saved {save}", sampler={"save": save, "seed": 31}))
    record = record_of(run)
    assert set(comfyui.base.output.rglob("*.png")) == before
    if save == "off":
        assert not record.images and not run.images()
    else:
        (image,) = run.images()
        assert image["type"] == "temp"
        assert Generation.from_json(png(client, run).text["intelligent_generation"]) == record


def test_filename_prefix_may_hold_a_subfolder(client: Client, comfyui: ComfyUI, auto_graph) -> None:
    run = client.run(auto_graph("in a folder", sampler={"filename_prefix": "a b/ü %width%"}))
    (image,) = run.images()
    assert image["subfolder"] == "a b" and image["filename"].startswith("ü 64_")
    assert (comfyui.base.output / "a b" / image["filename"]).is_file()


# --------------------------------------------------------------------------- MANUAL


def test_manual_runs_the_edited_plan_and_says_what_auto_would_do(
    client: Client, auto_graph, record_of
) -> None:
    edit = {"sampling": {"steps": 3, "sampler": "heun"}, "loras": {"loras": []}}
    run = client.run(
        auto_graph(PROMPT, sampler={"mode": "MANUAL", "plan": json.dumps(edit), "seed": 5})
    )
    record = record_of(run)
    assert (record.mode, record.plan.sampling.steps, record.plan.sampling.sampler) == (
        "MANUAL", 3, "heun",
    )  # fmt: skip
    assert not record.applied
    assert any("steps 2 instead of 3" in line for line in record.differences)
    assert any("added LoRA Watercolor Wash" in line for line in record.differences)
    assert "AUTO would have" in record.explanation


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mode": "AUTO", "plan": '{"sampling": {"steps": 3}}'}, "mode is AUTO"),
        ({"mode": "MANUAL", "plan": " "}, "no plan text"),
        ({"mode": "MANUAL", "plan": "steps: 3"}, "not JSON"),
        ({"mode": "MANUAL", "plan": '{"sampling": {"steps": 0}}'}, "sampling.steps"),
        ({"mode": "MANUAL", "plan": '{"sampling": {"stepz": 3}}'}, "stepz"),
        ({"mode": "MANUAL", "plan": '{"sampling": {"sampler": "magic"}}'}, "no sampler"),
        ({"mode": "MANUAL", "plan": '{"sampling": {"shift": 2.0}}'}, "flow-matching"),
    ],
)
def test_a_plan_that_cannot_be_run_is_refused(
    client: Client, auto_graph, settings: dict, said: str
) -> None:
    with pytest.raises(PromptFailedError, match=said):
        client.run(auto_graph("refused", sampler=settings))


# --------------------------------------------------------------------------- feedback


def rating_status(client: Client, graph: Prompt) -> str:
    (status,) = client.run(graph).outputs["feedback"]["text"]
    return status


def test_ratings_by_link_and_by_id(client: Client, auto_graph, record_of) -> None:
    graph = auto_graph("rate me", sampler={"seed": 41})
    run = client.run(graph)
    assert "nothing was stored" in run.outputs["feedback"]["text"][0]
    first = record_of(run)

    graph["feedback"]["inputs"]["rating"] = 4
    assert first.id in rating_status(client, graph)
    other = auto_graph(
        "rate the other", sampler={"seed": 42}, feedback={"generation_id": first.id, "rating": 2}
    )
    status = rating_status(client, other)
    assert f"{first.id}" in status and "It was 4 before" in status


def test_a_rating_left_standing_does_not_make_the_image_again_and_again(
    client: Client, auto_graph
) -> None:
    graph = auto_graph("left standing", sampler={"seed": 44}, feedback={"rating": 3})
    client.run(graph)
    again = client.run(graph)  # the rating is news to what chooses, once
    assert "recommender" in again.executed
    assert client.run(graph).executed == ()


def test_rating_an_unknown_generation_is_refused(client: Client, auto_graph) -> None:
    with pytest.raises(PromptFailedError, match="nonsense"):
        client.run(auto_graph("x", feedback={"generation_id": "nonsense", "rating": 3}))


@pytest.mark.parametrize("body", [{}, {"rating": 6}, {"rating": "4"}, {"rating": 2.5}, []])
def test_a_bad_rating_by_http_is_refused(client: Client, auto_graph, record_of, body) -> None:
    record = record_of(client.run(auto_graph("for bad ratings", sampler={"seed": 43})))
    answer = client.post(f"{ROUTES}/generations/{record.id}/rating", body)
    assert answer.status_code == 400 and answer.json()["error"]
