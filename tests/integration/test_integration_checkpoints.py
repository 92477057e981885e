"""HubModelLoader's `model` = auto, through /prompt."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from intelligent_generation.core.plan import Generation
from intelligent_generation.scripts.comfyui import Client, ComfyUI, PromptFailedError
from intelligent_generation.scripts.sample_models import sample_model

ANIME = "tiny-anime.safetensors"
TEXT = "1girl, anime style, reading in a library"


@pytest.fixture
def anime(comfyui: ComfyUI) -> Iterator[str]:
    path = comfyui.base.models("checkpoints") / ANIME
    shutil.copyfile(sample_model("small-sd15-b.safetensors"), path)
    yield ANIME
    path.unlink()


@pytest.fixture
def generate(client: Client, auto_graph: Any, record_of: Any) -> Callable[..., Generation]:
    def run(text: str, seed: int = 7, **loader: Any) -> Generation:
        prompt = auto_graph(text, sampler={"seed": seed})
        prompt["loader"]["inputs"] |= {"model": "auto", "analysis": ["analyzer", 0], **loader}
        return record_of(client.run(prompt))

    return run


def test_auto_takes_the_checkpoint_that_suits_until_ratings_say_otherwise(
    client: Client, generate: Callable[..., Generation], anime: str
) -> None:
    first = generate(TEXT)
    choice = first.plan.model.choice
    assert choice is not None
    assert first.plan.model.name == choice.file.name == anime
    assert f"Model {anime}, of {choice.candidates} checkpoints: Chosen by the pack" in (
        first.explanation
    )
    assert "Not taken: small-sd15.safetensors" in first.explanation
    other = generate("a bowl of soup").plan.model
    assert other.name != anime, "it is made for something else"
    # The user's choice wins, whatever suits better.
    own = generate(TEXT, model="checkpoints/small-sd15.safetensors").plan.model
    assert (own.name, own.choice) == ("small-sd15.safetensors", None)
    assert "Chosen by the pack" not in own.evidence

    for one in [first, *(generate(TEXT, seed=100 + number) for number in range(3))]:
        path = f"/intelligent_generation/generations/{one.id}/rating"
        assert client.post(path, {"rating": 1, "comment": ""}).ok
    after = generate(TEXT).plan.model
    assert after.name != anime
    assert after.choice is not None
    lost = {item.name: item.reason for item in after.choice.alternatives}
    assert "your ratings (4 rated images)" in lost[anime]


def test_auto_without_any_checkpoint_says_what_to_do(
    comfyui: ComfyUI, client: Client, auto_graph: Any
) -> None:
    folder = comfyui.base.models("checkpoints")
    hidden = folder.with_name("checkpoints-away")
    folder.rename(hidden)
    folder.mkdir()
    try:
        prompt = auto_graph("soup")
        prompt["loader"]["inputs"] |= {"model": "auto"}
        with pytest.raises(PromptFailedError, match="no checkpoint to choose from"):
            client.run(prompt)
    finally:
        folder.rmdir()
        hidden.rename(folder)
