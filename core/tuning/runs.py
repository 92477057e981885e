"""What runs have cost and how fast the machine is, kept in the database."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from sqlalchemy import func, or_, select

from ..storage import Database
from ..storage.tables import MachineSpeedRow, RunCostRow
from .cost import Measured, Parts, Speed

LOADED = 40
"""Newest runs of a model, and of all models, that are read for a prediction."""

FAR_OFF = 0.25
"""A prediction further off than this share of the measured time is news for a plan with limits."""


def machine_speed(
    database: Database, machine: str, dtype: str, *, measure: Callable[[], Speed]
) -> Speed:
    """The machine's speed with weights of a data type, measured at the first call for it and kept.

    Raises:
        StorageError: the database cannot be read or written.
    """
    with database.session(read_only=True) as session:
        row = session.get(MachineSpeedRow, (machine, dtype))
    if row is None:
        speed = measure()
        with database.session() as session:
            session.merge(MachineSpeedRow(machine=machine, dtype=dtype, **speed._asdict()))
        return speed
    return Speed(row.flops, row.bandwidth, row.value_bytes)


def measured_runs(database: Database, machine: str, model: str) -> tuple[Measured, ...]:
    """The latest runs on a machine, newest first: of the model, and of others. StorageError."""
    newest = select(RunCostRow).where(RunCostRow.machine == machine)
    newest = newest.order_by(RunCostRow.created_at.desc()).limit(LOADED)
    with database.session(read_only=True) as session:
        own = session.scalars(newest.where(RunCostRow.model == model)).all()
        others = session.scalars(newest.where(RunCostRow.model != model)).all()
    return tuple(
        Measured(
            model=row.model,
            configuration=row.configuration,
            pixels=row.pixels,
            worked_out=Parts(
                row.worked_out_sampling,
                row.worked_out_other,
                row.worked_out_weights,
                row.worked_out_working,
            ),
            sampling_seconds=row.sampling_seconds,
            other_seconds=row.other_seconds,
            memory_bytes=row.memory_bytes,
            predicted_seconds=row.predicted_seconds,
        )
        for row in (*own, *others)
    )


def add_run(
    database: Database, generation_id: str, machine: str, run: Measured, *, now: datetime
) -> None:
    """Keep what a recorded generation cost. `now` is aware. Raises StorageError."""
    with database.session() as session:
        session.merge(
            RunCostRow(
                generation_id=generation_id,
                created_at=now,
                machine=machine,
                model=run.model,
                configuration=run.configuration,
                pixels=run.pixels,
                worked_out_sampling=run.worked_out.sampling_seconds,
                worked_out_other=run.worked_out.other_seconds,
                worked_out_weights=run.worked_out.weight_bytes,
                worked_out_working=run.worked_out.working_bytes,
                sampling_seconds=run.sampling_seconds,
                other_seconds=run.other_seconds,
                memory_bytes=run.memory_bytes,
                predicted_seconds=run.predicted_seconds,
            )
        )


def cost_revision(database: Database) -> str:
    """Changes when a run took another time than predicted, by more than `FAR_OFF`. StorageError.

    For the fingerprint of plans with limits: those are made anew when costs turn out otherwise,
    and stay as they are while predictions hold.
    """
    taken = RunCostRow.sampling_seconds + RunCostRow.other_seconds
    predicted = RunCostRow.predicted_seconds
    far_off = or_(predicted > taken * (1 + FAR_OFF), predicted < taken * (1 - FAR_OFF))
    with database.session(read_only=True) as session:
        count = select(func.count()).select_from(RunCostRow).where(far_off)
        return str(session.scalar(count))
