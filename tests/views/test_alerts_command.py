"""`certjob alerts --watch` as a process: real signals, a database session that is ended, a lock."""

import signal
from pathlib import Path

import psycopg

from certjob.cli.pages.alerts import NOTHING
from tests.support.command_line import Backends, started
from tests.support.facts import Facts
from tests.support.intents import backlog

VISIBLE = "Dynamics sync pending — mentor may still be visible on portal"


def test_a_watch_outlives_a_lost_connection_and_ends_with_ctrl_c_at_once(
    bare_environment: dict[str, str],
    database_url: str,
    facts: Facts,
    app: psycopg.Connection[tuple[object, ...]],
    tmp_path: Path,
) -> None:
    """The loss is said once, what changed meanwhile is shown; a look that waits for a lock is broken off."""
    backends = Backends(facts.connection)
    environment = bare_environment | {"CERTJOB_DATABASE_URL": database_url}

    with started("alerts", "--watch", environment=environment, folder=tmp_path) as child:
        child.wait_for_output(NOTHING)
        backends.terminate()
        backlog(facts, 1)
        facts.connection.execute("UPDATE portal_sync_events SET wanted_at = now() - interval '2 hours'")
        child.wait_for_output(VISIBLE)
        app.execute("LOCK TABLE mentors")
        backends.wait_for_query("", waiting_for="Lock")
        result = child.stop_within(4.0, signal.SIGINT)

    nothing, alert = result.stdout.splitlines()
    assert (result.returncode, nothing, alert[: len(VISIBLE)]) == (3, NOTHING, VISIBLE)
    assert result.stderr.startswith("certjob alerts: could not read the alerts: ")
    assert result.stderr.count("\n") == 1
    backends.wait_until_gone()
