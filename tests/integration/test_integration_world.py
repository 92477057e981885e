"""The small world in ComfyUI: what is asked for is what is seen, and the demo shows it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from intelligent_generation.core.plan import Generation
from intelligent_generation.scripts import demonstration
from intelligent_generation.scripts.comfyui import Client, ComfyUI, link_model
from intelligent_generation.scripts.workflow_api import node_of
from intelligent_generation.scripts.world import files, judge
from PIL import Image

NOT_LOADED = "lora key not loaded"


@pytest.fixture(scope="module")
def network() -> judge.Judge:
    return judge.load(files.JUDGE)


@pytest.fixture
def checkpoint(comfyui: ComfyUI) -> Iterator[str]:
    """The small world's checkpoint, with its LoRAs for as long as the test runs."""
    folder = comfyui.base.models("loras")
    for lora in files.loras():
        link_model(lora, folder)
    yield link_model(files.checkpoint(), comfyui.base.models("checkpoints"))
    for lora in files.loras():
        (folder / lora.name).unlink()


def _read(network: judge.Judge, data: bytes) -> judge.Judgement:
    with Image.open(io.BytesIO(data)) as image:
        return judge.judge(network, [image])[0]


def test_auto_shows_what_was_asked_for(
    client: Client, checkpoint: str, network: judge.Judge, comfyui_log
):
    text = "a red lighthouse at night, watercolor"
    prompt = demonstration.auto_prompt(
        client.object_info(), text=text, checkpoint=checkpoint, seed=7, size=None
    )
    run = client.run(prompt)
    (made,) = run.outputs[node_of(prompt, "IntelligentSampler")]["generation_id"]
    path = f"/intelligent_generation/generations/{made}"
    record = Generation.from_data(client.get(path).json())
    assert (record.plan.model.family, record.plan.model.trained_size) == ("sd35", (128, 128))
    assert (record.plan.sampling.width, record.plan.sampling.height) == (128, 128)
    assert [lora.file.name for lora in record.plan.loras.loras] == ["watercolor_wash.safetensors"]
    assert NOT_LOADED not in comfyui_log()

    (image,) = run.images()
    ours = _read(network, client.view(image))
    assert [ours.read(name) for name in ("subject", "colour", "time")] == [
        "lighthouse",
        "red",
        "night",
    ]

    stock = client.run(
        demonstration.stock_prompt(text=text, checkpoint=checkpoint, seed=7, size=(128, 128))
    )
    theirs = _read(network, client.view(stock.images()[0]))
    watercolor = [one.probabilities["style"]["watercolor"] for one in (ours, theirs)]
    assert watercolor[0] > 10 * watercolor[1]
    asked = judge.asked_for(text)
    assert judge.reward(ours, asked) > judge.reward(theirs, asked)


def test_stock_nodes_load_every_lora_whole(client: Client, checkpoint: str, comfyui_log):
    graph = demonstration.stock_prompt(
        text="a boat", checkpoint=checkpoint, seed=1, size=(128, 128)
    )
    graph["sampler"]["inputs"]["steps"] = 1
    plain = client.view(client.run(graph).images()[0])
    for lora in files.loras():
        graph["lora"] = {
            "class_type": "LoraLoader",
            "inputs": {
                "model": ["loader", 0],
                "clip": ["loader", 1],
                "lora_name": lora.name,
                "strength_model": 1.0,
                "strength_clip": 1.0,
            },
        }
        graph["sampler"]["inputs"]["model"] = ["lora", 0]
        assert client.view(client.run(graph).images()[0]) != plain
    assert NOT_LOADED not in comfyui_log()


def test_the_demo_shows_both_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(demonstration, "_base_directory", lambda: tmp_path / "base")
    prompt = "a blue cat in the snow, pixel art"
    assert demonstration.main([prompt, "--seed", "3", "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "LoRA Pixel Art Tiles at" in printed
    assert "stock settings" in printed
    auto, both = sorted((tmp_path / "out").iterdir(), key=lambda path: len(path.name))
    with Image.open(auto) as image, Image.open(both) as pair:
        assert image.size == (128, 128)
        assert "intelligent_generation" in image.info
        assert pair.width > 2 * pair.height * 0.9
        left, right = (
            pair.crop((0, 0, pair.width // 2, pair.height)),
            pair.crop((pair.width // 2, 0, pair.width, pair.height)),
        )
        assert left.tobytes() != right.tobytes()
    assert str(both) in printed
