"""Limits, priorities, the front, the second pass, and what ratings change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from intelligent_generation.core.errors import SettingError
from intelligent_generation.core.plan import FRONT_SIZE, ModelInfo, PromptAnalysis, SamplingPlan
from intelligent_generation.core.prompting import analyze
from intelligent_generation.core.tuning import (
    Costs,
    Limits,
    RatedSettings,
    SamplingOverrides,
    Speed,
    front_table,
    report,
    work_of,
)

Plan = Callable[..., SamplingPlan]
GIB = 1024**3
CARD = Speed(flops=40e12, bandwidth=500e9, value_bytes=2)
"""About a graphics card of 12 GB: 40e12 operations a second in fp16."""
ACCEPTANCE = (
    "1girl, anime style, magical powers, detailed Victorian mansion background, "
    "cinematic lighting, masterpiece, best quality"
)


@pytest.fixture
def weighed(plan: Plan, real_model: Callable[..., ModelInfo]) -> Plan:
    """A plan with costs: of a model of real size, on `CARD`."""

    def make(family: str, **options: Any) -> SamplingPlan:
        model = real_model(family, options.get("variant"))
        return plan(family, costs=Costs(model, CARD, ()), **options)

    return make


@pytest.fixture
def cost_of(real_model: Callable[..., ModelInfo]) -> Callable[[SamplingPlan, str], Any]:
    """What a plan costs on `CARD`, worked out anew."""
    return lambda plan, family: Costs(real_model(family), CARD, ())(work_of(plan))


def codes(plan: SamplingPlan) -> list[str]:
    return [notice.code for notice in plan.notices]


def reason(plan: SamplingPlan, field: str) -> Any:
    (found,) = [r for r in plan.reasons if r.field == field]
    return found


# --------------------------------------------------------------------------- requirement 2.20


def test_the_acceptance_prompt_with_its_limits(weighed: Plan):
    made = weighed(
        "sdxl",
        analysis=analyze(ACCEPTANCE),
        priority="QUALITY",
        limits=Limits(seconds=60, memory_bytes=12 * GIB),
    )
    assert 30 <= made.steps <= 50
    assert 7 <= made.cfg <= 9
    assert (made.width, made.height) == (1024, 1024)
    assert (made.sampler, made.scheduler) in {
        ("dpmpp_2m", "karras"),
        ("euler_ancestral", "normal"),
    }
    assert made.estimate is not None
    assert made.estimate.seconds <= 60
    assert made.estimate.memory_bytes <= 12 * GIB
    assert not any(notice.level == "error" for notice in made.notices)
    assert made.strategy == "sdxl + QUALITY" and 0 < made.confidence <= 1


# --------------------------------------------------------------------------- without limits


@pytest.mark.parametrize("family", ["sd15", "sdxl", "flux-dev", "qwen-image", "pony"])
@pytest.mark.parametrize("priority", ["SPEED", "BALANCED", "QUALITY"])
def test_without_limits_the_rows_plan_is_taken(
    plan: Plan, weighed: Plan, family: str, priority: str
):
    chosen, alone = weighed(family, priority=priority), plan(family, priority=priority)
    assert {f: getattr(chosen, f) for f in SamplingPlan.DECISIVE} == {
        f: getattr(alone, f) for f in SamplingPlan.DECISIVE
    }
    assert chosen.estimate is not None and alone.estimate is None and alone.front == ()


@pytest.mark.parametrize("family", ["sd15", "sdxl", "flux-dev", "flux-schnell", "qwen-image"])
@pytest.mark.parametrize("limits", [Limits(), Limits(seconds=8), Limits(memory_bytes=9 * GIB)])
def test_the_front_is_small_and_nothing_in_it_beats_another(
    weighed: Plan, family: str, limits: Limits
):
    made = weighed(family, priority="QUALITY", limits=limits)
    assert 1 <= len(made.front) <= FRONT_SIZE
    (chosen,) = [one for one in made.front if one.chosen]
    assert (chosen.steps, chosen.width) == (made.steps, made.width)
    others = [one for one in made.front if not one.chosen]
    for one in others:
        for other in others:
            better = (one.quality, one.fidelity, -one.seconds, -one.memory_bytes)
            worse = (other.quality, other.fidelity, -other.seconds, -other.memory_bytes)
            assert better == worse or any(a < b for a, b in zip(better, worse, strict=True))
    assert [one.seconds for one in made.front] == sorted(one.seconds for one in made.front)


def test_the_front_is_shown_as_a_table_under_the_reasons(weighed: Plan):
    made = weighed("sdxl")
    lines = front_table(made).splitlines()
    assert len(lines) == len(made.front) + 1
    assert [line.startswith(">") for line in lines].count(True) == 1
    assert front_table(made) in report(made)
    assert all(r.text in report(made) for r in made.reasons)
    assert {"time", "memory"} <= {r.field for r in made.reasons}


# --------------------------------------------------------------------------- limits


@pytest.mark.parametrize("priority", ["SPEED", "BALANCED", "QUALITY", "MEMORY"])
@pytest.mark.parametrize("seconds", [4.0, 6.0, 9.0])
def test_a_limit_of_time_is_hard_and_said(
    weighed: Plan, cost_of: Any, priority: str, seconds: float
):
    free = weighed("sdxl", priority=priority)
    made = weighed("sdxl", priority=priority, limits=Limits(seconds=seconds))
    taken = cost_of(made, "sdxl").seconds
    assert taken <= seconds
    assert made.estimate is not None and made.estimate.seconds == pytest.approx(taken, abs=1e-3)
    assert made.max_seconds == seconds
    assert made.steps <= free.steps, "a limit never makes a run longer"
    if free.estimate is not None and free.estimate.seconds > seconds:
        changed = [r for r in made.reasons if r.source == "limit"]
        assert changed and f"above your {seconds:g} s" in changed[0].text


def test_a_limit_of_memory_is_hard_and_takes_pixels_not_steps(weighed: Plan, cost_of: Any):
    free = weighed("sdxl")
    assert free.estimate is not None
    limit = free.estimate.memory_bytes - GIB // 2
    made = weighed("sdxl", limits=Limits(memory_bytes=limit))
    assert cost_of(made, "sdxl").memory_bytes <= limit
    assert made.width * made.height < free.width * free.height
    assert made.steps == free.steps
    assert reason(made, "resolution").source == "limit"


def test_a_looser_limit_never_gives_less(weighed: Plan):
    merits = []
    for seconds in (3.0, 5.0, 8.0, 12.0, 20.0):
        made = weighed("sdxl", priority="QUALITY", limits=Limits(seconds=seconds))
        assert made.estimate is not None
        merits.append(made.estimate.quality * made.estimate.fidelity)
    assert merits == sorted(merits)


def test_where_nothing_keeps_the_limits_the_closest_is_taken_and_says_what_gives(weighed: Plan):
    made = weighed("sdxl", limits=Limits(seconds=0.5, memory_bytes=2 * GIB))
    (said,) = [notice for notice in made.notices if notice.level == "error"]
    assert said.code == "limits_not_met"
    assert "max_seconds" in said.message and "max_vram_gb" in said.message
    assert "2.0 GiB" in said.message and f"{made.steps} steps" in said.message
    assert "Error: No plan keeps the limits" in report(made)
    free = weighed("sdxl")
    assert made.estimate is not None and free.estimate is not None
    assert made.estimate.memory_bytes < free.estimate.memory_bytes


def test_what_the_user_set_gives_way_to_no_limit(weighed: Plan):
    own = SamplingOverrides(steps=40, width=1024, height=1024)
    made = weighed("sdxl", overrides=own, limits=Limits(seconds=2))
    assert (made.steps, made.width, made.height) == (40, 1024, 1024)
    assert "limits_not_met" in codes(made)


def test_distilled_models_do_not_go_below_the_steps_that_are_published(weighed: Plan):
    made = weighed("sdxl", variant="lightning", limits=Limits(seconds=0.9))
    assert made.steps >= 1 and made.cfg == 1.0
    assert made.steps in {4, 8, 2, 1, 6}


@pytest.mark.parametrize("limits", [Limits(seconds=0), Limits(seconds=float("nan"))])
def test_an_impossible_limit_is_refused(weighed: Plan, limits: Limits):
    with pytest.raises(SettingError, match="above 0"):
        weighed("sdxl", limits=limits)


def test_memory_takes_less_of_it_within_what_experts_call_the_same(weighed: Plan):
    balanced, least = weighed("sdxl"), weighed("sdxl", priority="MEMORY")
    assert balanced.estimate is not None and least.estimate is not None
    assert least.estimate.memory_bytes < balanced.estimate.memory_bytes
    assert least.width * least.height >= 0.8 * balanced.width * balanced.height
    assert least.steps * 1.3 >= balanced.steps
    assert reason(least, "resolution").source == "priority"


# --------------------------------------------------------------------------- second pass


def detailed(analysis: Callable[..., PromptAnalysis]) -> PromptAnalysis:
    return analysis("a castle, highly detailed, masterpiece", quality="HIGH")


def test_quality_asks_for_a_second_pass_on_small_models(weighed: Plan, analysis: Any):
    made = weighed("sd15", analysis=detailed(analysis), priority="QUALITY")
    second = made.second_pass
    assert second is not None
    assert (second.width, second.height) == (768, 768)
    # What is published for SD 1.5's second passes, and ComfyUI's own example.
    assert (second.steps, second.sampler, second.denoise) == (14, "dpmpp_sde", 0.5)
    assert "second_pass off" in reason(made, "second pass").text


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("sd15", {"priority": "BALANCED"}),
        ("sdxl", {"priority": "QUALITY"}),
        ("sd15", {"priority": "QUALITY", "variant": "lcm"}),
        ("sd15", {"priority": "QUALITY", "wish": "off"}),
        ("sd15", {"priority": "QUALITY", "task": "refine"}),
    ],
)
def test_nothing_else_gets_one_by_itself(
    weighed: Plan, analysis: Any, family: str, options: dict[str, Any]
):
    assert weighed(family, analysis=detailed(analysis), **options).second_pass is None
    assert weighed("sd15", priority="QUALITY").second_pass is None, "the prompt asks for none"


def test_a_second_pass_can_be_asked_for_with_any_model(weighed: Plan):
    made = weighed("flux-dev", wish="on")
    assert made.second_pass is not None
    assert (made.second_pass.width, made.second_pass.steps) == (1536, made.steps)
    assert made.second_pass.sampler == made.sampler


def test_time_that_is_short_takes_the_second_pass_away_first(weighed: Plan, analysis: Any):
    read = detailed(analysis)
    free = weighed("sd15", analysis=read, priority="QUALITY")
    assert free.estimate is not None
    made = weighed(
        "sd15", analysis=read, priority="QUALITY", limits=Limits(seconds=free.estimate.seconds / 2)
    )
    assert made.second_pass is None
    assert reason(made, "second pass").source == "limit"
    assert made.steps == free.steps


# --------------------------------------------------------------------------- ratings


def rated(rating: int, **changes: Any) -> RatedSettings:
    facts = {"steps": 30, "cfg": 8.0, "sampler": "dpmpp_2m", "scheduler": "karras"}
    return RatedSettings(**(facts | changes), rating=rating)


def test_settings_that_were_rated_well_replace_those_that_were_not(weighed: Plan):
    liked = [rated(5, cfg=5.5)] * 4
    disliked = [rated(1)] * 4
    made = weighed("sdxl", ratings=[*liked, *disliked])
    assert made.cfg == 5.5
    assert reason(made, "cfg").source == "ratings"
    assert weighed("sdxl").cfg == 8.0


@pytest.mark.parametrize(
    "ratings",
    [
        [rated(5, cfg=5.5)],
        [rated(3, cfg=5.5)] * 50,
        [rated(5)] * 3,
        [rated(1)] * 9,
        [rated(5, steps=90)] * 4,
        [rated(5, sampler="a sampler that is gone")] * 30,
    ],
)
def test_few_neutral_or_unusable_ratings_change_nothing(
    weighed: Plan, ratings: list[RatedSettings]
):
    plain, made = weighed("sdxl"), weighed("sdxl", ratings=ratings)
    assert (made.steps, made.cfg, made.sampler) == (plain.steps, plain.cfg, plain.sampler)


def test_ratings_never_beat_the_users_own_values_or_a_limit(weighed: Plan, cost_of: Any):
    ratings = [rated(5, cfg=5.5, steps=45)] * 20 + [rated(1)] * 20
    own = weighed("sdxl", ratings=ratings, overrides=SamplingOverrides(cfg=9.0, steps=12))
    assert (own.cfg, own.steps) == (9.0, 12)
    limited = weighed("sdxl", ratings=ratings, limits=Limits(seconds=5))
    assert cost_of(limited, "sdxl").seconds <= 5


def test_a_plan_without_costs_is_as_before(plan: Plan):
    made = plan("sdxl")
    assert (made.estimate, made.front) == (None, ())
    assert SamplingPlan.from_json(made.to_json()) == made


def test_the_plan_with_a_front_survives_json(weighed: Plan, analysis: Any):
    made = weighed("sd15", analysis=detailed(analysis), priority="QUALITY")
    assert made.front and made.second_pass and made.estimate
    assert SamplingPlan.from_json(made.to_json()) == made


def test_a_model_of_unknown_size_gets_a_plan(plan: Plan, real_model: Callable[..., ModelInfo]):
    bare = real_model("sdxl").model_copy(update={"parts": ()})
    made = plan("sdxl", costs=Costs(bare, CARD, ()))
    assert made.estimate is not None and made.steps == 30
