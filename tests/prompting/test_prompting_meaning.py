"""What an encoder adds to the lexicon. The encoder here knows nothing: its vectors are chosen."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence

import numpy as np
import pytest
from intelligent_generation.core.prompting import analyze, meaning
from intelligent_generation.core.prompting.meaning import Linear, content_of, pack

MODELS = json.loads(meaning._WEIGHTS.read_text(encoding="utf-8"))


class Towards:
    """Gives the vector that the phrases' or prompts' model takes for a label."""

    def __init__(self, phrases: dict[str, str], prompt: str = "THING") -> None:
        self.phrases, self.prompt = phrases, prompt
        self.asked: list[str] = []

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.asked += texts
        rows = [self._row("prompts", self.prompt)]
        rows += [self._row("phrases", self.phrases.get(text, "content")) for text in texts[1:]]
        return np.array(rows)

    def _row(self, name: str, label: str) -> np.ndarray:
        model = meaning._models()[name]
        at = model.labels.index(label)
        weights = model.weights[at] - model.weights.mean(axis=0)
        return 40 * weights[-384:] / np.linalg.norm(weights[-384:]) ** 2


def test_unknown_phrases_get_the_category_they_seem_to_have_and_known_ones_keep_theirs():
    encoder = Towards({"frobnicator": "setting", "grumpf": "content"})
    analysis = analyze("grumpf near the frobnicator, castle, cat", encoder=encoder)
    assert analysis.concepts_in("setting") == ("frobnicator", "castle")
    assert analysis.concepts_in("content") == ("grumpf", "cat")
    assert encoder.asked[1:] == ["grumpf", "frobnicator"]


def test_without_an_encoder_they_are_content():
    assert analyze("grumpf near the frobnicator").concepts_in("setting") == ()


def test_the_vector_decides_where_the_lexicon_is_unsure_only():
    unsure, sure = "a frobnicator", "a knight in a frobnicator"
    assert analyze(unsure, encoder=Towards({}, "PEOPLE")).intent.content == "CHARACTER"
    assert analyze(unsure, encoder=Towards({}, "ABSTRACT")).intent.content == "ABSTRACT"
    assert analyze(sure, encoder=Towards({}, "THING")).intent.content == "CHARACTER"


def test_lists_of_tags_are_left_to_the_lexicon():
    tags = "blonde hair, red eyes, frobnicator, grumpf"
    assert analyze(tags, encoder=Towards({}, "ABSTRACT")).intent == analyze(tags).intent


@pytest.mark.parametrize("prompt", ["un gato con sombrero", "森の中の猫", "кот в лесу", "123, !!!"])
def test_prompts_that_the_encoder_cannot_read_are_not_given_to_it(prompt):
    encoder = Towards({})
    assert analyze(prompt, encoder=encoder) == analyze(prompt)
    assert encoder.asked == []


def test_a_prompt_of_many_unknown_phrases_is_encoded_in_part():
    encoder = Towards({})
    prompt = ", ".join(f"{'x' * (at % 7 + 2)}{'y' * (at // 7 + 1)}q" for at in range(200))
    assert analyze(prompt, encoder=encoder)
    assert len(encoder.asked) == 1 + meaning.MOST_PHRASES


def test_within_a_group_the_lexicon_decides():
    places = Linear(("OUTDOOR", "THING"), np.zeros((2, 10)), np.array([1.0, 0.0]))
    evidence = dict.fromkeys(
        ("CHARACTER", "PORTRAIT", "LANDSCAPE", "SCENE", "OBJECT", "ABSTRACT"), 0.0
    )
    assert content_of(evidence, np.zeros(4), places)[0] == "LANDSCAPE"
    assert content_of({**evidence, "SCENE": 0.3}, np.zeros(4), places)[0] == "SCENE"
    assert content_of({**evidence, "OBJECT": 1.2}, np.zeros(4), places) == (
        "OBJECT",
        pytest.approx(0.6988, abs=1e-3),
    )


def test_the_weights_are_whole_and_say_where_they_come_from():
    for name, features in (("prompts", 6 + 384), ("phrases", 384)):
        row = MODELS[name]
        values = np.frombuffer(base64.b64decode(row["weights"]), "<f2")
        assert values.shape == (len(row["labels"]) * (1 + features),)
        assert np.isfinite(values).all()
        assert pack(values.astype(np.float32)) == row["weights"]
    assert set(MODELS["prompts"]["labels"]) == set(meaning._GROUPS)
    assert len(MODELS["data_sha256"]) == 64
