"""The explanation names what was chosen, why, and what was left out."""

from __future__ import annotations

from intelligent_generation.core.generating import explain
from intelligent_generation.core.plan import Factor, Notice, Reason, SkippedLora, Timings


def test_everything_that_was_decided_is_in_it(make_generation):
    plan = make_generation().plan
    first, second = plan.loras.loras
    factors = (
        Factor(name="trigger", value=1.0, weight=3.0),
        Factor(name="tags", value=0.5, weight=2.0),
        Factor(name="prior", value=1.0, weight=-4.0),
    )
    first = first.model_copy(update={"trigger_words": ("ink wash",), "factors": factors})
    reason = Reason(field="steps", value="8", source="family", text="Because of a table.")
    plan = plan.model_copy(
        update={
            "loras": plan.loras.model_copy(update={"loras": (first, second)}),
            "sampling": plan.sampling.model_copy(update={"reasons": (reason,)}),
        }
    )
    notice = Notice(level="warning", code="x", message="Look out.")
    text = explain(
        plan,
        mode="MANUAL",
        skipped=[SkippedLora(name=second.file.name, code="keys_unmatched", reason="No key fits.")],
        notices=[notice, notice],
        differences=["used steps 9 instead of 8."],
        timings=Timings(loras=0.25, encode=0.5, sample=1.0, decode=0.25),
    )
    for said in (
        f"seed {plan.seed}",
        f"LoRA {first.title} at 0.8 (text encoder 0.7): It fits.",
        "Trigger words added: ink wash.",
        "trigger 75%, tags 25%",
        f"LoRA {second.title} at -1",
        "your tag",
        "It was not applied in this run",
        f"Left out: {second.file.name}: No key fits.",
        "steps = 8: Because of a table.",
        "AUTO would have: used steps 9 instead of 8.",
        "Time: 2.00 s",
    ):
        assert said in text
    assert text.count("Look out.") == 1
    assert "prior" not in text


def test_no_lora_is_said_too(make_generation):
    plan = make_generation().plan
    plan = plan.model_copy(update={"loras": plan.loras.model_copy(update={"loras": ()})})
    text = explain(
        plan, mode="AUTO", skipped=(), notices=(), differences=(),
        timings=Timings(loras=0, encode=0, sample=0, decode=0),
    )  # fmt: skip
    assert "no LoRA" in text
