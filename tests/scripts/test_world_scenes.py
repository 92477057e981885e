"""The small world: its scenes, their pictures and their captions."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest
from intelligent_generation.scripts.world.captions import (
    BACKGROUND_WORDS,
    NOUNS,
    PLACE_WORDS,
    PRAISE,
    STYLE_OPENINGS,
    STYLE_WORDS,
    TIME_WORDS,
    caption,
)
from intelligent_generation.scripts.world.rendering import render
from intelligent_generation.scripts.world.scenes import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT_PERCENT,
    NEW_SUBJECTS,
    PLACES,
    STYLES,
    SUBJECTS,
    TIMES,
    Scene,
    held_out,
    random_scene,
)
from numpy.random import RandomState

EVERY_SUBJECT = SUBJECTS + NEW_SUBJECTS
PLAIN = Scene("lighthouse", "red", background="sea", seed=3)
EVERY_VALUE = [
    *(replace(PLAIN, subject=subject) for subject in EVERY_SUBJECT),
    *(replace(PLAIN, colour=colour) for colour in COLOURS),
    *(replace(PLAIN, count=count) for count in (2, 3)),
    *(replace(PLAIN, place=place) for place in PLACES),
    *(replace(PLAIN, background=place, time=time) for place, time in product(BACKGROUNDS, TIMES)),
    *(replace(PLAIN, style=style) for style in STYLES),
]


def pixels(scene: Scene, size: int = 64) -> np.ndarray:
    return np.asarray(render(scene, size), np.float32)


@pytest.mark.parametrize("size", [64, 96])
def test_every_value_of_every_vocabulary_renders_to_its_own_picture(size: int):
    pictures = {}
    for scene in EVERY_VALUE:
        image = render(scene, size)
        assert (image.mode, image.size) == ("RGB", (size, size))
        assert len(image.getcolors(size * size) or ()) > 8
        pictures[image.tobytes()] = scene
    assert len(pictures) == len(set(EVERY_VALUE))


@pytest.mark.parametrize("style", STYLES)
def test_a_scene_is_the_same_bytes_every_time_and_differs_by_seed(style: str):
    scene = replace(PLAIN, style=style)
    assert render(scene, 64).tobytes() == render(replace(scene), 64).tobytes()
    assert render(scene, 64).tobytes() != render(replace(scene, seed=4), 64).tobytes()


def test_a_seed_changes_less_than_a_subject():
    other_seed = np.abs(pixels(PLAIN) - pixels(replace(PLAIN, seed=4))).mean()
    other_subject = np.abs(pixels(PLAIN) - pixels(replace(PLAIN, subject="castle"))).mean()
    assert other_seed < other_subject


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("background", BACKGROUNDS)
def test_colours_differ_over_much_of_the_picture(background: str, time: str):
    scene = Scene("mushroom", "red", background=background, time=time, seed=1)
    pictures = [pixels(replace(scene, colour=colour)) for colour in COLOURS]
    for first, second in combinations(pictures, 2):
        assert (np.abs(first - second).max(axis=2) > 40).mean() > 0.1


def test_the_subject_stands_where_the_scene_says():
    moved = replace(PLAIN, background="snow")
    columns = {}
    for place in PLACES:
        scene = replace(moved, place=place, colour="red")
        other = replace(scene, colour="blue")
        changed = np.abs(pixels(scene) - pixels(other)).max(axis=2) > 40
        columns[place] = np.nonzero(changed)[1].mean() / 64
    assert columns["left"] < 0.4 < columns["center"] < 0.6 < columns["right"]


@pytest.mark.parametrize("size", [63, 257])
def test_a_size_outside_the_range_is_refused(size: int):
    with pytest.raises(ValueError, match="64 to 256"):
        render(PLAIN, size)


@pytest.mark.parametrize(
    "wrong",
    [
        {"subject": "dragon"},
        {"colour": "grey"},
        {"count": 4},
        {"count": 2, "place": "left"},
        {"style": "oil"},
        {"seed": -1},
    ],
)
def test_a_scene_outside_the_world_is_refused(wrong: dict):
    with pytest.raises(ValueError, match="scene: "):
        replace(PLAIN, **wrong)


def test_random_scenes_cover_the_world_in_the_stated_shares():
    random = RandomState(5)
    scenes = [random_scene(random) for _ in range(4000)]
    for field, values in (
        ("subject", SUBJECTS),
        ("colour", COLOURS),
        ("background", BACKGROUNDS),
        ("time", TIMES),
        ("style", STYLES),
    ):
        shares = [sum(getattr(scene, field) == value for scene in scenes) for value in values]
        assert min(shares) > 0.75 * 4000 / len(values)
        assert sum(shares) == 4000
    single = [scene for scene in scenes if scene.count == 1]
    assert len(single) / 4000 == pytest.approx(0.7, abs=0.03)
    assert sum(scene.place == "center" for scene in single) / len(single) == pytest.approx(
        0.6, abs=0.03
    )


def test_fixing_a_field_leaves_the_others_as_they_were():
    free = random_scene(RandomState(8), count=1)
    fixed = random_scene(RandomState(8), count=1, subject="robot", style="neon")
    assert fixed == replace(free, subject="robot", style="neon")
    assert {random_scene(RandomState(seed), place="left").count for seed in range(20)} == {1}


def test_held_out_triples_leave_every_pair_in_training():
    triples = list(product(EVERY_SUBJECT, COLOURS, BACKGROUNDS))
    trained = [
        triple
        for triple in triples
        if not held_out(Scene(triple[0], triple[1], background=triple[2]))
    ]
    share = 1 - len(trained) / len(triples)
    assert share == pytest.approx(HELD_OUT_PERCENT / 100, abs=0.04)
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert {(triple[first], triple[second]) for triple in trained} == {
            (triple[first], triple[second]) for triple in triples
        }


def test_being_held_out_depends_on_nothing_else():
    for seed in range(20):
        scene = random_scene(RandomState(seed), count=1)
        other = replace(scene, time="dusk", style="pixel", seed=7, place="left")
        assert held_out(scene) == held_out(other)


@pytest.mark.parametrize("form", ["tags", "prose"])
@pytest.mark.parametrize("subject", EVERY_SUBJECT)
def test_captions_name_the_subject_and_the_colour_right_before_it(subject: str, form):
    random = RandomState(2)
    coloured = 0
    for _ in range(60):
        scene = random_scene(random, subject=subject)
        text = caption(scene, random, form=form)
        nouns = [pair[scene.count > 1] for pair in NOUNS[subject]]
        assert any(noun in text for noun in nouns), text
        if scene.colour in text.replace("evening", ""):
            coloured += 1
            assert any(f"{scene.colour} {noun}" in text for noun in nouns), text
        if scene.count > 1:
            assert any(number in text for number in ("two", "2", "three", "3")), text
    assert 45 <= coloured <= 60


@pytest.mark.parametrize("form", ["tags", "prose"])
def test_full_mention_names_everything(form):
    random = RandomState(4)
    for _ in range(200):
        scene = random_scene(random)
        text = caption(scene, random, form=form, mention=1.0, style=True)
        assert scene.colour in text
        assert any(words in text for words in BACKGROUND_WORDS[scene.background][form]), text
        assert any(words in text for words in TIME_WORDS[scene.time][form]), text
        if scene.place != "center":
            assert any(words in text for words in PLACE_WORDS[scene.place][form]), text
        if scene.style != "flat":
            named = STYLE_WORDS[scene.style] + STYLE_OPENINGS[scene.style]
            assert any(words in text for words in named), text


def test_no_mention_names_the_subject_alone():
    random = RandomState(4)
    for _ in range(50):
        scene = random_scene(random, count=1)
        text = caption(scene, random, form="tags", mention=0.0)
        wanted = {singular for singular, _ in NOUNS[scene.subject]}
        assert set(text.split(", ")) - wanted <= set(PRAISE), text


def test_captions_repeat_with_the_same_random_state_and_vary_otherwise():
    said = [caption(PLAIN, RandomState(seed), form="prose") for seed in range(40)]
    assert said == [caption(PLAIN, RandomState(seed), form="prose") for seed in range(40)]
    assert len(set(said)) > 15


def test_style_is_named_only_when_asked():
    random = RandomState(1)
    words = {word for phrases in STYLE_WORDS.values() for word in phrases} - {"flat"}
    for _ in range(100):
        text = caption(random_scene(random), random, form="prose")
        assert not any(word in text for word in words), text


def test_a_mention_outside_the_range_is_refused():
    with pytest.raises(ValueError, match="mention"):
        caption(PLAIN, RandomState(0), form="tags", mention=1.5)
