"""What runs cost, and how fast machines are."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "run_costs",
        sa.Column("generation_id", sa.String(64), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("machine", sa.String(255), nullable=False),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("configuration", sa.String(255), nullable=False),
        sa.Column("pixels", sa.BigInteger(), nullable=False),
        sa.Column("worked_out_sampling", sa.Float(53), nullable=False),
        sa.Column("worked_out_other", sa.Float(53), nullable=False),
        sa.Column("worked_out_weights", sa.BigInteger(), nullable=False),
        sa.Column("worked_out_working", sa.BigInteger(), nullable=False),
        sa.Column("sampling_seconds", sa.Float(53), nullable=False),
        sa.Column("other_seconds", sa.Float(53), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger()),
        sa.Column("predicted_seconds", sa.Float(53), nullable=False),
        sa.PrimaryKeyConstraint("generation_id", name="pk_run_costs"),
        sa.ForeignKeyConstraint(
            ["generation_id"], ["generations.id"], name="fk_run_costs_generation_id_generations"
        ),
    )
    for column in ("created_at", "machine", "model"):
        op.create_index(f"ix_run_costs_{column}", "run_costs", [column])

    op.create_table(
        "machine_speeds",
        sa.Column("machine", sa.String(255), nullable=False),
        sa.Column("dtype", sa.String(32), nullable=False),
        sa.Column("flops", sa.Float(53), nullable=False),
        sa.Column("bandwidth", sa.Float(53), nullable=False),
        sa.Column("value_bytes", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("machine", "dtype", name="pk_machine_speeds"),
    )


def downgrade() -> None:
    op.drop_table("machine_speeds")
    op.drop_table("run_costs")
