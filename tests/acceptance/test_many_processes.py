"""Many nights at once, as real processes: nothing is done twice, and everybody does a part of it."""

import asyncio
import email
import email.policy
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from certjob.database import Connection
from tests.support.command_line import Backends, started, today
from tests.support.facts import Facts
from tests.support.portal_answers import delay
from tests.support.portal_server import PortalServer
from tests.support.processes import start_barrier, while_open
from tests.support.smtp_server import Mailbox, real_server

App = psycopg.Connection[tuple[object, ...]]
Reports = list[dict[str, dict[str, int]]]

PROCESSES = 3
CHUNK = 1_000
"""The most mentors that one transaction of a review takes."""
CALLS = 4
"""That one process makes at once, each over a connection of its own."""
EACH = 10
"""Pushes and mails for each process."""


class MeetingMailbox(Mailbox):
    """A mail server that takes nothing until every process has something to hand over."""

    def __init__(self) -> None:
        super().__init__()
        self.begin_round()

    def begin_round(self) -> None:
        """Forget who has come; between rounds nobody is connected."""
        self.envelopes.clear()
        self._callers: set[object] = set()
        self._all_are_here = asyncio.Event()

    async def handle_DATA(self, server: object, session: Any, envelope: object) -> str:  # noqa: N802 - aiosmtpd's
        self._callers.add(session.peer)
        if len(self._callers) == PROCESSES:
            self._all_are_here.set()
        await asyncio.wait_for(self._all_are_here.wait(), timeout=60)
        return await super().handle_DATA(server, session, envelope)

    def received(self) -> Counter[tuple[str, str]]:
        """How often each recipient got each message, by its ``Message-ID``."""
        found = Counter[tuple[str, str]]()
        for envelope in self.envelopes:
            (recipient,) = envelope.rcpt_tos
            message = email.message_from_bytes(envelope.content, policy=email.policy.default)
            found[recipient, str(message["Message-ID"])] += 1
        return found


@pytest.fixture
def mailbox(environment: dict[str, str]) -> Iterator[MeetingMailbox]:
    mailbox = MeetingMailbox()
    with real_server(mailbox) as server:
        environment["CERTJOB_NOTIFY_URL"] = f"smtp://127.0.0.1:{server.port}"
        yield mailbox


def run_together(
    app: App, environment: dict[str, str], folder: Path, *, gate: threading.Event, portal: PortalServer
) -> Reports:
    """So many runs that begin at the same moment, and push from the moment when all do; nothing needs a person."""
    with psycopg.connect(environment["CERTJOB_DATABASE_URL"], autocommit=True) as watching, ExitStack() as stack:
        backends = Backends(watching)
        with start_barrier(app, backends) as children:
            for _ in range(PROCESSES):
                child = started("run", "--json", environment=environment, folder=folder)
                children.append(stack.enter_context(child))
        if not gate.is_set():
            portal.wait_until(lambda: portal.connections_made > CALLS * (PROCESSES - 1), timeout_seconds=60)
            gate.set()
        ended = [child.finish(timeout_seconds=120) for child in children]
        backends.wait_until_gone()
    assert [(result.returncode, result.stderr) for result in ended] == [(0, "")] * PROCESSES
    return [json.loads(result.stdout) for result in ended]


def test_nights_set_off_together_share_the_work(
    connection: Connection,
    app: App,
    facts: Facts,
    environment: dict[str, str],
    portal: PortalServer,
    mailbox: MeetingMailbox,
    tmp_path: Path,
) -> None:
    """All begin at the same moment, and meet again at the first chunk, the first call and the first mail."""
    facts.organisation()
    reviewed, count = CHUNK * PROCESSES, EACH * PROCESSES
    expires_on = (today() + timedelta(days=10)).isoformat()
    connection.execute(
        f"""
        INSERT INTO mentors (organisation_id, member_no, email, dynamics_contact_id)
            SELECT o.id, 'P' || n, 'p' || n || '@example.org', gen_random_uuid()
            FROM organisations AS o, generate_series(1, {reviewed}) AS n;
        -- Some are to be hidden and to be reminded.
        INSERT INTO mentor_pauses (mentor_id, reason, actor)
            SELECT id, 'illness', 'coordinator' FROM mentors ORDER BY email LIMIT {count};
        INSERT INTO certificates (mentor_id, kind, issued_on, expires_on)
            SELECT mentor_id, 'likeperson', '2024-01-01', '{expires_on}' FROM mentor_pauses;
        -- Each session's first chunk waits until every session has one, so that nobody comes too late for any.
        CREATE SEQUENCE arrivals;
        CREATE FUNCTION meet() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF current_setting('test.has_arrived', true) IS DISTINCT FROM 'yes' THEN
                PERFORM set_config('test.has_arrived', 'yes', false), nextval('arrivals');
                WHILE (SELECT last_value FROM arrivals) < {PROCESSES} LOOP PERFORM pg_sleep(0.01); END LOOP;
            END IF;
            RETURN NULL;
        END $$;
        CREATE TRIGGER meeting BEFORE UPDATE ON mentors EXECUTE FUNCTION meet();
    """.encode()
    )
    gate = threading.Event()
    portal.default = while_open(gate, delay(0.02))

    reports = run_together(app, environment, tmp_path, gate=gate, portal=portal)

    for part, key, total in (
        ("mentors", "reviewed", reviewed),
        *((part, key, count) for part, key in (("portal", "queued"), ("portal", "delivered"))),
        *((part, key, count) for part, key in (("reminders", "queued"), ("reminders", "sent"))),
    ):
        shares = [report[part][key] for report in reports]
        assert sum(shares) == total, (part, key, shares)
        assert min(shares) > 0, (part, key, shares)
    assert {(report["portal"]["lost"], report["reminders"]["lost"]) for report in reports} == {(0, 0)}
    wanted = facts.rows("SELECT dynamics_contact_id, email FROM mentors WHERE NOT portal_visible")
    assert len(wanted) == count
    assert Counter(request.contact_id for request in portal.requests) == Counter(contact for contact, _ in wanted)
    assert portal.visible == {contact: False for contact, _ in wanted}
    assert portal.overlaps == []
    recipients = Counter(recipient for envelope in mailbox.envelopes for recipient in envelope.rcpt_tos)
    assert recipients == Counter(address for _, address in wanted)
    for table, done in (("portal_sync_events", "delivered"), ("cert_notification_log", "sent")):
        left = f"SELECT status, attempts, claim_token, count(*)::int FROM {table} GROUP BY 1, 2, 3"
        assert facts.rows(left) == [(done, 1, None, count)], table
    assert facts.rows("SELECT count(*) FROM dynamics_sync_failures") == [(0,)]
    assert facts.rows("SELECT count(*) FROM certificate_transitions") == [(count,)]
    assert facts.rows("SELECT DISTINCT outcome FROM job_runs") == [("ok",)]


def test_every_reminder_is_received_once_in_each_cycle(
    app: App,
    facts: Facts,
    environment: dict[str, str],
    portal: PortalServer,
    mailbox: MeetingMailbox,
    tmp_path: Path,
) -> None:
    """Night after night at once: the first reminder of a threshold, one about a new date, the one of the last day."""
    organisation = facts.organisation("nhf", portal=None, thresholds=(60, 20))
    for number in range(EACH):
        mentor = facts.mentor(organisation, email=f"m{number}@example.org")
        for kind in ("førstehjelp", "likeperson"):
            facts.certificate(mentor, today() + timedelta(days=1000), kind=kind)
    messages, no_gate = Counter[str](), threading.Event()
    no_gate.set()

    for days_left in (55, 54, 0):
        facts.connection.execute("UPDATE certificates SET expires_on = %s", (today() + timedelta(days=days_left),))
        mailbox.begin_round()
        reports = run_together(app, environment, tmp_path, gate=no_gate, portal=portal)
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
