"""Named statements and their settings."""

from datetime import timedelta

import psycopg
import pytest

from certjob import database
from certjob.database import Connection, statements


def test_statements_always_run_with_certjobs_settings(connection: Connection, database_url: str) -> None:
    """They do so inside and outside a transaction. The session itself keeps its settings."""
    name = connection.info.dbname
    connection.execute(f"ALTER DATABASE {name} SET timezone = 'Asia/Tokyo'".encode())
    with database.connect(database_url) as fresh:
        alone = database.clock(fresh)
        with database.read_only_snapshot(fresh):
            inside = database.clock(fresh)

        assert [moment.utcoffset() for moment in (alone, inside)] == [timedelta()] * 2
        assert fresh.execute("SELECT current_setting('timezone')").fetchone() == ("Asia/Tokyo",)


def test_no_statement_waits_forever_for_a_locked_table(
    connection: Connection, app: psycopg.Connection[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither alone nor in a snapshot: a delivery would hang without a message."""
    monkeypatch.setattr(statements, "LOCK_TIMEOUT_MS", 50)
    app.execute("LOCK TABLE portal_sync_events")

    with pytest.raises(psycopg.errors.LockNotAvailable):
        database.fetch(connection, "read_open_work")
    with pytest.raises(psycopg.errors.LockNotAvailable), database.read_only_snapshot(connection):
        database.fetch(connection, "read_open_work")
