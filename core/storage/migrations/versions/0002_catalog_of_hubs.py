"""Remote versions with files and tags, user edits, downloads, and more of each model file."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_KEY = ("hub", "model_id", "version_id")


def upgrade() -> None:
    with op.batch_alter_table("model_files") as table:
        table.add_column(sa.Column("header_hash", sa.String(32)))
        table.add_column(sa.Column("autov3", sa.String(12)))
        table.add_column(sa.Column("sidecar_stamp", sa.Text()))
        table.add_column(sa.Column("sidecar", sa.Text()))
        table.add_column(sa.Column("merged", sa.Text()))
        table.add_column(sa.Column("asked_at", sa.DateTime()))
    op.create_index("ix_model_files_autov3", "model_files", ["autov3"])

    op.create_table(
        "catalog_state",
        sa.Column("name", sa.String(32), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_catalog_state"),
    )

    op.create_table(
        "model_edits",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("mtime_ns", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(64)),
        sa.Column("trigger_words", sa.Text()),
        sa.Column("weight", sa.Float(53)),
        sa.Column("updated_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_model_edits"),
    )
    op.create_index("ix_model_edits_path", "model_edits", ["path"])
    op.create_index("ix_model_edits_sha256", "model_edits", ["sha256"])

    op.create_table(
        "remote_versions",
        *_key_columns(),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("base_model", sa.Text(), nullable=False),
        sa.Column("family", sa.String(64), nullable=False),
        sa.Column("downloads", sa.BigInteger()),
        sa.Column("likes", sa.BigInteger()),
        sa.Column("words", sa.Text(), nullable=False),
        sa.Column("record", sa.Text(), nullable=False),
        sa.Column("mined", sa.Text()),
        sa.Column("met_at", sa.DateTime(), nullable=False),
        sa.Column("refreshed_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint(*_KEY, name="pk_remote_versions"),
    )
    for column in ("kind", "base_model", "family", "downloads"):
        op.create_index(f"ix_remote_versions_{column}", "remote_versions", [column])

    op.create_table(
        "remote_files",
        *_key_columns(),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint(*_KEY, "sha256", name="pk_remote_files"),
        _of_version("remote_files"),
    )
    op.create_index("ix_remote_files_sha256", "remote_files", ["sha256"])

    op.create_table(
        "remote_tags",
        *_key_columns(),
        sa.Column("tag", sa.String(255), nullable=False),
        sa.PrimaryKeyConstraint(*_KEY, "tag", name="pk_remote_tags"),
        _of_version("remote_tags"),
    )
    op.create_index("ix_remote_tags_tag", "remote_tags", ["tag"])

    op.create_table(
        "downloads",
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("folder", sa.String(64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("mtime_ns", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("hub", sa.String(16), nullable=False),
        sa.Column("model_id", sa.String(255), nullable=False),
        sa.Column("version_id", sa.String(255), nullable=False),
        sa.Column("downloaded_at", sa.DateTime(), nullable=False),
        sa.Column("last_used_at", sa.DateTime(), nullable=False),
        sa.Column("pinned", sa.Boolean(), nullable=False),
        sa.Column("packed_size", sa.BigInteger()),
        sa.PrimaryKeyConstraint("path", name="pk_downloads"),
    )
    op.create_index("ix_downloads_sha256", "downloads", ["sha256"])
    op.create_index("ix_downloads_last_used_at", "downloads", ["last_used_at"])


def _key_columns() -> list[sa.Column]:
    return [
        sa.Column("hub", sa.String(16), nullable=False),
        sa.Column("model_id", sa.String(255), nullable=False),
        sa.Column("version_id", sa.String(255), nullable=False),
    ]


def _of_version(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        _KEY,
        [f"remote_versions.{column}" for column in _KEY],
        name=f"fk_{table}_{'_'.join(_KEY)}_remote_versions",
        ondelete="CASCADE",
    )


def downgrade() -> None:
    for table in (
        *("downloads", "remote_tags", "remote_files", "remote_versions"),
        *("model_edits", "catalog_state"),
    ):
        op.drop_table(table)
    op.drop_index("ix_model_files_autov3", "model_files")
    with op.batch_alter_table("model_files") as table:
        for column in ("asked_at", "merged", "sidecar", "sidecar_stamp", "autov3", "header_hash"):
            table.drop_column(column)
