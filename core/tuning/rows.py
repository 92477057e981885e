"""Which figures a family, its variant and an accelerating LoRA call for.

sampling.json holds what the makers of each model say, for some tasks apart; published.json what
everybody else publishes for it (templates, examples, presets, pipelines), as figures with their
number of sources. Where others publish a figure, the one that most sources agree on is taken, the
maker's among them.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from ..plan import ComplexityBand, ContentIntent, Notice, StyleIntent

UNKNOWN = "unknown"
ANY = "any"
FIELDS = ("steps", "cfg", "samplers", "sizes", "clip_skip", "guidance", "shift")
DOMAINS: dict[str, tuple[str, ...]] = {
    "priority": ("SPEED", "BALANCED", "QUALITY"),
    "complexity": get_args(ComplexityBand),
    "style": get_args(StyleIntent),
    "content": get_args(ContentIntent),
}
"""What a rule may ask about, and the values that it may name. MEMORY samples as BALANCED does."""

Key = tuple[str, str | None]
"""Family and variant."""
Task = Literal["t2i", "edit", "refine"]
"""Text to image; editing, inpainting and control by an image; the second pass over an image."""
Votes = tuple[tuple[Any, float], ...]
"""Values with the number of sources that publish them; a source's several values share its one."""
Published = Mapping[Key, Mapping[Task, Mapping[str, Votes]]]
"""steps, cfg, guidance and samplers as published.json has them: samplers are pairs of sampler and
scheduler, of which a source may leave the second open."""

Situation = Mapping[str, str]
"""The value of each domain for the prompt at hand."""


class Rule(NamedTuple):
    """A value and the conditions under which it holds; no condition: always."""

    when: tuple[tuple[str, str], ...]
    value: Any


class Choice(NamedTuple):
    """The rules of one setting, in the order in which they are tried."""

    rules: tuple[Rule, ...]
    source: str
    by_lora: bool = False
    """Whether an accelerating LoRA brought it."""
    general: bool = False
    """Whether it goes for any model, so that whatever is published for this one counts more."""
    settled: bool = False
    """Whether the pack's requirements settle it: for text to image, published figures do not
    change it then."""

    def rule(self, situation: Situation) -> Rule:
        """The first rule that holds; the last rule of every choice always does."""
        return next(r for r in self.rules if all(situation[k] == v for k, v in r.when))

    def alternatives(self, situation: Situation) -> Iterator[tuple[str, str, Any]]:
        """(domain, its other value, what would be chosen then) where that is something else."""
        chosen = self.rule(situation).value
        asked = {domain for rule in self.rules for domain, _ in rule.when}
        for domain in (d for d in DOMAINS if d in asked):
            for other in DOMAINS[domain]:
                value = self.rule({**situation, domain: other}).value
                if value != chosen:
                    yield domain, other, value


class Row(NamedTuple):
    """Everything the table says for one model."""

    label: str
    """Family and what is laid over it, e.g. `sdxl lightning`."""
    title: str
    choices: Mapping[str, Choice]
    multiple: int
    takes: frozenset[str]
    distilled: bool
    confidence: float
    sigmas: str | None = None
    """ComfyUI's scheduler node that the family's own graph uses, e.g. Flux2Scheduler."""
    published: Mapping[str, Votes] = {}
    """What others publish for this very family and variant, by field of published.json: how
    experts are spread around the figures of `choices`."""
    task: Task = "t2i"
    """Task that `published` is for; another than asked for where nobody publishes that one."""


class Table(NamedTuple):
    """The rows as read from sampling.json and published.json."""

    layers: Mapping[Key, _Layer]


@functools.cache
def shipped() -> Table:
    """The table of this pack's own two files."""
    return read(published_in(_file("published.json")))


def published_in(data: Mapping[str, Any]) -> Published:
    """The figures of a file such as published.json."""
    found: dict[Key, dict[Task, Mapping[str, Votes]]] = {}
    for row in data["rows"]:
        tasks = found.setdefault(_key(row), {})
        tasks[row["task"]] = {
            field: tuple((value, votes) for value, votes in row[field])
            for field in PUBLISHED
            if field in row
        }
    return found


def resolve(
    family: str,
    variant: str | None,
    accelerators: Sequence[str],
    *,
    trained_steps: int | None = None,
    nearest: str | None = None,
    task: Task = "t2i",
    table: Table | None = None,
) -> tuple[Row, tuple[Notice, ...]]:
    """The row for a model, and what the person should know about it.

    Laid over one another, later ones winning: the families it descends from, the family, the
    model's variant, the first accelerator; each with what it says of this task. A family that
    publishes nothing for a variant takes it from the family it descends from, then from the
    general rows.

    Args:
        accelerators: variants of LoRAs, with the steps that they were made for where those are
            known: `lightning`, `lightning 4`.
        trained_steps: of the model, as its file's name says; they count where its variant is
            distilled and no LoRA says otherwise.
        nearest: for an unknown family, the one whose figures stand in.
        task: whose published figures count; where there are none, those of another task.
        table: other rows than those of this pack.
    """
    layers_of = (table or shipped()).layers
    notices = []
    lineage = _lineage(family, layers_of)
    if UNKNOWN in lineage:
        lineage = (UNKNOWN, *(_lineage(nearest, layers_of) if nearest else lineage[1:]))
        notices.append(_unknown_family(family, layers_of[lineage[1], None]))
    layers = [(layers_of[name, None], False) for name in reversed(lineage)]
    label, confidence = lineage[0], layers[-1][0].confidence
    distilled = any(layer.distilled for layer, _ in layers)

    def find(name: str) -> _Layer | None:
        return next((layers_of[f, name] for f in (*lineage, ANY) if (f, name) in layers_of), None)

    loras: dict[str, str] = {}
    for lora in accelerators:
        name, _, steps = lora.partition(" ")
        loras.setdefault(name, steps)
    fast = [name for name in loras if (row := find(name)) and row.distilled]
    if len(fast) > 1:
        notices.append(_several_accelerators(fast))
    wanted = [(variant, False)] if variant else []
    wanted += [(name, True) for name in loras if name not in fast[1:]]
    for name, by_lora in wanted:
        found = find(name)
        if found is None:
            notices.append(_unknown_variant(name, by_lora))
            continue
        if by_lora and distilled and found.distilled:
            notices.append(_distilled_twice(label, name))
        if by_lora and found.family == ANY:
            notices.append(_general_accelerator(label, name))
        layers.append((found, by_lora))
        label, confidence = f"{label} {name}", min(confidence, found.confidence)
        if found.distilled is not None:
            distilled = found.distilled or (by_lora and distilled)

    choices: dict[str, Choice] = {}
    facts: dict[str, Any] = {}
    others: Mapping[str, Votes] = {}
    found_task = task
    for layer, by_lora in layers:
        for_task = layer.tasks.get(task, {})
        # A LoRA changes how to sample, not the size that the checkpoint was trained at.
        choices |= {
            field: choice._replace(by_lora=by_lora)
            for field, choice in {**layer.choices, **for_task}.items()
            if not (by_lora and field == "sizes")
        }
        facts |= layer.facts
        found_task = _published_task(layer, task)
        others = layer.published.get(found_task, {})
        # What is published for another task does not change what the row says of this one.
        said = for_task if found_task != task else {}
        choices |= {
            field: choice._replace(by_lora=by_lora)
            for field, choice in _agreed(choices, others, found_task).items()
            if field not in said and (field != "guidance" or "guidance" in facts["takes"])
        }
    if fast:
        choices |= _trained_steps(loras[fast[0]], by_lora=True)
    elif trained_steps and distilled:
        choices |= _trained_steps(str(trained_steps), by_lora=False)
    return (
        Row(
            label=label,
            title=facts["title"],
            choices=choices,
            multiple=facts["multiple"],
            takes=frozenset(facts["takes"]),
            distilled=bool(distilled),
            confidence=confidence,
            sigmas=facts.get("sigmas"),
            published=others,
            task=found_task,
        ),
        tuple(notices),
    )


def _published_task(layer: _Layer, task: Task) -> Task:
    tasks: tuple[Task, ...] = tuple(layer.published)
    return tasks[0] if tasks and task not in tasks else task


def _trained_steps(steps: str, *, by_lora: bool) -> dict[str, Choice]:
    if not steps:
        return {}
    source = f"the number of steps in the {'LoRA' if by_lora else 'model'}'s name"
    return {"steps": Choice((Rule((), int(steps)),), source, by_lora=by_lora)}


# --------------------------------------------------------------------------- the files


PUBLISHED = ("steps", "cfg", "guidance", "samplers")


class _Layer(NamedTuple):
    family: str
    like: str | None
    choices: dict[str, Choice]
    facts: dict[str, Any]
    """title, multiple, takes and sigmas, where the row says them."""
    distilled: bool | None
    """None: as the row that it is laid over."""
    confidence: float
    published: Mapping[Task, Mapping[str, Votes]]
    tasks: Mapping[Task, Mapping[str, Choice]] = {}
    """What the rows of single tasks say; they are laid over `choices`."""


@functools.cache
def _file(name: str) -> Mapping[str, Any]:
    return json.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))


def read(published: Published) -> Table:
    """sampling.json with these published figures."""
    data = _file("sampling.json")
    tables = {
        name: _choice(entry["choice"], entry["source"])._replace(
            settled=entry.get("settled", False)
        )
        for name, entry in data["tables"].items()
    }

    def choice(value: Any, source: str) -> Choice:
        return tables[value] if isinstance(value, str) else _choice(value, source)

    def choices_of(row: Mapping[str, Any]) -> dict[str, Choice]:
        return {
            k: choice(row[k], row["source"])._replace(general=row["family"] == ANY)
            for k in FIELDS
            if k in row
        }

    def layer(row: Mapping[str, Any]) -> _Layer:
        return _Layer(
            family=row["family"],
            like=row.get("like"),
            choices=choices_of(row),
            facts={k: row[k] for k in ("title", "multiple", "takes", "sigmas") if k in row},
            distilled=row.get("distilled"),
            confidence=row["confidence"],
            published=published.get(_key(row), {}),
            tasks=tasks.get(_key(row), {}),
        )

    tasks: dict[Key, dict[Task, Mapping[str, Choice]]] = {}
    for row in data["tasks"]:
        tasks.setdefault(_key(row), {})[row["task"]] = choices_of(row)
    return Table({_key(row): layer(row) for row in data["rows"]})


def _key(row: Mapping[str, Any]) -> Key:
    return row["family"], row.get("variant")


def _choice(value: Any, source: str) -> Choice:
    is_rules = isinstance(value, list) and isinstance(value[0], dict)
    rules: list[dict[str, Any]] = value if is_rules else [{"value": value}]
    return Choice(
        tuple(Rule(tuple((d, r[d]) for d in DOMAINS if d in r), r["value"]) for r in rules),
        source,
    )


def _lineage(family: str, layers: Mapping[Key, _Layer]) -> tuple[str, ...]:
    name: str | None = family if (family, None) in layers and family != ANY else UNKNOWN
    line = []
    while name is not None:
        line.append(name)
        name = layers[name, None].like
    return tuple(line)


# --------------------------------------------------------------------------- published figures


def _agreed(
    own: Mapping[str, Choice], others: Mapping[str, Votes], task: Task
) -> dict[str, Choice]:
    """The choices that the figures of others change.

    For text to image, settled choices and rules that ask for more than the priority (those of
    SD 1.5 and SDXL) are left as they are.
    """
    agreed = {}
    for field, near in (("steps", same_steps), ("cfg", same_guidance), ("guidance", same_guidance)):
        choice = own.get(field)
        if field in others and _may_change(choice, task):
            value = most_agreed(others[field], near, _balanced(choice))
            agreed[field] = _with_balanced(choice, field, value)
    if "samplers" in others and _may_change(own.get("samplers"), task):
        agreed["samplers"] = _agreed_pair(own.get("samplers"), others["samplers"])
    return agreed


_FEW_STEPS = 12


def most_agreed(votes: Votes, near: Callable[[Any, Any], bool], maker: Any) -> Any:
    """The value that most sources count as right.

    Candidates are the values that somebody publishes and, of numbers, those half-way between two
    (whole steps, halves of CFG); not of the few steps that a distilled model was trained for.
    The maker's own figure is one source more; of equally good ones a published one wins, then the
    one nearest to the maker's, or to the middle of all.

    Args:
        near: whether the first, said, is right where the second is wanted.
        maker: the maker's figure; None where there is none.
    """
    all_votes = votes if maker is None else (*votes, (maker, 1.0))
    values = sorted({value for value, _ in all_votes})
    between = _numbers(values) and not (values[-1] <= _FEW_STEPS and near is same_steps)
    halves = [(a + b) / 2 for a, b in itertools.pairwise(values)] if between else []
    whole = all(isinstance(value, int) for value in values)
    candidates = [*values, *((round(half) if whole else round(2 * half) / 2) for half in halves)]
    middle = sorted(value for value, _ in all_votes)[len(all_votes) // 2]

    def goodness(candidate: Any) -> tuple[float, ...]:
        score = round(sum(vote for value, vote in all_votes if near(candidate, value)), 6)
        if not _numbers(values):
            return (score, candidate == maker)
        distance = abs(candidate - (middle if maker is None else maker))
        return (score, candidate in values, -distance)

    return max(candidates, key=goodness)


def same_steps(said: float, wanted: float) -> bool:
    """Whether two experts would call these the same: within 30 %, at least 2 steps."""
    return abs(said - wanted) <= max(2, 0.3 * wanted)


def same_guidance(said: float, wanted: float) -> bool:
    """Whether two experts would call these CFG or guidance the same: within 1; 0.5 up to 2."""
    return abs(said - wanted) <= (0.5 if wanted <= 2 else 1.0)


def _agreed_pair(own: Choice | None, others: Votes) -> Choice:
    # What the requirements settle is for text to image; another task goes by what others publish.
    pairs = (None if own is None or own.settled else _balanced(own)) or []
    said = tuple((sampler, vote) for (sampler, _), vote in others)
    sampler = most_agreed(said, _same, pairs[0][0] if pairs else None)
    with_it = tuple((pair[1], vote) for pair, vote in others if pair[0] == sampler and pair[1])
    ours = next((pair[1] for pair in pairs if pair[0] == sampler), None)
    fallback = ours or (pairs[0][1] if pairs else "simple")
    first = [sampler, most_agreed(with_it, _same, ours) if with_it else fallback]
    rest = [pair for pair in pairs if pair != first] or [["euler", "simple"]]
    return _with_balanced(own, "samplers", [first, *rest])


_OTHERS = "what most others publish"


def _with_balanced(own: Choice | None, field: str, value: Any) -> Choice:
    source = own.source if own and not own.settled else ""
    if not source.startswith(_OTHERS):
        source = f"{_OTHERS}; {source}" if source else _OTHERS
    if own is None or not _by_priority(own):
        rules = _around(value) if field == "steps" else ()
        return Choice((*rules, Rule((), value)), source)
    rules = tuple(rule for rule in own.rules if rule.when)
    if field == "steps":
        order = {"SPEED": min, "MEMORY": min, "QUALITY": max}
        rules = tuple(r._replace(value=order[r.when[0][1]](r.value, value)) for r in rules)
    return Choice((*rules, Rule((), value)), source)


def _around(steps: int) -> tuple[Rule, ...]:
    # As the rows do where nobody publishes a short or a long run.
    speed, quality = max(1, round(0.75 * steps)), round(1.5 * steps)
    return Rule((("priority", "SPEED"),), speed), Rule((("priority", "QUALITY"),), quality)


def _may_change(choice: Choice | None, task: Task) -> bool:
    return choice is None or task != "t2i" or (_by_priority(choice) and not choice.settled)


def _balanced(choice: Choice | None) -> Any:
    voting = choice is not None and not choice.general and _by_priority(choice)
    return choice.rules[-1].value if choice and voting else None


def _by_priority(choice: Choice) -> bool:
    return all(domain == "priority" for rule in choice.rules for domain, _ in rule.when)


def _same(said: Any, wanted: Any) -> bool:
    return said == wanted


def _numbers(values: Sequence[Any]) -> bool:
    return bool(values) and not isinstance(values[0], str)


# --------------------------------------------------------------------------- notices


def _unknown_family(family: str, stand_in: _Layer) -> Notice:
    what = "is not recognised" if family == UNKNOWN else f"is of family {family!r}"
    figures = (
        "middling ones"
        if stand_in.family == ANY
        else f"those of {stand_in.facts['title']}, whose tensors are most like its own,"
    )
    return Notice(
        level="warning",
        code="family_unknown",
        message=f"The model {what}, and there are no published sampling figures for it here; "
        f"{figures} are used. Set steps, CFG, sampler and size by its model card.",
    )


def _unknown_variant(name: str, by_lora: bool) -> Notice:
    what = f"a LoRA of kind {name!r}" if by_lora else f"a model of variant {name!r}"
    return Notice(
        level="warning",
        code="variant_unknown",
        message=f"There are no sampling figures for {what}; those of the plain family are used. "
        "Set steps and CFG by its model card.",
    )


def _several_accelerators(names: Sequence[str]) -> Notice:
    return Notice(
        level="warning",
        code="several_accelerators",
        message=f"The plan holds accelerating LoRAs of several kinds ({', '.join(names)}), which "
        f"were not trained together; steps and CFG follow {names[0]}. Keep one of them.",
    )


def _distilled_twice(label: str, name: str) -> Notice:
    return Notice(
        level="warning",
        code="distilled_twice",
        message=f"The model ({label}) already needs few steps, and a {name} LoRA is applied on "
        "top; images may burn. Remove the LoRA or use a model that is not accelerated.",
    )


def _general_accelerator(label: str, name: str) -> Notice:
    return Notice(
        level="info",
        code="accelerator_general",
        message=f"There are no published figures for a {name} LoRA on {label}; those common to "
        f"{name} models are used. Its own page may name other steps.",
    )
