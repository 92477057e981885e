"""The plan text of MANUAL: a whole plan, a whole record, or the fields to change."""

from __future__ import annotations

import json

import pytest
from intelligent_generation.core.errors import PlanError
from intelligent_generation.core.generating import difference, edit_plan, names_seed


def as_json(value):
    return json.loads(value.to_json())


def test_a_whole_plan_needs_nothing_else(make_generation):
    plan = make_generation().plan
    assert edit_plan({}, plan.to_json()) == plan


def test_a_whole_record_gives_its_plan(make_generation):
    generation = make_generation()
    assert edit_plan({}, generation.to_json()) == generation.plan


def test_fields_change_and_the_others_stay(make_generation):
    plan = make_generation().plan
    edited = edit_plan(as_json(plan), '{"sampling": {"steps": 35, "clip_skip": 2}, "seed": 0}')
    assert (edited.sampling.steps, edited.sampling.clip_skip, edited.seed) == (35, 2, 0)
    back = edited.model_copy(
        update={
            "seed": plan.seed,
            "sampling": edited.sampling.model_copy(
                update={"steps": plan.sampling.steps, "clip_skip": plan.sampling.clip_skip}
            ),
        }
    )
    assert back == plan


def test_null_puts_a_field_back_to_its_default(make_generation):
    plan = make_generation().plan
    plan = plan.model_copy(update={"sampling": plan.sampling.model_copy(update={"shift": 3.0})})
    assert edit_plan(as_json(plan), '{"sampling": {"shift": null}}').sampling.shift is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"seed": 0}', True),
        ('{"kind": "Generation", "plan": {"seed": 3}}', True),
        ('{"analysis": {"prompt": "a \\"seed\\" packet"}}', False),
        ('{"seed": null}', False),
        ("no plan", False),
        ("", False),
    ],
)
def test_whether_a_plan_text_sets_the_seed(text, expected):
    assert names_seed(text) is expected


def test_a_list_replaces_the_list(make_generation):
    plan = make_generation().plan
    assert edit_plan(as_json(plan), '{"loras": {"loras": []}}').loras.loras == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not JSON"),
        ("[]", "must be a JSON object"),
        ('{"sampling": {"steps": "many"}}', "sampling.steps"),
        ('{"sampling": {"step": 3}}', "sampling.step"),
        ('{"sampling": 3}', "sampling"),
        ('{"seed": null}', "seed"),
        ('{"schema_version": 99}', "Update the node pack"),
        ('{"kind": "Generation"}', "must be a JSON object"),
        ("[" * 100_000, "not JSON"),
        ('{"analysis": {"prompt": "a cat"}}', "loras.segments"),
        ('{"analysis": {"negative_prompt": "blurry"}}', "analysis.negative_segments"),
    ],
)
def test_what_cannot_be_merged_is_refused(make_generation, text, said):
    with pytest.raises(PlanError, match=said):
        edit_plan(as_json(make_generation().plan), text)


def test_a_part_alone_without_wires_says_what_is_missing():
    with pytest.raises(PlanError, match="no analysis and no model and no loras"):
        edit_plan({"seed": 3}, '{"sampling": {"steps": 3}}')


def test_what_auto_would_have_done_otherwise_is_said_once_each(make_generation):
    auto = make_generation().plan
    first, second = auto.loras.loras
    taken = auto.model_copy(
        update={
            "sampling": auto.sampling.model_copy(update={"steps": 99, "guidance": 2.0}),
            "loras": auto.loras.model_copy(
                update={"loras": (first.model_copy(update={"model_strength": 0.1}),)}
            ),
        }
    )
    lines = difference(taken, auto)
    assert lines == (
        f"used steps {auto.sampling.steps} instead of 99.",
        "used guidance none instead of 2.",
        f"used LoRA {first.title} at {first.model_strength:g} instead of 0.1.",
        f"added LoRA {second.title} at {second.model_strength:g}.",
    )
    assert difference(auto, auto) == ()
    assert any("left out" in line for line in difference(auto, taken))
