"""`certjob alerts --watch` as a process: a real signal, a database session that is ended, a lock."""

import os
import pty
import signal
from pathlib import Path
from typing import Any

import psycopg

from certjob.cli.pages.alerts import NOTHING
from tests.support.command_line import Backends, started, without_escapes
from tests.support.facts import Facts
from tests.support.intents import backlog
from tests.support.waiting import until

VISIBLE = "Dynamics sync pending — mentor may still be visible on portal"


def test_a_watch_outlives_a_lost_connection_and_ends_with_ctrl_c_at_once(
    environment: dict[str, str], facts: Facts, app: psycopg.Connection[tuple[object, ...]], tmp_path: Path
) -> None:
    """What changed meanwhile is shown; a look that waits for a lock is broken off."""
    backends = Backends(facts.connection)
    master, slave = pty.openpty()
    environment |= {"TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    terminal: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), slave)
    shown = bytearray()

    def shows(part: str) -> bool:
        shown.extend(os.read(master, 65536))
        return part in without_escapes(shown.decode(errors="replace"))

    with started("alerts", "--watch", environment=environment, folder=tmp_path, **terminal) as child:
        os.close(slave)
        until(lambda: shows(NOTHING))
        backends.terminate()
        backlog(facts, 1)
        facts.connection.execute("UPDATE portal_sync_events SET wanted_at = now() - interval '2 hours'")
        until(lambda: shows(VISIBLE))
        app.execute("LOCK TABLE mentors")
        backends.wait_for_query("", waiting_for="Lock")

        assert child.stop_within(4.0, signal.SIGINT).returncode == 3
    os.close(master)
    assert "could not read the alerts: " in without_escapes(shown.decode())
    backends.wait_until_gone()
