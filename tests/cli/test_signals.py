"""SIGTERM, SIGINT and SIGHUP, whatever certjob is doing: an end within 10 s, one line, nothing lost, nothing kept."""

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import date
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

from certjob import stopping
from certjob.database import Connection, migrations
from certjob.errors import StoppedBySignalError
from certjob.stopping import STOP_SIGNALS, StopFlag
from tests.cli.conftest import LONG_AGO, SOON
from tests.support.command_line import WITHIN_SECONDS, Backends, Child, Finished, assert_one_line, started
from tests.support.facts import Facts
from tests.support.forked_command import ForkedCommand
from tests.support.intents import make_due
from tests.support.ping_host import ping_host
from tests.support.portal_answers import error, hang, ok
from tests.support.portal_server import PortalServer
from tests.support.processes import while_open
from tests.support.smtp_server import Fault, scripted_server
from tests.support.stalling_proxy import StallingProxy
from tests.support.waiting import until

AT_ONCE_SECONDS = 4.0
"""Much less than the grace, and enough for a busy machine."""
IMPATIENT = 0.5
"""A grace, in seconds, for a test that waits for its end."""

App = psycopg.Connection[tuple[object, ...]]
Start = Callable[..., AbstractContextManager[Child]]


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Start:
    """Start the command in the background, perhaps with another ``grace``; other keyword arguments are settings."""

    def run(*arguments: str, grace: float | None = None, **settings: str) -> AbstractContextManager[Child]:
        alterations: dict[str, Any] = {} if grace is None else {"grace": grace}
        return started(*arguments, environment=environment | settings, folder=tmp_path, **alterations)

    return run


@pytest.fixture
def backends(connection: Connection, facts: Facts, app: App) -> Backends:
    """The children's sessions; those of the test are open already."""
    del facts, app
    return Backends(connection)


@pytest.fixture
def to_portal(portal: PortalServer) -> dict[str, str]:
    return {"CERTJOB_PORTAL_URL": portal.url, "CERTJOB_PORTAL_KEY": portal.key}


def assert_stopped(result: Finished, *, name: str = "SIGTERM", command: str = "certjob run") -> None:
    assert_one_line(result, f"stopped by {name}", "the next run does the rest", code=1, command=command)
    assert result.stdout == ""


def assert_recorded_as_failed(facts: Facts) -> None:
    assert facts.rows("DELETE FROM job_runs RETURNING outcome, finished_at IS NOT NULL") == [("failed", True)]


def assert_completes(start: Start, *arguments: str, **settings: str) -> None:
    """The next run, undisturbed, ends well."""
    with start(*arguments, **settings) as child:
        result = child.finish()
    assert (result.returncode, result.stderr) == (0, "")


def insert_mentors(facts: Facts, organisation_id: UUID, count: int, *, expires_on: date = LONG_AGO) -> None:
    """Mentors B1, B2, … with a certificate each."""
    facts.connection.execute(
        "WITH m AS (INSERT INTO mentors (organisation_id, member_no, email, dynamics_contact_id)"
        " SELECT %s, 'B' || n, 'b' || n || '@example.org', gen_random_uuid() FROM generate_series(1, %s) AS n"
        " RETURNING id) INSERT INTO certificates (mentor_id, kind, issued_on, expires_on)"
        " SELECT id, 'likeperson', '2024-01-01', %s FROM m",
        (organisation_id, count, expires_on),
    )


def paused(facts: Facts) -> int:
    return len(facts.rows("SELECT FROM mentor_pauses"))


def leases(facts: Facts) -> dict[object, object]:
    """Contact id to whether its open event is leased to somebody; an event is due now if it is not."""
    rows = facts.rows(
        "SELECT dynamics_contact_id, claim_token IS NOT NULL, next_attempt_at > now()"
        " FROM portal_sync_events e JOIN mentors m ON m.id = e.mentor_id WHERE status = 'pending'"
    )
    assert all(has_token == waits for _, has_token, waits in rows)
    return {contact_id: has_token for contact_id, has_token, _ in rows}


# What has nothing to finish.


def test_while_connecting(start: Start) -> None:
    """A database host that accepts the connection and says nothing: there is nothing to wait for."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        url = f"postgresql://u@127.0.0.1:{listener.getsockname()[1]}/x"
        for number in STOP_SIGNALS:
            with start("run", CERTJOB_DATABASE_URL=url) as child:
                silent, _ = listener.accept()
                with silent:
                    silent.recv(1)
                    result = child.stop_within(AT_ONCE_SECONDS, number)

            assert_stopped(result, name=number.name)


def test_while_it_waits_for_somebodys_lock(
    start: Start, facts: Facts, app: App, backends: Backends, tmp_path: Path
) -> None:
    """Who only looks has nothing to finish; a migration, a resync and a load have not begun."""
    organisation = facts.organisation(portal=None)
    facts.certified_mentor(organisation, LONG_AGO, member_no="M1")
    roster = "organisation,member_no,kind,issued_on,expires_on\nhlf,M1,a,2025-01-01,2027-01-01\n"
    (tmp_path / "roster.csv").write_text(roster)
    tables = "LOCK TABLE mentors, certjob_migrations"
    for lock, words, what, waiting_for in (
        (tables, "alerts", "", "Lock"),
        (tables, "run --dry-run", "", "Lock"),
        (tables, "db status", "", "Lock"),
        (f"SELECT pg_advisory_xact_lock({migrations._LOCK_KEY})", "db migrate", "COMMIT", None),  # tried in vain
        ("LOCK TABLE mentors", "load roster.csv", "", "Lock"),
        ("SELECT FROM mentors FOR UPDATE", "resync M1", "mentors", "Lock"),
    ):
        app.execute(lock.encode())
        with start(*words.split()) as child:
            backends.wait_for_query(what, waiting_for=waiting_for)
            result = child.stop_within(AT_ONCE_SECONDS)

        command = f"certjob {words.partition(' --')[0].removesuffix(' M1').removesuffix(' roster.csv')}"
        assert_one_line(result, "stopped by SIGTERM", code=1, command=command)
        backends.wait_until_gone()
        app.rollback()

    assert_recorded_as_failed(facts)  # the resync
    assert paused(facts) == 0
    assert_completes(start, "db", "migrate")


# In the review.


def test_in_the_middle_and_at_the_end_of_a_big_review(start: Start, facts: Facts, app: App, backends: Backends) -> None:
    """Every mentor is reviewed wholly or not at all, and the next run has the rest.

    At the end one is waited for whom somebody holds: a JSON line names the run in the ledger.
    """
    insert_mentors(facts, facts.organisation(), 2000)
    app.execute("SELECT FROM mentors WHERE member_no = 'B1' FOR UPDATE")
    command = ("run", "--allow-mass-change", "--no-deliver")

    with start(*command) as child:
        until(lambda: paused(facts))  # the first chunk is committed
        result = child.stop_within(AT_ONCE_SECONDS)

    assert_stopped(result)
    assert_recorded_as_failed(facts)
    assert torn(facts) == []

    with start(*command, CERTJOB_LOG_FORMAT="json") as child:
        until(lambda: paused(facts) == 1999 and facts.rows("SELECT FROM job_runs"))
        backends.wait_for_query("COMMIT")
        result = child.stop_within(AT_ONCE_SECONDS)

    (line,) = map(json.loads, result.stderr.splitlines())
    assert (result.returncode, line["event"], line["level"]) == (1, "failed", "error")
    assert line["message"].startswith("stopped by SIGTERM; ")
    assert [(str(row[0]),) for row in facts.rows("SELECT id FROM job_runs")] == [(line["run_id"],)]
    assert_recorded_as_failed(facts)
    app.rollback()
    assert_completes(start, *command)
    assert (torn(facts), paused(facts)) == ([], 2000)


def torn(facts: Facts) -> list[tuple[object, ...]]:
    """Mentors of whom only a part of state, pause, audit and intent was written."""
    return facts.rows(
        "SELECT m.id FROM mentors m WHERE 1 < (SELECT count(DISTINCT x) FROM unnest(ARRAY["
        " EXISTS (SELECT FROM certificates c WHERE c.mentor_id = m.id AND c.status = 'expired'),"
        " EXISTS (SELECT FROM mentor_pauses p WHERE p.mentor_id = m.id),"
        " EXISTS (SELECT FROM certificate_transitions t WHERE t.mentor_id = m.id),"
        " EXISTS (SELECT FROM portal_sync_events e WHERE e.mentor_id = m.id)]) AS x)"
    )


def test_while_a_chunk_waits_for_a_locked_table(start: Start, facts: Facts, app: App, backends: Backends) -> None:
    """Half a second a mentor would take minutes: the signal is seen between two of them."""
    insert_mentors(facts, facts.organisation(portal=None), 15)
    app.execute("LOCK TABLE certificate_transitions")

    with start("run") as child:
        backends.wait_for_query("certificate_transitions", waiting_for="Lock")
        result = child.stop_within(AT_ONCE_SECONDS)

    assert_stopped(result)
    assert_recorded_as_failed(facts)
    assert paused(facts) == 0
    app.rollback()
    assert_completes(start, "run")
    assert paused(facts) == 15


# In the delivery.


def test_while_calls_to_the_portal_hang(
    start: Start, facts: Facts, portal: PortalServer, to_portal: dict[str, str]
) -> None:
    """They get a few seconds to end and keep their leases; what was claimed with them and not begun is free at once.

    A person who presses Ctrl-C twice means it: at once, and still one line.
    """
    portal.default = hang()
    insert_mentors(facts, facts.organisation(), 7)

    with start("run", grace=IMPATIENT, **to_portal) as child:
        portal.wait_until(lambda: len(portal.requests) == 4)
        result = child.stop_within()

    assert_stopped(result)
    assert_recorded_as_failed(facts)
    begun = {request.contact_id for request in portal.requests}
    assert len(portal.requests) == 4
    assert leases(facts) == {contact_id: contact_id in begun for contact_id in leases(facts)}

    make_due(facts)  # five minutes later
    with start("run", **to_portal) as child:
        portal.wait_until(lambda: len(portal.requests) == 8)
        child.signal(signal.SIGINT)
        result = child.stop_within(AT_ONCE_SECONDS, signal.SIGTERM)  # another one: two alike at one moment are merged

    assert_stopped(result, name="SIG")  # whichever of the two came last
    assert_recorded_as_failed(facts)
    portal.release()
    make_due(facts)
    with PortalServer(key=portal.key) as healthy:
        assert_completes(start, "run", **to_portal | {"CERTJOB_PORTAL_URL": healthy.url})
        assert [*healthy.visible.values()] == [False] * 7
    assert facts.rows("SELECT DISTINCT status FROM portal_sync_events") == [("delivered",)]


def test_while_the_portal_asked_to_wait(
    start: Start, facts: Facts, portal: PortalServer, to_portal: dict[str, str]
) -> None:
    """Five minutes of Retry-After are not waited for; no lease is held meanwhile."""
    portal.default = error(429, "throttled", retry_after="300")
    insert_mentors(facts, facts.organisation(), 6)
    later = "SELECT FROM portal_sync_events WHERE next_attempt_at > now() + interval '4 min' AND claim_token IS NULL"

    with start("run", CERTJOB_PORTAL_CONCURRENCY="1", **to_portal) as child:
        until(
            lambda: facts.rows(later) and not facts.rows("SELECT FROM portal_sync_events WHERE claim_token IS NOT NULL")
        )
        result = child.stop_within(AT_ONCE_SECONDS)

    assert_stopped(result)
    assert_recorded_as_failed(facts)
    assert facts.rows("SELECT count(*), count(claim_token) FROM portal_sync_events") == [(6, 0)]
    assert len(portal.requests) == 1


def test_while_the_database_stalls(
    start: Start, facts: Facts, portal: PortalServer, to_portal: dict[str, str], database_url: str
) -> None:
    """Its proxy keeps the connection and swallows the cancellation: the socket is closed, or the process ends hard."""
    portal.default = hang(ok())
    insert_mentors(facts, facts.organisation(), 1)

    with StallingProxy(database_url) as proxy:
        settings = to_portal | {"CERTJOB_DATABASE_URL": proxy.url}
        with start("run", "--json", grace=IMPATIENT, **settings) as child:
            portal.wait_until(lambda: len(portal.requests) == 1)
            proxy.stall()
            portal.release()  # its settle waits for the database, for ever
            result = child.stop_within(IMPATIENT + stopping.CLEANING_UP_SECONDS + 2)

    assert stopping.GRACE_SECONDS + stopping.CLEANING_UP_SECONDS <= WITHIN_SECONDS - 1
    assert_one_line(result, "stopped by SIGTERM", code=1)
    assert json.loads(result.stdout)["error"]["code"] == "stopped"


@pytest.mark.parametrize(("stage", "bodies"), [("DATA", 0), ("END", 1)], ids=["before the dot", "after the dot"])
def test_while_the_mail_server_says_nothing(start: Start, facts: Facts, stage: str, bodies: int) -> None:
    """The message in hand keeps its lease, and says that it may be a repeat; the others are free at once."""
    insert_mentors(facts, facts.organisation(portal=None), 3, expires_on=SOON)

    with scripted_server({stage: Fault.HANG}) as server:
        mail = {"CERTJOB_NOTIFY_URL": f"smtp://127.0.0.1:{server.port}", "CERTJOB_MAIL_FROM": "certjob@example.org"}
        with start("run", grace=IMPATIENT, **mail) as child:
            until(lambda: "DATA" in server.commands and len(server.bodies) == bodies)
            result = child.stop_within()

        assert_stopped(result)
        assert_recorded_as_failed(facts)
        rows = facts.rows(
            "SELECT status, claim_token IS NULL, next_attempt_at <= now(), attempts FROM cert_notification_log"
            " ORDER BY claim_token IS NULL"
        )
        assert rows == [("pending", False, False, 1), ("pending", True, True, 0), ("pending", True, True, 0)]

        del server.answers[stage]
        make_due(facts, "cert_notification_log")  # 15 minutes later
        assert_completes(start, "run", **mail)
        assert len(server.bodies) == bodies + 3
    sent = facts.rows("SELECT status, maybe_sent, count(*)::int FROM cert_notification_log GROUP BY 1, 2 ORDER BY 2")
    assert sent == [("sent", False, 2), ("sent", True, 1)]


def test_when_the_terminal_has_gone(
    environment: dict[str, str], facts: Facts, portal: PortalServer, to_portal: dict[str, str], tmp_path: Path
) -> None:
    """The line of an ssh session drops: nobody reads any more, and yet the run is recorded and its end reported."""
    insert_mentors(facts, facts.organisation(), 6)
    portal.default = hang()
    master, slave = pty.openpty()
    with (
        ping_host() as monitor,
        ForkedCommand(
            ["run"],
            environment=environment | to_portal | {"CERTJOB_PING_URL": monitor.url},
            folder=tmp_path,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            new_session=True,
            alterations={"grace": IMPATIENT},
        ) as run,
    ):
        os.close(slave)
        try:
            portal.wait_until(lambda: len(portal.requests) == 4)
            os.close(master)

            assert run.wait(WITHIN_SECONDS) == 1
        finally:
            run.kill()
        assert monitor.told == ["start", "1"]
    assert_recorded_as_failed(facts)
    assert [*leases(facts).values()].count(True) == 4


def test_nohup_outlasts_the_terminal(
    environment: dict[str, str], facts: Facts, portal: PortalServer, to_portal: dict[str, str], tmp_path: Path
) -> None:
    """Who started it so that it ignores SIGHUP wants it to go on."""
    facts.certified_mentor(facts.organisation(), LONG_AGO)
    gate = threading.Event()
    portal.default = while_open(gate, ok())
    with started("run", environment=environment | to_portal, folder=tmp_path, ignored=signal.SIGHUP) as child:
        portal.wait_until(lambda: len(portal.requests) == 1)
        child.signal(signal.SIGHUP)
        gate.set()
        result = child.finish()

    assert (result.returncode, result.stderr) == (0, "")


# The flag itself.


def python(script: str) -> tuple[int, str, str]:
    """Run this in a process of its own, with the module and a flag that signals set."""
    begin = "import os, signal, time\nfrom certjob import stopping\nflag = stopping.stop_on_signals()\n"
    command = [sys.executable, "-c", begin + script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return done.returncode, done.stdout, done.stderr


def test_what_does_not_let_go_is_ended_hard_with_its_line() -> None:
    """Exit 1 as ever; nothing is left to run but the last words."""
    code, out, err = python(
        "stopping.GRACE_SECONDS = stopping.CLEANING_UP_SECONDS = 0.1\n"
        "flag.break_off = lambda: None\n"
        "flag.last_words = lambda error: print(error, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "time.sleep(60)\n"
    )

    assert (code, out.partition("; ")[0], err) == (1, "stopped by SIGTERM", "")


def test_a_second_signal_in_the_handler_of_the_first_leaves_a_clock() -> None:
    """What ends the wait may hang in its own end, on a silent database."""
    done = python(
        "name = signal.Signals\n"
        "def interrupted(number):\n"
        "    signal.Signals = name\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return name(number)\n"
        "signal.Signals = interrupted\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "except stopping.Interrupted:\n"
        "    print(signal.getitimer(signal.ITIMER_REAL)[0] > 0, flag.asked_at is not None)\n"
    )

    assert done == (0, "True True\n", "")


def test_a_stop_is_seen_before_and_during_a_wait_and_its_clock_ends_with_the_command() -> None:
    """An alarm that rings while the interpreter shuts down would find no handler, and kill what ended well."""
    flag = StopFlag()
    flag.check()
    flag.sleep(0)
    seen = []
    with flag.interruptible():
        seen.append(flag.breaks_off)
    assert [*seen, flag.breaks_off] == [True, False]

    def interrupted_in_wait() -> None:
        with flag._cond:  # where Event.wait is when the handler is called: its own thread holds the flag's lock
            flag.set()

    thread = threading.Thread(target=interrupted_in_wait, daemon=True)
    thread.start()
    thread.join(10)

    assert flag.is_set()
    for use in (flag.check, lambda: flag.sleep(60), lambda: flag.interruptible().__enter__()):
        with pytest.raises(StoppedBySignalError, match="the next run does the rest"):
            use()
    signal.setitimer(signal.ITIMER_REAL, 3600)
    flag.end()
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
