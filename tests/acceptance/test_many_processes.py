"""Many nights at once, as real processes: nothing is done twice, and everybody does a part of it."""

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

from certjob.database import Connection
from tests.support.command_line import Backends, Child, Finished, started, today
from tests.support.facts import Facts
from tests.support.portal_answers import delay
from tests.support.portal_server import PortalServer
from tests.support.processes import start_barrier, while_open
from tests.support.smtp_server import Mailbox, real_server

App = psycopg.Connection[tuple[object, ...]]

CLAIM = 100
"""The most that one claim takes."""
CHUNK = 1_000
"""The most mentors that one transaction of a review takes."""
THREADS = 4
"""The calls that one process makes at once, each over a connection of its own."""
ANSWER_SECONDS = 0.02
PATIENCE_SECONDS = 120.0
"""For eight processes on a machine that has other things to do."""


class SharedMailbox(Mailbox):
    """A mail server that takes nothing until all processes are about to hand a message over."""

    def __init__(self, *, processes: int) -> None:
        super().__init__()
        self._missing = processes
        self._callers: set[object] = set()
        self._all_are_here = asyncio.Event()

    async def handle_DATA(self, server: object, session: Any, envelope: object) -> str:  # noqa: N802 - aiosmtpd's
        self._callers.add(session.peer)
        if len(self._callers) == self._missing:
            self._all_are_here.set()
        await self._all_are_here.wait()
        return await super().handle_DATA(server, session, envelope)


@pytest.fixture
def gate() -> threading.Event:
    """While it is closed, the portal answers nobody."""
    return threading.Event()


@pytest.fixture
def portal(gate: threading.Event) -> Iterator[PortalServer]:
    with PortalServer(default=while_open(gate, delay(ANSWER_SECONDS))) as server:
        yield server


@pytest.fixture
def mailbox(processes: int) -> SharedMailbox:
    return SharedMailbox(processes=processes)


@pytest.fixture
def environment(
    bare_environment: dict[str, str], database_url: str, portal: PortalServer, mailbox: SharedMailbox
) -> Iterator[dict[str, str]]:
    with real_server(mailbox) as server:
        yield bare_environment | {
            "CERTJOB_DATABASE_URL": database_url,
            "CERTJOB_PORTAL_URL": portal.url,
            "CERTJOB_PORTAL_KEY": portal.key,
            "CERTJOB_NOTIFY_URL": f"smtp://127.0.0.1:{server.port}",
            "CERTJOB_MAIL_FROM": "certjob@example.org",
        }


@pytest.fixture
def organisation(facts: Facts) -> UUID:
    return facts.organisation()


def add_mentors(facts: Facts, organisation_id: UUID, *, idle: int = 0, ill: int) -> None:
    """Mentors who are due for a review: it finds nothing to do, or somebody to hide and to remind."""
    facts.connection.execute(
        "INSERT INTO mentors (organisation_id, member_no, email, dynamics_contact_id)"
        " SELECT %s, 'P' || number, 'p' || number || '@example.org', gen_random_uuid()"
        " FROM (SELECT n + (SELECT count(*) FROM mentors) AS number FROM generate_series(1, %s) AS n) AS numbers",
        (organisation_id, idle + ill),
    )
    facts.connection.execute(
        "INSERT INTO mentor_pauses (mentor_id, reason, actor) SELECT id, 'illness', 'coordinator' FROM mentors"
        " WHERE review_on = '-infinity' ORDER BY email LIMIT %s",
        (ill,),
    )
    facts.connection.execute(
        "INSERT INTO certificates (mentor_id, kind, issued_on, expires_on) SELECT mentor_id, 'likeperson', %s, %s"
        " FROM mentor_pauses WHERE mentor_id NOT IN (SELECT mentor_id FROM certificates)",
        (today() - timedelta(days=700), today() + timedelta(days=10)),
    )


def meet_in_the_review(connection: Connection, *, processes: int) -> None:
    """Let each session's first chunk wait until so many sessions have one, so that nobody comes too late for any."""
    connection.execute("CREATE SEQUENCE arrivals")
    connection.execute(
        b"CREATE FUNCTION meet() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        b"  IF current_setting('test.has_arrived', true) IS DISTINCT FROM 'yes' THEN"
        b"    PERFORM set_config('test.has_arrived', 'yes', false), nextval('arrivals');"
        b"    WHILE (SELECT last_value FROM arrivals) < %d LOOP PERFORM pg_sleep(0.01); END LOOP;"
        b"  END IF;"
        b"  RETURN NULL; "
        b"END $$" % processes
    )
    connection.execute("CREATE TRIGGER meeting BEFORE UPDATE ON mentors EXECUTE FUNCTION meet()")


def wait_for_calls_of(portal: PortalServer, number: int) -> None:
    """Wait until so many processes have begun to push."""
    portal.wait_until(lambda: portal.connections_made > THREADS * (number - 1), timeout_seconds=60)


def wait_for_answers(portal: PortalServer, number: int, *, processes: int) -> None:
    """Wait until so many contacts are done, and every thread of so many processes has its connection."""
    portal.wait_until(lambda: len(portal.visible) >= number and portal.connections_made == THREADS * processes)


def finish_all(children: Sequence[Child]) -> list[dict[str, dict[str, int]]]:
    """Wait for their ends and return their reports; nothing needs a person."""
    ended: list[Finished] = [child.finish(timeout_seconds=PATIENCE_SECONDS) for child in children]
    assert [(result.returncode, result.stderr) for result in ended] == [(0, "")] * len(children)
    return [json.loads(result.stdout) for result in ended]


def assert_done_once(facts: Facts, portal: PortalServer, mailbox: Mailbox, *, count: int) -> None:
    """Each of so many mentors was hidden by one call and reminded by one mail, and nothing is left over."""
    wanted = facts.rows("SELECT dynamics_contact_id, portal_visible, email FROM mentors WHERE NOT portal_visible")
    assert len(wanted) == count
    assert Counter(request.contact_id for request in portal.requests) == Counter(contact for contact, _, _ in wanted)
    assert portal.visible == {contact: visible for contact, visible, _ in wanted}
    assert portal.overlaps == []
    recipients = Counter(recipient for envelope in mailbox.envelopes for recipient in envelope.rcpt_tos)
    assert recipients == Counter(email for _, _, email in wanted)
    for table, done in (("portal_sync_events", "delivered"), ("cert_notification_log", "sent")):
        left = f"SELECT status, attempts, claim_token, count(*)::int FROM {table} GROUP BY 1, 2, 3"
        assert facts.rows(left) == [(done, 1, None, count)], table
    assert facts.rows("SELECT count(*) FROM dynamics_sync_failures") == [(0,)]
    assert facts.rows("SELECT count(*) FROM certificate_transitions") == [(count,)]
    assert facts.rows("SELECT DISTINCT outcome FROM job_runs") == [("ok",)]


def assert_shared(reports: Sequence[dict[str, dict[str, int]]], *, reviewed: int, delivered: int) -> None:
    """Everybody reviewed, pushed and mailed some, together all, and nobody lost a lease."""
    for part, key, total in (
        ("mentors", "reviewed", reviewed),
        ("portal", "queued", delivered),
        ("portal", "delivered", delivered),
        ("reminders", "queued", delivered),
        ("reminders", "sent", delivered),
    ):
        shares = [report[part][key] for report in reports]
        assert sum(shares) == total, (part, key, shares)
        assert min(shares) > 0, (part, key, shares)
    assert {(report["portal"]["lost"], report["reminders"]["lost"]) for report in reports} == {(0, 0)}


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_nights_set_off_together_share_the_work(
    connection: Connection,
    app: App,
    facts: Facts,
    organisation: UUID,
    environment: dict[str, str],
    tmp_path: Path,
    portal: PortalServer,
    mailbox: SharedMailbox,
    gate: threading.Event,
    processes: int,
) -> None:
    """All begin at the same moment, and meet again at the first chunk, the first call and the first mail."""
    deliveries = max(400, CLAIM * processes + 20)
    add_mentors(facts, organisation, idle=CHUNK * processes - deliveries, ill=deliveries)
    meet_in_the_review(connection, processes=processes)
    backends = Backends(connection)

    with ExitStack() as stack:
        with start_barrier(app, backends) as children:
            for _ in range(processes):
                children.append(stack.enter_context(started("run", "--json", environment=environment, folder=tmp_path)))
        wait_for_calls_of(portal, processes)
        gate.set()
        reports = finish_all(children)

    assert_done_once(facts, portal, mailbox, count=deliveries)
    assert_shared(reports, reviewed=CHUNK * processes, delivered=deliveries)


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_nights_set_off_one_after_another_share_the_work(
    facts: Facts,
    organisation: UUID,
    environment: dict[str, str],
    tmp_path: Path,
    portal: PortalServer,
    mailbox: SharedMailbox,
    gate: threading.Event,
    processes: int,
) -> None:
    """Each begins while the ones before are in the middle of their calls, after new facts have come in."""
    each = max(400 // processes, CLAIM + 10)

    with ExitStack() as stack:
        children: list[Child] = []
        for number in range(processes):
            gate.clear()
            add_mentors(facts, organisation, ill=each)
            children.append(stack.enter_context(started("run", "--json", environment=environment, folder=tmp_path)))
            wait_for_calls_of(portal, number + 1)
            gate.set()
            wait_for_answers(portal, len(portal.visible) + THREADS, processes=number + 1)
        reports = finish_all(children)

    assert_done_once(facts, portal, mailbox, count=each * processes)
    assert_shared(reports, reviewed=each * processes, delivered=each * processes)
