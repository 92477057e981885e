"""Which shape a prompt asks for, and the size it becomes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from intelligent_generation.core.plan import PromptAnalysis, SamplingPlan, Span

Plan = Callable[..., SamplingPlan]
Analysis = Callable[..., PromptAnalysis]


@pytest.mark.parametrize(
    ("prompt", "intent", "size"),
    [
        ("a red apple on a table", {}, (1024, 1024)),
        ("a harbour at dawn, 16:9", {}, (1344, 768)),
        ("a harbour at dawn in 9:16 format", {}, (768, 1344)),
        ("a harbour --ar 4:3", {}, (1152, 896)),
        ("a harbour, 1920x1080", {}, (1344, 768)),
        ("a harbour, 832×1216", {}, (832, 1216)),
        ("a harbour, 2.35:1", {}, (1536, 640)),
        ("a fox, phone wallpaper", {}, (768, 1344)),
        ("a fox, wallpaper", {}, (1344, 768)),
        ("a wallpaper of mountains", {}, (1344, 768)),
        ("phone wallpaper of mountains", {}, (768, 1344)),
        ("a 16x9 picture of a river", {}, (1344, 768)),
        ("an app icon of a camera", {}, (1024, 1024)),
        ("a fox, desktop wallpaper, 3:4", {}, (896, 1152)),
        ("panorama of the alps", {}, (1408, 704)),
        ("a fox, vertical", {}, (896, 1152)),
        ("a fox, square", {"content": "PORTRAIT", "confidence": 0.9}, (1024, 1024)),
        ("portrait of a sailor", {"content": "PORTRAIT"}, (896, 1152)),
        ("portrait of a sailor in a landscape", {"content": "PORTRAIT"}, (896, 1152)),
        ("a misty landscape", {"content": "LANDSCAPE"}, (1216, 832)),
        ("a sailor's face", {"content": "PORTRAIT", "confidence": 0.9}, (896, 1152)),
        ("mountains", {"content": "LANDSCAPE", "confidence": 0.9}, (1216, 832)),
        ("movie poster of a heist", {}, (832, 1216)),
    ],
)
def test_the_prompt_decides_the_shape(
    plan: Plan, analysis: Analysis, prompt: str, intent: dict[str, Any], size: tuple[int, int]
):
    made = plan("sdxl", analysis=analysis(prompt, **intent))
    assert (made.width, made.height) == size


@pytest.mark.parametrize(
    ("prompt", "intent"),
    [
        ("vertical lines of a skyscraper", {}),
        ("an old town square", {}),
        ("a room with floral wallpaper", {}),
        ("a train leaving at 10:30", {}),
        ("a 5x7 grid of dice, 3x zoom", {}),
        ("a girl reading in a landscape", {"content": "CHARACTER", "confidence": 0.9}),
        ("a gallery wall with a portrait", {"content": "SCENE"}),
        ("extremely detailed CG unity 8k wallpaper, 1girl", {"content": "CHARACTER"}),
        ("1girl, wallpaper", {"content": "CHARACTER"}),
        ("a dress of the OD2:1 collection", {}),
        ("1girl, mansion", {"content": "CHARACTER", "confidence": 1.0}),
        ("a sailor", {"content": "PORTRAIT", "confidence": 0.5}),
        ("a 1000 x 100000 grid of dots", {}),
        ("9000x100 pixels", {}),
        ("squared paper, verticality, wallpapered", {}),
    ],
)
def test_words_that_only_look_like_a_shape_change_nothing(
    plan: Plan, analysis: Analysis, prompt: str, intent: dict[str, Any]
):
    made = plan("sdxl", analysis=analysis(prompt, **intent))
    assert (made.width, made.height) == (1024, 1024)


def test_a_ratio_cut_by_emphasis_is_still_read(plan: Plan, analysis: Analysis):
    read = analysis(
        "a harbour, 16:9",
        spans=(Span(text="a harbour, 16", weight=1.0), Span(text=":9", weight=1.1)),
    )
    assert plan("sdxl", analysis=read).width == 1344


@pytest.mark.parametrize(
    ("family", "size"),
    [
        ("sd15", (448, 768)),
        ("sdxl", (768, 1344)),
        ("qwen-image", (928, 1664)),
        ("hidream", (768, 1360)),
        ("hunyuan-image", (1536, 2560)),
    ],
)
def test_a_shape_takes_the_nearest_size_of_the_family(
    plan: Plan, analysis: Analysis, family: str, size: tuple[int, int]
):
    made = plan(family, analysis=analysis("a fox, 9:16"))
    assert (made.width, made.height) == size
    (why,) = [r for r in made.reasons if r.field == "resolution"]
    assert why.source == "intent"
    assert "9:16" in why.text
