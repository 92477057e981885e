"""A sampling plan in words: each value with its reason, what to know, and the trade-offs."""

from __future__ import annotations

from ..plan import Alternative, SamplingPlan

_GIB = 1024**3
_LEVEL = {"info": "Note", "warning": "Warning", "error": "Error"}
_HEADINGS = ("", "steps", "sampler", "size", "quality", "fidelity", "time", "memory")


def report(plan: SamplingPlan) -> str:
    """Each value, its source and what would change it, one a line; then notices, then the
    trade-offs as a table."""
    sections = [
        "\n".join(f"{reason.field} = {reason.value}: {reason.text}" for reason in plan.reasons),
        "\n".join(f"{_LEVEL[notice.level]}: {notice.message}" for notice in plan.notices),
        front_table(plan),
    ]
    return "\n\n".join(section for section in sections if section)


def front_table(plan: SamplingPlan) -> str:
    """The trade-offs of a plan, one a line under a heading, fastest first, the chosen one marked
    with `>`; empty for a plan without any."""
    if not plan.front:
        return ""
    lines = [_HEADINGS, *(_cells(one) for one in plan.front)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADINGS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _cells(one: Alternative) -> tuple[str, ...]:
    return (
        ">" if one.chosen else "",
        str(one.steps),
        f"{one.sampler}/{one.scheduler}",
        f"{one.width}×{one.height}" + (" + second pass" if one.second_pass else ""),
        f"{one.quality:.2f}",
        f"{one.fidelity:.2f}",
        f"{one.seconds:.1f} s",
        f"{one.memory_bytes / _GIB:.1f} GiB",
    )
