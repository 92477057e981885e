"""The model pool in a running ComfyUI: what a switch of models reads, and that nothing leaks."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from intelligent_generation.scripts.comfyui import Client, ComfyUI, link_model
from intelligent_generation.scripts.sample_library import rows
from intelligent_generation.scripts.sample_models import sample_model

MEMORY = "/intelligent_generation/memory"
A = "small-sd15.safetensors"
LORA = "watercolor_wash_v2"


@pytest.fixture
def pool(client: Client) -> Callable[[], dict[str, Any]]:
    """pool(): what GET /memory says of the pool; it is empty when the test begins."""
    client.free()
    wait_for(lambda: not client.get(MEMORY).json()["pool"]["models"])
    return lambda: client.get(MEMORY).json()["pool"]


def wait_for(happens: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def other(comfyui: ComfyUI) -> Iterator[str]:
    """A second checkpoint beside the small one, as long as the test runs."""
    folder = comfyui.base.models("checkpoints")
    yield link_model(sample_model("small-sd15-b.safetensors"), folder)
    (folder / "small-sd15-b.safetensors").unlink()


@pytest.fixture
def images(client: Client, comfyui: ComfyUI, stock_graph: Callable[..., Any]):
    """images(checkpoint, **changes): pixels of the stock graph, from HubModelLoader or, with
    stock=True, CheckpointLoaderSimple."""
    import io

    from PIL import Image

    def make(checkpoint: str, *, stock: bool = False, **changes: Any) -> np.ndarray:
        graph = stock_graph(checkpoint=checkpoint, **changes)
        if not stock:
            graph["checkpoint"] = {
                "class_type": "HubModelLoader",
                "inputs": {
                    "source": "local", "model": f"checkpoints/{checkpoint}", "vae": "automatic",
                    "variant": "automatic",
                },
            }  # fmt: skip
        run = client.run(graph)
        assert "sampler" in run.executed
        return np.asarray(Image.open(io.BytesIO(client.view(run.images()[0]))))

    return make


def counts(state: dict[str, Any]) -> tuple[int, int]:
    return state["hits"], state["misses"]


def test_two_workflows_by_turns_load_each_model_once_and_a_lora_leaves_no_trace(
    pool, images, other: str
):
    (row,) = (row for row in rows() if row["name"] == LORA)
    lora = (f"{row['name']}.safetensors", 1.0, 1.0)
    first = {name: images(name, seed=1) for name in (A, other)}
    hits, misses = counts(pool())
    strong = images(A, seed=1, loras=[lora])
    again = {name: images(name, seed=1) for name in (other, A)}
    state = pool()
    assert (state["hits"] - hits, state["misses"] - misses) == (3, 0)
    assert [Path(model["files"][0]).name for model in state["models"]] == [A, other]
    assert [model["in_use"] for model in state["models"]] == [True, False]
    assert state["bytes"] == sum(model["bytes"] for model in state["models"])
    stock = {name: images(name, seed=1, stock=True) for name in (A, other)}
    assert not np.array_equal(strong, first[A])
    assert np.array_equal(strong, images(A, seed=1, loras=[lora], stock=True))
    for name in (A, other):
        assert np.array_equal(first[name], stock[name])
        assert np.array_equal(again[name], stock[name])


def test_a_file_replaced_on_disk_is_loaded_anew(pool, images, comfyui: ComfyUI, other: str):
    path = comfyui.base.models("checkpoints") / "replaced.safetensors"
    try:
        shutil.copyfile(sample_model(A), path)
        before = images(path.name)
        images(A, seed=5)  # so that ComfyUI's own cache has let go of it
        misses = pool()["misses"]
        shutil.copyfile(sample_model(other), path)
        os.utime(path, ns=(1, path.stat().st_mtime_ns + 1_000_000_000))
        after = images(path.name)
        state = pool()
        assert state["misses"] == misses + 1
        assert sum(path.name in model["files"][0] for model in state["models"]) == 1
        assert not np.array_equal(before, after)
        assert np.array_equal(after, images(other))
    finally:
        path.unlink()


def test_the_pool_is_read_set_and_emptied_over_http(pool, images, client: Client, other: str):
    for name in (A, other):
        images(name, seed=2)
    used, unused = pool()["models"]
    answer = client.request("DELETE", f"{MEMORY}/models/{unused['id']}")
    assert answer.status_code in (200, 202), "202 while ComfyUI tidies up after the prompt"
    wait_for(lambda: [model["id"] for model in pool()["models"]] == [used["id"]])
    assert any(one["name"] and one["bytes"] > 0 for one in answer.json()["loaded"])
    missing = client.request("DELETE", f"{MEMORY}/models/{unused['id']}")
    assert missing.status_code == 400
    assert unused["id"] in missing.json()["error"]

    try:
        answer = client.request("PUT", MEMORY, {"budget_gb": 0, "policy": "size"}).json()["pool"]
        assert answer["settings"] == {"budget_gb": 0.0, "policy": "size", "quantized_disk_gb": 0.0}
        assert answer["budget_reason"] == "set by you"
        images(A, seed=2)  # no room: the other goes, A is used and not kept
        assert pool()["models"] == []
    finally:
        answer = client.request("PUT", MEMORY, {"budget_gb": None, "policy": "lru"})
    assert answer.json()["pool"]["budget_bytes"] > 0
    for wrong in ({"budget_gb": -1}, {"policy": "best"}, ["lru"]):
        assert client.request("PUT", MEMORY, wrong).status_code == 400
    images(other, seed=3)
    assert len(pool()["models"]) == 1
    assert client.request("DELETE", f"{MEMORY}/models").status_code in (200, 202)
    wait_for(lambda: not pool()["models"])


def test_a_model_that_is_let_go_while_a_prompt_runs_goes_after_it(
    pool, images, client: Client, stock_graph: Callable[..., Any]
):
    images(A, seed=1)
    graph = stock_graph(steps=60, seed=2)  # of stock nodes alone
    prompt_id = client.queue(graph)
    wait_for(lambda: bool(client.get("/queue").json()["queue_running"]))
    answer = client.request("DELETE", f"{MEMORY}/models")
    assert answer.status_code == 202
    unwanted = {model["id"] for model in answer.json()["pool"]["models"]}
    assert unwanted
    client.interrupt()
    client.history(prompt_id)
    # Where ComfyUI takes cache providers, what the prompt itself loads comes in meanwhile.
    wait_for(lambda: not unwanted & {model["id"] for model in pool()["models"]})


def test_stock_loaders_are_served_where_comfyui_takes_cache_providers(
    pool, images, comfyui: ComfyUI, other: str
):
    if not (comfyui.comfyui / "comfy_api" / "latest" / "_caching.py").is_file():
        pytest.skip("this ComfyUI takes no cache providers; 0.18 is the first that does")
    path = comfyui.base.models("checkpoints") / "stock.safetensors"
    hits, misses = counts(pool())
    try:
        shutil.copyfile(sample_model(A), path)
        first = images(path.name, stock=True, seed=1)
        between = images(other, stock=True, seed=1)
        again = images(path.name, stock=True, seed=1)
        assert (pool()["hits"] - hits, pool()["misses"] - misses) == (1, 2)
        assert np.array_equal(first, again)
        assert not np.array_equal(first, between)
        assert np.array_equal(first, images(A, seed=1)), "as from HubModelLoader"
        shutil.copyfile(sample_model(other), path)
        os.utime(path, ns=(1, path.stat().st_mtime_ns + 1_000_000_000))
        assert np.array_equal(images(path.name, stock=True, seed=1), between)
        names = [Path(model["files"][0]).name for model in pool()["models"]]
        assert names.count(path.name) == 1
    finally:
        path.unlink()
