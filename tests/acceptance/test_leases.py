"""What a lease promises between real processes: nobody acts on one that is over, and what does not fit goes back.

Portal and mail servers are real, and so are the processes; where a test would have to wait for minutes, the times that
belong together are shortened.
"""

import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from datetime import timedelta
from mailbox import Maildir
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

from certjob.database import Connection
from tests.conftest import Certjob
from tests.support.command_line import Backends, Child, Finished, started, today
from tests.support.facts import Facts
from tests.support.intents import backlog, make_due, review, run_out
from tests.support.portal_answers import Exchange, answer, delay, hang, ok
from tests.support.portal_server import PortalServer
from tests.support.processes import (
    FIRST_CALL,
    FIRST_MESSAGE,
    MAIL_CLAIM,
    PORTAL_CLAIM,
    TURN,
    start_barrier,
    wait_until_frozen,
    while_open,
)
from tests.support.waiting import until

App = psycopg.Connection[tuple[object, ...]]
Start = Callable[..., AbstractContextManager[Child]]

CONTACT = UUID("6f9619ff-8b86-4d01-b42d-00cf4fc964ff")

EVENTS = "portal_sync_events"
REMINDERS = "cert_notification_log"
LOST_PUSH = "certjob run: 1 portal push lost its lease\n"
LOST_REMINDER = "certjob deliver: 1 reminder lost its lease\n"
REPEAT_LINE = "may already have received this reminder"


@pytest.fixture
def portal() -> Iterator[PortalServer]:
    with PortalServer() as server:
        yield server


@pytest.fixture
def settings(portal: PortalServer, tmp_path: Path) -> dict[str, str]:
    return {
        "CERTJOB_PORTAL_URL": portal.url,
        "CERTJOB_PORTAL_KEY": portal.key,
        "CERTJOB_NOTIFY_URL": f"maildir:{tmp_path / 'mail'}",
    }


@pytest.fixture
def environment(bare_environment: dict[str, str], database_url: str, settings: dict[str, str]) -> dict[str, str]:
    return bare_environment | {"CERTJOB_DATABASE_URL": database_url} | settings


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Start:
    """Start the command in the background, altered by the keyword arguments."""

    def run(*arguments: str, **alterations: Any) -> AbstractContextManager[Child]:
        return started(*arguments, environment=environment, folder=tmp_path, **alterations)

    return run


@pytest.fixture
def run(certjob: Certjob, settings: dict[str, str]) -> Certjob:
    """Run the installed command to its end, with the same ways out."""

    def run_command(*arguments: str) -> Finished:
        return certjob(*arguments, **settings)

    return run_command


@pytest.fixture
def expired(facts: Facts) -> UUID:
    """A mentor whose certificate expired; the first run hides them on the portal and mails them."""
    return facts.certified_mentor(
        facts.organisation(), today() - timedelta(days=5), member_no="M1042", contact_id=CONTACT
    )


def unfrozen(child: Child) -> Finished:
    """Let it go on, and wait for its end."""
    child.signal(signal.SIGCONT)
    return child.finish()


def rows_of(facts: Facts, table: str) -> list[tuple[object, ...]]:
    return facts.rows(f"SELECT * FROM {table} ORDER BY id")


def note_claims(facts: Facts) -> None:
    """Keep every claim of an event from now on: the row, and when its lease ends."""
    facts.connection.execute("CREATE TABLE claims (id bigint, due timestamptz)")
    facts.connection.execute(
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " INSERT INTO claims VALUES (new.id, new.next_attempt_at); RETURN NULL; END $$"
    )
    facts.connection.execute(
        "CREATE TRIGGER noting AFTER UPDATE ON portal_sync_events FOR EACH ROW WHEN (new.claim_token IS NOT NULL"
        " AND new.claim_token IS DISTINCT FROM old.claim_token) EXECUTE FUNCTION note()"
    )


def test_no_push_begins_so_late_that_it_could_outlast_its_lease(
    connection: Connection, app: App, facts: Facts, start: Start, portal: PortalServer
) -> None:
    """Two processes share more than fits into a lease; no call is made twice: nothing is claimed that must wait."""
    lease, call, number = 4.0, 1.6, 110  # a half takes 2.75 s: none may begin later than 2.4 s after its claim
    contacts = backlog(facts, number)
    note_claims(facts)
    portal.default = delay(0.2)

    with ExitStack() as stack:
        with start_barrier(app, Backends(connection)) as children:
            for _ in range(2):
                children.append(stack.enter_context(start("deliver", portal_lease=lease, call=call, round=call)))
        ended = [child.finish(timeout_seconds=90) for child in children]

    assert [(result.returncode, result.stderr) for result in ended] == [(0, "")] * 2
    assert Counter(request.contact_id for request in portal.requests) == Counter(contacts)
    assert portal.overlaps == []
    left = "SELECT status, attempts, count(*)::int FROM portal_sync_events GROUP BY 1, 2"
    assert facts.rows(left) == [("delivered", 1, number)]
    # The difference between two clocks of one machine; of two machines, as good as their agreement on the time.
    offset = time.time() - time.monotonic()
    begun = {str(request.idempotency_key): request.arrived_seconds + offset for request in portal.requests}
    claimed = facts.rows("SELECT id || '-1', extract(epoch FROM max(due))::float8 FROM claims GROUP BY id")
    assert max(begun[str(key)] - (float(str(due)) - lease) for key, due in claimed) < lease - call


# A process that stands still for longer than its lease, after it looked at the lease for the last time: the exception
# that docs/rules.md documents. It may act once on what it has claimed, and learns then that it lost its lease.


def renew(facts: Facts, mentor_id: UUID) -> None:
    """A new certificate: the mentor is wanted visible again."""
    facts.certificate(mentor_id, today() + timedelta(days=700), issued_on=today())


def assert_shown_by_another_run(facts: Facts, run: Certjob, portal: PortalServer, mentor_id: UUID) -> None:
    """While the one stands still its lease runs out, the facts change, and another one brings them to the portal."""
    run_out(facts)
    renew(facts, mentor_id)
    ended = run("run")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert portal.visible == {CONTACT: True}


def assert_only_lost(ended: Finished, *, part: str, line: str) -> None:
    """It reports a lost lease, and no success."""
    assert (ended.returncode, ended.stderr) == (3, line)
    counts = json.loads(ended.stdout)[part]
    assert (counts["lost"], counts["failed"], counts.get("delivered", counts.get("sent"))) == (1, 0, 0)


def assert_wrong_unnoticed_until_the_portal_is_read(facts: Facts, run: Certjob, portal: PortalServer) -> None:
    """The portal shows an old value and the database knows nothing of it; ``reconcile`` finds it."""
    assert portal.visible == {CONTACT: False}
    assert facts.rows("SELECT portal_visible FROM mentors") == [(True,)]
    assert facts.rows("SELECT status, visible, version FROM portal_sync_events") == [("delivered", True, 2)]
    assert facts.rows("SELECT count(*) FROM portal_alerts") == [(0,)]
    healed = run("reconcile")
    assert (healed.returncode, healed.stderr) == (0, "")
    assert portal.visible == {CONTACT: True}


@pytest.mark.parametrize("acts", ["at once", "late"])
def test_a_process_stopped_in_its_call_writes_nothing_afterwards(
    facts: Facts, start: Start, run: Certjob, expired: UUID, portal: PortalServer, acts: str
) -> None:
    """The answer comes after a newer value was delivered; whether the portal acted before or after is its secret."""
    portal.then(hang(ok(), applied=True) if acts == "late" else hang(_said_yes, applied=True))

    with start("run", "--json") as child:
        portal.wait_until(lambda: len(portal.requests) == 1, timeout_seconds=60)
        child.signal(signal.SIGSTOP)
        wait_until_frozen(child)
        assert_shown_by_another_run(facts, run, portal, expired)
        rows = rows_of(facts, EVENTS)
        portal.release()
        ended = unfrozen(child)

    assert_only_lost(ended, part="portal", line=LOST_PUSH)
    assert rows_of(facts, EVENTS) == rows
    assert facts.rows("SELECT count(*) FROM dynamics_sync_failures") == [(0,)]
    assert [request.visible for request in portal.requests] == [False, True]
    if acts == "late":
        assert_wrong_unnoticed_until_the_portal_is_read(facts, run, portal)
    else:
        assert portal.visible == {CONTACT: True}


def _said_yes(exchange: Exchange) -> None:
    """The answer to what was done long ago."""
    request = exchange.request
    answer(200, {"contact_id": str(request.contact_id), "visible": request.visible})(exchange)


def test_a_process_stopped_just_before_its_call_sends_an_old_value_once(
    facts: Facts, start: Start, run: Certjob, expired: UUID, portal: PortalServer
) -> None:
    """After its last look at the lease: the old value lands after the newer one."""
    with start("run", "--json", freeze_before=FIRST_CALL) as child:
        wait_until_frozen(child)
        assert_shown_by_another_run(facts, run, portal, expired)
        rows = rows_of(facts, EVENTS)
        ended = unfrozen(child)

    assert_only_lost(ended, part="portal", line=LOST_PUSH)
    assert rows_of(facts, EVENTS) == rows
    assert [request.visible for request in portal.requests] == [True, False]
    assert [request.idempotency_key for request in portal.requests] == [f"{rows[0][0]}-2", f"{rows[0][0]}-1"]
    assert_wrong_unnoticed_until_the_portal_is_read(facts, run, portal)


def test_a_process_stopped_just_before_its_mail_sends_a_second_copy(
    connection: Connection, facts: Facts, start: Start, run: Certjob, tmp_path: Path
) -> None:
    """Both carry one Message-ID, and the other process's mail the line that it may be a repeat."""
    facts.certified_mentor(facts.organisation(), today() + timedelta(days=10), locale="en")
    review(connection, today())

    with start("deliver", "--json", freeze_before=FIRST_MESSAGE) as child:
        wait_until_frozen(child)
        run_out(facts, REMINDERS)
        other = run("deliver")
        rows = rows_of(facts, REMINDERS)
        ended = unfrozen(child)

    assert (other.returncode, other.stderr) == (0, "")
    assert_only_lost(ended, part="reminders", line=LOST_REMINDER)
    assert rows_of(facts, REMINDERS) == rows
    assert facts.rows("SELECT status, attempts, maybe_sent FROM cert_notification_log") == [("sent", 2, True)]
    mails = list(Maildir(tmp_path / "mail"))
    assert len({mail["Message-ID"] for mail in mails}) == 1
    assert sorted(REPEAT_LINE in mail.as_string() for mail in mails) == [False, True]


# The same before it looks at the lease: it finds that too much time has passed, and does nothing at all. The time
# really passes here, because the lease is counted on the process's own clock.


def wait_until_run_out(facts: Facts, table: str) -> None:
    """Wait until no row of the table has a lease."""
    open_leases = f"SELECT count(*) FROM {table} WHERE claim_token IS NOT NULL AND next_attempt_at > now()"
    until(lambda: facts.rows(open_leases) == [(0,)])


@pytest.mark.parametrize(
    ("freeze", "said"),
    [
        ({"freeze_after": PORTAL_CLAIM}, "the lease is shorter than a push can take, or this process stood still"),
        ({"freeze_before": TURN}, ""),
    ],
    ids=["after the claim", "in the gate"],
)
def test_a_process_stopped_before_it_looks_at_the_lease_makes_no_call(
    facts: Facts,
    start: Start,
    run: Certjob,
    expired: UUID,
    portal: PortalServer,
    freeze: dict[str, str],
    said: str,
) -> None:
    """Between its claim and its call; another run has long pushed a newer value."""
    with start("run", "--json", portal_lease=2.0, call=0.2, round=0.2, **freeze) as child:
        wait_until_frozen(child)
        wait_until_run_out(facts, EVENTS)
        renew(facts, expired)
        other = run("run")
        rows = rows_of(facts, EVENTS)
        ended = unfrozen(child)

    assert (other.returncode, other.stderr) == (0, "")
    assert ended.returncode == (3 if said else 0)
    assert said in ended.stderr
    assert [request.visible for request in portal.requests] == [True]
    assert rows_of(facts, EVENTS) == rows
    assert facts.rows("SELECT status, visible, version, attempts FROM portal_sync_events") == [
        ("delivered", True, 2, 1)
    ]
    assert facts.rows("SELECT count(*) FROM dynamics_sync_failures") == [(0,)]


def test_a_process_stopped_before_it_looks_at_the_lease_sends_no_mail(
    connection: Connection, facts: Facts, start: Start, run: Certjob, tmp_path: Path
) -> None:
    """Between its claim and its message; another run has sent it, as perhaps repeated."""
    facts.certified_mentor(facts.organisation(), today() + timedelta(days=10), locale="en")
    review(connection, today())

    with start("deliver", "--json", freeze_after=MAIL_CLAIM, mail_lease=2.0, message=0.2) as child:
        wait_until_frozen(child)
        wait_until_run_out(facts, REMINDERS)
        other = run("deliver")
        rows = rows_of(facts, REMINDERS)
        ended = unfrozen(child)

    assert (other.returncode, other.stderr) == (0, "")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert json.loads(ended.stdout)["reminders"]["sent"] == 0
    assert rows_of(facts, REMINDERS) == rows
    assert [REPEAT_LINE in mail.as_string() for mail in Maildir(tmp_path / "mail")] == [True]


# One mentor, several processes, and a desired value that changes while calls are in flight.


def test_two_resyncs_and_a_night_end_with_the_value_that_was_wanted_last(
    facts: Facts, start: Start, expired: UUID, portal: PortalServer
) -> None:
    """Hide (in a call), show (wanted meanwhile, then in a call), hide (wanted meanwhile): one at a time, in order."""
    first, second = threading.Event(), threading.Event()
    portal.then(while_open(first, ok()), while_open(second, ok()))

    with start("run") as night, ExitStack() as stack:
        portal.wait_until(lambda: len(portal.requests) == 1, timeout_seconds=60)
        renew(facts, expired)
        show = stack.enter_context(start("resync", "M1042"))
        wait_for_wish(facts, visible=True)
        first.set()
        portal.wait_until(lambda: len(portal.requests) == 2)
        facts.pause(expired)
        hide = stack.enter_context(start("resync", "M1042"))
        wait_for_wish(facts, visible=False)
        second.set()
        ended = [child.finish() for child in (night, show, hide)]

    assert [(result.returncode, result.stderr) for result in ended] == [(0, "")] * 3
    assert [request.visible for request in portal.requests] == [False, True, False]
    assert versions(portal) == sorted(set(versions(portal)))
    assert portal.overlaps == []
    assert portal.visible == {CONTACT: False}
    assert facts.rows("SELECT status, visible FROM portal_sync_events") == [("delivered", False)]


def wait_for_wish(facts: Facts, *, visible: bool) -> None:
    """Wait until this is what the open event asks for."""
    until(lambda: facts.rows("SELECT visible, status FROM portal_sync_events") == [(visible, "pending")], seconds=60)


def versions(portal: PortalServer) -> list[int]:
    """Which version of the one event each request carried."""
    return [int(str(request.idempotency_key).rpartition("-")[2]) for request in portal.requests]


def test_a_message_is_not_sent_when_reading_for_it_took_longer_than_the_lease(
    start: Start, connection: Connection, facts: Facts, app: psycopg.Connection[Any], tmp_path: Path
) -> None:
    """A table was locked: another run has taken the reminder over meanwhile, and a later one sends it."""
    facts.certified_mentor(facts.organisation(), today() + timedelta(days=10), locale="en")
    review(connection, today())
    app.execute("LOCK TABLE certificates")  # as ALTER TABLE does

    with start("deliver", "--json", mail_lease=2.0, message=0.2) as first:
        until(lambda: facts.rows("SELECT attempts FROM cert_notification_log") == [(1,)])
        wait_until_run_out(facts, REMINDERS)
        with start("deliver", "--json") as second:
            second.finish()  # the first one holds the mentor: it puts the reminder back
        app.rollback()
        first.finish()
    assert not (tmp_path / "mail").exists()
    make_due(facts, REMINDERS)
    with start("deliver", "--json") as third:
        third.finish()

    assert len(list(Maildir(tmp_path / "mail"))) == 1
