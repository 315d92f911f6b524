"""Alembic's entry: one connection, batch mode for SQLite, our metadata."""

from alembic import context
from sqlalchemy import create_engine, pool
from sqlmodel import SQLModel

import distributor.model  # noqa: F401 - declares the tables in the metadata

config = context.config
engine = create_engine(config.get_main_option("sqlalchemy.url") or "sqlite://", poolclass=pool.NullPool)

with engine.connect() as connection:
    context.configure(connection=connection, target_metadata=SQLModel.metadata, render_as_batch=True, compare_type=True)
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
