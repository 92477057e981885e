"""What others publish: how it is agreed on, and how it changes the makers' figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from intelligent_generation.core.plan import SamplingPlan
from intelligent_generation.core.tuning import SamplingOverrides, rows
from intelligent_generation.core.tuning.rows import (
    PUBLISHED,
    most_agreed,
    published_in,
    read,
    resolve,
    same_guidance,
    same_steps,
    shipped,
)

Plan = Callable[..., SamplingPlan]
BALANCED = {
    "priority": "BALANCED",
    "complexity": "SIMPLE",
    "style": "GENERAL",
    "content": "OBJECT",
}
DATA = json.loads(Path(rows.__file__).with_name("published.json").read_text(encoding="utf-8"))


def chosen(family: str, variant: str | None = None, **options: Any) -> dict[str, Any]:
    row, _ = resolve(family, variant, options.pop("accelerators", ()), **options)
    return {field: choice.rule(BALANCED).value for field, choice in row.choices.items()}


def told(family: str, task: str = "t2i", **fields: Any) -> rows.Table:
    """The makers' table with figures of one source a value for one family."""
    votes = {field: [[value, 1.0] for value in values] for field, values in fields.items()}
    return read(published_in({"rows": [{"family": family, "task": task, **votes}]}))


# --------------------------------------------------------------------------- agreeing


@pytest.mark.parametrize(
    ("values", "maker", "agreed"),
    [
        ([20, 30], None, 25),  # both count it as right, though neither says it
        ([20, 20, 50], None, 20),
        ([20, 25, 28, 30], 50, 25),
        ([50, 50], 25, 50),
        ([4, 8], None, 8),  # what a distilled model was trained for, not the middle
        ([4, 8], 8, 8),
    ],
)
def test_steps_that_most_count_as_right(values: list[int], maker: int | None, agreed: int):
    said = most_agreed(tuple((value, 1.0) for value in values), same_steps, maker)
    assert said == agreed
    assert isinstance(said, int)


@pytest.mark.parametrize(
    ("values", "maker", "agreed"),
    [
        ([2.5, 4.0], 4.0, 3.0),
        ([1.0, 1.0, 7.0], None, 1.0),
        ([7.0, 8.0], 7.0, 7.0),
    ],
)
def test_cfg_that_most_count_as_right(values: list[float], maker: float | None, agreed: float):
    assert most_agreed(tuple((value, 1.0) for value in values), same_guidance, maker) == agreed


def test_a_name_needs_more_than_the_makers_vote():
    def same(said: str, wanted: str) -> bool:
        return said == wanted

    assert most_agreed((("lcm", 1.0),), same, "euler") == "euler"
    assert most_agreed((("lcm", 1.5),), same, "euler") == "lcm"
    assert most_agreed((("lcm", 1.0),), same, None) == "lcm"


def test_two_figures_are_the_same_within_the_tolerance_of_experts():
    assert same_steps(26, 20)
    assert not same_steps(27, 20)
    assert same_steps(6, 4)
    assert same_guidance(8.0, 7.0)
    assert not same_guidance(1.0, 1.8)


# --------------------------------------------------------------------------- in the table


def test_published_figures_change_the_balanced_run_and_keep_the_order():
    table = told("flux-dev", steps=[60, 60], guidance=[2.0, 2.0])
    row, _ = resolve("flux-dev", None, (), table=table)
    runs = [
        row.choices["steps"].rule({**BALANCED, "priority": priority}).value
        for priority in ("SPEED", "BALANCED", "QUALITY")
    ]
    assert runs == [15, 60, 60]
    assert chosen("flux-dev", table=table)["guidance"] == 2.0
    assert row.choices["steps"].source.startswith("what most others publish; Black Forest Labs")
    assert row.published["steps"] == ((60, 1.0), (60, 1.0))


def test_what_the_requirements_settle_stays_for_text_to_image_alone():
    figures = {"steps": [60], "cfg": [3.0], "samplers": [["heun", "beta"]]}
    made = chosen("sdxl", table=told("sdxl", **figures))
    assert (made["steps"], made["cfg"], made["samplers"][0]) == (20, 8.0, ["dpmpp_2m", "karras"])
    edit = chosen("sdxl", task="edit", table=told("sdxl", task="edit", **figures))
    assert (edit["steps"], edit["cfg"], edit["samplers"][0]) == (60, 3.0, ["heun", "beta"])


def test_a_task_that_nobody_publishes_takes_the_figures_of_another():
    table = told("omnigen2", task="edit", steps=[44, 44])
    assert chosen("omnigen2", table=table)["steps"] == 44
    assert chosen("omnigen2", task="refine", table=table)["steps"] == 44


def test_what_a_maker_says_of_a_task_holds_for_that_task_alone():
    nobody = read({})
    edit = chosen("sd15", task="edit", table=nobody)
    assert (edit["steps"], edit["cfg"], edit["samplers"][0]) == (20, 7.5, ["uni_pc_bh2", "normal"])
    made = chosen("sd15", table=nobody)
    assert (made["cfg"], made["samplers"][0]) == (8.0, ["dpmpp_2m", "karras"])
    assert chosen("sd15", task="refine", table=nobody)["samplers"] == made["samplers"]
    assert chosen("sd15", "lcm", task="edit", table=nobody)["samplers"][0][0] == "lcm"


def test_what_others_publish_for_another_task_does_not_change_it():
    for_images = told("anima", steps=[60, 60], samplers=[["heun", "beta"]] * 3)
    edit = chosen("anima", task="edit", table=for_images)
    assert edit["samplers"][0] == ["euler", "simple"]
    assert edit["steps"] == 60  # of which the maker says nothing for this task
    for_edits = told("anima", task="edit", samplers=[["heun", "beta"]] * 3)
    assert chosen("anima", task="edit", table=for_edits)["samplers"][0] == ["heun", "beta"]


def test_general_figures_give_way_to_any_published_one():
    assert chosen("lens", table=told("lens", steps=[60], cfg=[9.0]))["steps"] == 60
    assert chosen("lens", table=told("sdxl", steps=[60]))["steps"] == 25


def test_an_unknown_family_starts_from_the_figures_of_the_nearest_and_says_so():
    row, notices = resolve("unknown", None, (), nearest="flux-dev")
    near, _ = resolve("flux-dev", None, ())
    assert row.choices["steps"] == near.choices["steps"]
    assert (row.confidence, row.label) == (0.2, "unknown")
    assert "those of FLUX.1 dev, whose tensors are most like its own" in notices[0].message
    assert "middling ones are used" in resolve("unknown", None, ())[1][0].message


def test_guidance_is_not_given_to_a_model_that_reads_none():
    table = told("qwen-image", guidance=[3.5])
    assert chosen("qwen-image", table=table).get("guidance") is None


def test_a_family_takes_over_what_is_agreed_for_its_parent():
    table = told("lumina2", samplers=[["res_multistep", "beta"]] * 2)
    assert chosen("newbie", table=table)["samplers"][0] == ["res_multistep", "beta"]


def test_a_sampler_keeps_the_schedule_that_it_is_published_with():
    pairs = [["heun", "exponential"], ["heun", None], ["euler", "normal"], ["ddim", "normal"]]
    made = chosen("sdxl", task="edit", table=told("sdxl", task="edit", samplers=pairs))
    assert made["samplers"][0] == ["heun", "exponential"]


# --------------------------------------------------------------------------- LoRAs and schedules


def test_the_steps_in_a_loras_name_are_those_it_was_made_for(plan: Plan):
    assert plan("qwen-image", variant="edit", accelerators=("lightning 4",)).steps == 4
    assert plan("qwen-image", accelerators=("lightning 8",)).steps == 8
    made = plan("sdxl", accelerators=("hyper 12",))
    assert (made.steps, made.cfg) == (12, 1.0)
    (why,) = [reason for reason in made.reasons if reason.field == "steps"]
    assert "steps in the LoRA's name" in why.text


def test_a_control_lora_changes_guidance_and_not_the_steps(plan: Plan):
    made = plan("flux-dev", accelerators=("depth",))
    assert (made.guidance, made.scheduler) == (10.0, "normal")
    assert made.steps == plan("flux-dev").steps
    assert not made.notices


def test_a_control_lora_and_an_accelerating_one_both_count(plan: Plan):
    for order in (("depth", "turbo 8"), ("turbo 8", "depth")):
        made = plan("flux-dev", accelerators=order)
        assert (made.steps, made.guidance) == (8, 10.0)
        assert not made.notices
    two = plan("qwen-image", accelerators=("lightning 4", "lightning 8"))
    assert two.steps == 4
    mixed = plan("sdxl", accelerators=("lcm", "lightning 4"))
    assert (mixed.sampler, mixed.steps) == ("lcm", 6)
    assert [notice.code for notice in mixed.notices] == ["several_accelerators"]


def test_the_undistilled_base_of_a_distilled_family_keeps_its_cfg(plan: Plan):
    made = plan("flux2-klein", variant="base")
    assert made.cfg > 2
    assert made.steps > 15
    assert not made.notices
    hot = plan("flux2-klein", overrides=SamplingOverrides(cfg=4.0))
    assert [notice.code for notice in hot.notices] == ["cfg_high_for_distilled"]


def test_the_scheduler_node_of_a_family_is_used_where_the_host_has_it(plan: Plan):
    nodes = ("Flux2Scheduler",)
    made = plan("flux2-klein", sigma_nodes=nodes)
    assert (made.sigmas, made.scheduler) == ("Flux2Scheduler", "simple")
    assert plan("flux2-klein").sigmas is None
    assert plan("flux-dev", sigma_nodes=nodes).sigmas is None
    own = SamplingOverrides(scheduler="beta")
    assert plan("flux2-klein", sigma_nodes=nodes, overrides=own).sigmas is None


# --------------------------------------------------------------------------- the file


def test_the_file_says_what_it_was_made_of_and_how_well_it_does():
    assert len(DATA["data_sha256"]) == 64
    assert DATA["left_out"]["right"] >= 0.80
    assert DATA["left_out"]["right_by_family"] >= 0.70
    assert "parameters fit" in DATA["about"][1]


def test_every_row_of_the_file_belongs_to_a_row_of_the_table():
    seen = set()
    for row in DATA["rows"]:
        key = (row["family"], row.get("variant"))
        assert key in shipped().layers
        assert (*key, row["task"]) not in seen
        seen.add((*key, row["task"]))
        assert row["task"] in ("t2i", "edit", "refine")
        assert set(row) <= {"family", "variant", "task", *PUBLISHED}
        for field in set(row) & set(PUBLISHED):
            votes = [vote for _, vote in row[field]]
            assert votes == sorted(votes, reverse=True)
            assert all(0 < vote <= DATA["sources"] * 1.5 for vote in votes)
