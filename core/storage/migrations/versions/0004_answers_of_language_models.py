"""What language models said of prompts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "language_model_answers",
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("answer", sa.Text(), nullable=False),
        sa.Column("used_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_language_model_answers"),
    )
    op.create_index("ix_language_model_answers_used_at", "language_model_answers", ["used_at"])


def downgrade() -> None:
    op.drop_table("language_model_answers")
