"""Prompts in other languages than English, and prompts that nobody plans for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from intelligent_generation.core import prompting
from intelligent_generation.core.plan import PromptAnalysis
from intelligent_generation.core.prompting import analyze

FOLDER = Path(prompting.__file__).parent
LEXICON = json.loads((FOLDER / "lexicon.json").read_text(encoding="utf-8"))
LANGUAGES = json.loads((FOLDER / "languages.json").read_text(encoding="utf-8"))
CATEGORY = {group["id"]: group["category"] for group in LEXICON["groups"]}
NAMES = ("es", "fr", "de", "pt", "it", "zh", "ja")


@pytest.mark.parametrize(
    ("prompt", "character", "setting", "style", "intent"),
    [
        ("Retrato de una mujer joven junto al mar, noche, pintura al óleo",
         "mujer", "noche", "pintura al óleo", ("ARTISTIC", "CHARACTER")),
        ("un chevalier dans la forêt sous la pluie, aquarelle",
         "chevalier", "forêt", "aquarelle", ("ARTISTIC", "CHARACTER")),
        ("Eine alte Frau in der Küche, fotorealistisch",
         "alte frau", "küche", "fotorealistisch", ("PHOTOREAL", "CHARACTER")),
        ("uma menina com cabelo longo na praia, fotografia",
         "menina", "praia", "fotografia", ("PHOTOREAL", "CHARACTER")),
        ("una strega nel castello, illustrazione",
         "strega", "castello", "illustrazione", ("ARTISTIC", "CHARACTER")),
        ("一个女孩在夜晚的森林里，动漫风格",
         "一个女孩", "森林", "动漫风格", ("ANIME", "CHARACTER")),
        ("夜の街、少女、アニメ", "少女", "街", "アニメ", ("ANIME", "CHARACTER")),
    ],
)  # fmt: skip
def test_common_words_of_seven_languages_are_read(prompt, character, setting, style, intent):
    analysis = analyze(prompt)
    assert character in analysis.concepts_in("character")
    assert setting in analysis.concepts_in("setting")
    assert style in analysis.concepts_in("style")
    assert (analysis.intent.style, analysis.intent.content) == intent


@pytest.mark.parametrize(
    ("prompt", "left_out"),
    [
        ("ein Wald ohne Menschen", "menschen"),
        ("um bosque sem gato", "gato"),
        ("foresta senza drago", "drago"),
        ("森林，没有猫", "猫"),
        ("forêt sans dragon", "dragon"),
    ],
)
def test_what_other_languages_deny_is_not_asked_for(prompt, left_out):
    assert left_out not in {concept.text for concept in analyze(prompt).concepts}


@pytest.mark.parametrize("row", LANGUAGES["groups"], ids=lambda row: row["group"])
def test_every_term_is_found_in_its_category(row):
    assert tuple(row["terms"]) == NAMES
    for terms in row["terms"].values():
        for term in terms:
            analysis = analyze(term)
            if CATEGORY[row["group"]] == "mood":
                assert analysis.mood, term
            else:
                found = {concept.category for concept in analysis.concepts}
                assert CATEGORY[row["group"]] in found, term


def test_no_term_stands_in_two_groups():
    seen: dict[str, str] = {
        term.lower(): group["id"] for group in LEXICON["groups"] for term in group["terms"]
    }
    for row in LANGUAGES["groups"]:
        for terms in row["terms"].values():
            for term in terms:
                assert seen.setdefault(term, row["group"]) == row["group"], term


@pytest.mark.parametrize(
    ("prompt", "not_found"),
    [
        ("a chat between friends", "animals"),
        ("a mare in a field", "setting"),
        ("pain and see", "food"),
    ],
)
def test_english_words_keep_their_english_meaning(prompt, not_found):
    terms = {t for row in LANGUAGES["groups"] for ts in row["terms"].values() for t in ts}
    assert not terms & {"chat", "mare", "pain", "see", "sole", "cane", "hut", "fee"}
    assert analyze(prompt)


# --------------------------------------------------------------------------- bad input

PROSE = (
    "Una anciana pescadora está sentada en un barco pequeño mientras cae la tarde sobre el puerto. "
    "Lleva un abrigo viejo y un sombrero de paja, y mira hacia el faro. "
) * 60


@pytest.mark.parametrize(
    ("prompt", "content"),
    [
        ("cat", "OBJECT"),
        ("1girl", "CHARACTER"),
        (", ".join(f"tag{number} thing" for number in range(299)) + ", 1girl", "CHARACTER"),
        (PROSE, None),
        ("🐈🌃✨", None),
        ("🐈 cat 🌃", "OBJECT"),
        ("a\x00 cat\x07 on\x1b[31m a\u200b mat\ufeff", "OBJECT"),
        ("\u202ecat\u202c, forest", None),
        ("lighthouse at dusk, " * 5_000, None),
        ("x" * 100_000, None),
        ("((((" * 25 + "cat" + "))))" * 25, "OBJECT"),
        ("猫" * 50_000, "OBJECT"),
        ("夜の街を歩く少女。" * 2_000, "CHARACTER"),
        ("a" + "\u0301" * 10_000 + " cat", None),
        ("<lora:x:0.5>" * 200 + "cat", "OBJECT"),
    ],
)  # fmt: skip
def test_prompts_that_nobody_plans_for_give_an_analysis(prompt, content):
    analysis = analyze(prompt)
    assert PromptAnalysis.from_json(analysis.to_json()) == analysis
    assert 0 <= analysis.complexity <= 1
    assert len(analysis.concepts) <= len(prompt)
    if content:
        assert analysis.intent.content == content
    if len(prompt) > 50_000:
        assert "long_prompt" in {notice.code for notice in analysis.notices}


def test_work_grows_with_the_length_of_a_prompt_and_not_with_its_square(monkeypatch):
    # Counted, not timed: phrases looked up in the lexicon.
    from intelligent_generation.core.prompting import concepts

    count = 0
    original = concepts._longest

    def counted(*arguments):
        nonlocal count
        count += 1
        return original(*arguments)

    monkeypatch.setattr(concepts, "_longest", counted)
    counts = []
    for repeats in (500, 5_000):
        count = 0
        analyze("red lighthouse and grey harbour with fog, " * repeats)
        counts.append(count)
    assert counts[1] <= 10.5 * counts[0]
