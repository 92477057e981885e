"""The small world's judge: what it reads in pictures, and its reward."""

from __future__ import annotations

import numpy as np
import pytest
from intelligent_generation.scripts.world import files, judge
from intelligent_generation.scripts.world.captions import Form, caption
from intelligent_generation.scripts.world.rendering import render
from intelligent_generation.scripts.world.scenes import STYLES, Scene, random_scene
from numpy.random import RandomState


@pytest.fixture(scope="module")
def network() -> judge.Judge:
    return judge.load(files.JUDGE)


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        (
            "a red lighthouse at night, watercolor",
            {"subject": "lighthouse", "colour": "red", "time": "night", "style": "watercolor"},
        ),
        (
            "Two BLUE kittens on the coast, pixel art",
            {
                "subject": "cat",
                "colour": "blue",
                "count": "2",
                "background": "sea",
                "style": "pixel",
            },
        ),
        (
            "a hot air balloon in front of a city skyline",
            {"subject": "balloon", "background": "city"},
        ),
        (
            "(purple:1.3) rockets, dunes",
            {"subject": "rocket", "colour": "purple", "background": "desert"},
        ),
        ("a portrait of an old man", {}),
        ("scarlet, catalogue, boathouse", {}),
        ("", {}),
    ],
)
def test_what_a_prompt_asks_for(prompt: str, asked: dict[str, str]):
    assert judge.asked_for(prompt) == asked


@pytest.mark.parametrize("form", ["tags", "prose"])
def test_a_caption_asks_for_its_scene(form: Form):
    random = RandomState(4)
    for _ in range(200):
        scene = random_scene(random)
        asked = judge.asked_for(caption(scene, random, form=form, mention=1.0, style=True))
        told = {name: str(getattr(scene, name)) for name in judge.ATTRIBUTES}
        assert asked == {name: told[name] for name in asked}
        assert {"subject", "colour", "background", "time"} <= set(asked)


def test_it_reads_rendered_pictures_that_it_never_saw(network: judge.Judge):
    random = RandomState(99)
    scenes = [random_scene(random, style=STYLES[0], count=1) for _ in range(60)]
    judged = judge.judge(network, [render(scene, 128) for scene in scenes])
    for name, least in {"subject": 0.9, "colour": 0.9, "background": 0.9, "time": 0.9}.items():
        right = [one.read(name) == getattr(s, name) for one, s in zip(judged, scenes, strict=True)]
        assert np.mean(right) >= least, name


def test_the_right_picture_has_the_higher_reward(network: judge.Judge):
    red = Scene("lighthouse", "red", background="sea", time="night")
    blue = Scene("cat", "blue", background="desert", time="day")
    images = [render(red, 128), render(blue, 96)]
    first, second = judge.judge(network, images)
    asked = judge.asked_for("a red lighthouse by the sea at night")
    assert 0 <= judge.reward(second, asked) < 0.3 < 0.7 < judge.reward(first, asked) <= 1


def test_probabilities_are_of_every_value(network: judge.Judge):
    (only,) = judge.judge(network, [render(Scene("tree", "green"), 64)])
    for name, values in judge.ATTRIBUTES.items():
        assert set(only.probabilities[name]) == set(values)
        assert sum(only.probabilities[name].values()) == pytest.approx(1, abs=1e-4)


def test_a_prompt_without_anything_to_see_has_no_reward(network: judge.Judge):
    (only,) = judge.judge(network, [render(Scene("tree", "green"), 64)])
    with pytest.raises(ValueError, match="names nothing that the judge can see"):
        judge.reward(only, {})
