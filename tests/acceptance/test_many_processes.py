"""Many nights at once, as real processes: nothing is done twice, and everybody does a part of it."""

import asyncio
import email
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

from tests.support.command_line import Backends, started, today
from tests.support.facts import Facts
from tests.support.portal_answers import delay, hang
from tests.support.portal_server import PortalServer
from tests.support.smtp_server import Mailbox, real_server

PROCESSES = 3
CHUNK = 1_000
"""The most mentors that one transaction of a review takes."""
CALLS = 4
"""That one process makes at once, each over a connection of its own."""
COUNT = 10 * PROCESSES
"""Pushes and mails for all of them."""

PROGRAMME = f"""
    INSERT INTO mentors (organisation_id, member_no, email)
        SELECT o.id, 'P' || n, 'p' || n || '@example.org'
        FROM organisations AS o, generate_series(1, {CHUNK * PROCESSES}) AS n;
    -- Some are to be hidden and to be reminded.
    INSERT INTO mentor_pauses (mentor_id, reason, actor)
        SELECT id, 'illness', 'coordinator' FROM mentors ORDER BY email LIMIT {COUNT};
    UPDATE mentors AS m SET dynamics_contact_id = gen_random_uuid() FROM mentor_pauses AS p WHERE p.mentor_id = m.id;
    INSERT INTO certificates (mentor_id, kind, issued_on, expires_on)
        SELECT mentor_id, 'likeperson', '2024-01-01', '{{expires_on}}' FROM mentor_pauses;
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
"""


class MeetingMailbox(Mailbox):
    """A mail server that takes nothing until every process has something to hand over."""

    def __init__(self) -> None:
        super().__init__()
        self._callers: set[object] = set()
        self._barrier = asyncio.Barrier(PROCESSES)

    async def handle_DATA(self, server: object, session: Any, envelope: object) -> str:  # noqa: N802 - aiosmtpd's
        if session.peer not in self._callers:
            self._callers.add(session.peer)
            await asyncio.wait_for(self._barrier.wait(), timeout=60)
        return await super().handle_DATA(server, session, envelope)


@pytest.fixture
def mailbox(environment: dict[str, str]) -> Iterator[MeetingMailbox]:
    mailbox = MeetingMailbox()
    with real_server(mailbox) as server:
        environment["CERTJOB_NOTIFY_URL"] = f"smtp://127.0.0.1:{server.port}"
        yield mailbox


def test_nights_set_off_together_share_the_work_and_remind_once_in_each_cycle(
    app: psycopg.Connection[Any],
    facts: Facts,
    environment: dict[str, str],
    portal: PortalServer,
    mailbox: MeetingMailbox,
    tmp_path: Path,
) -> None:
    """All begin together, and meet at the first chunk, call and mail; then again about a new date, and the last day."""
    facts.organisation(thresholds=(60, 20))
    facts.connection.execute(PROGRAMME.format(expires_on=today() + timedelta(days=55)).encode())
    backends, gate = Backends(facts.connection), threading.Event()
    portal.default = hang(delay(0.02), until=gate)

    def run_together(**totals: int) -> None:
        """Nothing needs a person, everybody does some, together all, and nobody loses a lease."""
        with ExitStack() as stack:
            with backends.start_barrier(app) as children:
                for _ in range(PROCESSES):
                    child = started("run", "--json", environment=environment, folder=tmp_path)
                    children.append(stack.enter_context(child))
            portal.wait_until(lambda: portal.connections_made > CALLS * (PROCESSES - 1), timeout_seconds=60)
            gate.set()
            ended = [child.finish(timeout_seconds=120) for child in children]
        backends.wait_until_gone()
        assert [(result.returncode, result.stderr) for result in ended] == [(0, "")] * PROCESSES
        reports = [json.loads(result.stdout) for result in ended]
        for name, total in totals.items():
            part, _, key = name.partition("_")
            shares = [report[part][key] for report in reports]
            assert (sum(shares), min(shares) > 0) == (total, True), (name, shares)
        assert {(report["portal"]["lost"], report["reminders"]["lost"]) for report in reports} == {(0, 0)}

    run_together(
        mentors_reviewed=CHUNK * PROCESSES,
        portal_queued=COUNT,
        portal_delivered=COUNT,
        reminders_queued=COUNT,
        reminders_sent=COUNT,
    )

    wanted = facts.rows("SELECT dynamics_contact_id, email FROM mentors WHERE NOT portal_visible")
    assert len(wanted) == COUNT
    assert Counter(request.contact_id for request in portal.requests) == Counter(contact for contact, _ in wanted)
    assert portal.visible == {contact: False for contact, _ in wanted}
    assert portal.overlaps == []
    left = "SELECT status, attempts, claim_token, count(*)::int FROM portal_sync_events GROUP BY 1, 2, 3"
    assert facts.rows(left) == [("delivered", 1, None, COUNT)]
    assert facts.rows("SELECT count(*) FROM dynamics_sync_failures") == [(0,)]
    assert facts.rows("SELECT count(*) FROM certificate_transitions") == [(COUNT,)]

    messages = Counter[str]()
    for days_left in (55, 54, 0):
        if days_left < 55:
            mailbox.envelopes.clear()
            facts.connection.execute("DROP TRIGGER IF EXISTS meeting ON mentors")
            facts.connection.execute("UPDATE certificates SET expires_on = %s", (today() + timedelta(days=days_left),))
            run_together(reminders_sent=COUNT)
        recipients = Counter(recipient for envelope in mailbox.envelopes for recipient in envelope.rcpt_tos)
        assert recipients == Counter(address for _, address in wanted)
        messages.update(email.message_from_bytes(each.content)["Message-ID"] for each in mailbox.envelopes)

    assert set(messages.values()) == {1}, "each cycle has a Message-ID of its own"
    assert facts.rows(
        "SELECT threshold_days, status, attempts, claim_token, jsonb_array_length(history), count(*)::int"
        " FROM cert_notification_log GROUP BY 1, 2, 3, 4, 5 ORDER BY threshold_days DESC"
    ) == [(60, "sent", 1, None, 1, COUNT), (20, "sent", 1, None, 0, COUNT)]
    assert facts.rows("SELECT DISTINCT outcome FROM job_runs") == [("ok",)]
