"""Run by Alembic. Connection and metadata come from database.py, as this file is loaded by
path and knows no package; no alembic.ini is read and logging is left alone."""

from __future__ import annotations

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=context.config.attributes["metadata"],
    version_table=context.config.attributes["version_table"],
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
