"""Lanes are found by an index whatever is asked of them; what PostgreSQL needs beside the tables.

There: evidence that can't be changed, and room for rows that change often.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# A receipt goes with its delivery when that is old enough; the other two stay for ever.
APPEND_ONLY = {"audit_line": "UPDATE OR DELETE", "ledger_line": "UPDATE OR DELETE", "receipt": "UPDATE"}
OFTEN_CHANGED = ("lane", "delivery", "attempt")
INDEXES = {  # name: columns, and which rows
    "ix_lane_ready": (["priority", "next_at"], "next_at IS NOT NULL"),
    "ix_lane_lease": (["lease_until"], "lease_until IS NOT NULL"),
    "ix_lane_probe": (["probe_at"], "paused_at IS NOT NULL"),
}


def upgrade() -> None:
    for name, (columns, rows) in INDEXES.items():
        op.create_index(name, "lane", columns, sqlite_where=sa.text(rows), postgresql_where=sa.text(rows))
    if op.get_bind().dialect.name != "postgresql":
        return
    op.execute(
        "CREATE FUNCTION append_only() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$"
    )
    for table, changes in APPEND_ONLY.items():
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE {changes} ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION append_only()"
        )
    # A page keeps room for the next version of its rows; what is dead is cleared away before it slows the claims.
    for table in OFTEN_CHANGED:
        op.execute(
            f"ALTER TABLE {table} SET (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01, "
            "autovacuum_analyze_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0)"
        )


def downgrade() -> None:
    for name in INDEXES:
        op.drop_index(name, "lane")
    if op.get_bind().dialect.name != "postgresql":
        return
    for table in OFTEN_CHANGED:
        op.execute(
            f"ALTER TABLE {table} RESET (fillfactor, autovacuum_vacuum_scale_factor, "
            "autovacuum_analyze_scale_factor, autovacuum_vacuum_cost_delay)"
        )
    for table in APPEND_ONLY:
        op.execute(f"DROP TRIGGER {table}_append_only ON {table}")
    op.execute("DROP FUNCTION append_only()")
