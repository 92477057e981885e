"""AUTO beside the table of placements that the project set out with, by the planner's accounting.

The table goes by the VRAM that can be had alone: under 8 GB one part at a time, 8 to 12 GB the
diffusion model on the card and the rest on the processor, 12 to 16 GB the text encoder too, 16 GB
and more everything. It is the floor: AUTO, which goes by the sizes of the parts and by what
computing takes, may not need more where memory is short, and must run what the table runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..core.memory.allocation import Allocation, Role

GIB = 2**30
_ROWS: tuple[tuple[float, str, tuple[Role, ...] | None], ...] = (
    (8, "one part at a time", None),
    (12, "diffusion model on the card", ("diffusion_model",)),
    (16, "diffusion model and text encoder on the card", ("diffusion_model", "text_encoder")),
    (float("inf"), "all on the card", ("diffusion_model", "text_encoder", "vae")),
)
"""Below how many GiB, what is done, and which parts are on the card together; None: one by one."""


class Floor(NamedTuple):
    """What a placement takes of the card, in bytes."""

    vram: int
    """What can be had."""
    table: str
    """The table's row."""
    table_sampling: int
    """The table's placement while the diffusion model samples, nothing of it streamed."""
    table_peak: int
    """The same in the whole run but for the decode."""
    auto_sampling: int
    auto_peak: int
    together: bool
    """Whether AUTO keeps all parts on the card."""

    @property
    def table_fits(self) -> bool:
        return self.table_peak <= self.vram

    @property
    def auto_fits(self) -> bool:
        return self.auto_peak <= self.vram

    @property
    def kept(self) -> bool:
        """Whether AUTO fits, and holds no more while sampling than the table would where memory
        is too short for all parts."""
        return self.auto_fits and (self.together or self.auto_sampling <= self.table_sampling)

    def as_gib(self) -> dict[str, Any]:
        """What `bench.py memory sizes` prints of it."""
        return {
            "placement": self.table,
            "sampling_gib": round(self.table_sampling / GIB, 2),
            "auto_sampling_gib": round(self.auto_sampling / GIB, 2),
            "fits": self.table_fits,
        }


def floor(allocation: Allocation, working: int, vram: int) -> Floor:
    """AUTO's allocation beside the table's row, with the weights in the same data type.

    Args:
        working: bytes that computing takes.
        vram: bytes of VRAM that can be had.
    """
    name, parts = next((name, parts) for most, name, parts in _ROWS if vram < most * GIB)
    sizes = {row.role: row.bytes for row in allocation.rows}
    if parts is None:
        sampling, peak = sizes["diffusion_model"], max(sizes.values())
    else:
        sampling = peak = sum(sizes.get(part, 0) for part in parts)
    held = {row.role: row.device_bytes for row in allocation.rows}
    own = sum(held.values()) if allocation.together else held["diffusion_model"]
    return Floor(
        vram,
        name,
        sampling + working,
        peak + working,
        own + working,
        allocation.peak_bytes(working),
        allocation.together,
    )


def counted(cases: Sequence[Floor]) -> dict[str, int]:
    """How many of the cases fit, and in how many AUTO keeps to the floor."""
    return {
        "cases": len(cases),
        "auto_fits": sum(case.auto_fits for case in cases),
        "auto_within_table_where_short": sum(case.kept for case in cases),
        "table_fits_unstreamed": sum(case.table_fits for case in cases),
    }
