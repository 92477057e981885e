from __future__ import annotations

import pytest
from intelligent_generation.core.errors import PromptError
from intelligent_generation.core.plan import PromptAnalysis
from intelligent_generation.core.prompting import analyze

FLAGSHIP = (
    "1girl, anime style, magical powers, detailed Victorian mansion background, "
    "cinematic lighting, masterpiece, best quality"
)


def test_flagship_prompt():
    analysis = analyze(FLAGSHIP)
    found = {
        category: analysis.concepts_in(category)
        for category in dict.fromkeys(concept.category for concept in analysis.concepts)
    }
    assert found == {
        "character": ("1girl",),
        "style": ("anime style",),
        "content": ("magical powers",),
        "setting": ("victorian mansion", "background"),
        "lighting": ("cinematic lighting",),
        "quality": ("masterpiece", "best quality"),
    }
    intent = analysis.intent
    assert (intent.style, intent.content, intent.quality) == ("ANIME", "CHARACTER", "HIGH")
    assert 0.6 <= analysis.complexity <= 0.8
    assert analysis.notices == ()


def test_analysis_survives_json_and_repeats():
    analysis = analyze("a (serene:1.2) lake <lora:ink:0.5>", "ugly", syntax="a1111")
    assert PromptAnalysis.from_json(analysis.to_json()) == analysis
    assert analyze("a (serene:1.2) lake <lora:ink:0.5>", "ugly", syntax="a1111") == analysis
    assert analysis.mood == ("serene",)


@pytest.mark.parametrize("prompt", ["", "  \n", ",", "()", "<hypernet:a:1>"])
def test_empty_prompt_is_refused(prompt):
    with pytest.raises(PromptError, match="empty"):
        analyze(prompt)


def test_prompt_of_lora_tags_alone_is_refused():
    with pytest.raises(PromptError, match="besides its LoRA tags"):
        analyze("<lora:ink:0.5>, <lora:b>")


@pytest.mark.parametrize(
    ("prompt", "clauses"),
    [
        ("cat, (red hat:1.3)\ndog; bird", ["cat", "red hat", "dog", "bird"]),
        ("A cat sleeps. A dog barks!", ["A cat sleeps", "A dog barks"]),
        ("shot at f/1.8, ISO 100", ["shot at f/1.8", "ISO 100"]),
        ("Dr. Jekyll in a lab. Night.", ["Dr. Jekyll in a lab", "Night"]),
        ("pneuma \\(xenoblade\\), hat", ["pneuma (xenoblade)", "hat"]),
        ("(red dress, hat", ["red dress", "hat"]),
        ("(a)(b), ,, c", ["a b", "c"]),
        ("红色的猫，夜晚", ["红色的猫", "夜晚"]),
        (
            "a tall woman with long blonde hair wearing a red coat and holding a lantern",
            ["a tall woman", "with long blonde hair", "wearing a red coat", "holding a lantern"],
        ),
        (
            "an old black and white photo of a fishing village by the sea",
            ["an old black and white photo of a fishing village by the sea"],
        ),
    ],
)
def test_clauses(prompt, clauses):
    assert [clause.text for clause in analyze(prompt).clauses] == clauses


def test_clause_weight_is_the_mean_over_its_characters():
    cat, half, hat = analyze("cat, ab(cd:2), (hat:0.5)").clauses
    assert (cat.weight, half.text, half.weight, hat.weight) == (1.0, "ab cd", 1.5, 0.5)


def test_concepts_take_the_weight_of_their_clause_and_weight_zero_asks_for_nothing():
    analysis = analyze("(castle:1.3), (dragon:0)")
    assert [(concept.text, concept.weight) for concept in analysis.concepts] == [("castle", 1.3)]


def test_break_makes_segments_and_no_concept_reaches_over_it():
    analysis = analyze("cinematic BREAK lighting", "ugly BREAK bad", syntax="a1111")
    assert analysis.segments == ("cinematic", "lighting")
    assert analysis.negative_segments == ("ugly", "bad")
    assert analysis.concepts_in("lighting") == ("lighting",)


def test_negative_prompt_does_not_count_as_asked_for():
    with_negative = analyze("a cat", "anime, city, (blurry <lora:ink>")
    alone = analyze("a cat")
    assert with_negative.concepts == alone.concepts
    assert with_negative.intent == alone.intent
    assert alone.negative_segments == ("",)
    messages = [notice.message for notice in with_negative.notices]
    assert messages
    assert all(message.startswith("Negative prompt: ") for message in messages)


def test_long_prompt_is_analysed_with_a_notice():
    analysis = analyze("lighthouse, " * 5_000)
    assert [notice.code for notice in analysis.notices] == ["long_prompt"]
    assert analysis.concepts_in("setting") == ("lighthouse",)


@pytest.mark.parametrize(
    "prompt",
    [
        "a and b c " * 5_000,
        "AND " * 12_500,
        "red and " * 6_250,
        "f / " * 12_500,
        ". " * 25_000,
        "一" * 50_000,
        "1" * 50_000,
        "-" * 50_000,
        " " * 49_999 + "a",
        "a\n" * 25_000,
        "\\" * 50_000,
        "\0\1" * 100 + "cat",
        "🐈",
        "﷽ cat\u200d\u202e",
    ],
)
def test_odd_texts_of_full_length_are_analysed(prompt):
    analysis = analyze(prompt)
    assert 0 <= analysis.complexity <= 1
    assert analysis.segments == (prompt,)
