"""The benchmark of the recommender on pairs of prompt and LoRA, with a made-up library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from intelligent_generation.benchmarks import recommend

NAMES = ("lantern festival", "copper robots", "ink wash", "paper cranes", "moss garden")


def row(number: int, **changes: Any) -> dict[str, Any]:
    name = NAMES[number]
    return {
        "id": f"civitai:{number}@{number}",
        "model_id": number,
        "name": name.title(),
        "file_name": name.replace(" ", "_"),
        "family": "sd15",
        "trained_words": [name],
        "tags": [],
        "description": f"Made for pictures of {name}.",
        "stats": {},
        "recommended_weight": 0.6,
        **changes,
    }


def pair(number: int, text: str) -> dict[str, Any]:
    targets = [{"lora_id": f"civitai:{number}@{number}", "weight": 0.6}]
    return {
        "id": f"pair-{number}",
        "family": "sd15",
        "prompt": text,
        "prompt_wo_triggers": "",
        "targets": targets,
    }


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    rows = [row(number) for number in range(4)] + [row(4, family="z-image-turbo")]
    pairs = [pair(number, f"a street, {NAMES[number]}, evening") for number in range(4)]
    out = {"library": tmp_path / "loras.jsonl", "pairs": tmp_path / "pairs.jsonl"}
    for path, lines in zip(out.values(), (rows, pairs), strict=True):
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return {**out, "out": tmp_path / "predictions.jsonl"}


def run(files: dict[str, Path], action: str, *more: str) -> dict[str, Any]:
    given = ["--library", str(files["library"]), "--pairs", str(files["pairs"])]
    return recommend.main([action, *given, "--out", str(files["out"]), "--words-only", *more])


def test_the_lora_that_was_used_is_first_and_recommended(files: dict[str, Path]) -> None:
    assert run(files, "predict")["pairs"] == 4
    lines = [json.loads(line) for line in files["out"].read_text("utf-8").splitlines()]
    for number, line in enumerate(lines):
        assert line["id"] == f"pair-{number}" and line["recommended"] == 1
        first = line["ranked"][0]
        assert first["id"] == f"civitai:{number}@{number}"
        assert 0.5 <= first["confidence"] <= 1 and 0.3 <= first["weight"] <= 1.2
        assert line["ms"] > 0


def test_a_lora_of_another_family_is_not_ranked(files: dict[str, Path]) -> None:
    files["pairs"].write_text(json.dumps(pair(4, "a moss garden")) + "\n", "utf-8")
    run(files, "predict")
    assert json.loads(files["out"].read_text("utf-8"))["ranked"] == []


def test_a_prompt_of_nothing_but_trigger_words_gets_an_empty_answer(
    files: dict[str, Path],
) -> None:
    run(files, "predict", "--field", "prompt_wo_triggers")
    (first, *_) = files["out"].read_text("utf-8").splitlines()
    assert json.loads(first) == {"id": "pair-0", "ranked": [], "recommended": 0, "ms": 0.0}


def test_a_checkpoint_is_known_where_the_pair_says_it(files: dict[str, Path]) -> None:
    rows = [row(n, description="Best on Dreamery." if n == 1 else "") for n in range(4)]
    rows = [{**each, "trained_words": [], "tags": ["lamp"]} for each in rows]
    files["library"].write_text("".join(json.dumps(each) + "\n" for each in rows), "utf-8")
    asked = {**pair(1, "a lamp"), "checkpoint": "dreamery_v3"}
    files["pairs"].write_text(json.dumps(asked) + "\n", "utf-8")

    def confidences(*more: str) -> dict[str, float]:
        run(files, "predict", *more)
        ranked = json.loads(files["out"].read_text("utf-8"))["ranked"]
        return {each["id"]: each["confidence"] for each in ranked}

    known, unknown = confidences(), confidences("--prompt-alone")
    assert known.keys() == unknown.keys() and len(known) == 4
    assert known["civitai:1@1"] > unknown["civitai:1@1"]


def test_ours_stands_beside_bm25(files: dict[str, Path]) -> None:
    said = run(files, "compare")
    assert said["hit@3"] == {"ours": 1.0, "bm25": 1.0}
    assert said["lead"] == {"bm25": [0.0, 0.0]} and said["pairs"] == 4


def test_fusion_takes_what_both_put_first() -> None:
    assert recommend.fused([1, 2, 3], [2, 3, 1])[0] == 2
    assert recommend.fused([], []) == []


def test_bm25_finds_rare_words_first() -> None:
    library = recommend.library_of([row(number) for number in range(5)])
    assert recommend.Bm25(library).order("moss on copper, a garden")[0] == 4
    assert recommend.Bm25(library).order("unrelated") == []


@pytest.mark.parametrize(
    "more", [("--most", "1"), ("--field", "negative")], ids=["one pair", "no such field"]
)
def test_a_wrong_argument_is_refused(files: dict[str, Path], more: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit):
        run(files, "predict", *more)


def test_a_row_is_known_as_a_look_up_on_civitai_tells_it() -> None:
    told = recommend.entry_of(
        row(
            0,
            version_name="Tall v2",
            version_description="Taller.",
            stats={"downloads": 7, "model_downloads": 900, "favorites": 3},
        )
    )
    assert told.title == "Lantern Festival Tall v2"
    assert told.description == "Made for pictures of lantern festival."
    assert (told.downloads, told.likes) == (7, 3)


def test_what_a_version_does_not_say_its_model_says_and_the_other_way_round() -> None:
    bare = row(0, description="", version_description="Taller.", stats={"model_downloads": 900})
    told = recommend.entry_of(bare)
    assert (told.title, told.description, told.downloads) == ("Lantern Festival", "Taller.", 900)
    assert recommend.entry_of(row(0, stats={"downloads": 0, "model_downloads": 900})).downloads == 0
