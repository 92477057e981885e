"""The key that tells whether two runs made the same image."""

from __future__ import annotations

import pytest
from intelligent_generation.core.generating.records import image_key


def with_plan(generation, **parts):
    return generation.model_copy(update={"plan": generation.plan.model_copy(update=parts)})


@pytest.fixture
def complete(make_generation):
    """A generation whose LoRAs all have a hash, as the sampler leaves it."""
    generation = make_generation()
    loras = tuple(
        lora.model_copy(update={"file": lora.file.model_copy(update={"sha256": f"{n}" * 64})})
        for n, lora in enumerate(generation.plan.loras.loras)
    )
    plan = generation.plan.loras.model_copy(update={"loras": loras})
    return with_plan(generation, loras=plan)


def test_another_run_of_the_same_plan_has_the_same_key(complete):
    again = complete.model_copy(update={"id": "g2", "explanation": "other words"})
    assert image_key(again) == image_key(complete)


def test_the_data_type_of_the_weights_matters(complete):
    other = with_plan(
        complete, model=complete.plan.model.model_copy(update={"weight_dtype": "int8"})
    )
    assert image_key(other) != image_key(complete)


def test_why_a_value_was_chosen_does_not_matter(complete):
    sampling = complete.plan.sampling.model_copy(update={"strategy": "other", "confidence": 0.1})
    assert image_key(with_plan(complete, sampling=sampling)) == image_key(complete)


@pytest.mark.parametrize(
    "change",
    [
        lambda plan: {"seed": plan.seed + 1 if plan.seed < 9 else plan.seed - 1},
        lambda plan: {"sampling": plan.sampling.model_copy(update={"cfg": 1.5})},
        lambda plan: {"sampling": plan.sampling.model_copy(update={"clip_skip": 2})},
        lambda plan: {"loras": plan.loras.model_copy(update={"segments": ("other",)})},
        lambda plan: {"loras": plan.loras.model_copy(update={"loras": plan.loras.loras[:1]})},
        lambda plan: {"loras": plan.loras.model_copy(update={"loras": plan.loras.loras[::-1]})},
        lambda plan: {"analysis": plan.analysis.model_copy(update={"negative_segments": ("x",)})},
    ],
)
def test_whatever_changes_the_image_changes_the_key(complete, change):
    assert image_key(with_plan(complete, **change(complete.plan))) != image_key(complete)


def test_a_model_from_elsewhere_is_never_taken_for_the_same(complete):
    for model in (
        complete.plan.model.model_copy(update={"carried_patches": 3}),
        complete.plan.model.model_copy(update={"parts": complete.plan.model.parts[:0]}),
    ):
        one = with_plan(complete, model=model)
        other = one.model_copy(update={"id": "g2"})
        if model.carried_patches:
            assert image_key(one) != image_key(other)
        assert image_key(one) != image_key(complete)
