"""The sampling plan: requirements' tables, distilled models, the user's own values, reasons."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from intelligent_generation.core.errors import HostError, SettingError
from intelligent_generation.core.plan import PromptAnalysis, SamplingPlan
from intelligent_generation.core.prompting import analyze
from intelligent_generation.core.tuning import SamplingOverrides

Plan = Callable[..., SamplingPlan]
Analysis = Callable[..., PromptAnalysis]


def codes(plan: SamplingPlan) -> list[str]:
    return [notice.code for notice in plan.notices]


def reason(plan: SamplingPlan, field: str) -> Any:
    (found,) = [r for r in plan.reasons if r.field == field]
    return found


# --------------------------------------------------------------------------- requirements

STEPS = {
    "SIMPLE": {"SPEED": 15, "BALANCED": 20, "QUALITY": 35},
    "MODERATE": {"SPEED": 20, "BALANCED": 30, "QUALITY": 45},
    "COMPLEX": {"SPEED": 30, "BALANCED": 40, "QUALITY": 55},
}


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
@pytest.mark.parametrize("band", STEPS)
@pytest.mark.parametrize("priority", ["SPEED", "BALANCED", "QUALITY"])
def test_steps_follow_the_published_table(
    plan: Plan, analysis: Analysis, family: str, band: str, priority: str
):
    made = plan(family, analysis=analysis(complexity_band=band), priority=priority)
    assert made.steps == STEPS[band][priority]
    assert 15 <= made.steps <= 60


@pytest.mark.parametrize(
    ("style", "band", "cfg"),
    [
        ("ANIME", "MODERATE", 7.0),
        ("ANIME", "COMPLEX", 8.0),
        ("PHOTOREAL", "SIMPLE", 9.5),
        ("PHOTOREAL", "COMPLEX", 10.5),
        ("ARTISTIC", "MODERATE", 8.0),
        ("GENERAL", "COMPLEX", 9.0),
    ],
)
def test_cfg_follows_style_and_complexity(
    plan: Plan, analysis: Analysis, style: str, band: str, cfg: float
):
    assert plan("sdxl", analysis=analysis(style=style, complexity_band=band)).cfg == cfg


@pytest.mark.parametrize(
    ("style", "priority", "pair"),
    [
        ("ANIME", "SPEED", ("euler_ancestral", "normal")),
        ("PHOTOREAL", "BALANCED", ("dpmpp_2m", "karras")),
        ("ANIME", "QUALITY", ("dpmpp_2m", "karras")),
    ],
)
def test_sampler_follows_priority(
    plan: Plan, analysis: Analysis, style: str, priority: str, pair: tuple[str, str]
):
    made = plan("sd15", analysis=analysis(style=style), priority=priority)
    assert (made.sampler, made.scheduler) == pair


def test_the_acceptance_prompt_of_the_requirements(plan: Plan):
    read = analyze(
        "1girl, anime style, magical powers, detailed Victorian mansion background, "
        "cinematic lighting, masterpiece, best quality"
    )
    made = plan("sdxl", analysis=read, priority="QUALITY")
    assert 30 <= made.steps <= 50
    assert 7 <= made.cfg <= 9
    assert (made.width, made.height) == (1024, 1024)
    assert (made.sampler, made.scheduler) in {
        ("dpmpp_2m", "karras"),
        ("euler_ancestral", "normal"),
    }


def test_anime_on_sd15_skips_the_last_clip_layer_and_nothing_else_does(
    plan: Plan, analysis: Analysis
):
    assert plan("sd15", analysis=analysis(style="ANIME")).clip_skip == 2
    assert plan("sd15", analysis=analysis(style="PHOTOREAL")).clip_skip is None
    assert plan("sdxl", analysis=analysis(style="ANIME")).clip_skip is None


# --------------------------------------------------------------------------- families


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("flux-dev", {"steps": 25, "cfg": 1.0, "guidance": 3.5, "sampler": "euler"}),
        ("flux-fill", {"steps": 25, "cfg": 1.0, "guidance": 30.0, "scheduler": "normal"}),
        ("flux-schnell", {"steps": 4, "cfg": 1.0, "guidance": 3.5}),
        ("qwen-image", {"shift": 3.1, "width": 1328, "height": 1328, "cfg": 3.5}),
        ("pony", {"steps": 25, "sampler": "euler_ancestral", "width": 1024}),
        ("hunyuan-image", {"width": 2048, "height": 2048}),
        ("lumina2", {"sampler": "res_multistep", "scheduler": "simple"}),
    ],
)
def test_families_keep_their_published_figures(plan: Plan, family: str, expected: dict[str, Any]):
    made = plan(family)
    assert {key: getattr(made, key) for key in expected} == expected


def test_a_distilled_model_takes_the_steps_in_its_own_name(plan: Plan):
    told = plan("sdxl", variant="lightning", trained_steps=4)
    assert (told.steps, plan("sdxl", variant="lightning").steps) == (4, 8)
    assert "in the model's name" in reason(told, "steps").text
    assert plan("sdxl", trained_steps=4).steps == plan("sdxl").steps, "it is not distilled"
    with_lora = plan("sdxl", variant="lightning", trained_steps=4, accelerators=("dmd 8",))
    assert with_lora.steps == 8


def test_a_turbo_merge_is_no_sdxl_turbo(plan: Plan):
    merge, own = plan("sdxl", variant="turbo-merge"), plan("sdxl", variant="turbo")
    assert (merge.width, merge.cfg, merge.sampler) == (1024, 2.0, "dpmpp_sde")
    assert (own.width, own.cfg, own.steps) == (512, 1.0, 2)


@pytest.mark.parametrize(
    ("family", "variant", "most_steps", "most_cfg"),
    [
        ("sdxl", "lightning", 8, 1.0),
        ("sdxl", "turbo", 4, 1.0),
        ("sdxl", "lcm", 8, 2.0),
        ("sdxl", "dmd", 8, 1.0),
        ("pony", "hyper", 8, 1.0),
        ("sd15", "lcm", 8, 2.0),
        ("qwen-image", "lightning", 8, 1.0),
        ("z-image", "turbo", 9, 1.0),
        ("chroma", "turbo", 9, 1.0),
    ],
)
@pytest.mark.parametrize("priority", ["SPEED", "BALANCED", "QUALITY"])
@pytest.mark.parametrize("as_lora", [False, True])
def test_distilled_models_and_loras_keep_few_steps_and_no_guidance(
    plan: Plan,
    family: str,
    variant: str,
    most_steps: int,
    most_cfg: float,
    priority: str,
    as_lora: bool,
):
    how = {"accelerators": (variant,)} if as_lora else {"variant": variant}
    made = plan(family, priority=priority, **how)
    assert 1 <= made.steps <= most_steps
    assert made.cfg <= most_cfg
    assert made.strategy == f"{family} {variant} + {priority}"
    assert (reason(made, "steps").source == "lora") is as_lora


def test_an_accelerating_lora_leaves_what_it_does_not_change(plan: Plan):
    plain, fast = plan("flux-dev"), plan("flux-dev", accelerators=("turbo",))
    assert fast.steps < plain.steps
    assert (fast.guidance, fast.sampler, fast.scheduler) == (3.5, "euler", "simple")
    # SDXL-Turbo draws 512×512; a Turbo LoRA does not shrink the checkpoint it is put on.
    assert plan("sdxl", variant="turbo").width == 512
    assert plan("sdxl", accelerators=("turbo",)).width == 1024


def test_accelerators_that_do_not_go_together_are_named(plan: Plan):
    assert "several_accelerators" in codes(plan("sdxl", accelerators=("lcm", "lightning")))
    assert "several_accelerators" not in codes(plan("sdxl", accelerators=("lcm", "lcm")))
    assert "distilled_twice" in codes(plan("flux-schnell", accelerators=("turbo",)))
    assert "distilled_twice" not in codes(plan("flux-dev", accelerators=("turbo",)))
    assert "accelerator_general" in codes(plan("chroma", accelerators=("turbo",)))
    assert "variant_unknown" in codes(plan("sdxl", accelerators=("warp",)))


def test_a_child_takes_variants_from_the_family_it_descends_from(plan: Plan):
    made = plan("illustrious", variant="lightning")
    assert (made.steps, made.sampler, made.scheduler) == (8, "euler", "sgm_uniform")
    assert made.notices == ()


@pytest.mark.parametrize("family", ["unknown", "invented-model", "any"])
def test_an_unknown_family_gets_a_low_confidence_and_a_warning(plan: Plan, family: str):
    made = plan(family)
    assert codes(made) == ["family_unknown"]
    assert made.confidence <= 0.2
    assert made.strategy.startswith("unknown")


def test_an_uncertain_family_is_said_and_lowers_the_confidence(plan: Plan):
    sure, unsure = plan("sdxl"), plan("sdxl", confidence=0.4)
    assert codes(sure) == []
    assert codes(unsure) == ["family_uncertain"]
    assert unsure.confidence == pytest.approx(0.4 * sure.confidence, abs=1e-3)


# --------------------------------------------------------------------------- host


def test_a_sampler_the_host_lacks_gives_way_to_the_next_with_a_notice(plan: Plan):
    made = plan("sdxl", samplers=("euler", "euler_ancestral"))
    assert (made.sampler, made.scheduler) == ("euler_ancestral", "normal")
    assert codes(made) == ["sampler_unavailable"]
    assert made.confidence < plan("sdxl").confidence


def test_a_scheduler_the_host_lacks_takes_its_pair_along(plan: Plan):
    made = plan("sdxl", schedulers=("normal", "simple"))
    assert (made.sampler, made.scheduler) == ("euler_ancestral", "normal")


def test_a_host_with_none_of_the_samplers_is_an_error(plan: Plan):
    with pytest.raises(HostError, match=r"dpmpp_2m with karras.*Set sampler"):
        plan("sdxl", samplers=("heun",))


# --------------------------------------------------------------------------- the user's own values

OWN = SamplingOverrides(
    steps=7,
    cfg=3.25,
    sampler="heun",
    scheduler="beta",
    width=640,
    height=320,
    clip_skip=3,
)


def test_explicit_values_beat_every_chosen_one(plan: Plan):
    made = plan("sd15", overrides=OWN, priority="QUALITY", batch_size=3)
    for field, value in OWN._asdict().items():
        if value is not None:
            assert getattr(made, field) == value
    assert made.batch_size == 3
    assert {r.field: r.source for r in made.reasons} == {
        "steps": "user",
        "cfg": "user",
        "sampler": "user",
        "scheduler": "user",
        "resolution": "user",
        "clip_skip": "user",
    }
    assert "45" in reason(made, "steps").text, "what would have been chosen is said"


@pytest.mark.parametrize("field", [f for f, v in OWN._asdict().items() if v is not None])
def test_one_explicit_value_leaves_the_others_chosen(plan: Plan, field: str):
    value = getattr(OWN, field)
    made = plan("sd15", overrides=SamplingOverrides(**{field: value}))
    plain = plan("sd15")
    assert getattr(made, field) == value
    follows = {"width": {"height"}, "height": {"width"}}.get(field, set())
    for other in {"steps", "cfg", "sampler", "scheduler", "width", "height", "clip_skip"} - {
        field,
        *follows,
    }:
        assert getattr(made, other) == getattr(plain, other)


def test_embedded_guidance_and_shift_can_be_set_where_the_model_has_them(plan: Plan):
    made = plan("flux-dev", overrides=SamplingOverrides(guidance=0.0, shift=2.5))
    assert (made.guidance, made.shift) == (0.0, 2.5)
    assert reason(made, "guidance").source == reason(made, "shift").source == "user"


def test_a_schedule_that_is_set_picks_the_sampler_that_goes_with_it(plan: Plan):
    made = plan("sdxl", overrides=SamplingOverrides(scheduler="normal"))
    assert (made.sampler, made.scheduler) == ("euler_ancestral", "normal")
    made = plan("sdxl", overrides=SamplingOverrides(sampler="euler"))
    assert (made.sampler, made.scheduler) == ("euler", "normal")
    assert codes(made) == []


def test_one_side_alone_keeps_the_shape(plan: Plan, analysis: Analysis):
    wide = analysis("a harbour, 16:9")
    made = plan("flux-dev", analysis=wide, overrides=SamplingOverrides(width=1792))
    assert made.width == 1792
    assert made.width / made.height == pytest.approx(1344 / 768, rel=0.02)
    assert made.height % 16 == 0
    made = plan("sd15", overrides=SamplingOverrides(height=768))
    assert (made.width, made.height) == (768, 768)


@pytest.mark.parametrize(
    ("family", "own", "message"),
    [
        ("sd15", {"steps": 0}, "steps is 0; it goes from 1"),
        ("sd15", {"steps": 20_000}, "10000"),
        ("sd15", {"cfg": -1.0}, "cfg is -1.0; it goes from 0 to 100"),
        ("sd15", {"cfg": math.nan}, "cfg is nan"),
        ("sd15", {"width": 516}, "not a multiple of 8. Use 512 or 520"),
        ("sd15", {"height": 8}, "height is 8; it goes from 16"),
        ("sd15", {"width": 20_000}, "16384"),
        ("sd15", {"clip_skip": 0}, "clip_skip is 0"),
        ("sd15", {"sampler": "dpm++"}, r"'dpm\+\+'.*Use one of: .*euler"),
        ("sd15", {"scheduler": "Karras"}, r"'Karras'.*Use one of: .*karras"),
        ("flux-dev", {"shift": 0.0}, "shift is 0.0"),
        ("sd15", {"shift": 3.0}, "Stable Diffusion 1.5 has no shift"),
        ("sdxl", {"guidance": 3.5}, "SDXL has no guidance"),
        ("flux-dev", {"clip_skip": 2}, "FLUX.1 dev has no clip skip"),
    ],
)
def test_impossible_values_are_refused_with_what_is_allowed(
    plan: Plan, family: str, own: dict[str, Any], message: str
):
    with pytest.raises(SettingError, match=message):
        plan(family, overrides=SamplingOverrides(**own))


@pytest.mark.parametrize("batch_size", [0, 4097])
def test_an_impossible_batch_is_refused(plan: Plan, batch_size: int):
    with pytest.raises(SettingError, match="1 to 4096"):
        plan("sd15", batch_size=batch_size)


# --------------------------------------------------------------------------- notices


def test_a_negative_prompt_without_effect_is_said(plan: Plan, analysis: Analysis):
    read = analysis(negative_prompt="blurry")
    assert codes(plan("flux-dev", analysis=read)) == ["negative_prompt_unused"]
    assert codes(plan("sdxl", analysis=read)) == []
    assert codes(plan("flux-dev", analysis=analysis(negative_prompt=" "))) == []


def test_high_cfg_on_a_distilled_model_is_warned_of(plan: Plan):
    hot = SamplingOverrides(cfg=7.0)
    assert codes(plan("sdxl", variant="lightning", overrides=hot)) == ["cfg_high_for_distilled"]
    assert codes(plan("sdxl", overrides=hot)) == []


def test_a_size_far_from_the_trained_one_is_said(plan: Plan):
    for side, said in ((256, True), (512, False), (768, False), (1024, True)):
        made = plan("sd15", overrides=SamplingOverrides(width=side, height=side))
        assert ("size_far_from_native" in codes(made)) is said


@pytest.mark.parametrize(
    ("family", "trained", "prompt", "size"),
    [
        ("sd35", (128, 128), "a cat", (128, 128)),
        ("sd35", (128, 128), "a cat, portrait format", (112, 144)),
        ("sd15", (768, 768), "a cat", (768, 768)),
        ("sd15", (512, 512), "a cat", (512, 512)),
        ("sdxl", (1024, 1024), "a cat", (1024, 1024)),
        ("sdxl", (1000, 1040), "a cat", (1024, 1024)),
        ("sdxl", (2048, 2048), "a cat", (2048, 2048)),
        ("sd35", (64, 64), "a cat", (64, 64)),
    ],
)
def test_the_size_follows_what_the_model_was_trained_at(
    plan: Plan,
    analysis: Analysis,
    family: str,
    trained: tuple[int, int],
    prompt: str,
    size: tuple[int, int],
):
    made = plan(family, trained_size=trained, analysis=analysis(prompt))
    assert (made.width, made.height) == size
    (reason,) = [reason for reason in made.reasons if reason.field == "resolution"]
    usual = plan(family, analysis=analysis(prompt))
    own = (made.width, made.height) != (usual.width, usual.height)
    assert ("whose header says" in reason.text) is own
    assert "size_far_from_native" not in codes(made)


def test_an_own_size_is_held_against_what_the_model_was_trained_at(plan: Plan):
    far = SamplingOverrides(width=512, height=512)
    made = plan("sd35", trained_size=(128, 128), overrides=far)
    assert (made.width, made.height) == (512, 512)
    assert codes(made) == ["size_far_from_native"]


# --------------------------------------------------------------------------- reasons


@pytest.mark.parametrize("family", ["sd15", "sdxl", "flux-dev", "qwen-image", "unknown"])
def test_every_value_has_one_reason_that_names_it(plan: Plan, analysis: Analysis, family: str):
    made = plan(family, analysis=analysis(style="ANIME"))
    expected = {"steps", "cfg", "sampler", "scheduler", "resolution"}
    expected |= {f for f in ("clip_skip", "guidance", "shift") if getattr(made, f) is not None}
    assert sorted(r.field for r in made.reasons) == sorted(expected)
    for given in made.reasons:
        assert given.value in given.text
        assert given.text.endswith(".")
        assert given.text[0].isupper() or given.text[0].isdigit()
    assert reason(made, "resolution").value == f"{made.width}×{made.height}"


def test_a_reason_says_what_would_change_the_value(plan: Plan):
    text = reason(plan("sdxl"), "steps").text
    assert "30" in text
    assert "another priority would make it 20 (SPEED), 45 (QUALITY)" in text
    assert "another complexity would make it 20 (SIMPLE), 40 (COMPLEX)" in text
    assert "only another model" in reason(plan("flux-schnell"), "steps").text


def test_a_reason_groups_what_comes_to_the_same(plan: Plan, analysis: Analysis):
    text = reason(plan("sd15", analysis=analysis(style="ANIME")), "clip_skip").text
    assert "the model's own (PHOTOREAL or ARTISTIC or GENERAL)" in text


@pytest.mark.parametrize(
    ("family", "options", "field", "source"),
    [
        ("sdxl", {}, "steps", "complexity"),
        ("sdxl", {"priority": "QUALITY"}, "steps", "priority"),
        ("flux-dev", {}, "steps", "family"),
        ("sdxl", {}, "resolution", "family"),
        ("sdxl", {"accelerators": ("lcm",)}, "sampler", "lora"),
    ],
)
def test_a_reason_names_what_decided(
    plan: Plan, family: str, options: dict[str, Any], field: str, source: str
):
    assert reason(plan(family, **options), field).source == source


def test_style_decides_cfg(plan: Plan, analysis: Analysis):
    assert reason(plan("sdxl", analysis=analysis(style="ANIME")), "cfg").source == "intent"


def test_the_same_input_gives_the_same_plan_and_it_round_trips(plan: Plan):
    made = plan("sdxl", priority="QUALITY")
    assert plan("sdxl", priority="QUALITY") == made
    assert SamplingPlan.from_json(made.to_json()) == made
