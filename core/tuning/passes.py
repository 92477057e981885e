"""Whether a plan has a second pass, and which (data: second_pass.json)."""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ..plan import ModelInfo, Priority, QualityIntent, SecondPass
from .candidates import Settings
from .rows import Row, Table, Task, resolve

SecondPassWish = Literal["auto", "on", "off"]
_LARGEST_SIDE = 16_384


def second_pass(
    first: Settings,
    model: ModelInfo,
    *,
    wish: SecondPassWish,
    priority: Priority,
    quality: QualityIntent,
    native_pixels: int,
    task: Task,
    accelerators: Sequence[str],
    samplers: Collection[str],
    schedulers: Collection[str],
    table: Table | None = None,
) -> tuple[SecondPass | None, str]:
    """The second pass over an image sampled as `first` says, and why there is one.

    Args:
        wish: `on` and `off` decide; `auto` plans one where quality asks for it.
        native_pixels: of the size that the model was trained at.
        task: `refine` is a second pass already and gets no other.
    """
    if wish == "off" or task == "refine":
        return None, ""
    facts = _facts()
    asked = facts["asked"]
    if wish == "auto" and (
        (priority, quality) != (asked["priority"], asked["quality"])
        or native_pixels > asked["most_pixels"]
    ):
        return None, ""
    row, _ = resolve(
        model.family,
        model.variant,
        accelerators,
        nearest=model.nearest,
        task="refine",
        table=table,
    )
    if wish == "auto":
        if row.distilled:
            return None, ""
        source = asked["source"]
        why = (
            f"priority {priority} and a prompt that asks for high quality get a second pass on a "
            f"model of this size ({source}); another priority, or second_pass off, takes it away."
        )
    else:
        why = "a second pass is your own setting; left to the pack there might be none."
    width, height = (_scaled(side, facts["scale"]["value"]) for side in (first.width, first.height))
    sampler, scheduler = _pair(row, first, samplers, schedulers)
    return (
        SecondPass(
            width=width,
            height=height,
            space=facts["upscale"]["space"],
            method=facts["upscale"]["method"],
            steps=_figure(row, "steps", first.steps),
            denoise=facts["denoise"]["value"],
            cfg=_figure(row, "cfg", first.cfg),
            sampler=sampler,
            scheduler=scheduler,
        ),
        why,
    )


def second_pass_share(family: str, table: Table | None = None) -> float:
    """Of the sources that publish figures for a family's images or second passes, the share that
    publishes second passes; 0 where nobody does."""
    counts = {task: _sources(family, task, table) for task in ("t2i", "refine")}
    total = sum(counts.values())
    return counts["refine"] / total if total else 0.0


def _sources(family: str, task: Task, table: Table | None) -> float:
    row, _ = resolve(family, None, (), task=task, table=table)
    return sum(votes for _, votes in row.published.get("steps", ())) if row.task == task else 0.0


def _figure(row: Row, field: str, own: Any) -> Any:
    return row.choices[field].rules[-1].value if _publishes(row) else own


def _pair(
    row: Row, first: Settings, samplers: Collection[str], schedulers: Collection[str]
) -> tuple[str, str]:
    if _publishes(row):
        for sampler, scheduler in row.choices["samplers"].rules[-1].value:
            if sampler in samplers and scheduler in schedulers:
                return sampler, scheduler
    return first.pair


def _publishes(row: Row) -> bool:
    return bool(row.published) and row.task == "refine"


def _scaled(side: int, scale: float) -> int:
    return min(_LARGEST_SIDE, round(side * scale / 8) * 8)


@functools.cache
def _facts() -> Mapping[str, Any]:
    path = Path(__file__).with_name("second_pass.json")
    return json.loads(path.read_text(encoding="utf-8"))
