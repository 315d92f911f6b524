"""Alembic's entry: the connection that `distributor.database` hands over, batch mode for SQLite, our metadata."""

from alembic import context
from sqlmodel import SQLModel

import distributor.model  # noqa: F401 - declares the tables in the metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=SQLModel.metadata, render_as_batch=True, compare_type=True)
with context.begin_transaction():
    context.run_migrations()
