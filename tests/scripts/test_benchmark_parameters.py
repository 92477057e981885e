"""The benchmark of sampling parameters: predictions, figures of others, leaving a source out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from intelligent_generation.benchmarks import parameters
from intelligent_generation.core.tuning.rows import published_in, read


def case(name: str, family: str, source: str = "someone/app==1.0", **figures: Any) -> dict:
    facts = {
        "id": f"{name}-{source}-{sorted(figures.items())}",
        "source": source,
        "kind": "app_preset",
        "model_file_or_id": name,
        "family": family,
        "variant": None,
        "task": "t2i",
        "prompt": None,
        "loras": [],
    }
    return facts | figures


def written(path: Path, cases: list[dict]) -> str:
    path.write_text("".join(json.dumps(one) + "\n" for one in cases), encoding="utf-8")
    return str(path)


CASES = [
    case("z_image_turbo_bf16.safetensors", "z-image-turbo", steps=9, cfg=1.0, sampler="euler"),
    case("Tongyi-MAI/Z-Image-Turbo", "z-image-turbo", "b/c", steps=8, cfg=0.0),
    case("flux1-dev.safetensors", "flux-dev", steps=99, cfg=1.0, guidance=2.0),
    case("flux1-dev.safetensors", "flux-dev", "b/c", steps=20, cfg=1.0, guidance=2.0),
]


def test_a_prediction_comes_from_name_prompt_and_loras_alone():
    told = case("sd_xl_base_1.0.safetensors", "nonsense", steps=999, cfg=99.0, sampler="heun")
    bare = {key: told[key] for key in ("id", "model_file_or_id", "task", "prompt", "loras")}
    made = parameters.predict(bare)
    assert made == parameters.predict(told)
    assert made["family"] == "sdxl"
    assert set(made) == {
        *("id", "family", "steps", "cfg", "guidance", "sampler", "scheduler", "width", "height")
    }
    wide = parameters.predict({**bare, "prompt": "a harbour, 16:9"})
    assert wide["width"] > wide["height"]
    lightning = [["sdxl_lightning_4step_lora.safetensors", 1.0]]
    assert parameters.predict({**bare, "loras": lightning})["steps"] == 4


def test_a_scheduler_node_is_named_as_the_scheduler():
    klein = parameters.predict(case("flux-2-klein-4b.safetensors", "flux2-klein"))
    assert klein["scheduler"] == "Flux2Scheduler"
    assert klein["guidance"] is None


def test_a_source_has_one_vote_whatever_its_versions():
    cases = [
        case("flux1-dev.safetensors", "flux-dev", "x/App==1", steps=20),
        case("flux1-dev-fp8.safetensors", "flux-dev", "x/app@abc", steps=30),
        case("FluxPipeline", "flux-dev", "other", steps=30, sampler="Euler a"),
    ]
    votes = parameters.fit(cases)["flux-dev", None]["t2i"]
    assert votes["steps"] == ((30, 1.5), (20, 0.5))
    assert votes["samplers"] == ((("euler_ancestral", None), 1.0),)
    official = parameters.fit([{**cases[2], "kind": "official_template"}])
    assert official["flux-dev", None]["t2i"]["samplers"] == ((("euler_ancestral", None), 1.5),)


def test_figures_belong_to_what_the_case_is():
    cases = [
        case("qwen_image_fp8.safetensors", "qwen-image", steps=4,
             loras=[["Qwen-Image-Lightning-4steps-V1.0.safetensors", 1]]),
        case("qwen_image_edit.safetensors", "qwen-image-edit", task="edit_or_control", cfg=0.0),
        case("somebody's file", "krea2-turbo", steps=8),
        case("sd-v1-5-inpainting.ckpt", "sd15", task="edit_or_control", steps=20),
        case("mystery_bf16.safetensors", "other", steps=7),
        case("pid_flux1_4step.safetensors", "flux-dev", steps=4),
        case("flux1-dev.safetensors", "flux-dev", kind="user_stats", steps=5),
    ]  # fmt: skip
    fitted = parameters.fit(cases)
    assert set(fitted) == {
        ("qwen-image", "lightning"), ("qwen-image", "edit"), ("krea2", "turbo"), ("sd15", None),
    }  # fmt: skip
    assert fitted["qwen-image", "edit"]["edit"]["cfg"] == ((1.0, 1.0),)


def test_right_is_within_tolerance_of_the_case_or_of_another_source():
    said = [
        {"id": CASES[2]["id"], "steps": 25, "cfg": 1.0, "guidance": 2.5},
        {"id": CASES[3]["id"], "steps": 40, "cfg": 1.0, "guidance": 2.0},
    ]
    far, near = parameters.outcomes(CASES[2:], said)
    assert far.right  # the other source publishes 20
    assert near.fields == {"steps": False, "cfg": True, "guidance": True}
    told = parameters.score(CASES[2:], said)
    assert told["right"] == told["right_by_family"] == 0.5
    assert told["fields"]["steps"] == 0.5
    assert told["interval"][0] <= 0.5 <= told["interval"][1]


def test_leaving_a_source_out_uses_none_of_its_figures(tmp_path: Path):
    cases = [
        case("mage_flow_bf16.safetensors", "mage-flow", "a/a", steps=60),
        case("mage-flow.safetensors", "mage-flow", "b/b", steps=60),
        case("mage_flow_fp8.safetensors", "mage-flow", "c/c", steps=11),
    ]
    out = tmp_path / "out.jsonl"
    parameters.main(["loso", "--cases", written(tmp_path / "in.jsonl", cases), "--out", str(out)])
    steps = [json.loads(line)["steps"] for line in out.read_text("utf-8").splitlines()]
    assert steps[2] == 60  # of the two others
    assert 60 not in steps[:2] or 11 not in steps[:2]
    assert all(step in (11, 60) for step in steps)


def test_fit_writes_a_file_that_the_table_reads(tmp_path: Path):
    out = tmp_path / "published.json"
    told = parameters.main(
        ["fit", "--cases", written(tmp_path / "in.jsonl", CASES), "--out", str(out)]
    )
    data = json.loads(out.read_text("utf-8"))
    assert told["rows"] == len(data["rows"]) == 2
    assert data["data_sha256"] == told["data_sha256"]
    assert "flux1" not in out.read_text("utf-8"), "figures, no text of the cases"
    table = read(published_in(data))
    assert parameters.predict(CASES[3])["guidance"] == 3.5
    assert parameters.predict(CASES[3], table)["guidance"] == 2.0


def test_predict_answers_every_case(tmp_path: Path):
    out = tmp_path / "out.jsonl"
    told = parameters.main(
        ["predict", "--cases", written(tmp_path / "in.jsonl", CASES), "--out", str(out)]
    )
    lines = out.read_text("utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == [one["id"] for one in CASES]
    assert told["cases"] == 4
    assert told["fields"]["steps"] == told["fields"]["cfg"] == 1.0
    assert told["fields"]["guidance"] == 0.0


def test_compare_says_where_and_why(tmp_path: Path):
    cases = [
        {**case("sd_xl_base_1.0.safetensors", "sdxl", sampler="heun"), "kind": "official_example"},
        {**case("flux1-schnell.safetensors", "flux-schnell", steps=4), "kind": "official_example"},
    ]
    out = tmp_path / "table.md"
    told = parameters.main(
        ["compare", "--cases", written(tmp_path / "in.jsonl", cases), "--out", str(out)]
    )
    assert told["differences"] == 1
    (row,) = out.read_text("utf-8").splitlines()[2:]
    assert row.startswith("| sdxl | t2i | sampler | heun (1) | dpmpp_2m | sampler rule")


def test_names_are_counted_by_the_sources_that_tell_families(tmp_path: Path):
    cases = [
        {**case("ponyRealism_v22.safetensors", "pony"), "kind": "family_label"},
        {**case("mysterious.safetensors", "pony"), "kind": "family_label"},
        case("whatever", "flux-dev"),
    ]
    told = parameters.main(["names", "--cases", written(tmp_path / "in.jsonl", cases)])
    assert (told["cases"], told["right"]) == (2, 0.5)


def test_the_ceiling_is_what_one_row_gets_right_at_best():
    apart = [{"steps": [4], "cfg": [1.0]}, {"steps": [50], "cfg": [1.0]}]
    assert parameters.ceiling(apart) == 1
    # 25.95 is right for both by a hair, and only whole steps count: 26 is.
    assert parameters.ceiling([{"steps": [20]}, {"steps": [37]}]) == 2
    assert parameters.ceiling([{"steps": [20]}, {"steps": [38]}]) == 1
    assert parameters.ceiling([{"cfg": [4.5]}, {"cfg": [6.5]}, {"sampler": ["heun"]}]) == 3
    assert parameters.ceiling([{"pixels": [512**2]}, {"pixels": [1024**2]}]) == 1
    # Two agree on each field, but no row has both fields right for more than one.
    crossed = [
        {"sampler": ["euler"], "scheduler": ["normal"]},
        {"sampler": ["euler"], "scheduler": ["karras"]},
        {"sampler": ["heun"], "scheduler": ["karras"]},
    ]
    assert parameters.ceiling(crossed) == 1
    # What another source publishes is right as well.
    crossed[0]["scheduler"] = ["normal", "karras"]
    assert parameters.ceiling(crossed) == 2


def test_the_ceiling_is_written_beside_what_is_reached(tmp_path: Path):
    cases = [
        case("krea2_bf16.safetensors", "krea2", "a/a", steps=60),
        case("krea2_edit.safetensors", "krea2", "b/b", steps=9) | {"task": "edit_or_control"},
    ]
    out = tmp_path / "table.md"
    told = parameters.main(
        ["ceiling", "--cases", written(tmp_path / "in.jsonl", cases), "--out", str(out)]
    )
    (row,) = out.read_text("utf-8").splitlines()[2:]
    assert row == "| krea2 | 2 | 0 (0.00) | 1 (0.50) | 2 (1.00) |"
    assert told["one_row"] == {"right": 0.5, "right_by_family": 0.5, "below_goal": 1}


@pytest.mark.parametrize("action", ["predict", "fit", "ceiling", "compare"])
def test_what_writes_a_file_needs_its_name(tmp_path: Path, action: str):
    with pytest.raises(SystemExit):
        parameters.main([action, "--cases", written(tmp_path / "in.jsonl", CASES)])
