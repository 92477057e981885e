"""Builders of analyses and models for the tuning tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from intelligent_generation.core.plan import (
    Clause,
    Intent,
    ModelInfo,
    ModelPart,
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


PARAMETERS = {
    "sd15": (859_520_964, 123_060_480),
    "sdxl": (2_567_463_684, 817_698_048),
    "pony": (2_567_463_684, 817_698_048),
    "flux-dev": (11_901_408_320, 4_885_000_000),
    "flux-schnell": (11_891_000_000, 4_885_000_000),
    "qwen-image": (20_430_000_000, 8_290_000_000),
}
"""Of the diffusion model and of the text encoders."""


def make_real_model(family: str, variant: str | None = None) -> ModelInfo:
    unet, text = PARAMETERS[family]
    sizes = {"diffusion_model": unet, "text_encoder": text, "vae": 83_653_863}
    parts = tuple(
        ModelPart.model_validate(
            {"role": role, "dtype": "float16", "parameters": count, "bytes": 2 * count}
        )
        for role, count in sizes.items()
    )
    return make_model(family, variant).model_copy(update={"parts": parts})


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
    trained_steps: int | None = None,
) -> ModelInfo:
    return ModelInfo(
        name=f"{family}.safetensors",
        family=family,
        variant=variant,
        family_confidence=confidence,
        trained_size=trained_size,
        trained_steps=trained_steps,
        evidence="told by the test",
    )


@pytest.fixture
def analysis() -> Callable[..., PromptAnalysis]:
    """An analysis of a prompt; keywords change it or its intent."""
    return make_analysis


@pytest.fixture
def real_model() -> Callable[..., ModelInfo]:
    """A model with the parameters of the real ones in fp16, for what depends on size."""
    return make_real_model


@pytest.fixture
def plan() -> Callable[..., SamplingPlan]:
    """A plan for a family; `analysis`, the model's keywords and optimize()'s own."""

    def make(family: str, **options: Any) -> SamplingPlan:
        known = {
            name: options.pop(name)
            for name in ("variant", "confidence", "trained_size", "trained_steps")
            if name in options
        }
        model = make_model(family, **known)
        read = options.pop("analysis", None) or make_analysis()
        return optimize(read, model, **({"samplers": SAMPLERS, "schedulers": SCHEDULERS} | options))

    return make
