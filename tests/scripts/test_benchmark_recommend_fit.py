"""Fitting the recommender, on made-up LoRAs of which the prompt names one."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from intelligent_generation.benchmarks import recommend_fit
from intelligent_generation.core.embedding import DIMENSIONS, Vectors
from intelligent_generation.core.recommending.meaning import projection
from intelligent_generation.core.recommending.scoring import load_ranking

pytest.importorskip("lightgbm")


class Nothing:
    """An encoder that knows no meaning: every text has a direction of its own."""

    def encode(self, texts: Sequence[str]) -> Vectors:
        found = np.zeros((len(texts), DIMENSIONS), np.float32)
        for row, text in enumerate(texts):
            found[row] = np.random.RandomState(zlib.crc32(text.encode())).randn(DIMENSIONS)
        return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)

    def encode_parts(self, parts: Sequence[str]) -> Vectors:
        return self.encode([" ".join(parts), *parts])


def word(number: int) -> str:
    return "".join(random.Random(number).choices("abcdefghijklmnoprtuvz", k=8))


def rows() -> list[dict[str, Any]]:
    return [
        {
            "id": f"civitai:{n}@{n}", "model_id": n, "name": word(n), "file_name": word(n),
            "family": "sd15", "trained_words": [], "tags": [], "description": "",
            "stats": {"model_downloads": 10, "favorites": 1}, "recommended_weight": None,
        }
        for n in range(150)
    ]  # fmt: skip


def pairs() -> list[dict[str, Any]]:
    chance = random.Random(0)
    return [
        {
            "id": str(n), "family": "sd15", "targets": [{"lora_id": f"civitai:{n}@{n}"}],
            "prompt": f"a street, {word(n)}, {word(chance.randrange(200, 900))}",
            "prompt_wo_triggers": "" if n % 2 else "a street",
        }
        for n in range(150)
    ]  # fmt: skip


def test_what_is_learned_holds_for_loras_never_seen(tmp_path: Path) -> None:
    examples = recommend_fit.read_examples(rows(), pairs(), [], {}, Nothing(), projection())
    trees = recommend_fit.fit(examples, left_out=0)
    measured: dict[str, list[bool]] = {field: [] for field in recommend_fit.FIELDS}
    answers = recommend_fit.measure(trees, examples, 0, measured)
    assert len(measured["prompt"]) > 15
    assert np.mean(measured["prompt"]) > 0.9
    assert len(measured["prompt_wo_triggers"]) == len(measured["prompt"])
    assert np.mean(measured["prompt_wo_triggers"]) < 0.3  # nothing says which: blanks are misses

    out = tmp_path / "ranking.json"
    calibration = recommend_fit.calibrated(answers)
    recommend_fit.write(out, trees, calibration, {"pairs": 150})
    read = load_ranking(out)
    assert read.scale == calibration["scale"] > 0
    assert read.trees.value.tolist() == pytest.approx(trees["value"], abs=1e-5)


def test_trees_answer_as_the_library_that_fitted_them() -> None:
    import lightgbm
    from intelligent_generation.core.recommending.trees import Trees

    table = np.random.RandomState(1).rand(2000, 4).astype(np.float32)
    table[::5, 1] = np.nan
    # Numbers that differ in the seventh digit, as ratios close to 1 do.
    table[:, 2] = 1 - np.float32(2**-24) * np.random.RandomState(2).randint(0, 30, 2000)
    wanted = table[:, 0] + np.nan_to_num(table[:, 1]) + (table[:, 2] > 1 - 1e-6) > 1.5
    booster = lightgbm.train(
        {"objective": "binary", "verbose": -1, "num_threads": 1, "max_depth": 5},
        lightgbm.Dataset(table, wanted.astype(int)),
        20,
    )
    trees = Trees.read(recommend_fit._as_lists(booster.dump_model(), list("abcd")))
    raw = np.asarray(booster.predict(table, raw_score=True))
    assert trees.answer(table) == pytest.approx(raw, abs=2e-3)
