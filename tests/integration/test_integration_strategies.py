"""Memory strategies through the nodes, in a running ComfyUI: stock graphs and the pack's loop."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from intelligent_generation.core.plan import Generation
from intelligent_generation.scripts.comfyui import Client, Prompt, PromptFailedError
from PIL import Image

TEXT = "a lighthouse at dusk, watercolor"


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def stock_graph(memory: dict[str, Any] | None, side: int = 64) -> Prompt:
    """A graph of stock nodes, with MemoryStrategy between the loader and the others."""
    graph: Prompt = {"loader": node("CheckpointLoaderSimple", ckpt_name="small-sd15.safetensors")}
    model, clip, vae = ["loader", 0], ["loader", 1], ["loader", 2]
    if memory is not None:
        graph["memory"] = node("MemoryStrategy", model=model, clip=clip, vae=vae, **memory)
        model, clip, vae = ["memory", 2], ["memory", 3], ["memory", 4]
    graph |= {
        "positive": node("CLIPTextEncode", text=TEXT, clip=clip),
        "negative": node("CLIPTextEncode", text="", clip=clip),
        "latent": node("EmptyLatentImage", width=side, height=side, batch_size=1),
        "sampler": node(
            "KSampler", model=model, positive=["positive", 0], negative=["negative", 0],
            latent_image=["latent", 0], seed=5, steps=2, cfg=5.0, sampler_name="euler",
            scheduler="normal", denoise=1.0,
        ),
        "decode": node("VAEDecode", samples=["sampler", 0], vae=vae),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="strategies"),
    }  # fmt: skip
    return graph


def pixels(client: Client, graph: Prompt) -> np.ndarray:
    run = client.run(graph)
    (image,) = run.images()
    return np.asarray(Image.open(io.BytesIO(client.view(image))).convert("RGB"), float)


@pytest.mark.parametrize("strategy", ["FULL_GPU", "CPU_OFFLOAD", "SEQUENTIAL", "AUTO"])
def test_a_stock_graph_makes_the_same_image_under_every_strategy(
    client: Client, comfyui_log: Callable[[], str], strategy: str
) -> None:
    limit = 0.0 if strategy == "FULL_GPU" else 0.06
    made = pixels(client, stock_graph({"strategy": strategy, "max_vram_gb": limit}))
    # ComfyUI loads everything whole on a processor: what it loads in part, the limit made it.
    assert ("loaded partially" in comfyui_log()) == bool(limit)
    assert np.array_equal(made, pixels(client, stock_graph(None)))


def test_the_pack_keeps_to_the_plan_from_the_loader_to_the_image(
    client: Client, auto_graph: Callable[..., Prompt], comfyui_log: Callable[[], str]
) -> None:
    graph = auto_graph(TEXT)
    graph["memory"]["inputs"] |= {"strategy": "DISK_OFFLOAD"}
    graph["loader"]["inputs"]["memory_plan"] = ["memory", 0]
    run = client.run(graph)
    (generation_id,) = run.outputs["sampler"]["generation_id"]
    record = Generation.from_data(
        client.get(f"/intelligent_generation/generations/{generation_id}").json()
    )
    assert record.plan.memory is not None
    assert record.plan.memory.strategy == "DISK_OFFLOAD"
    assert record.applied, "a LoRA was applied"
    log = comfyui_log()
    assert "diffusion model: float16, " in log
    assert ", file" in log
    assert "loaded partially" in log
    (image,) = run.images()
    made = np.asarray(Image.open(io.BytesIO(client.view(image))).convert("RGB"), float)
    # The record repeats on a machine with other memory, without the plan's strategy.
    repeated: Any = client.get(f"/intelligent_generation/generations/{generation_id}/prompt")
    again = pixels(client, repeated.json()["prompt"])
    assert np.abs(made - again).mean() < 4


@pytest.mark.parametrize(
    ("memory", "side", "refusal"),
    [
        ({"strategy": "DISK_OFFLOAD"}, 64, "its weights are in RAM already"),
        ({"strategy": "SEQUENTIAL", "max_vram_gb": 0.01}, 512, "max_vram_gb is too low"),
        ({"strategy": "FULL_GPU", "max_vram_gb": 0.1}, 64, "FULL_GPU does not fit"),
    ],
)
def test_what_cannot_be_kept_stops_with_advice(
    client: Client, memory: dict[str, Any], side: int, refusal: str
) -> None:
    with pytest.raises(PromptFailedError, match=refusal):
        client.run(stock_graph(memory, side))


@pytest.mark.parametrize(
    "wrong", [{"strategy": "TURBO"}, {"strategy": "AUTO", "max_vram_gb": -1.0}]
)
def test_settings_that_do_not_exist_are_refused(client: Client, wrong: dict[str, Any]) -> None:
    with pytest.raises(Exception, match=r"strategy|max_vram_gb"):
        client.run(stock_graph(wrong))


def test_an_output_whose_input_is_not_wired_says_so(client: Client) -> None:
    graph = stock_graph({"strategy": "AUTO"})
    del graph["memory"]["inputs"]["vae"]
    with pytest.raises(PromptFailedError, match="MemoryStrategy gives VAE only when"):
        client.run(graph)


def test_the_report_tells_the_machine_and_how_attention_is_computed(client: Client) -> None:
    run = client.run(
        {
            "memory": node("MemoryStrategy", strategy="SEQUENTIAL"),
            "show": node("PreviewAny", source=["memory", 1]),
        }
    )
    (text,) = run.outputs["show"]["text"]
    assert "Strategy: SEQUENTIAL, one part at a time is on the device." in text
    assert "nothing to move here" in text
    assert "Attention: " in text
