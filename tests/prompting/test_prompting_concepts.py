from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import pytest
from intelligent_generation.core import prompting
from intelligent_generation.core.plan import (
    ConceptCategory,
    ContentIntent,
    QualityIntent,
    StyleIntent,
)
from intelligent_generation.core.prompting import analyze

LEXICON = json.loads(Path(prompting.__file__).with_name("lexicon.json").read_text(encoding="utf-8"))


def concepts(prompt):
    return [(concept.category, concept.text) for concept in analyze(prompt).concepts]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("mansion party", [("content", "mansion party")]),
        ("girl holding a photo", [("character", "girl"), ("content", "photo")]),
        ("two cats", [("content", "two cats")]),
        (
            "castles, wolves, witches",
            [("setting", "castles"), ("content", "wolves"), ("character", "witches")],
        ),
        ("best_quality, long_hair", [("quality", "best_quality"), ("character", "long_hair")]),
        ("BEST QUALITY", [("quality", "best quality")]),
        ("photo-realistic", [("style", "photo-realistic")]),
        ("red sports car", [("content", "red sports car")]),
        ("city bus", [("content", "city bus")]),
        ("glasses", [("content", "glasses")]),
        ("a frobnicator on a hill", [("content", "frobnicator"), ("setting", "hill")]),
        ("zorblax style", [("style", "zorblax style")]),
        (
            "castle by jane roe and john doe",
            [("setting", "castle"), ("style", "jane roe"), ("style", "john doe")],
        ),
        ("house surrounded by zorblax", [("setting", "house"), ("content", "zorblax")]),
        (
            "85mm, f/1.4, ISO 200",
            [("camera", "85mm"), ("technical", "f/1.4"), ("technical", "iso 200")],
        ),
        ("8k, 4 k", [("quality", "8k"), ("quality", "4 k")]),
        ("nahida \\(zorblax\\)", [("character", "nahida"), ("content", "zorblax")]),
        ("cat, Cat, CATS", [("content", "cat")]),
        ("cinematic, lighting", [("lighting", "lighting")]),
        ("very beautiful and amazing", []),
        ("森林、水彩", [("setting", "森林"), ("style", "水彩")]),
        ("castillo, retrato", [("setting", "castillo"), ("camera", "retrato")]),
    ],
)
def test_concepts(prompt, expected):
    assert concepts(prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a photo of a cat, not anime", ["photo of", "cat"]),
        ("non-anime cat", ["cat"]),
        ("room without people or furniture", ["room"]),
        ("not anime but a castle", ["castle"]),
        ("no, castle", ["castle"]),
        ("no humans, castle", ["no humans", "castle"]),
    ],
)
def test_what_is_negated_is_not_asked_for(prompt, expected):
    assert [text for _, text in concepts(prompt)] == expected


def test_mood_is_apart_from_the_categories():
    analysis = analyze("serene lake, eerie forest, serene")
    assert analysis.mood == ("serene", "eerie")
    assert analysis.concepts_in("setting") == ("serene lake", "eerie forest")


def test_lexicon_is_sound():
    seen = {}
    for group in LEXICON["groups"]:
        assert group["category"] in (*get_args(ConceptCategory), "mood")
        assert group.get("role", "term") in ("term", "head", "modifier", "plain")
        assert group["source"]
        for axis, labels in (
            ("style", StyleIntent),
            ("content", ContentIntent),
            ("quality", QualityIntent),
        ):
            for label, strength in group.get(axis, {}).items():
                assert label in get_args(labels)
                assert 0 < strength < 1
        for term in group["terms"]:
            words = " ".join(re.findall(r"\w+", term.lower()))
            assert words, term
            assert seen.setdefault(words, group["id"]) == group["id"], f"{term} is in two groups"
    assert len(seen) > 2_000


@pytest.mark.parametrize("group", LEXICON["groups"], ids=lambda group: group["id"])
def test_every_term_is_found_in_its_category(group):
    for term in group["terms"]:
        analysis = analyze(term)
        if group["category"] == "mood":
            assert analysis.mood, term
        elif term not in ("style", "art style"):
            assert group["category"] in {concept.category for concept in analysis.concepts}, term
