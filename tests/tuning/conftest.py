"""Builders of analyses and models for the tuning tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from intelligent_generation.core.plan import (
    Clause,
    Intent,
    ModelInfo,
    PromptAnalysis,
    SamplingPlan,
    Span,
)
from intelligent_generation.core.tuning import optimize

# fmt: off
SAMPLERS = (
    "euler", "euler_ancestral", "heun", "dpm_2", "lms", "dpmpp_2s_ancestral", "dpmpp_sde",
    "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde", "lcm", "deis", "res_multistep", "er_sde", "ddim",
    "uni_pc", "uni_pc_bh2",
)
SCHEDULERS = (
    "simple", "sgm_uniform", "karras", "exponential", "ddim_uniform", "beta", "normal",
)
# fmt: on


def make_analysis(prompt: str = "a red apple on a table", **changes: Any) -> PromptAnalysis:
    intent = {"style": "GENERAL", "content": "OBJECT", "quality": "MEDIUM", "confidence": 0.5}
    intent |= {key: changes.pop(key) for key in tuple(intent) if key in changes}
    facts: dict[str, Any] = {
        "prompt": prompt,
        "segments": (prompt,),
        "negative_segments": (changes.get("negative_prompt", ""),),
        "spans": (Span(text=prompt, weight=1.0),),
        "clauses": tuple(Clause(text=c.strip(), weight=1.0) for c in prompt.split(",")),
        "concepts": (),
        "intent": Intent.model_validate(intent),
        "complexity": 0.5,
        "complexity_band": "MODERATE",
    }
    return PromptAnalysis.model_validate(facts | changes)


def make_model(
    family: str,
    variant: str | None = None,
    confidence: float = 1.0,
    trained_size: tuple[int, int] | None = None,
) -> ModelInfo:
    return ModelInfo(
        name=f"{family}.safetensors",
        family=family,
        variant=variant,
        family_confidence=confidence,
        trained_size=trained_size,
        evidence="told by the test",
    )


@pytest.fixture
def analysis() -> Callable[..., PromptAnalysis]:
    """An analysis of a prompt; keywords change it or its intent."""
    return make_analysis


@pytest.fixture
def plan() -> Callable[..., SamplingPlan]:
    """A plan for a family; `analysis`, the model's keywords and optimize()'s own."""

    def make(family: str, **options: Any) -> SamplingPlan:
        known = {
            name: options.pop(name)
            for name in ("variant", "confidence", "trained_size")
            if name in options
        }
        model = make_model(family, **known)
        read = options.pop("analysis", None) or make_analysis()
        return optimize(read, model, **({"samplers": SAMPLERS, "schedulers": SCHEDULERS} | options))

    return make
