"""Sampling parameters against what experts publish: predict, fit, loso, lofo, ceiling, compare,
names."""

from __future__ import annotations

import argparse
import collections
import hashlib
import itertools
import json
import math
import random
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, get_args

from ..core.catalog import (
    accelerator,
    all_families,
    detect_lora_name,
    detect_name,
    named_size,
    named_steps,
)
from ..core.hubs import mining
from ..core.plan import ModelInfo, SamplingPlan
from ..core.prompting import analyze
from ..core.tuning import optimize
from ..core.tuning.rows import (
    PUBLISHED,
    Key,
    Published,
    Table,
    Task,
    read,
    same_guidance,
    same_steps,
    shipped,
)

EXPERTS = frozenset(
    (
        *("official_template", "official_example", "app_reference", "app_preset"),
        *("pipeline_default", "app_family_default", "model_requirements", "app_doc"),
    )
)
"""Kinds of cases whose figures count."""
OFFICIAL = frozenset(("official_template", "official_example"))
LABELLED = frozenset(
    (
        *("creator_showcase", "default_resolution", "family_label"),
        *("model_requirements", "app_family_default"),
    )
)
"""Kinds of cases whose family was told by their source, not read off the name."""

FAMILY_NAMES: Mapping[Key, str] = {
    ("sd35", None): "sd3.5-large",
    ("sd35", "medium"): "sd3.5-medium",
    ("sd35", "turbo"): "sd3.5-large-turbo",
    ("sdxl", "turbo"): "sdxl-turbo",
    ("sdxl", "lcm"): "sdxl-lcm",
    ("sdxl", "lightning"): "sdxl-lightning",
    ("sdxl", "turbo-merge"): "sdxl-turbo",
    ("sdxl", "lightning-merge"): "sdxl-lightning",
    ("noobai", None): "illustrious",
    ("noobai", "v-pred"): "illustrious",
    ("flux-dev", "canny"): "flux-control",
    ("flux-dev", "depth"): "flux-control",
    ("flux2", None): "flux2-dev",
    ("flux2-klein", "base"): "flux2-klein-base",
    ("chroma", "radiance"): "chroma-radiance",
    ("qwen-image", "edit"): "qwen-image-edit",
    ("qwen-image", "layered"): "qwen-image-layered",
    ("z-image", "turbo"): "z-image-turbo",
    ("hidream", None): "hidream-full",
    ("hidream", "dev"): "hidream-dev",
    ("hidream", "fast"): "hidream-fast",
    ("hidream", "edit"): "hidream-e1",
    ("hidream-o1", "dev"): "hidream-o1-dev",
    ("cascade", None): "stable-cascade",
    ("cascade", "stage-b"): "stable-cascade",
    ("pixart", None): "pixart-sigma",
    ("anima", "turbo"): "anima-turbo",
    ("krea2", "turbo"): "krea2-turbo",
    ("ernie-image", "turbo"): "ernie-image-turbo",
    ("unknown", None): "other",
}
"""What the cases call a family and variant of ours, where it is not our family's id."""

TASKS: Mapping[str, Task] = {"t2i": "t2i", "edit_or_control": "edit", "second_pass": "refine"}
"""What the cases call a task of ours; another one counts as text to image."""

Case = Mapping[str, Any]
Prediction = dict[str, Any]


def main(argv: list[str]) -> dict[str, Any]:
    """Measure the sampling table on published settings, one JSON object a line (see `--help`).

    `predict` writes a prediction for each case, made by the code that ParameterOptimizer runs.
    `loso` predicts each source's cases with all figures of that source left out, `lofo` each
    family's with all published figures of that family left out, so that only its makers' rows
    speak. `fit` writes published.json. `ceiling` tells for each family how many of its cases one
    row of figures could get right at best, beside what `loso` reaches. `compare` tells where ours
    differs from official graphs. `names` counts how often the name alone gives the family.
    """
    parser = argparse.ArgumentParser(prog="parameters", description=main.__doc__)
    parser.add_argument("action", choices=tuple(_ACTIONS))
    parser.add_argument("--cases", nargs="+", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="where to write predictions, figures or the table")
    options = parser.parse_args(argv)
    needs_out = {"predict", "fit", "ceiling", "compare"}
    if options.action in needs_out and options.out is None:
        parser.error(f"{options.action} needs --out")
    cases = [case for path in options.cases for case in _lines(path)]
    return {"action": options.action, **_ACTIONS[options.action](cases, options)}


_ACTIONS: Mapping[str, Callable[[list[Case], argparse.Namespace], dict[str, Any]]] = {
    "predict": lambda cases, options: _predict(cases, options.out),
    "loso": lambda cases, options: _left_out(cases, publisher, options.out),
    "lofo": lambda cases, options: _left_out(cases, _family, options.out),
    "fit": lambda cases, options: _fit(cases, options.cases, options.out),
    "ceiling": lambda cases, options: _ceiling(cases, options.out),
    "compare": lambda cases, options: _compare(cases, options.out),
    "names": lambda cases, _: _names(cases),
}


def _lines(path: Path) -> list[Case]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]


# --------------------------------------------------------------------------- predictions


def predict(case: Case, table: Table | None = None) -> Prediction:
    """What the optimizer chooses for a case, BALANCED, from its model's name, its prompt and its
    LoRAs alone.

    Args:
        case: `id`, `model_file_or_id`, `task`, `prompt`, and `loras` as pairs of name and
            strength.
        table: other rows than those of this pack.
    """
    model = model_info(case.get("model_file_or_id") or "")
    plan = optimize(
        _analysis(case.get("prompt") or _NO_PROMPT),
        model,
        samplers=_host_names("sampler"),
        schedulers=_host_names("scheduler"),
        sigma_nodes=_SIGMA_NODES,
        accelerators=_accelerators(case),
        task=TASKS.get(case.get("task") or "", "t2i"),
        table=table,
    )
    return {"id": case["id"], "family": _family_name(model, case), **_figures(plan)}


def model_info(name: str) -> ModelInfo:
    """What a model is by its name alone."""
    found = detect_name(name)
    return ModelInfo(
        name=name or "a model without a name",
        family=found.family,
        variant=found.variant,
        family_confidence=found.confidence,
        evidence=found.evidence,
        trained_size=named_size(name),
        trained_steps=named_steps(name),
    )


_SIGMA_NODES = ("Flux2Scheduler", "SDTurboScheduler")
_NO_PROMPT = "a picture"
"""For a case that gives none: asks for nothing."""


@cache
def _analysis(prompt: str) -> Any:
    return analyze(prompt, syntax="a1111")


@cache
def _host_names(kind: str) -> frozenset[str]:
    """ComfyUI's own names of samplers or schedulers."""
    data = json.loads(Path(mining.__file__).with_name("samplers.json").read_text("utf-8"))
    return frozenset(row[kind] for row in data[f"{kind}s"])


def _accelerators(case: Case) -> tuple[str, ...]:
    loras = case.get("loras") or ()
    names = [lora[0] if isinstance(lora, (list, tuple)) else lora for lora in loras]
    found = (accelerator(name, detect_lora_name(name)) for name in names)
    return tuple(one for one in found if one is not None)


def _figures(plan: SamplingPlan) -> Prediction:
    return {
        "steps": plan.steps,
        "cfg": plan.cfg,
        "guidance": plan.guidance,
        "sampler": plan.sampler,
        "scheduler": plan.sigmas or plan.scheduler,
        "width": plan.width,
        "height": plan.height,
    }


def _family_name(model: ModelInfo, case: Case) -> str:
    key = (model.family, model.variant)
    for lora in _accelerators(case):
        key = (model.family, lora.partition(" ")[0]) if model.family == "sdxl" else key
    return FAMILY_NAMES.get(key, FAMILY_NAMES.get((model.family, None), model.family))


def _predict(cases: Sequence[Case], out: Path) -> dict[str, Any]:
    predictions = [predict(case) for case in cases]
    _write_lines(out, predictions)
    return {"cases": len(cases), **score(cases, predictions)}


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


# --------------------------------------------------------------------------- figures of others


def fit(cases: Iterable[Case]) -> Published:
    """How many sources publish which figure for each family and variant.

    A source has one vote a field, shared by its values as often as it gives them; for sampler and
    scheduler ComfyUI's own graphs have one and a half, because they name what this host has.
    """
    by_key: dict[Key, dict[Task, list[Case]]] = {}
    for case in cases:
        task, key = TASKS.get(case.get("task") or ""), _key(case)
        if case["kind"] in EXPERTS and task is not None and key is not None:
            by_key.setdefault(key, {}).setdefault(task, []).append(case)
    return {
        key: {task: _votes(tasks[task]) for task in get_args(Task) if task in tasks}
        for key, tasks in by_key.items()
    }


def _key(case: Case) -> Key | None:
    """Our family and variant for a case that tells its family."""
    known = shipped().layers
    model = model_info(case["model_file_or_id"] or "")
    if model.family == "unknown" and model.family_confidence > 0:
        return None
    found = (model.family, model.variant)
    if case["family"] not in ("other", _family_name(model, {**case, "loras": []})):
        names = {name: key for key, name in reversed(tuple(FAMILY_NAMES.items()))}
        found = names.get(case["family"], (case["family"], None))
    if found[0] not in all_families() or found[0] == "unknown":
        return None
    wanted = (*(a.partition(" ")[0] for a in _accelerators(case)), case.get("variant"))
    variant = next((v for v in wanted if v and (found[0], v) in known), found[1])
    general = known.get(("any", variant))
    if (found[0], variant) not in known and general is not None and not general.distilled:
        variant = None  # an inpainting file, say, is sampled as its family's plain model
    return (found[0], variant) if (found[0], variant) in known else None


def _votes(cases: Sequence[Case]) -> dict[str, tuple[tuple[Any, float], ...]]:
    said: dict[str, dict[tuple[str, float], list[Any]]] = {field: {} for field in PUBLISHED}
    for case in cases:
        for field, value in _published(case).items():
            weight = 1.5 if field == "samplers" and case["kind"] in OFFICIAL else 1.0
            said[field].setdefault((publisher(case), weight), []).append(value)
    found = {}
    for field, by_source in said.items():
        votes: dict[Any, float] = collections.defaultdict(float)
        for (_, weight), values in by_source.items():
            for value in values:
                votes[value] += weight / len(values)
        if votes:
            ordered = sorted(votes.items(), key=lambda one: (-one[1], str(one[0])))
            found[field] = tuple((value, round(vote, 3)) for value, vote in ordered)
    return found


def _published(case: Case) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    if case.get("steps"):
        figures["steps"] = round(case["steps"])
    for field in ("cfg", "guidance"):
        if case.get(field) is not None:
            # Diffusers' 0 is "without guidance", which a KSampler calls 1.
            figures[field] = float(case[field]) or 1.0
    sampler, scheduler = _named(case.get("sampler"), case.get("scheduler"))
    if sampler:
        figures["samplers"] = (sampler, scheduler)
    return figures


def _named(sampler: str | None, scheduler: str | None) -> tuple[str | None, str | None]:
    # `k_euler` is what AI Horde calls it. A `DDIM Trailing` is none that ComfyUI has.
    found = mining.name_sampler((sampler or "").removeprefix("k_"), scheduler or "")
    return found.sampler, found.scheduler


def _family(case: Case) -> str:
    return case["family"] or ""


def publisher(case: Case) -> str:
    """Who published a case: a project counts once, whatever its versions."""
    name = re.split(r"==|@|\s", case["source"])[0]
    return name.rpartition("/")[2].lower()


def _fit(cases: Sequence[Case], paths: Sequence[Path], out: Path) -> dict[str, Any]:
    published = fit(cases)
    data = hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
    left_out = _left_out(cases, publisher, None)
    text = {
        "about": [
            "What others than its makers publish for a family: [figure, number of sources].",
            "Written by `python scripts/bench.py parameters fit --cases ... --out ...`; rows.py "
            "takes the figure that most agree on. Not edited by hand: rows go to sampling.json.",
        ],
        "data_sha256": data,
        "sources": len({publisher(case) for case in cases if case["kind"] in EXPERTS}),
        "left_out": {key: left_out[key] for key in _SHOWN},
    }
    keys = sorted(published, key=lambda key: (key[0], key[1] or ""))
    rows = [_row(key, task, votes) for key in keys for task, votes in published[key].items()]
    head = json.dumps(text, indent=2)[:-2]
    body = ",\n".join(f"    {json.dumps(row)}" for row in rows)
    out.write_text(f'{head},\n  "rows": [\n{body}\n  ]\n}}\n', encoding="utf-8")
    return {"rows": len(rows), "data_sha256": data, "left_out": text["left_out"]}


_SHOWN = ("cases", "right", "interval", "right_by_family")


def _row(key: Key, task: Task, votes: Mapping[str, Any]) -> dict[str, Any]:
    family, variant = key
    return {"family": family, **({"variant": variant} if variant else {}), "task": task, **votes}


# --------------------------------------------------------------------------- scores


class Outcome(NamedTuple):
    """How a prediction compares with what experts publish."""

    case: Case
    fields: Mapping[str, bool]

    @property
    def right(self) -> bool:
        return all(self.fields.values())


def outcomes(cases: Sequence[Case], predictions: Iterable[Prediction]) -> list[Outcome]:
    """Each expert case, by field: whether the prediction is within tolerance of its own value, or
    of one that another source publishes for the same family and task."""
    said = {one["id"]: one for one in predictions}
    found = []
    for case, right in _right(cases):
        one = dict(said.get(case["id"], {}))
        if one.get("width") and one.get("height"):
            one["pixels"] = one["width"] * one["height"]
        fields = {
            field: any(_agrees(field, one.get(field), value) for value in values)
            for field, values in right.items()
        }
        found.append(Outcome(case, fields))
    return found


def _right(cases: Sequence[Case]) -> list[tuple[Case, dict[str, list[Any]]]]:
    """Each expert case with the values that are right for each of its fields."""
    experts = [case for case in cases if case["kind"] in EXPERTS and _wanted(case)]
    known: dict[tuple[Any, ...], list[tuple[str, Any]]] = collections.defaultdict(list)
    for case in experts:
        for field, value in _wanted(case).items():
            known[case["family"], case.get("task"), field].append((case["source"], value))
    found = []
    for case in experts:
        right = {}
        for field, value in _wanted(case).items():
            others = known[case["family"], case.get("task"), field]
            right[field] = [value, *(v for source, v in others if source != case["source"])]
        found.append((case, right))
    return found


def _wanted(case: Case) -> dict[str, Any]:
    names = ("steps", "cfg", "guidance", "sampler", "scheduler")
    wanted = {name: case[name] for name in names if case.get(name) is not None}
    if case.get("width") and case.get("height"):
        wanted["pixels"] = case["width"] * case["height"]
    return wanted


def _agrees(field: str, said: Any, wanted: Any) -> bool:
    if said is None:
        return False
    if field == "steps":
        return same_steps(said, wanted)
    if field in ("cfg", "guidance"):
        return same_guidance(said, wanted)
    if field == "sampler":
        return _plain_sampler(said) == _plain_sampler(wanted)
    if field == "scheduler":
        return _letters(said) == _letters(wanted)
    return 0.8 <= said / wanted <= 1.25


def _plain_sampler(name: str) -> str:
    name = name.lower().removeprefix("k_")
    name = re.sub(r"\b(karras|trailing|exponential|simple|beta)\b", "", name).strip()
    return (_named(name, None)[0] or _letters(name)).removesuffix("_gpu")


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def score(cases: Sequence[Case], predictions: Iterable[Prediction]) -> dict[str, Any]:
    """Shares of right cases and fields, with a 95 % interval over sources and families.

    The interval resamples groups of one source and family, whose cases are alike.
    """
    found = outcomes(cases, predictions)
    if not found:
        return {"cases": 0}
    groups: dict[tuple[str, str], list[bool]] = collections.defaultdict(list)
    families: dict[str, list[bool]] = collections.defaultdict(list)
    fields: dict[str, list[bool]] = collections.defaultdict(list)
    for one in found:
        groups[publisher(one.case), one.case["family"]].append(one.right)
        families[one.case["family"]].append(one.right)
        for field, right in one.fields.items():
            fields[field].append(right)
    shares = {family: _share(rights) for family, rights in families.items()}
    return {
        "cases": len(found),
        "right": round(_share([one.right for one in found]), 4),
        "interval": _interval(list(groups.values())),
        "families": len(families),
        "right_by_family": round(sum(shares.values()) / len(shares), 4),
        "below_goal": {f: round(s, 2) for f, s in sorted(shares.items()) if s < 0.7},
        "fields": {field: round(_share(rights), 4) for field, rights in sorted(fields.items())},
    }


def _share(rights: Sequence[float]) -> float:
    return sum(rights) / len(rights)


def _interval(groups: Sequence[Sequence[bool]], draws: int = 2000) -> list[float]:
    draw = random.Random(0)
    shares = sorted(
        _share([right for group in draw.choices(groups, k=len(groups)) for right in group])
        for _ in range(draws)
    )
    low, high = shares[math.floor(0.025 * draws)], shares[math.ceil(0.975 * draws) - 1]
    return [round(low, 4), round(high, 4)]


def _left_out(
    cases: Sequence[Case], group: Callable[[Case], str], out: Path | None
) -> dict[str, Any]:
    """The score of predictions for each group, made from the figures of all others."""
    predictions = _predictions_left_out(cases, group)
    if out is not None:
        _write_lines(out, predictions)
    return score(cases, predictions)


def _predictions_left_out(cases: Sequence[Case], group: Callable[[Case], str]) -> list[Prediction]:
    predictions = []
    for name in sorted({group(case) for case in cases}):
        table = read(fit(case for case in cases if group(case) != name))
        predictions += [predict(case, table) for case in cases if group(case) == name]
    return predictions


# --------------------------------------------------------------------------- ceiling


def ceiling(rights: Sequence[Mapping[str, Sequence[Any]]]) -> int:
    """How many cases one row, the same figures for all of them, gets right at best.

    Args:
        rights: of each case, the values that are right for each of its fields.
    """
    every = (1 << len(rights)) - 1
    best = [every]
    for field in sorted({field for right in rights for field in right}):
        free = sum(1 << place for place, right in enumerate(rights) if field not in right)
        values = {value for right in rights for value in right.get(field, ())}
        masks = {
            free
            | sum(
                1 << place
                for place, right in enumerate(rights)
                if any(_agrees(field, said, wanted) for wanted in right.get(field, ()))
            )
            for said in _candidates(field, values)
        }
        best = _largest({one & mask for one in best for mask in masks})
    return max(one.bit_count() for one in best)


def _candidates(field: str, values: Collection[Any]) -> Iterable[Any]:
    """Values of which at least one is right for any cases that one value is right for."""
    numbers = sorted(value for value in values if not isinstance(value, str))
    if not numbers:
        return values
    if field == "steps":
        return range(1, round(numbers[-1]) + 1)
    # The right ones are intervals: where several meet, an end or a middle between ends lies.
    shares, distances = ((0.8, 1.25), ()) if field == "pixels" else ((), (-1.0, -0.5, 0.5, 1.0))
    ends = {number * share for number in numbers for share in shares}
    ends |= {number + distance for number in numbers for distance in distances}
    points = sorted({*numbers, *ends})
    return [*points, *((one + other) / 2 for one, other in itertools.pairwise(points))]


def _largest(masks: set[int]) -> list[int]:
    """Those that are no part of another."""
    kept: list[int] = []
    for mask in sorted(masks, key=int.bit_count, reverse=True):
        if not any(mask & other == mask for other in kept):
            kept.append(mask)
    return kept


def _ceiling(cases: Sequence[Case], out: Path) -> dict[str, Any]:
    """A Markdown table, a family a line: cases, right with one source left out, and at best."""
    rights = _right(cases)
    found = outcomes(cases, _predictions_left_out(cases, publisher))
    left_out = {one.case["id"]: one.right for one in found}
    families: dict[str, list[int]] = {}
    for family in sorted({case["family"] for case, _ in rights}):
        own = [(case, right) for case, right in rights if case["family"] == family]
        tasks: dict[str, list[dict[str, list[Any]]]] = {}
        for case, right in own:
            tasks.setdefault(case.get("task") or "t2i", []).append(right)
        families[family] = [
            len(own),
            sum(left_out[case["id"]] for case, _ in own),
            ceiling([right for _, right in own]),
            sum(ceiling(some) for some in tasks.values()),
        ]
    head = ("family", "cases", "one source left out", "best one row", "best one row a task")
    lines = [_line(head), _line(["---"] * len(head))]
    for family, (count, *right) in families.items():
        lines.append(_line((family, str(count), *(f"{n} ({n / count:.2f})" for n in right))))
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    count = sum(one[0] for one in families.values())
    names = ("left_out", "one_row", "one_row_a_task")
    totals = {
        name: {
            "right": round(sum(one[place] for one in families.values()) / count, 4),
            "right_by_family": round(_share([one[place] / one[0] for one in families.values()]), 4),
            "below_goal": sum(one[place] / one[0] < 0.7 for one in families.values()),
        }
        for place, name in enumerate(names, start=1)
    }
    return {"cases": count, "families": len(families), **totals}


# --------------------------------------------------------------------------- other reports


def _names(cases: Sequence[Case]) -> dict[str, Any]:
    labelled = [
        case
        for case in cases
        if case["kind"] in LABELLED and case["family"] not in (None, "other", "unknown")
    ]
    families: dict[str, list[bool]] = collections.defaultdict(list)
    for case in labelled:
        said = _family_name(model_info(case["model_file_or_id"] or ""), case)
        families[case["family"]].append(said == case["family"])
    shares = [_share(rights) for rights in families.values()]
    every = [right for rights in families.values() for right in rights]
    return {
        "cases": len(every),
        "right": round(_share(every), 4),
        "right_by_family": round(sum(shares) / len(shares), 4),
    }


def _compare(cases: Sequence[Case], out: Path) -> dict[str, Any]:
    """Where ours differs from the official graphs, a Markdown table."""
    official = [case for case in cases if case["kind"] in OFFICIAL]
    found = [one for one in outcomes(cases, map(predict, cases)) if one.case["kind"] in OFFICIAL]
    groups: dict[tuple[Key, Task], list[Case]] = {}
    for case in official:
        key, task = _key(case), TASKS.get(case.get("task") or "")
        if key is not None and task is not None:
            groups.setdefault((key, task), []).append(case)
    rows = [
        line for group in sorted(groups, key=str) for line in _differences(*group, groups[group])
    ]
    head = ("model", "task", "setting", "official graphs", "ours", "why ours")
    lines = [_line(head), _line(["---"] * len(head)), *rows]
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {
        "graphs": len(found),
        "right": round(_share([one.right for one in found]), 4),
        "models": len(groups),
        "differences": len(rows),
    }


def _differences(key: Key, task: Task, cases: Sequence[Case]) -> list[str]:
    model = ModelInfo(
        name="a model", family=key[0], variant=key[1], family_confidence=1.0, evidence="told"
    )
    plan = optimize(
        _analysis(_NO_PROMPT),
        model,
        samplers=_host_names("sampler"),
        schedulers=_host_names("scheduler"),
        sigma_nodes=_SIGMA_NODES,
        task=task,
    )
    ours = _figures(plan)
    reasons = {reason.field: reason.text for reason in plan.reasons}
    title = " ".join(part for part in key if part)
    lines = []
    for field in ("steps", "cfg", "guidance", "sampler", "scheduler"):
        said = [case[field] for case in cases if case.get(field) is not None]
        if said and not all(_agrees(field, ours[field], value) for value in said):
            counts = collections.Counter(f"{v:g}" if not isinstance(v, str) else v for v in said)
            theirs = ", ".join(f"{value} ({count})" for value, count in counts.most_common())
            why = _why(reasons.get(field, ""))
            lines.append(_line((title, task, field, theirs, str(ours[field]), why)))
    return lines


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _why(reason: str) -> str:
    match = re.search(r"\((.*?)\); (?:another|only)", reason)
    return match[1] if match else "the model reads no such setting"
