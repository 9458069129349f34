"""Many nights at once, as real processes: nothing is done twice, and everybody does a part of it."""

import asyncio
import email
import email.policy
import json
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from certjob.database import Connection
from tests.support.command_line import Backends, Child, started, today
from tests.support.facts import Facts
from tests.support.portal_answers import delay
from tests.support.portal_server import PortalServer
from tests.support.processes import start_barrier, while_open
from tests.support.smtp_server import Mailbox, real_server

App = psycopg.Connection[tuple[object, ...]]

CHUNK = 1_000
"""The most mentors that one transaction of a review takes."""
CALLS = 4
"""That one process makes at once, each over a connection of its own."""
EACH = 20
"""Pushes and mails for each process."""


class MeetingMailbox(Mailbox):
    """A mail server that takes nothing until so many processes have something to hand over."""

    def __init__(self, *, processes: int) -> None:
        super().__init__()
        self._processes = processes
        self.begin_round()

    def begin_round(self) -> None:
        """Forget who has come; between rounds nobody is connected."""
        self.envelopes.clear()
        self._callers: set[object] = set()
        self._all_are_here = asyncio.Event()

    async def handle_DATA(self, server: object, session: Any, envelope: object) -> str:  # noqa: N802 - aiosmtpd's
        self._callers.add(session.peer)
        if len(self._callers) == self._processes:
            self._all_are_here.set()
        await asyncio.wait_for(self._all_are_here.wait(), timeout=60)
        return await super().handle_DATA(server, session, envelope)

    def received(self) -> Counter[tuple[str, str]]:
        """How often each recipient got each message, by its ``Message-ID``."""
        messages = [
            (envelope.rcpt_tos, email.message_from_bytes(envelope.content or b"", policy=email.policy.default))
            for envelope in self.envelopes
        ]
        return Counter((recipient, str(message["Message-ID"])) for [recipient], message in messages)


@pytest.fixture
def gate() -> threading.Event:
    """While it is closed, the portal answers nobody."""
    return threading.Event()


@pytest.fixture
def portal(gate: threading.Event) -> Iterator[PortalServer]:
    with PortalServer(default=while_open(gate, delay(0.02))) as server:
        yield server


@pytest.fixture
def mailbox(processes: int) -> MeetingMailbox:
    return MeetingMailbox(processes=processes)


@pytest.fixture
def environment(
    bare_environment: dict[str, str], database_url: str, portal: PortalServer, mailbox: MeetingMailbox
) -> Iterator[dict[str, str]]:
    with real_server(mailbox) as server:
        yield bare_environment | {
            "CERTJOB_DATABASE_URL": database_url,
            "CERTJOB_PORTAL_URL": portal.url,
            "CERTJOB_PORTAL_KEY": portal.key,
            "CERTJOB_NOTIFY_URL": f"smtp://127.0.0.1:{server.port}",
            "CERTJOB_MAIL_FROM": "certjob@example.org",
        }


def add_mentors(facts: Facts, *, idle: int = 0, ill: int) -> None:
    """Mentors who are due for a review: it finds nothing to do, or somebody to hide and to remind."""
    facts.connection.execute(
        "INSERT INTO mentors (organisation_id, member_no, email, dynamics_contact_id)"
        " SELECT o.id, 'P' || number, 'p' || number || '@example.org', gen_random_uuid() FROM organisations AS o,"
        " (SELECT n + (SELECT count(*) FROM mentors) AS number FROM generate_series(1, %s) AS n) AS numbers",
        (idle + ill,),
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


def wait_for_calls_of(portal: PortalServer, processes: int) -> None:
    """Wait until so many have begun to push."""
    portal.wait_until(lambda: portal.connections_made > CALLS * (processes - 1), timeout_seconds=60)


def start_together(app: App, backends: Backends, stack: ExitStack, **process: Any) -> list[Child]:
    """So many runs, all of which begin at the same moment."""
    number = process.pop("processes")
    with start_barrier(app, backends) as children:
        children += [stack.enter_context(started("run", "--json", **process)) for _ in range(number)]
    return children


def finish_all(children: Sequence[Child]) -> list[dict[str, dict[str, int]]]:
    """Wait for their ends and return their reports; nothing needs a person."""
    ended = [child.finish(timeout_seconds=120) for child in children]
    assert [(result.returncode, result.stderr) for result in ended] == [(0, "")] * len(children)
    return [json.loads(result.stdout) for result in ended]


def assert_done_once(facts: Facts, portal: PortalServer, mailbox: MeetingMailbox, *, count: int) -> None:
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


@pytest.mark.parametrize("processes", [2, 4])
def test_nights_set_off_together_share_the_work(
    connection: Connection,
    app: App,
    facts: Facts,
    environment: dict[str, str],
    tmp_path: Path,
    portal: PortalServer,
    mailbox: MeetingMailbox,
    gate: threading.Event,
    processes: int,
) -> None:
    """All begin at the same moment, and meet again at the first chunk, the first call and the first mail."""
    facts.organisation()
    add_mentors(facts, idle=(CHUNK - EACH) * processes, ill=EACH * processes)
    meet_in_the_review(connection, processes=processes)

    with ExitStack() as stack:
        backends = Backends(connection)
        children = start_together(app, backends, stack, processes=processes, environment=environment, folder=tmp_path)
        wait_for_calls_of(portal, processes)
        gate.set()
        reports = finish_all(children)

    assert_done_once(facts, portal, mailbox, count=EACH * processes)
    assert_shared(reports, reviewed=CHUNK * processes, delivered=EACH * processes)


@pytest.mark.parametrize("processes", [4])
def test_every_reminder_is_received_once_in_each_cycle(
    app: App,
    facts: Facts,
    environment: dict[str, str],
    tmp_path: Path,
    mailbox: MeetingMailbox,
    processes: int,
) -> None:
    """Night after night at once: the first reminder of a threshold, one about a new date, the one of the last day."""
    organisation = facts.organisation("nhf", portal=None, thresholds=(60, 20))
    for number in range(EACH):
        mentor = facts.mentor(organisation, email=f"m{number}@example.org")
        for kind in ("førstehjelp", "likeperson"):
            facts.certificate(mentor, today() + timedelta(days=1000), kind=kind)
    messages: Counter[str] = Counter()

    for days_left in (55, 54, 0):
        facts.connection.execute("UPDATE certificates SET expires_on = %s", (today() + timedelta(days=days_left),))
        mailbox.begin_round()
        with ExitStack() as stack:
            backends = Backends(facts.connection)
            process = {"environment": environment, "folder": tmp_path}
            reports = finish_all(start_together(app, backends, stack, processes=processes, **process))
            backends.wait_until_gone()
        for key in ("queued", "sent"):
            assert sum(report["reminders"][key] for report in reports) == 2 * EACH
        received = mailbox.received()
        assert Counter(recipient for recipient, _ in received) == {f"m{n}@example.org": 2 for n in range(EACH)}
        assert set(received.values()) == {1}
        messages.update(message_id for _, message_id in received)

    assert set(messages.values()) == {1}, "each cycle has a Message-ID of its own"
    assert facts.rows(
        "SELECT threshold_days, status, attempts, claim_token, jsonb_array_length(history), count(*)::int"
        " FROM cert_notification_log GROUP BY 1, 2, 3, 4, 5 ORDER BY threshold_days DESC"
    ) == [(60, "sent", 1, None, 1, 2 * EACH), (20, "sent", 1, None, 0, 2 * EACH)]
