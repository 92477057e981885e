"""Reads sampling.json: which figures a family, its variant and an accelerating LoRA call for."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

from ..plan import ComplexityBand, ContentIntent, Notice, Priority, StyleIntent

UNKNOWN = "unknown"
ANY = "any"
FIELDS = ("steps", "cfg", "samplers", "sizes", "clip_skip", "guidance", "shift")
DOMAINS: dict[str, tuple[str, ...]] = {
    "priority": get_args(Priority),
    "complexity": get_args(ComplexityBand),
    "style": get_args(StyleIntent),
    "content": get_args(ContentIntent),
}
"""What a rule may ask about, and the values that it may name."""

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


def resolve(
    family: str, variant: str | None, accelerators: Sequence[str]
) -> tuple[Row, tuple[Notice, ...]]:
    """The row for a model, and what the person should know about it.

    Laid over one another, later ones winning: the families it descends from, the family, the
    model's variant, the first accelerator. A family that publishes nothing for a variant takes
    it from the family it descends from, then from the general rows.
    """
    table = _table()
    notices = []
    lineage = _lineage(family)
    if UNKNOWN in lineage:
        notices.append(_unknown_family(family))
    layers = [(table[name, None], False) for name in reversed(lineage)]
    label, confidence = lineage[0], layers[-1][0].confidence
    distilled = any(layer.distilled for layer, _ in layers)

    loras = list(dict.fromkeys(accelerators))
    if len(loras) > 1:
        notices.append(_several_accelerators(loras))
    wanted = [(variant, False)] if variant else []
    for name, by_lora in [*wanted, *((lora, True) for lora in loras[:1])]:
        found = next((table[f, name] for f in (*lineage, ANY) if (f, name) in table), None)
        if found is None:
            notices.append(_unknown_variant(name, by_lora))
            continue
        if by_lora and distilled:
            notices.append(_distilled_twice(label, name))
        if by_lora and found.family == ANY:
            notices.append(_general_accelerator(label, name))
        layers.append((found, by_lora))
        label, confidence = f"{label} {name}", min(confidence, found.confidence)
        distilled = distilled or found.distilled

    choices: dict[str, Choice] = {}
    facts: dict[str, Any] = {}
    for layer, by_lora in layers:
        # A LoRA changes how to sample, not the size that the checkpoint was trained at.
        choices |= {
            field: choice._replace(by_lora=by_lora)
            for field, choice in layer.choices.items()
            if not (by_lora and field == "sizes")
        }
        facts |= layer.facts
    return (
        Row(
            label=label,
            title=facts["title"],
            choices=choices,
            multiple=facts["multiple"],
            takes=frozenset(facts["takes"]),
            distilled=distilled,
            confidence=confidence,
        ),
        tuple(notices),
    )


# --------------------------------------------------------------------------- the file


class _Layer(NamedTuple):
    family: str
    like: str | None
    choices: dict[str, Choice]
    facts: dict[str, Any]
    """title, multiple and takes, where the row says them."""
    distilled: bool
    confidence: float


@functools.cache
def _table() -> dict[tuple[str, str | None], _Layer]:
    data = json.loads(Path(__file__).with_name("sampling.json").read_text(encoding="utf-8"))
    tables = {
        name: _choice(entry["choice"], entry["source"]) for name, entry in data["tables"].items()
    }

    def choice(value: Any, source: str) -> Choice:
        return tables[value] if isinstance(value, str) else _choice(value, source)

    return {
        (row["family"], row.get("variant")): _Layer(
            family=row["family"],
            like=row.get("like"),
            choices={k: choice(row[k], row["source"]) for k in FIELDS if k in row},
            facts={k: row[k] for k in ("title", "multiple", "takes") if k in row},
            distilled=row.get("distilled", False),
            confidence=row["confidence"],
        )
        for row in data["rows"]
    }


def _choice(value: Any, source: str) -> Choice:
    is_rules = isinstance(value, list) and isinstance(value[0], dict)
    rules: list[dict[str, Any]] = value if is_rules else [{"value": value}]
    return Choice(
        tuple(Rule(tuple((d, r[d]) for d in DOMAINS if d in r), r["value"]) for r in rules),
        source,
    )


def _lineage(family: str) -> tuple[str, ...]:
    table = _table()
    name: str | None = family if (family, None) in table and family != ANY else UNKNOWN
    line = []
    while name is not None:
        line.append(name)
        name = table[name, None].like
    return tuple(line)


# --------------------------------------------------------------------------- notices


def _unknown_family(family: str) -> Notice:
    what = "is not recognised" if family == UNKNOWN else f"is of family {family!r}"
    return Notice(
        level="warning",
        code="family_unknown",
        message=f"The model {what}, and there are no published sampling figures for it here; "
        "middling ones are used. Set steps, CFG, sampler and size by its model card.",
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
