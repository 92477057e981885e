"""The small models and the sample library, loaded by ComfyUI's own nodes."""

from __future__ import annotations

import io
import os
from collections.abc import Callable

import numpy as np
import pytest
from intelligent_generation.scripts.comfyui import (
    Client,
    ComfyUI,
    Progress,
    PromptFailedError,
    PromptRefusedError,
)
from intelligent_generation.scripts.sample_library import rows
from PIL import Image

NOT_LOADED = "lora key not loaded"


def pixels(client: Client, run) -> np.ndarray:
    (image,) = run.images()
    return np.asarray(Image.open(io.BytesIO(client.view(image))).convert("RGB")).astype(int)


def native(name: str) -> str:
    return f"{name}.safetensors".replace("/", os.sep)


def test_small_checkpoint_makes_bounded_images_that_follow_the_prompt(client: Client, stock_graph):
    first = pixels(client, client.run(stock_graph(steps=8, width=128, height=128)))
    assert first.shape == (128, 128, 3)
    assert 15 < first.std() < 110
    assert ((first == 0) | (first == 255)).mean() < 0.5
    other = pixels(client, client.run(stock_graph("a cat", steps=8, width=128, height=128)))
    assert np.abs(first - other).mean() > 2
    seed = pixels(client, client.run(stock_graph(steps=8, width=128, height=128, seed=1)))
    assert np.abs(first - seed).mean() > 2


def test_same_prompt_again_comes_from_the_cache_and_a_fresh_run_is_identical(
    client: Client, stock_graph
):
    graph = stock_graph("a red boat")
    first = client.run(graph)
    again = client.run(graph)
    assert again.executed == ()
    assert set(again.cached) == set(graph)
    client.free()
    graph["save"]["inputs"]["filename_prefix"] = "again"
    fresh = client.run(graph)
    assert "sampler" in fresh.executed
    assert np.array_equal(pixels(client, first), pixels(client, fresh))


def test_progress_and_previews_arrive(client: Client, stock_graph):
    seen: list[Progress] = []
    run = client.run(stock_graph("progress", steps=3), on_progress=seen.append)
    steps = [(one.value, one.total) for one in seen if one.kind == "step" and one.node == "sampler"]
    assert steps[-1] == (3, 3)
    assert run.previews >= 3
    assert run.status == "success"


def test_interrupt_ends_the_run(client: Client, stock_graph):
    def stop(progress: Progress) -> None:
        if progress.kind == "step" and progress.value == 2:
            client.interrupt()

    with pytest.raises(PromptFailedError) as caught:
        client.run(stock_graph("interrupted", steps=200), on_progress=stop)
    assert caught.value.run.status == "interrupted"
    assert caught.value.run.outputs == {}


def test_refused_prompt_names_node_and_input(client: Client, stock_graph):
    with pytest.raises(PromptRefusedError, match=r"CheckpointLoaderSimple.*ckpt_name"):
        client.run(stock_graph(checkpoint="absent.safetensors"))


def test_failing_node_is_named(client: Client, stock_graph, comfyui: ComfyUI):
    broken = comfyui.base.models("loras") / "broken-for-stock.safetensors"
    broken.write_bytes(b"not a safetensors file at all")
    try:
        with pytest.raises(PromptFailedError, match=r"LoraLoader \(node lora-0\)"):
            client.run(stock_graph(loras=[(broken.name, 1.0, 1.0)]))
    finally:
        broken.unlink()


def test_every_fitting_lora_loads_without_a_missing_key(
    client: Client, stock_graph, comfyui_log: Callable[[], str]
):
    fitting = [
        row for row in rows() if row["tensors"].startswith("sd15") and row["tensors"] != "sd15-mid"
    ]
    assert len(fitting) >= 12
    loras = [(native(row["name"]), 0.1, 0.1) for row in fitting]
    client.run(stock_graph(loras=loras, steps=1))
    assert NOT_LOADED not in comfyui_log()


@pytest.mark.parametrize(
    "row",
    [row for row in rows() if row["tensors"] in ("sdxl", "flux", "sd15-mid")],
    ids=lambda row: row["name"],
)
def test_foreign_lora_matches_no_key_and_changes_nothing(
    client: Client, stock_graph, comfyui_log: Callable[[], str], row
):
    plain = pixels(client, client.run(stock_graph("foreign")))
    with_lora = client.run(stock_graph("foreign", loras=[(native(row["name"]), 1.0, 0.0)]))
    assert NOT_LOADED in comfyui_log()
    assert np.array_equal(plain, pixels(client, with_lora))


@pytest.mark.parametrize("name", ["dusk-light", "pixel-art-16bit", "misty_mountains"])
def test_lora_changes_the_image(client: Client, stock_graph, name: str):
    plain = pixels(client, client.run(stock_graph("changed", steps=4)))
    changed = pixels(
        client, client.run(stock_graph("changed", steps=4, loras=[(native(name), 1.0, 1.0)]))
    )
    assert np.abs(plain - changed).mean() > 1


def test_split_files_give_the_same_image_as_the_checkpoint(client: Client, stock_graph, add_model):
    graph = stock_graph("split")
    whole = pixels(client, client.run(graph))
    unet = add_model("small-sd15-unet.safetensors")
    encoder = add_model("small-clip-l.safetensors")
    vae = add_model("small-taesd.safetensors")
    graph["unet"] = {
        "class_type": "UNETLoader",
        "inputs": {"unet_name": unet, "weight_dtype": "default"},
    }
    graph["clip"] = {
        "class_type": "CLIPLoader",
        "inputs": {"clip_name": encoder, "type": "stable_diffusion"},
    }
    graph["vae"] = {"class_type": "VAELoader", "inputs": {"vae_name": vae}}
    graph["sampler"]["inputs"]["model"] = ["unet", 0]
    graph["positive"]["inputs"]["clip"] = graph["negative"]["inputs"]["clip"] = ["clip", 0]
    graph["decode"]["inputs"]["vae"] = ["vae", 0]
    del graph["checkpoint"]
    assert np.array_equal(whole, pixels(client, client.run(graph)))


def test_small_sd3_samples(client: Client, stock_graph, add_model):
    graph = stock_graph("sd3", cfg=3.0)
    graph["unet"] = {
        "class_type": "UNETLoader",
        "inputs": {"unet_name": add_model("small-sd3.safetensors"), "weight_dtype": "default"},
    }
    graph["clip"] = {
        "class_type": "CLIPLoader",
        "inputs": {"clip_name": add_model("small-clip-l.safetensors"), "type": "sd3"},
    }
    graph["vae"] = {
        "class_type": "VAELoader",
        "inputs": {"vae_name": add_model("small-taesd3.safetensors")},
    }
    graph["latent"]["class_type"] = "EmptySD3LatentImage"
    graph["sampler"]["inputs"]["model"] = ["unet", 0]
    graph["positive"]["inputs"]["clip"] = graph["negative"]["inputs"]["clip"] = ["clip", 0]
    graph["decode"]["inputs"]["vae"] = ["vae", 0]
    del graph["checkpoint"]
    image = pixels(client, client.run(graph))
    assert image.std() > 5
