"""The objects that flow: JSON and back without loss, and what is refused."""

from __future__ import annotations

import json
import random

import pytest
from intelligent_generation.core.errors import PlanError
from intelligent_generation.core.limits import MAX_SEED
from intelligent_generation.core.plan import (
    Clause,
    Concept,
    DeviceMemory,
    Factor,
    FileRef,
    Generation,
    GenerationPlan,
    ImageFile,
    Intent,
    LoraPlan,
    LoraTag,
    MemoryPlan,
    ModelInfo,
    ModelPart,
    Notice,
    PlannedLora,
    PlanObject,
    PromptAnalysis,
    Reason,
    RemoteLora,
    SamplingPlan,
    SkippedLora,
    Span,
    Timings,
)
from pydantic import ValidationError


def analysis(text: str = "a cat, 水彩 (ink:1.3)") -> PromptAnalysis:
    return PromptAnalysis(
        prompt=text + " <lora:ink:0.7:0.1>",
        negative_prompt="blurry",
        segments=(text,),
        negative_segments=("blurry",),
        spans=(Span(text="a cat, 水彩 ", weight=1.0), Span(text="ink", weight=1.3)),
        clauses=(
            Clause(text="a cat", weight=1.0),
            Clause(text="水彩 ink", weight=1.1000000000000001),
        ),
        lora_tags=(LoraTag(name="ink", model_strength=0.7, clip_strength=0.1),),
        concepts=(Concept(category="style", text="ink", weight=1.3),),
        mood=("serene",),
        intent=Intent(style="ARTISTIC", content="OBJECT", quality="MEDIUM", confidence=1 / 3),
        complexity=0.1 + 0.2,
        complexity_band="MODERATE",
        notices=(Notice(level="warning", code="x", message="„Quotes“, \n and \\ too."),),
    )


def generation(seed: int = MAX_SEED) -> Generation:
    rng = random.Random(7)
    file = FileRef(folder="loras", name="stile/tinte ü.safetensors", size=2**40, sha256="ab" * 32)
    return Generation(
        id="0f",
        created_at="2026-01-02T03:04:05+00:00",
        mode="MANUAL",
        plan=GenerationPlan(
            analysis=analysis(),
            model=ModelInfo(
                name="m.safetensors",
                family="sd15",
                variant="lcm",
                family_confidence=0.9,
                evidence="cross attention of width 768",
                parts=(
                    ModelPart(
                        role="diffusion_model", files=(file,), dtype="float16",
                        parameters=3, bytes=6,
                    ),
                ),
                carried_patches=2,
            ),
            loras=LoraPlan(
                family="sd15",
                loras=(
                    PlannedLora(
                        file=file, title="Ink", model_strength=-0.25, clip_strength=rng.random(),
                        origin="stack", trigger_words=("ink wash",), serves=("ink",),
                        confidence=rng.random(),
                        factors=(Factor(name="trigger", value=rng.random(), weight=1e-17),),
                        reason="Yours.",
                    ),
                    PlannedLora(
                        file=FileRef(folder="loras", name="far.safetensors"), title="Far",
                        model_strength=0.8, clip_strength=0.8, origin="recommended", reason="Fits.",
                        remote=RemoteLora(
                            hub="civitai", reference="civitai:1@2", size=2**53 + 1,
                            base_model="SD 1.5", licence="no credit needed", creator="米",
                            page="https://civitai.com/models/1?modelVersionId=2",
                        ),
                        pending=True,
                    ),
                ),
                segments=("a cat", "BREAK'd"),
                skipped=(SkippedLora(name="b", code="conflict", reason="c"),),
                candidates=12,
            ),
            sampling=SamplingPlan(
                steps=20, cfg=7.1, sampler="euler", scheduler="normal", width=512, height=768,
                clip_skip=2, guidance=3.5, shift=1.15, strategy="s", confidence=rng.random(),
                reasons=(Reason(field="cfg", value="7.1", source="user", text="t"),),
            ),
            memory=MemoryPlan(
                device=DeviceMemory(name="cpu", kind="cpu", total_bytes=2**35),
                ram_total_bytes=2**35, dynamic_vram=False, vram_state="DISABLED",
            ),
            seed=seed,
        ),
        images=(ImageFile(filename="a.png", subfolder="x", type="output"),),
        timings=Timings(loras=0.1, encode=rng.random(), sample=1e-9, decode=3.0),
        explanation="because",
        differences=("used steps 3 instead of 4.",),
        pack_version="0",
        host="h",
    )  # fmt: skip


def test_json_and_back_without_loss() -> None:
    record = generation()
    assert Generation.from_json(record.to_json()) == record
    assert Generation.from_json(record.to_json(indent=2)) == record
    # Also by way of any JSON library, as a web page or script would.
    assert Generation.from_data(json.loads(json.dumps(json.loads(record.to_json())))) == record


def test_random_floats_and_seeds_survive() -> None:
    rng = random.Random(1)
    for _ in range(200):
        plan = generation(seed=rng.randrange(MAX_SEED + 1)).plan
        plan = plan.model_copy(
            update={"sampling": plan.sampling.model_copy(update={"cfg": rng.uniform(0, 100)})}
        )
        assert GenerationPlan.from_json(plan.to_json()) == plan


def test_a_model_tells_which_file_it_came_from() -> None:
    model = generation().plan.model
    assert model.checkpoint == "stile/tinte ü.safetensors"
    assert model.model_copy(update={"parts": ()}).checkpoint == ""


def test_objects_cannot_be_changed_and_can_be_hashed() -> None:
    record = generation()
    with pytest.raises(ValidationError):
        record.mode = "AUTO"
    assert hash(record) == hash(generation())


@pytest.mark.parametrize("kind", PlanObject.__subclasses__(), ids=lambda k: k.__name__)
def test_every_object_names_its_kind_and_version(kind: type[PlanObject]) -> None:
    assert kind.KIND == kind.__name__ == kind.model_fields["kind"].default
    assert kind.model_fields["schema_version"].default == 1
    assert kind.__doc__


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema_version": 2}, "Update the node pack"),
        ({"kind": "LoraPlan"}, "kind"),
        ({"seed": -1}, "seed"),
        ({"seed": MAX_SEED + 1}, "seed"),
        ({"seed": None}, "seed"),
        ({"surprise": 1}, "surprise"),
        ({"sampling": {"steps": 0}}, "sampling.steps"),
        ({"sampling": {"width": 513}}, "sampling.width"),
        ({"sampling": {"cfg": 1e400}}, "sampling.cfg"),
    ],
)
def test_a_wrong_field_is_refused_by_name(change: dict, said: str) -> None:
    data = json.loads(generation().plan.to_json())
    for key, value in change.items():
        if isinstance(value, dict):
            data[key].update(value)
        else:
            data[key] = value
    with pytest.raises(PlanError, match=said):
        GenerationPlan.from_data(data)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"x"'])
def test_what_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(PlanError):
        GenerationPlan.from_json(text)


def test_a_pending_lora_says_where_to_get_it() -> None:
    lora = generation().plan.loras.loras[1]
    assert generation().plan.loras.pending == (lora,)
    data = generation().plan.loras.model_dump(mode="json")
    data["loras"][1]["remote"] = None
    with pytest.raises(PlanError, match=r"loras\.1: .*a pending LoRA needs remote"):
        LoraPlan.from_data(data)


def test_plans_of_before_there_were_remote_loras_are_read() -> None:
    data = generation().plan.loras.model_dump(mode="json")
    del data["loras"][0]["remote"], data["loras"][0]["pending"]
    assert LoraPlan.from_data(data) == generation().plan.loras
