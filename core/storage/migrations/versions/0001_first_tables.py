"""Model files, generations with their LoRAs and ratings, saves under way."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "model_files",
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("folder", sa.String(64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("mtime_ns", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(64)),
        sa.Column("digest", sa.Text()),
        sa.Column("digest_version", sa.Integer(), nullable=False),
        sa.Column("problem", sa.Text()),
        sa.PrimaryKeyConstraint("path", name="pk_model_files"),
    )
    op.create_index("ix_model_files_folder", "model_files", ["folder"])
    op.create_index("ix_model_files_size", "model_files", ["size"])
    op.create_index("ix_model_files_sha256", "model_files", ["sha256"])

    op.create_table(
        "generations",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("schema_version", sa.Integer(), nullable=False),
        sa.Column("pack_version", sa.String(64), nullable=False),
        sa.Column("mode", sa.String(16), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("family", sa.String(64), nullable=False),
        sa.Column("seed", sa.String(20), nullable=False),
        sa.Column("image_key", sa.String(64), nullable=False),
        sa.Column("record", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_generations"),
    )
    op.create_index("ix_generations_created_at", "generations", ["created_at"])
    op.create_index("ix_generations_family", "generations", ["family"])
    op.create_index("ix_generations_image_key", "generations", ["image_key"])

    op.create_table(
        "generation_loras",
        sa.Column("generation_id", sa.String(64), nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("sha256", sa.String(64)),
        sa.Column("model_strength", sa.Float(53), nullable=False),
        sa.Column("clip_strength", sa.Float(53), nullable=False),
        sa.Column("origin", sa.String(16), nullable=False),
        sa.Column("confidence", sa.Float(53), nullable=False),
        sa.PrimaryKeyConstraint("generation_id", "position", name="pk_generation_loras"),
        sa.ForeignKeyConstraint(
            ["generation_id"],
            ["generations.id"],
            name="fk_generation_loras_generation_id_generations",
        ),
    )
    op.create_index("ix_generation_loras_name", "generation_loras", ["name"])
    op.create_index("ix_generation_loras_sha256", "generation_loras", ["sha256"])

    op.create_table(
        "ratings",
        sa.Column("generation_id", sa.String(64), nullable=False),
        sa.Column("rating", sa.Integer(), nullable=False),
        sa.Column("comment", sa.Text(), nullable=False),
        sa.Column("updated_at", sa.DateTime(), nullable=False),
        sa.Column("changes", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("generation_id", name="pk_ratings"),
        sa.ForeignKeyConstraint(
            ["generation_id"], ["generations.id"], name="fk_ratings_generation_id_generations"
        ),
    )

    op.create_index("ix_ratings_changes", "ratings", ["changes"])

    op.create_table(
        "save_intents",
        sa.Column("generation_id", sa.String(64), nullable=False),
        sa.Column("started_at", sa.DateTime(), nullable=False),
        sa.Column("owner_host", sa.String(255), nullable=False),
        sa.Column("owner_pid", sa.BigInteger(), nullable=False),
        sa.Column("owner_started", sa.Float(53), nullable=False),
        sa.Column("directory", sa.Text(), nullable=False),
        sa.Column("digests", sa.Text(), nullable=False),
        sa.Column("record", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("generation_id", name="pk_save_intents"),
    )


def downgrade() -> None:
    op.drop_table("save_intents")
    op.drop_table("ratings")
    op.drop_table("generation_loras")
    op.drop_table("generations")
    op.drop_table("model_files")
