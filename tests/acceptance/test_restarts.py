"""PostgreSQL restarts during a run: the command ends, and its next start does the rest."""

import re
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from certjob import database
from certjob.database import Connection
from certjob.mail.message import OutgoingMessage
from tests.support.command_line import started
from tests.support.facts import TODAY, Facts
from tests.support.nights import CollectingChannel, night
from tests.support.own_server import Cluster
from tests.support.portal_answers import during, hang, ok
from tests.support.portal_server import PortalServer


@pytest.fixture
def url(cluster: Cluster) -> Iterator[str]:
    """The URL of a database with three expired mentors and a coordinator, on a server that may be stopped."""
    with cluster.fresh_database(f"restart_{uuid4().hex[:12]}") as url:
        with database.connect(url) as connection:
            facts = Facts(connection)
            organisation = facts.organisation()
            facts.insert("coordinators", organisation_id=organisation, email="anna@example.org")
            for _ in range(3):
                facts.certified_mentor(organisation, TODAY - timedelta(days=1))
        yield url


def night_of_a_new_process(url: str, today: date = TODAY, **ways_out: Any) -> None:
    """Run a night over a new connection."""
    with database.connect(url) as connection:
        night(connection, today, **ways_out)


def lost_night(url: str, **ways_out: Any) -> None:
    """Run a night that loses its database."""
    with pytest.raises(psycopg.OperationalError) as caught:
        night_of_a_new_process(url, **ways_out)
    assert database.is_lost(caught.value)


def rows(url: str, statement: str) -> list[tuple[Any, ...]]:
    with database.connect(url) as connection:
        return connection.execute(statement.encode()).fetchall()


@pytest.mark.parametrize("interrupted", ["push", "reminder", "digest"])
def test_restart_during_a_run_loses_nothing_and_repeats_no_mail(
    url: str, cluster: Cluster, portal: PortalServer, interrupted: str
) -> None:
    """The next start keeps the outcome of the second push or reminder, or of the digest, that was in flight."""
    sent: list[str] = []

    if interrupted == "push":
        portal.then(ok(), during(cluster.restart))

    def on_send(message: OutgoingMessage) -> None:
        sent.append(message.kind)
        if message.kind == interrupted and len(sent) in (2, 4):
            cluster.restart()

    channel = CollectingChannel(on_send=on_send)

    lost_night(url, portal=portal, channel=channel)
    night_of_a_new_process(url, portal=portal, channel=channel)

    assert rows(url, "SELECT count(*), count(DISTINCT mentor_id) FROM mentor_pauses") == [(3, 3)]
    assert len(portal.pushes) == len(portal.visible) == 3
    assert sent == ["reminder", "reminder", "reminder", "digest"]
    assert rows(url, "SELECT status, count(*) FROM portal_sync_events GROUP BY 1") == [("delivered", 3)]
    assert rows(url, "SELECT DISTINCT status, maybe_sent FROM cert_notification_log") == [("sent", False)]
    assert rows(url, "SELECT outcome FROM job_runs ORDER BY started_at") == [(None,), ("ok",)]
    night_of_a_new_process(url, TODAY + timedelta(days=1), portal=portal, channel=channel)
    assert len(sent) == 4, "no second digest about the same mentors"


@pytest.mark.parametrize("command", ["run", "deliver", "reconcile"])
def test_command_that_lost_the_database_says_so_and_its_next_start_does_the_rest(
    url: str, cluster: Cluster, environment: dict[str, str], portal: PortalServer, tmp_path: Path, command: str
) -> None:
    """cron mails one line."""
    if command != "run":
        with database.connect(url) as connection:
            night(connection, deliver=False)
    portal.then(hang())

    environment |= {"CERTJOB_DATABASE_URL": url}
    with started(command, environment=environment, folder=tmp_path) as child:
        portal.wait_until(lambda: len(portal.requests) >= 1)
        cluster.restart()
        portal.release()
        lost = child.finish()
    with started(command, environment=environment, folder=tmp_path) as child:
        result = child.finish()

    assert (lost.returncode, lost.stdout) == (1, "")
    assert re.fullmatch(
        rf"certjob {command}: the database went away: .*; committed work is kept; run it again\n", lost.stderr
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert list(portal.visible.values()) == [False, False, False]


END_ONE_SESSION = b"""
    CREATE SEQUENCE writes;
    CREATE FUNCTION end_one_session() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF nextval('writes') = 2 THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER test BEFORE INSERT ON mentor_pauses FOR EACH ROW EXECUTE FUNCTION end_one_session();
"""


def test_review_that_lost_its_session_is_done_by_the_next_start(url: str, portal: PortalServer) -> None:
    """The session ends within the transaction, which is rolled back."""
    with database.connect(url) as connection:
        connection.execute(END_ONE_SESSION)

    lost_night(url, portal=portal)
    night_of_a_new_process(url, portal=portal)

    assert portal.values == [False, False, False]
    assert rows(url, "SELECT count(*), count(DISTINCT mentor_id) FROM mentor_pauses") == [(3, 3)]


def test_transaction_has_a_time_limit_for_locks_and_statements(connection: Connection) -> None:
    """A statement_timeout of the administrator has precedence."""
    shown = "SELECT current_setting('lock_timeout'), current_setting('statement_timeout')"
    with database.transaction(connection, lock_timeout_ms=500):
        assert connection.execute(shown).fetchone() == ("500ms", "10min")
    connection.execute("SET statement_timeout = '20min'")
    with database.transaction(connection, lock_timeout_ms=500):
        assert connection.execute(shown).fetchone() == ("500ms", "20min")
