from __future__ import annotations

import pytest
from intelligent_generation.core.prompting import analyze


@pytest.mark.parametrize(
    ("prompt", "style"),
    [
        ("anime girl holding a photo", "ANIME"),
        ("a photo of a girl holding a manga", "PHOTOREAL"),
        ("photo of a cat, not anime", "PHOTOREAL"),
        ("not a photo, anime girl", "ANIME"),
        ("1girl, masterpiece, photorealistic, raw photo", "PHOTOREAL"),
        ("woman at the window, 85mm, f/1.8, film grain", "PHOTOREAL"),
        ("a lighthouse at dusk, watercolor", "ARTISTIC"),
        ("oil painting of a castle", "ARTISTIC"),
        ("a cat", "GENERAL"),
        ("(anime:1.4), (watercolor:0.5), girl", "ANIME"),
        ("(anime:0), watercolor, girl", "ARTISTIC"),
    ],
)
def test_style(prompt, style):
    assert analyze(prompt).intent.style == style


@pytest.mark.parametrize(
    ("prompt", "content"),
    [
        ("1girl, long hair, forest, mountain, lake, sky", "CHARACTER"),
        ("full body shot of a knight in armor", "CHARACTER"),
        ("portrait of an old fisherman", "PORTRAIT"),
        ("1girl, portrait, blue eyes, smile, looking at viewer", "PORTRAIT"),
        ("mountain lake at sunrise", "LANDSCAPE"),
        ("no humans, scenery, forest", "LANDSCAPE"),
        ("cyberpunk city street at night", "SCENE"),
        ("interior of a cozy library", "SCENE"),
        ("a red sports car", "OBJECT"),
        ("frobnicator", "OBJECT"),
        ("abstract geometric shapes", "ABSTRACT"),
    ],
)
def test_content(prompt, content):
    assert analyze(prompt).intent.content == content


@pytest.mark.parametrize(
    ("prompt", "quality"),
    [
        ("cat, masterpiece", "HIGH"),
        ("highly detailed cat, 8k", "HIGH"),
        ("cat", "MEDIUM"),
        ("rough sketch of a cat", "LOW"),
        ("a professional chef", "MEDIUM"),
    ],
)
def test_quality(prompt, quality):
    assert analyze(prompt).intent.quality == quality


def test_confidence_says_how_clear_the_evidence_is():
    clear = analyze("anime girl, manga").intent.confidence
    mixed = analyze("anime girl, manga, photorealistic, raw photo").intent.confidence
    nothing = analyze("very beautiful").intent.confidence
    assert nothing == 0
    assert mixed < clear
    assert clear > 0.7
