"""A finished run in words: what was chosen, why, what was left out, how long it took."""

from __future__ import annotations

from collections.abc import Sequence, Set

from ..hubs.wording import describe_remote
from ..plan import (
    Concessions,
    Factor,
    GenerationPlan,
    LoraPlan,
    Mode,
    ModelInfo,
    Notice,
    PlannedLora,
    Reason,
    RunCost,
    SamplingPlan,
    SecondPass,
    SkippedLora,
    Timings,
)

SHOWN_FACTORS = 4


def explain(
    plan: GenerationPlan,
    *,
    mode: Mode,
    skipped: Sequence[SkippedLora],
    notices: Sequence[Notice],
    differences: Sequence[str],
    timings: Timings,
    cost: RunCost | None = None,
) -> str:
    """The explanation as plain text, one finding a line, sections set apart by blank lines.

    Args:
        skipped: LoRAs left out, by the recommender or while applying.
        differences: MANUAL only: what AUTO would have chosen instead.
        cost: what the run was predicted to take, and took.
    """
    sections = [
        [_summary(plan, mode)],
        _model(plan.model),
        _loras(plan.loras, {item.name for item in skipped}),
        _reasons(plan.sampling.reasons),
        _prompt(plan),
        [f"Left out: {item.name}: {item.reason}" for item in skipped],
        [f"AUTO would have: {line}" for line in differences],
        [f"{_LEVEL[notice.level]}: {notice.message}" for notice in _unique(notices)],
        [_performance(timings), *_concessions(plan.concessions), *_prediction(cost)],
    ]
    return "\n\n".join("\n".join(section) for section in sections if section)


_LEVEL = {"info": "Note", "warning": "Warning", "error": "Error"}


def _summary(plan: GenerationPlan, mode: Mode) -> str:
    sampling, model = plan.sampling, plan.model
    family = model.family + (f" {model.variant}" if model.variant else "")
    count = len(plan.loras.loras)
    loras = "no LoRA" if count == 0 else f"{count} LoRA" + ("s" if count > 1 else "")
    batch = f", {sampling.batch_size} images" if sampling.batch_size > 1 else ""
    spaced = sampling.sigmas or sampling.scheduler
    again = f" and {_second(sampling.second_pass)}" if sampling.second_pass else ""
    return (
        f"{mode}: {model.name} ({family}), {loras}, {sampling.steps} steps of {sampling.sampler}/"
        f"{spaced}, CFG {sampling.cfg:g}, {sampling.width}×{sampling.height}{again}{batch}, "
        f"seed {plan.seed}. Prompt complexity {plan.analysis.complexity:.2f} "
        f"({plan.analysis.complexity_band})."
    )


def _second(one: SecondPass) -> str:
    return (
        f"a second pass at {one.width}×{one.height} ({one.steps} steps of {one.sampler}/"
        f"{one.scheduler}, denoise {one.denoise:g})"
    )


def describe_loras(plan: LoraPlan) -> str:
    """A LoRA plan alone in words: what was chosen, why, and what was left out."""
    lines = _loras(plan, frozenset())
    lines += [f"Left out: {item.name}: {item.reason}" for item in plan.skipped]
    lines += [f"{_LEVEL[notice.level]}: {notice.message}" for notice in plan.notices]
    return "\n".join(lines)


def describe_model_choice(model: ModelInfo) -> str:
    """Which model it is and why, in words."""
    family = model.family + (f" {model.variant}" if model.variant else "")
    lines = [f"{model.name}: {family}, by {model.evidence}."]
    lines += _model(model) or ["Chosen by you."]
    lines += [f"{_LEVEL[notice.level]}: {notice.message}" for notice in model.notices]
    return "\n".join(lines)


def _model(model: ModelInfo) -> list[str]:
    choice = model.choice
    if choice is None:
        return []
    others = f", of {choice.candidates} checkpoints" if choice.candidates > 1 else ""
    return [
        f"Model {model.name}{others}: {choice.reason}",
        f"  Score {choice.score:.2f}. {_evidence(choice.factors)}",
        *(f"  Not taken: {item.name}: {item.reason}" for item in choice.alternatives),
    ]


def _loras(plan: LoraPlan, skipped: Set[str]) -> list[str]:
    lines = []
    for lora in plan.loras:
        strength = f"{lora.model_strength:g}"
        if lora.clip_strength != lora.model_strength:
            strength += f" (text encoder {lora.clip_strength:g})"
        lines.append(f"LoRA {lora.title} at {strength}{_origin(lora)}: {lora.reason}")
        if lora.trigger_words:
            lines.append(f"  Trigger words added: {', '.join(lora.trigger_words)}.")
        if lora.factors:
            lines.append(f"  Confidence {lora.confidence:.2f}. {_evidence(lora.factors)}")
        if lora.remote is not None:
            here = "Not on this machine" if lora.pending else "Fetched"
            lines.append(f"  {here}: {describe_remote(lora.remote)}.")
        if lora.file.name in skipped:
            lines.append("  It was not applied in this run; see below.")
    return lines or ["No LoRA: none in the library fits this prompt and model well enough."]


def _evidence(factors: Sequence[Factor]) -> str:
    """The factors that spoke for it, the strongest first, as shares of all that did."""
    score = {factor.name: factor.value * factor.weight for factor in factors}
    positive = sorted(
        ((name, value) for name, value in score.items() if value > 0), key=lambda item: -item[1]
    )
    total = sum(value for _, value in positive)
    shares = (
        f"{name.replace('_', ' ')} {value / total:.0%}" for name, value in positive[:SHOWN_FACTORS]
    )
    return f"Evidence: {', '.join(shares)}." if positive else "Nothing speaks for it by itself."


def _origin(lora: PlannedLora) -> str:
    return {
        "prompt_tag": ", your tag",
        "stack": ", your LORA_STACK",
        "reference": ", your reference",
        "recommended": "",
    }[lora.origin]


def _reasons(reasons: Sequence[Reason]) -> list[str]:
    return [f"{reason.field} = {reason.value}: {reason.text}" for reason in reasons]


def _prompt(plan: GenerationPlan) -> list[str]:
    lines = []
    if plan.loras.segments != plan.analysis.segments or len(plan.loras.segments) > 1:
        lines.append("Encoded prompt: " + " | ".join(plan.loras.segments))
    intent, model = plan.analysis.intent, plan.analysis.language_model
    reader = f" by {model} in Ollama" if model else ""
    lines.append(
        f"Read{reader} as {intent.style} / {intent.content} / {intent.quality} "
        f"(confidence {intent.confidence:.2f})."
    )
    return lines


def _unique(notices: Sequence[Notice]) -> list[Notice]:
    return list(dict.fromkeys(notices))


def _performance(timings: Timings) -> str:
    again = f"second pass {timings.refine:.2f}, " if timings.refine else ""
    return (
        f"Time: {timings.total:.2f} s (LoRAs {timings.loras:.2f}, text {timings.encode:.2f}, "
        f"sampling {timings.sample:.2f}, {again}decoding {timings.decode:.2f})."
    )


def _concessions(conceded: Concessions) -> list[str]:
    lines = []
    if conceded.tiled_decode:
        lines.append("To save memory: decoded in tiles of 512 pixels.")
    if conceded.images_at_once is not None:
        lines.append(f"To save memory: {conceded.images_at_once} of the batch at a time.")
    return lines


def _prediction(cost: RunCost | None) -> list[str]:
    if cost is None:
        return []
    basis = "the model's size and this machine's speed"
    if cost.runs:
        basis = f"{cost.runs} earlier run{'s' if cost.runs > 1 else ''} of this size and batch"
    memory = ""
    if cost.memory_bytes is not None and cost.memory_error is not None:
        memory = f", and {_gib(cost.predicted_memory_bytes)} of memory ({cost.memory_error:+.0%})"
    return [
        f"Predicted from {basis}: {cost.predicted_seconds:.2f} s ({cost.time_error:+.0%}){memory}."
    ]


def _gib(count: int) -> str:
    return f"{count / 1024**3:.2f} GiB"


def difference(
    taken: GenerationPlan, auto: GenerationPlan, *, compare_seed: bool = False
) -> tuple[str, ...]:
    """What AUTO would have done otherwise than the plan taken, one sentence each.

    Args:
        compare_seed: whether AUTO's seed was set, not drawn.
    """
    lines = []
    if compare_seed and taken.seed != auto.seed:
        lines.append(f"used seed {auto.seed} instead of {taken.seed}.")
    for field in SamplingPlan.DECISIVE:
        mine, theirs = getattr(taken.sampling, field), getattr(auto.sampling, field)
        if mine != theirs:
            lines.append(f"used {field} {_shown(theirs)} instead of {_shown(mine)}.")
    mine = {lora.file.name: lora for lora in taken.loras.loras}
    theirs = {lora.file.name: lora for lora in auto.loras.loras}
    for name, lora in theirs.items():
        if name not in mine:
            lines.append(f"added LoRA {lora.title} at {lora.model_strength:g}.")
        elif lora.model_strength != mine[name].model_strength:
            lines.append(
                f"used LoRA {lora.title} at {lora.model_strength:g} instead of "
                f"{mine[name].model_strength:g}."
            )
    lines += [f"left out LoRA {lora.title}." for name, lora in mine.items() if name not in theirs]
    if taken.loras.segments != auto.loras.segments:
        lines.append(f"encoded the prompt as: {' | '.join(auto.loras.segments)}")
    return tuple(lines)


def _shown(value: object) -> str:
    if isinstance(value, SecondPass):
        return _second(value)
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
