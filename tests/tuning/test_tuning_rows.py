"""The table itself: every row resolves, is sourced, and fits SamplingPlan and ComfyUI."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any, get_args

import pytest
from intelligent_generation.core.plan import SamplingPlan
from intelligent_generation.core.tuning import rows
from intelligent_generation.core.tuning.rows import DOMAINS, FIELDS, Task, resolve

FOLDER = Path(rows.__file__).parent
TABLE = json.loads((FOLDER / "sampling.json").read_text(encoding="utf-8"))
FAMILIES = [r["family"] for r in TABLE["rows"] if "variant" not in r and r["family"] != "any"]
VARIANTS = [(r["family"], r["variant"]) for r in TABLE["rows"] if "variant" in r]
MODELS = [(f, None) for f in FAMILIES] + [(f, v) for f, v in VARIANTS if f != "any"]
SITUATIONS = [dict(zip(DOMAINS, v, strict=True)) for v in itertools.product(*DOMAINS.values())]
STEPS_ORDER = ("SPEED", "BALANCED", "QUALITY")


def values_of(row: Any, field: str) -> list[Any]:
    choice = row.choices.get(field)
    return [choice.rule(situation).value for situation in SITUATIONS] if choice else []


def test_every_row_is_unique_sourced_and_spelled_right():
    keys = [(r["family"], r.get("variant")) for r in TABLE["rows"]]
    assert len(set(keys)) == len(keys)
    for row in TABLE["rows"]:
        assert len(row["source"]) > 10
        assert 0 < row["confidence"] <= 0.9
        known = {"family", "variant", "like", "title", "multiple", "takes", "distilled"}
        assert set(row) <= known | {"confidence", "source", "sigmas", *FIELDS}
        assert set(row.get("takes", ())) <= {"clip_skip", "guidance", "shift"}
        assert row.get("like") in {None, "any", *FAMILIES}
        for field in FIELDS:
            if isinstance(row.get(field), str):
                assert row[field] in TABLE["tables"]
    assert all(len(entry["source"]) > 10 for entry in TABLE["tables"].values())


def test_rows_of_a_task_belong_to_a_row_and_are_sourced():
    keys = [(r["family"], r.get("variant"), r["task"]) for r in TABLE["tasks"]]
    assert len(set(keys)) == len(keys)
    rows_of = {(r["family"], r.get("variant")) for r in TABLE["rows"]}
    for row in TABLE["tasks"]:
        assert (row["family"], row.get("variant")) in rows_of
        assert row["task"] in set(get_args(Task)) - {"t2i"}
        assert len(row["source"]) > 10
        assert set(row) <= {"family", "variant", "task", "source", *FIELDS}


def test_rules_ask_only_about_what_is_known():
    every = [*TABLE["rows"], *TABLE["tasks"]]
    fields = [row[field] for row in every for field in FIELDS if field in row]
    for value in fields + [entry["choice"] for entry in TABLE["tables"].values()]:
        for rule in value if isinstance(value, list) and isinstance(value[0], dict) else ():
            assert set(rule) <= {*DOMAINS, "value"}
            for domain in set(rule) & set(DOMAINS):
                assert rule[domain] in DOMAINS[domain]


@pytest.mark.parametrize(("family", "variant"), MODELS)
def test_every_row_answers_every_situation_within_the_plans_limits(
    family: str, variant: str | None
):
    row, notices = resolve(family, variant, ())
    assert [n.code for n in notices] == (["family_unknown"] if family == "unknown" else [])
    assert row.title
    assert row.multiple % 8 == 0
    for field in ("steps", "cfg", "samplers", "sizes"):
        assert len(values_of(row, field)) == len(SITUATIONS)
    base = {"steps": 1, "cfg": 1.0, "sampler": "s", "scheduler": "s", "width": 512, "height": 512}
    base |= {"strategy": "s", "confidence": 1.0}
    for field in ("steps", "cfg", "clip_skip", "guidance", "shift"):
        for value in set(values_of(row, field)):
            SamplingPlan.model_validate({**base, field: value})
    for field in ("clip_skip", "guidance", "shift"):
        assert field in row.takes or set(values_of(row, field)) <= {None}


@pytest.mark.parametrize(("family", "variant"), MODELS)
@pytest.mark.parametrize("task", get_args(Task))
def test_quality_never_takes_fewer_steps_than_speed(family: str, variant: str | None, task: Task):
    steps = resolve(family, variant, (), task=task)[0].choices["steps"]
    for situation in SITUATIONS:
        counts = [steps.rule({**situation, "priority": p}).value for p in STEPS_ORDER]
        assert counts == sorted(counts)


@pytest.mark.parametrize(("family", "variant"), MODELS)
@pytest.mark.parametrize("task", get_args(Task))
def test_every_row_ends_in_a_sampler_that_every_comfyui_has(
    family: str, variant: str | None, task: Task
):
    for pairs in values_of(resolve(family, variant, (), task=task)[0], "samplers"):
        assert any(sampler in ("euler", "ddim", "uni_pc") for sampler, _ in pairs)
        assert all(len(pair) == 2 for pair in pairs)


@pytest.mark.parametrize(("family", "variant"), MODELS)
def test_sizes_fit_the_model(family: str, variant: str | None):
    row, _ = resolve(family, variant, ())
    sizes = values_of(row, "sizes")[0]
    native = sizes[0][0] * sizes[0][1]
    for width, height in sizes:
        assert width % row.multiple == height % row.multiple == 0
        assert 0.7 <= width * height / native <= 1.6
        assert [height, width] in sizes or width > height


def test_the_catalogs_families_all_have_a_row():
    catalog = FOLDER.parent / "catalog" / "families.json"
    known = {row["id"] for row in json.loads(catalog.read_text(encoding="utf-8"))["families"]}
    assert known <= set(FAMILIES)


def test_words_for_shapes_are_unambiguous():
    data = json.loads((FOLDER / "aspects.json").read_text(encoding="utf-8"))
    said = [(w, row["how"]) for row in data["words"] for w in row["words"]]
    assert len({word for word, _ in said}) == len(said)
    for row in data["words"]:
        assert row["how"] in ("anywhere", "clause")
        assert row["kind"] in ("format", "subject")
        assert row["source"]
        assert all(word == word.lower().strip() for word in row["words"])
