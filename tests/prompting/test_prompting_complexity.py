from __future__ import annotations

import random

import pytest
from intelligent_generation.core.prompting import analyze

MAGICAL_GIRL = (
    "magical girl, pink hair, frilly dress, holding a star wand, starry night sky, sparkles"
)
VICTORIAN_PORTRAIT = (
    "portrait of a Victorian lady in an emerald silk gown, pearl earrings, seated by a tall window "
    "in a candlelit library, soft Rembrandt lighting, shot on Hasselblad, 85mm lens, "
    "f/1.4 aperture, shallow depth of field, film grain"
)
ADDITIONS = [
    "red hat",
    "snowy mountain",
    "oil painting",
    "rim lighting",
    "35mm",
    "f/2.8",
    "serene",
    "sword",
    "zorblax",
    "not anime",
    "masterpiece",
    "a dog and a cat",
    "by jane roe",
    "very beautiful",
    "(blue eyes:1.3)",
    "[night]",
    "2girls",
    "victorian",
    "style",
    "without people",
    "looking at viewer",
    "8k",
    "ray tracing",
    "A knight stands in the rain.",
    "city",
    "street lamp",
    "background",
    "in the garden",
    "\\(text\\)",
]


def complexity(prompt):
    return analyze(prompt).complexity


@pytest.mark.parametrize(
    ("prompt", "target", "band"),
    [
        ("cat", 0.1, "SIMPLE"),
        ("anime girl, blue eyes", 0.3, None),
        (MAGICAL_GIRL, 0.6, "MODERATE"),
        (VICTORIAN_PORTRAIT, 0.9, "COMPLEX"),
    ],
)
def test_calibration(prompt, target, band):
    analysis = analyze(prompt)
    assert analysis.complexity == pytest.approx(target, abs=0.05)
    assert band in (None, analysis.complexity_band)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("separator", [", ", "\n", ". "])
def test_another_clause_never_lowers_it(seed, separator):
    dice = random.Random(seed)
    prompt = dice.choice(["cat", "a city in", "not", MAGICAL_GIRL])
    value = complexity(prompt)
    for addition in dice.choices(ADDITIONS, k=10):
        prompt += separator + addition
        longer = complexity(prompt)
        assert longer >= value, prompt
        value = longer


@pytest.mark.parametrize("seed", range(20))
def test_order_of_clauses_does_not_matter(seed):
    clauses = VICTORIAN_PORTRAIT.split(", ") + MAGICAL_GIRL.split(", ")
    shuffled = random.Random(seed).sample(clauses, len(clauses))
    assert complexity(", ".join(shuffled)) == complexity(", ".join(clauses))


@pytest.mark.parametrize(
    "reworded",
    [
        MAGICAL_GIRL.upper(),
        MAGICAL_GIRL.replace(", ", "\n"),
        MAGICAL_GIRL.replace(", ", ". "),
        MAGICAL_GIRL.replace(" ", "  "),
        MAGICAL_GIRL.replace("pink hair", "pink_hair").replace("magical girl", "magical_girl"),
        MAGICAL_GIRL.replace("pink hair", "(pink hair:1.3)"),
        f"{MAGICAL_GIRL}, {MAGICAL_GIRL}",
        f"a very beautiful {MAGICAL_GIRL}",
        "a magical girl with pink hair in a frilly dress holding a star wand under the starry "
        "night sky and sparkles",
    ],
)
def test_rewording_does_not_matter(reworded):
    assert complexity(reworded) == pytest.approx(complexity(MAGICAL_GIRL), abs=0.01)


@pytest.mark.parametrize("prompt", ["cat", MAGICAL_GIRL])
def test_quality_words_hardly_matter(prompt):
    spam = "masterpiece, best quality, highly detailed, 8k, ultra detailed, award winning, " * 5
    assert 0 <= complexity(f"{spam}{prompt}") - complexity(prompt) < 0.04


def test_more_detail_is_more_complex():
    steps = ["cat", "black cat", "black cat, rooftop", "black cat, rooftop, rim lighting, 85mm"]
    values = [complexity(step) for step in steps]
    assert values == sorted(set(values))
