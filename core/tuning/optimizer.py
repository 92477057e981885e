"""Chooses how to sample: PromptAnalysis + ModelInfo -> SamplingPlan.

Every figure comes from sampling.json and published.json; this module reads their rules, honours
the user's own values, and says why. Where costs are known it also weighs the plans around the one
that the rules give (candidates.py): a limit of time or memory, the priority MEMORY, or ratings may
choose one of those.

Where the requirements for SD 1.5 and SDXL contradict themselves, these hold:

- The published steps table is the rule (its code left SPEED and QUALITY undefined); the other
  formula for steps is not used. A complex prompt at QUALITY gives its 55 steps. The acceptance
  prompt is of moderate complexity, as the analyzer is calibrated, and gets 45 of its 30 to 50.
- CFG is 7.0 for anime, 9.5 for photographs, 8.0 else, and 1.0 more for complex prompts; every
  value lies in the ranges given with it. An empty negative prompt does not lower it.
- QUALITY with anime asks for DPM++ 2M, the acceptance for DPM++ 2M Karras or Euler a: DPM++ 2M
  runs on the Karras schedule always.
- Sizes are those the family was trained at. "High detail x 1.5" belongs to a second pass: above
  its own size SD 1.5 repeats its subject. The size does not shrink with VRAM either, because
  ComfyUI fits memory by moving weights, and a model below its own size draws badly.
- Families with figures of their own (SD 2, Pony, Illustrious, NoobAI, everything newer, and every
  distilled variant) keep those.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from ..errors import HostError, SettingError
from ..plan import (
    Estimate,
    ModelInfo,
    Notice,
    Priority,
    PromptAnalysis,
    Reason,
    SamplingPlan,
    SecondPass,
)
from .aspects import nearest_size, wanted_aspect
from .candidates import (
    Found,
    Limits,
    RatedSettings,
    Settings,
    Space,
    pairs_of,
    search,
    shown,
)
from .cost import Cost, Work
from .passes import SecondPassWish, second_pass, second_pass_share
from .rows import Choice, Row, Situation, Table, Task, resolve

_LOW_FAMILY_CONFIDENCE = 0.5
_FALLBACK_CONFIDENCE = 0.9
"""Factor on the confidence when the host lacks the sampler that the row names first."""
_SMALL, _LARGE = 0.5, 2.25
"""Own sizes outside these multiples of the family's pixel count are remarked on; 2.25 is the
one-and-a-half-fold width and height up to which people run models in one pass."""
_HIGH_CFG = 2.0
"""Highest CFG that any publisher of a distilled model names (LCM: 1 to 2)."""


class SamplingOverrides(NamedTuple):
    """Values the user set. None: choose."""

    steps: int | None = None
    """1 to 10,000."""
    cfg: float | None = None
    """0 to 100."""
    sampler: str | None = None
    """A name in the host's list of samplers."""
    scheduler: str | None = None
    """A name in the host's list of schedulers."""
    width: int | None = None
    """Pixels, 16 to 16,384, a multiple of 8. Alone, the height follows the chosen shape."""
    height: int | None = None
    """Likewise."""
    clip_skip: int | None = None
    """1 (last layer) to 24."""
    guidance: float | None = None
    """Embedded guidance, 0 to 100."""
    shift: float | None = None
    """Flow-matching time shift, above 0 to 100."""


NO_LIMITS = Limits()
_GIB = 1024**3
_SAME_SIZE = 0.1
"""A trained size whose sides differ less than this share from the family's own changes nothing."""
_FINEST_STEP = 16
"""Pixels: what every latent model with patches of two takes."""
_RANGES = {
    "steps": (1, 10_000),
    "cfg": (0.0, 100.0),
    "width": (16, 16_384),
    "height": (16, 16_384),
    "clip_skip": (1, 24),
    "guidance": (0.0, 100.0),
    "shift": (0.01, 100.0),
}
_NAMES = {
    "steps": "steps",
    "cfg": "CFG",
    "sampler": "sampler",
    "scheduler": "scheduler",
    "clip_skip": "clip skip",
    "guidance": "guidance",
    "shift": "shift",
}


def optimize(
    analysis: PromptAnalysis,
    model: ModelInfo,
    *,
    samplers: Collection[str],
    schedulers: Collection[str],
    sigma_nodes: Collection[str] = (),
    priority: Priority = "BALANCED",
    overrides: SamplingOverrides = SamplingOverrides(),  # noqa: B008 (immutable)
    batch_size: int = 1,
    accelerators: Sequence[str] = (),
    task: Task = "t2i",
    wish: SecondPassWish = "auto",
    costs: Callable[[Work], Cost] | None = None,
    limits: Limits = NO_LIMITS,
    ratings: Sequence[RatedSettings] = (),
    table: Table | None = None,
) -> SamplingPlan:
    """The sampling plan for a prompt on a model. Pure: the same input gives the same plan.

    Args:
        samplers: names the host's KSampler takes; a row's sampler that is not among them gives
            way to the row's next one, with a notice.
        schedulers: likewise for schedulers.
        sigma_nodes: scheduler nodes that the host has; a row's own is used where it is among
            them and the user sets neither sampler nor scheduler.
        priority: SPEED and QUALITY take the family's shorter and longer runs; MEMORY takes
            BALANCED's, and of the plans that experts would count as the same, the one that needs
            the least memory.
        overrides: the user's own values; they beat every chosen one.
        batch_size: images a run, 1 to 4096; taken as it is.
        accelerators: variants of the planned LoRAs that accelerate (lightning, turbo, lcm,
            hyper, dmd); the first one decides. With the steps that it was made for where those
            are known: `lightning 4`.
        task: what the model is to do; experts sample an edit otherwise than a new image.
        wish: whether to plan a second pass; `auto` does where quality asks for it (passes.py).
        costs: what a run takes on this machine. None: the plan has no estimate and no front.
        limits: hard; where no plan keeps them, the one that breaks them least is taken, with a
            notice of level `error` that says what gives. They need `costs`.
        ratings: of earlier images of this model, style and priority.
        table: other rows than those of this pack, to measure them.

    Raises:
        SettingError: an override or limit that is out of range, not in the host's lists, or a
            setting that this family of models does not have.
        HostError: the host has none of the samplers that the family's row names.
    """
    _check_ranges(overrides, batch_size)
    _check_limits(limits)
    _check_name("sampler", overrides.sampler, samplers)
    _check_name("scheduler", overrides.scheduler, schedulers)
    row, row_notices = resolve(
        model.family,
        model.variant,
        accelerators,
        trained_steps=model.trained_steps,
        nearest=model.nearest,
        task=task,
        table=table,
    )
    _check_taken(row, overrides)

    decide = _Decider(
        row,
        {
            "priority": "BALANCED" if priority == "MEMORY" else priority,
            "complexity": analysis.complexity_band,
            "style": analysis.intent.style,
            "content": analysis.intent.content,
        },
        overrides,
    )
    steps, cfg = decide.value("steps"), decide.value("cfg")
    sampler, scheduler, fell_back = decide.sampler(samplers, schedulers)
    width, height = decide.size(analysis, model.trained_size)
    anchor = Settings(steps, cfg, sampler, scheduler, width, height, None)
    again, why = second_pass(
        anchor,
        model,
        wish=wish,
        priority=priority,
        quality=analysis.intent.quality,
        native_pixels=decide.native_pixels,
        task=task,
        accelerators=accelerators,
        samplers=samplers,
        schedulers=schedulers,
        table=table,
    )
    if again is not None:
        decide.second_pass(again, why)
        anchor = anchor._replace(second=again)
    plan = SamplingPlan(
        steps=steps,
        cfg=cfg,
        sampler=sampler,
        scheduler=scheduler,
        sigmas=decide.sigmas(sigma_nodes),
        width=width,
        height=height,
        batch_size=batch_size,
        clip_skip=decide.value("clip_skip"),
        guidance=decide.value("guidance"),
        shift=decide.value("shift"),
        second_pass=again,
        priority=priority,
        max_seconds=limits.seconds,
        max_memory_bytes=limits.memory_bytes,
        strategy=f"{row.label} + {priority}",
        confidence=round(
            row.confidence * model.family_confidence * (_FALLBACK_CONFIDENCE if fell_back else 1),
            3,
        ),
    )
    if costs is not None:
        space = decide.space(anchor, analysis, samplers, schedulers)
        if again is not None:
            space = space._replace(second_pass_share=second_pass_share(model.family, table))
        found = search(
            space, costs, batch=batch_size, priority=priority, limits=limits, ratings=ratings
        )
        plan = decide.found(plan, found, limits)
    notices = (
        *_family_notices(model),
        *row_notices,
        *decide.notices,
        *_plan_notices(plan, row, decide.native_pixels, analysis),
    )
    return plan.model_copy(update={"reasons": tuple(decide.reasons), "notices": notices})


class _Decider:
    """Makes each value of one plan and keeps the reasons."""

    def __init__(self, row: Row, situation: Situation, overrides: SamplingOverrides) -> None:
        self.row = row
        self.situation = situation
        self.overrides = overrides
        self.reasons: list[Reason] = []
        self.notices: list[Notice] = []
        self.native_pixels = 0

    def value(self, field: str) -> Any:
        own = getattr(self.overrides, field)
        choice = self.row.choices.get(field)
        chosen = choice.rule(self.situation).value if choice else None
        if own is not None:
            self._by_user(field, _number(own), None if chosen is None else _number(chosen))
            return own
        if choice and chosen is not None:
            self._by_row(field, _number(chosen), choice, _number)
        return chosen

    def sampler(
        self, samplers: Collection[str], schedulers: Collection[str]
    ) -> tuple[str, str, bool]:
        """(sampler, scheduler, whether the host lacks the pair that the row names first)."""
        choice = self.row.choices["samplers"]
        own = self.overrides.sampler, self.overrides.scheduler
        pairs = choice.rule(self.situation).value
        # What the row pairs with the user's own name comes first; sorted() keeps the row's order.
        ranked = sorted(pairs, key=lambda pair: _mismatches(pair, own))
        wanted = [(own[0] or first, own[1] or second) for first, second in ranked]
        chosen = next((w for w in wanted if w[0] in samplers and w[1] in schedulers), None)
        if chosen is None:
            raise HostError(
                f"This ComfyUI has none of the samplers for {self.row.title}: "
                f"{', '.join(' with '.join(pair) for pair in wanted)}. Set sampler and scheduler "
                "to ones it has, or update ComfyUI."
            )
        fell_back = chosen != wanted[0]
        if fell_back:
            self.notices.append(
                Notice(
                    level="warning",
                    code="sampler_unavailable",
                    message=f"This ComfyUI lacks {' with '.join(wanted[0])}, the first choice for "
                    f"{self.row.title}; {' with '.join(chosen)} is used. Update ComfyUI to get it.",
                )
            )
        for place, field in enumerate(("sampler", "scheduler")):
            if own[place] is not None:
                self._by_user(field, chosen[place], pairs[0][place])
            else:
                self._by_row(field, chosen[place], choice, lambda v, place=place: v[0][place])
        return *chosen, fell_back

    def sigmas(self, sigma_nodes: Collection[str]) -> str | None:
        """The scheduler node of the family's own graph, where the host has it."""
        own = self.overrides.sampler, self.overrides.scheduler
        name = self.row.sigmas
        if name is None or own != (None, None) or name not in sigma_nodes:
            return None
        text = (
            f"The steps are spaced by {name}, as in the own graph of {self.row.title}; a KSampler "
            "comes nearest to it with the scheduler named here. A sampler or scheduler of your own "
            "turns it off."
        )
        self._reason("sigmas", name, "family", text)
        return name

    def size(self, analysis: PromptAnalysis, trained: tuple[int, int] | None) -> tuple[int, int]:
        """(width, height) in pixels."""
        choice = self.row.choices["sizes"]
        sizes = choice.rule(self.situation).value
        whose = f"of {self.row.title} ({choice.source})"
        if trained is not None:
            scale = math.sqrt(math.prod(trained) / math.prod(sizes[0]))
            if not 1 - _SAME_SIZE < scale < 1 + _SAME_SIZE:
                sizes = [_scaled(size, scale, self.row.multiple) for size in sizes]
                whose = f"of this model, whose header says that it was trained at {_shape(trained)}"
        self.native_pixels = sizes[0][0] * sizes[0][1]
        aspect = wanted_aspect(analysis)
        width, height = nearest_size(sizes, aspect.ratio) if aspect else sizes[0]
        own = self.overrides
        if own.width is not None or own.height is not None:
            taken = (
                own.width or self._rounded(own.height, width / height),
                own.height or self._rounded(own.width, height / width),
            )
            self._by_user("resolution", _shape(taken), _shape((width, height)))
            return taken
        if aspect:
            text = (
                f"{_shape((width, height))} is the size {whose} "
                f"nearest to {aspect.ratio:.2f}:1, the shape that {aspect.evidence} asks for; "
                f"without it the size would be {_shape(sizes[0])}."
            )
            self._reason("resolution", _shape((width, height)), "intent", text)
        else:
            text = (
                f"{_shape((width, height))} is the own size {whose}; "
                "words for a shape such as portrait, 16:9 or wallpaper in the prompt would change "
                "it."
            )
            self._reason("resolution", _shape((width, height)), "family", text)
        return width, height

    def second_pass(self, planned: SecondPass, why: str) -> None:
        """Say that there is one, and why."""
        shown_pass = f"{_shape((planned.width, planned.height))}, {planned.steps} steps"
        self._reason("second pass", shown_pass, "priority", why)

    def space(
        self,
        anchor: Settings,
        analysis: PromptAnalysis,
        samplers: Collection[str],
        schedulers: Collection[str],
    ) -> Space:
        """What may be varied around the chosen values."""
        choice = self.row.choices["steps"]
        own = self.overrides
        fixed = {
            "steps": own.steps is not None,
            "cfg": own.cfg is not None,
            # A scheduler node of its own takes no other sampler's figures.
            "pair": (own.sampler, own.scheduler) != (None, None) or self.row.sigmas is not None,
            "size": (own.width, own.height) != (None, None),
        }
        at = {p: {**self.situation, "priority": p} for p in ("SPEED", "BALANCED", "QUALITY")}
        pairs = pairs_of(
            self.row.published.get("samplers", ()),
            self.row.choices["samplers"].rule(self.situation).value,
            anchor.pair,
            samplers,
            schedulers,
        )
        aspect = wanted_aspect(analysis)
        return Space(
            anchor=anchor,
            steps=tuple(choice.rule(situation).value for situation in at.values()),
            # What the requirements settle, and what an accelerating LoRA brings, experts'
            # figures for the plain family say nothing about.
            published_steps=()
            if choice.settled or choice.by_lora
            else self.row.published.get("steps", ()),
            needed_steps=min(anchor.steps, choice.rule(at["BALANCED"]).value),
            distilled=self.row.distilled,
            pairs=() if fixed["pair"] else pairs,
            aspect=None if aspect is None or fixed["size"] else aspect.ratio,
            multiple=self.row.multiple,
            fixed=frozenset(name for name, is_fixed in fixed.items() if is_fixed),
        )

    def found(self, plan: SamplingPlan, found: Found, limits: Limits) -> SamplingPlan:
        """The plan with the chosen candidate's values, its estimate and the front."""
        chosen, anchor = found.chosen, found.anchor
        settings = chosen.settings
        cost = chosen.cost
        self._by_candidate(found, limits)
        self._reason("time", f"{cost.seconds:.1f} s", "machine", _basis(cost))
        self._reason(
            "memory",
            f"{cost.memory_bytes / _GIB:.1f} GiB",
            "machine",
            "the peak on the device that samples, weights included.",
        )
        if not found.feasible:
            self.notices.append(_limits_broken(found, limits))
        changed = settings.pair != anchor.settings.pair
        return plan.model_copy(
            update={
                "steps": settings.steps,
                "cfg": settings.cfg,
                "sampler": settings.sampler,
                "scheduler": settings.scheduler,
                "sigmas": None if changed else plan.sigmas,
                "width": settings.width,
                "height": settings.height,
                "second_pass": settings.second,
                "estimate": Estimate(
                    quality=round(chosen.quality, 3),
                    fidelity=round(chosen.fidelity, 3),
                    seconds=round(cost.seconds, 3),
                    memory_bytes=cost.memory_bytes,
                    runs=cost.runs,
                    error=None if cost.error is None else round(cost.error, 3),
                ),
                "front": shown(found),
            }
        )

    def _by_candidate(self, found: Found, limits: Limits) -> None:
        """Put the chosen candidate's values in place of the anchor's among the reasons."""
        chosen, anchor = found.chosen.settings, found.anchor.settings
        if chosen == anchor:
            return
        source, because = _why_another(found, limits)
        fields = {
            "steps": (chosen.steps, anchor.steps),
            "cfg": (chosen.cfg, anchor.cfg),
            "sampler": (chosen.sampler, anchor.sampler),
            "scheduler": (chosen.scheduler, anchor.scheduler),
            "resolution": (
                _shape((chosen.width, chosen.height)),
                _shape((anchor.width, anchor.height)),
            ),
            "second pass": (_pass_shown(chosen.second), _pass_shown(anchor.second)),
        }
        for field, (value, before) in fields.items():
            if value == before:
                continue
            new, old = (v if isinstance(v, str) else _number(v) for v in (value, before))
            text = f"{_NAMES.get(field, field)} {new} in place of {old}: {because}."
            place = next(i for i, reason in enumerate(self.reasons) if reason.field == field)
            self._reason(field, new, source, text)
            self.reasons[place] = self.reasons.pop()

    def _rounded(self, side: int | None, ratio: float) -> int:
        # The other side of a size of which the user gave one, in the family's multiples.
        step = self.row.multiple
        wanted = max(step, round((side or 0) * ratio / step) * step)
        return min(wanted, _RANGES["width"][1])

    def _by_user(self, field: str, shown: str, chosen: str | None) -> None:
        name = _NAMES.get(field, field)
        own = (
            "that is also what would have been chosen"
            if shown == chosen
            else f"left to the pack it would be {chosen}"
            if chosen is not None
            else "left to the pack it would stay the model's own"
        )
        self._reason(field, shown, "user", f"{name} {shown} is your own setting; {own}.")

    def _by_row(self, field: str, shown: str, choice: Choice, show: Any) -> None:
        rule = choice.rule(self.situation)
        when = dict(rule.when)
        if choice.by_lora:
            source = "lora"
        elif when.get("priority", "BALANCED") != "BALANCED":
            source = "priority"
        elif "complexity" in when:
            source = "complexity"
        elif "style" in when or "content" in when:
            source = "intent"
        else:
            source = "family"
        why = f" for {', '.join(f'{d} {v}' for d, v in rule.when)}" if when else ""
        others: dict[str, dict[str, list[str]]] = {}
        for domain, other, value in choice.alternatives(self.situation):
            other_shown = "the model's own" if value is None else show(value)
            if other_shown != shown:
                others.setdefault(domain, {}).setdefault(other_shown, []).append(other)
        change = (
            "; ".join(
                f"another {domain} would make it "
                + ", ".join(f"{v} ({' or '.join(names)})" for v, names in by_value.items())
                for domain, by_value in others.items()
            )
            or "only another model or your own setting changes it"
        )
        name = _NAMES[field]
        text = f"{name} {shown} is the figure of {self.row.label}{why} ({choice.source}); {change}."
        self._reason(field, shown, source, text)

    def _reason(self, field: str, shown: str, source: Any, text: str) -> None:
        text = text[0].upper() + text[1:]
        self.reasons.append(Reason(field=field, value=shown, source=source, text=text))


# --------------------------------------------------------------------------- checks


def _check_ranges(overrides: SamplingOverrides, batch_size: int) -> None:
    for field, (low, high) in _RANGES.items():
        value = getattr(overrides, field)
        # Written so that NaN fails too.
        if value is not None and not low <= value <= high:
            raise SettingError(f"{field} is {value}; it goes from {low:g} to {high:g}.")
    for field in ("width", "height"):
        value = getattr(overrides, field)
        if value is not None and value % 8:
            raise SettingError(
                f"{field} is {value}, which is not a multiple of 8. Use {value // 8 * 8 or 16} or "
                f"{value // 8 * 8 + 8}."
            )
    if not 1 <= batch_size <= 4096:
        raise SettingError(f"batch_size is {batch_size}; it goes from 1 to 4096.")


def _check_limits(limits: Limits) -> None:
    for field, value in limits._asdict().items():
        # Written so that NaN fails too.
        if value is not None and not 0 < value < math.inf:
            raise SettingError(f"The limit of {field} is {value}; it must be above 0.")


def _check_name(field: str, name: str | None, known: Collection[str]) -> None:
    if name is not None and name not in known:
        raise SettingError(
            f"{field} {name!r} is not one that this ComfyUI has. Use one of: "
            f"{', '.join(sorted(known))}."
        )


def _check_taken(row: Row, overrides: SamplingOverrides) -> None:
    for field in ("clip_skip", "guidance", "shift"):
        if getattr(overrides, field) is not None and field not in row.takes:
            raise SettingError(
                f"{field} is set to {getattr(overrides, field):g}, but {row.title} has no "
                f"{_NAMES[field]}. Leave {field} unset for this model."
            )


# --------------------------------------------------------------------------- notices


def _family_notices(model: ModelInfo) -> list[Notice]:
    if model.family == "unknown" or model.family_confidence >= _LOW_FAMILY_CONFIDENCE:
        return []
    return [
        Notice(
            level="warning",
            code="family_uncertain",
            message=f"{model.name} is taken for {model.family} with a confidence of only "
            f"{model.family_confidence:.2f} ({model.evidence}). If the image looks wrong, set "
            "steps, CFG, sampler and size by its model card.",
        )
    ]


def _limits_broken(found: Found, limits: Limits) -> Notice:
    chosen, settings = found.chosen, found.chosen.settings
    over = []
    advice = []
    if limits.seconds is not None and chosen.cost.seconds > limits.seconds:
        over.append(f"{chosen.cost.seconds:.1f} s of {limits.seconds:g} s")
        advice.append(f"max_seconds to {math.ceil(chosen.cost.seconds)}")
    if limits.memory_bytes is not None and chosen.cost.memory_bytes > limits.memory_bytes:
        need, limit = chosen.cost.memory_bytes / _GIB, limits.memory_bytes / _GIB
        over.append(f"{need:.1f} GiB of {limit:.1f} GiB")
        advice.append(f"max_vram_gb to {math.ceil(need * 10) / 10:g}")
    return Notice(
        level="error",
        code="limits_not_met",
        message=f"No plan keeps the limits. The closest has {settings.steps} steps at "
        f"{_shape((settings.width, settings.height))} and takes {' and '.join(over)}; it is run "
        f"all the same. Raise {' and '.join(advice)}, make fewer images at once, free the values "
        "that you set yourself, or take a smaller or distilled model (Turbo, Lightning, LCM).",
    )


def _plan_notices(
    plan: SamplingPlan, row: Row, native_pixels: int, analysis: PromptAnalysis
) -> list[Notice]:
    notices = []
    if plan.cfg == 1.0 and analysis.negative_prompt.strip():
        notices.append(
            Notice(
                level="info",
                code="negative_prompt_unused",
                message="The negative prompt has no effect at CFG 1: the model runs without "
                "classifier-free guidance. Say in the prompt what you want instead.",
            )
        )
    if row.distilled and plan.cfg > _HIGH_CFG:
        notices.append(
            Notice(
                level="warning",
                code="cfg_high_for_distilled",
                message=f"CFG {plan.cfg:g} is your own setting, but {row.label} was trained to run "
                "without guidance; images burn above about 2. Set CFG to 1.",
            )
        )
    ratio = plan.width * plan.height / native_pixels
    if not _SMALL <= ratio <= _LARGE:
        side = math.isqrt(native_pixels)
        effect = "blurred or malformed" if ratio < 1 else "repeated"
        notices.append(
            Notice(
                level="info",
                code="size_far_from_native",
                message=f"{plan.width}×{plan.height} has {ratio:.2g} times the pixels that "
                f"the model was trained at (about {side}×{side}); subjects may come out "
                f"{effect}.",
            )
        )
    return notices


# --------------------------------------------------------------------------- showing


def _basis(cost: Cost) -> str:
    if not cost.runs:
        return (
            "predicted from the model's size, the speed of this machine, and other runs; the first "
            "run of this size and batch corrects it."
        )
    off = "" if cost.error is None else f"; those were predicted {cost.error:.0%} off"
    runs = f"the last {cost.runs} runs" if cost.runs > 1 else "the last run"
    return f"predicted from {runs} of this size and batch on this machine{off}."


def _why_another(found: Found, limits: Limits) -> tuple[str, str]:
    # The source of the reason, and the rest of its sentence.
    anchor = found.anchor
    if anchor.exceeds(limits) > 1:
        needs = []
        if limits.seconds is not None and anchor.cost.seconds > limits.seconds:
            needs.append(f"{anchor.cost.seconds:.1f} s, above your {limits.seconds:g} s")
        if limits.memory_bytes is not None and anchor.cost.memory_bytes > limits.memory_bytes:
            need, limit = anchor.cost.memory_bytes / _GIB, limits.memory_bytes / _GIB
            needs.append(f"{need:.1f} GiB, above your {limit:.1f} GiB")
        return "limit", f"that plan would take {' and '.join(needs)}; a higher limit brings it back"
    if found.chosen.taught > 0:
        return "ratings", "your ratings of such images speak for it; other ratings change it"
    return (
        "priority",
        "priority MEMORY takes the least memory that experts would count as the same; another "
        "priority brings it back",
    )


def _pass_shown(planned: SecondPass | None) -> str:
    return "none" if planned is None else _shape((planned.width, planned.height))


def _number(value: float) -> str:
    return f"{value:.1f}" if isinstance(value, float) and value == int(value) else f"{value:g}"


def _shape(size: Sequence[int]) -> str:
    return f"{size[0]}×{size[1]}"


def _scaled(size: Sequence[int], scale: float, multiple: int) -> tuple[int, int]:
    step = multiple if scale > 1 else _FINEST_STEP
    width, height = (max(step, round(side * scale / step) * step) for side in size)
    return width, height


def _mismatches(pair: Sequence[str], own: tuple[str | None, str | None]) -> int:
    return sum(o is not None and o != p for o, p in zip(own, pair, strict=True))
