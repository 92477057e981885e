"""What runs gave up after they had run out of memory."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "memory_fallbacks",
        sa.Column("machine", sa.String(255), nullable=False),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("configuration", sa.String(255), nullable=False),
        sa.Column("strategy", sa.String(32), nullable=False),
        sa.Column("int8", sa.Boolean(), nullable=False),
        sa.Column("tiled_decode", sa.Boolean(), nullable=False),
        sa.Column("images_at_once", sa.Integer(), nullable=False),
        sa.Column("free_bytes", sa.BigInteger(), nullable=False),
        sa.Column("failed_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("machine", "model", "configuration", name="pk_memory_fallbacks"),
    )


def downgrade() -> None:
    op.drop_table("memory_fallbacks")
