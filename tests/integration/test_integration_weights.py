"""Data types of weights through the nodes, in a running ComfyUI."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from intelligent_generation.core.plan import Generation
from intelligent_generation.scripts.comfyui import Client, ComfyUI, Prompt, PromptFailedError
from PIL import Image

TEXT = "a lighthouse at dusk, watercolor"


def in_dtype(graph: Prompt, weight_dtype: str) -> Prompt:
    graph["memory"]["inputs"]["weight_dtype"] = weight_dtype
    graph["loader"]["inputs"]["memory_plan"] = ["memory", 0]
    return graph


def made(client: Client, graph: Prompt) -> tuple[Generation, np.ndarray]:
    run = client.run(graph)
    (generation_id,) = run.outputs["sampler"]["generation_id"]
    found = client.get(f"/intelligent_generation/generations/{generation_id}").json()
    (image,) = run.images()
    pixels = np.asarray(Image.open(io.BytesIO(client.view(image))).convert("RGB"), float)
    return Generation.from_data(found), pixels


@pytest.fixture(scope="module")
def full(client_of_module: Client, auto_graph: Callable[..., Prompt]) -> np.ndarray:
    return made(client_of_module, in_dtype(auto_graph(TEXT), "auto"))[1]


@pytest.fixture(scope="module")
def client_of_module(_host: ComfyUI) -> Client:
    return _host.client()


@pytest.mark.parametrize(
    ("weight_dtype", "stored", "most"),
    [("fp16", "float16", 4), ("bf16", "bfloat16", 12), ("fp8", "float8_e4m3fn", 24),
     ("int8", "int8", 8)],
)  # fmt: skip
def test_each_data_type_is_loaded_recorded_and_makes_nearly_the_same_image(
    client: Client, auto_graph: Callable[..., Prompt], full: np.ndarray, weight_dtype: str,
    stored: str, most: float,
) -> None:  # fmt: skip
    record, pixels = made(client, in_dtype(auto_graph(TEXT), weight_dtype))
    part = record.plan.model.part("diffusion_model")
    assert part is not None
    assert part.dtype == stored
    assert record.plan.model.weight_dtype == weight_dtype
    assert record.plan.memory is not None
    assert record.plan.memory.weight_dtype == weight_dtype
    assert record.applied, "a LoRA was applied"
    assert np.abs(pixels - full).mean() < most


def test_an_image_at_int8_is_repeated_at_int8(
    client: Client, auto_graph: Callable[..., Prompt]
) -> None:
    record, pixels = made(client, in_dtype(auto_graph(TEXT), "int8"))
    path = f"/intelligent_generation/generations/{record.id}/prompt"
    prompt: Any = client.get(path).json()["prompt"]
    run = client.run(prompt)
    again = np.asarray(Image.open(io.BytesIO(client.view(run.images()[0]))).convert("RGB"), float)
    assert np.array_equal(again, pixels)


def test_the_allocation_is_logged_before_loading(
    client: Client, auto_graph: Callable[..., Prompt], comfyui_log: Callable[[], str]
) -> None:
    graph = in_dtype(auto_graph(TEXT), "int8")
    graph["loader"]["inputs"]["variant"] = "none"  # so that it loads anew
    client.request("DELETE", "/intelligent_generation/memory/models").raise_for_status()
    client.run(graph)
    log = comfyui_log()
    assert "diffusion model: int8, " in log
    assert "text encoder: int8, " in log
    assert log.index("diffusion model: int8") < log.index("model weight dtype")


def test_a_data_type_that_does_not_exist_is_refused(
    client: Client, auto_graph: Callable[..., Prompt]
) -> None:
    with pytest.raises(Exception, match="weight_dtype"):
        client.run(in_dtype(auto_graph(TEXT), "int2"))


def test_a_file_that_is_quantized_already_says_so(
    client: Client, comfyui: ComfyUI, auto_graph: Callable[..., Prompt]
) -> None:
    import torch
    from safetensors.torch import save_file

    name = "quantized.safetensors"
    path = comfyui.base.models("diffusion_models") / name
    save_file({"blocks.0.a.weight": torch.zeros(64, 64).to(torch.float8_e4m3fn)}, path)
    graph = in_dtype(auto_graph(TEXT), "int8")
    graph["loader"]["inputs"]["model"] = f"diffusion_models/{name}"
    try:
        with pytest.raises(PromptFailedError, match="quantized already"):
            client.run(graph)
    finally:
        path.unlink()
