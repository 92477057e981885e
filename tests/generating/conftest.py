from __future__ import annotations

from collections.abc import Callable

import pytest
from intelligent_generation.core.plan import (
    FileRef,
    Generation,
    GenerationPlan,
    Intent,
    LoraPlan,
    ModelInfo,
    ModelPart,
    PlannedLora,
    PromptAnalysis,
    SamplingPlan,
    Timings,
)

CHECKPOINT = FileRef(folder="checkpoints", name="sd/small.safetensors", size=9, sha256="c" * 64)
LORAS = (
    PlannedLora(
        file=FileRef(folder="loras", name="styles/ink.safetensors", size=7, sha256="a" * 64),
        title="ink",
        model_strength=0.8,
        clip_strength=0.7,
        origin="recommended",
        confidence=0.9,
        reason="It fits.",
    ),
    PlannedLora(
        file=FileRef(folder="loras", name="Ānime.safetensors"),
        title="Ānime",
        model_strength=-1.0,
        clip_strength=0.0,
        origin="prompt_tag",
        reason="You named it.",
    ),
)


def part(role, *files: FileRef) -> ModelPart:
    return ModelPart(role=role, files=files, dtype="float16", parameters=10, bytes=20)


@pytest.fixture
def make_generation() -> Callable[..., Generation]:
    """A generation with two LoRAs; keyword arguments replace its fields, those of the model
    through `model`."""

    def make(
        id: str = "g1", *, model: dict | None = None, prompt: str = "灯台, crépuscule", **fields
    ):
        plan = GenerationPlan(
            analysis=PromptAnalysis(
                prompt=prompt,
                segments=(prompt,),
                negative_segments=("",),
                spans=(),
                clauses=(),
                concepts=(),
                intent=Intent(style="GENERAL", content="SCENE", quality="HIGH", confidence=0.5),
                complexity=0.2,
                complexity_band="SIMPLE",
            ),
            model=ModelInfo(
                name="small",
                family="sd15",
                family_confidence=1.0,
                evidence="its tensors",
                parts=tuple(
                    part(role, CHECKPOINT) for role in ("diffusion_model", "text_encoder", "vae")
                ),
            ).model_copy(update=model or {}),
            loras=LoraPlan(family="sd15", loras=LORAS, segments=(prompt,)),
            sampling=SamplingPlan(
                steps=8,
                cfg=7.0,
                sampler="euler",
                scheduler="normal",
                width=256,
                height=256,
                strategy="sd15",
                confidence=1.0,
            ),
            seed=2**64 - 1,
        )
        return Generation(
            **{
                "id": id,
                "created_at": "2026-08-01T12:00:00+00:00",
                "mode": "AUTO",
                "plan": plan,
                "timings": Timings(loras=0.1, encode=0.1, sample=1.0, decode=0.1),
                "explanation": "Because.",
                "pack_version": "0.1.0",
                "host": "a test",
                **fields,
            }
        )

    return make
