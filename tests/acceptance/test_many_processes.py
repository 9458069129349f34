"""Several runs at the same time share the work, and do no work twice."""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support.command_line import started, today
from tests.support.facts import Facts
from tests.support.portal_answers import delay, hang
from tests.support.portal_server import PortalServer
from tests.support.smtp_server import Mailbox, real_server
from tests.support.waiting import until_sessions

PROCESSES = 3
CHUNK = 1_000
"""The most mentors in one transaction of a review."""
CALLS = 4
"""The calls of one process at the same time, each on its own connection."""
COUNT = 10 * PROCESSES
"""Pushes, and reminders."""

PROGRAMME = f"""
    INSERT INTO mentors (organisation_id, member_no, email)
        SELECT o.id, 'P' || n, 'p' || n || '@example.org'
        FROM organisations AS o, generate_series(1, {CHUNK * PROCESSES}) AS n;
    -- Some mentors get a pause and a certificate: they need a push and a reminder.
    INSERT INTO mentor_pauses (mentor_id, reason, actor)
        SELECT id, 'illness', 'coordinator' FROM mentors ORDER BY email LIMIT {COUNT};
    UPDATE mentors AS m SET dynamics_contact_id = gen_random_uuid() FROM mentor_pauses AS p WHERE p.mentor_id = m.id;
    -- A review has seen the certificates, so the guards do not count their reminders.
    INSERT INTO certificates (mentor_id, kind, issued_on, expires_on)
        SELECT mentor_id, 'likeperson', '2024-01-01', '{{expires_on}}' FROM mentor_pauses;
    UPDATE mentors SET seen_certificates = '["{{expires_on}} likeperson"]';
    -- The first chunk of each session waits until every session has one.
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
    """Takes the first message only when every process has one."""

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


def test_runs_at_the_same_time_share_the_work_and_remind_once(
    app: psycopg.Connection[Any],
    facts: Facts,
    environment: dict[str, str],
    portal: PortalServer,
    mailbox: MeetingMailbox,
    tmp_path: Path,
) -> None:
    """They meet at their first chunk, call and mail. Each does a part, and none loses a lease."""
    facts.organisation(thresholds=(60, 20))
    facts.connection.execute(PROGRAMME.format(expires_on=today() + timedelta(days=55)).encode())
    portal.default = hang(delay(0.02))

    with ExitStack() as stack:
        app.execute("LOCK TABLE job_runs IN SHARE MODE")
        commands = [started("run", "--json", environment=environment, folder=tmp_path) for _ in range(PROCESSES)]
        children = [stack.enter_context(command) for command in commands]
        until_sessions(facts.connection, "wait_event_type = 'Lock'", count=PROCESSES)
        app.rollback()
        portal.wait_until(lambda: len(portal.connections) > CALLS * (PROCESSES - 1), timeout_seconds=60)
        portal.release()
        ended = [child.finish(timeout_seconds=120) for child in children]

    assert [(result.returncode, result.stderr) for result in ended] == [(0, "")] * PROCESSES
    reports = [json.loads(result.stdout) for result in ended]
    shares = [
        (report["mentors"]["reviewed"], report["portal"]["delivered"], report["reminders"]["sent"])
        for report in reports
    ]
    assert [sum(parts) for parts in zip(*shares, strict=True)] == [CHUNK * PROCESSES, COUNT, COUNT]
    assert all(part > 0 for share in shares for part in share)
    assert {(report["portal"]["lost"], report["reminders"]["lost"]) for report in reports} == {(0, 0)}

    mentors = facts.rows("SELECT dynamics_contact_id, email FROM mentors WHERE NOT portal_visible")
    assert len(mentors) == COUNT
    assert Counter(request.contact_id for request in portal.requests) == Counter(contact for contact, _ in mentors)
    assert portal.visible == {contact: False for contact, _ in mentors}
    assert portal.overlaps == []
    recipients = Counter(recipient for envelope in mailbox.envelopes for recipient in envelope.rcpt_tos)
    assert recipients == Counter(address for _, address in mentors)
    for table in ("portal_sync_events", "cert_notification_log"):
        assert facts.rows(f"SELECT DISTINCT attempts, claim_token FROM {table}") == [(1, None)]
    assert facts.rows("SELECT count(*) FROM certificate_transitions") == [(COUNT,)]


PAUSED, REVOKED = 12_000, 36
SURPRISES = f"""
    INSERT INTO mentors (organisation_id, member_no, certified_until)
    SELECT id, n, '2099-12-31' FROM organisations, generate_series(1, {PAUSED + REVOKED}) AS n;
    INSERT INTO certificates (mentor_id, kind, issued_on, expires_on, revoked_at)
    SELECT id, 'likeperson', '2020-01-01', '2099-12-31', CASE WHEN member_no::int <= {REVOKED} THEN now() END
    FROM mentors;
    INSERT INTO mentor_pauses (mentor_id, reason, actor)
    SELECT id, 'certification_expired', 'certjob' FROM mentors WHERE member_no::int > {REVOKED};
    CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.3); RETURN NULL; END $$;
    CREATE TRIGGER slow AFTER INSERT ON guard_counts EXECUTE FUNCTION wait();
"""
"""The pauses end, and each chunk has some of the revoked certificates, of which the guards allow 50."""


@pytest.mark.parametrize(
    ("options", "counted"),
    [
        pytest.param(["--allow", "hlf=99"], None, id="with a permission"),
        pytest.param([], REVOKED, id="below the limit"),
    ],
)
def test_runs_with_surprising_changes_do_not_starve_each_other(
    facts: Facts, environment: dict[str, str], tmp_path: Path, options: list[str], counted: int | None
) -> None:
    """They count the changes of one organisation one after the other, unless a person permits them.

    Each chunk takes 0.3 s after its count, so three others wait for longer than the lock timeout of 0.5 s.
    """
    runs = 4
    facts.organisation(portal=None)
    facts.connection.execute(SURPRISES.encode())

    with ExitStack() as stack:
        commands = [started("run", "--json", *options, environment=environment, folder=tmp_path) for _ in range(runs)]
        ended = [child.finish(timeout_seconds=240) for child in [stack.enter_context(each) for each in commands]]

    assert [(result.returncode, result.stderr) for result in ended] == [(0, "")] * runs
    reports = [json.loads(result.stdout)["mentors"] for result in ended]
    assert (sum(each["reinstated"] for each in reports), sum(each["paused"] for each in reports)) == (PAUSED, REVOKED)
    assert facts.rows("SELECT sum(number) FROM guard_counts") == [(counted,)]
    assert min(each["reviewed"] for each in reports) > PAUSED / runs / 4
