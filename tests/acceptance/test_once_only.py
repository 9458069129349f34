"""Four nights at once, as real processes, ten times over: every reminder is received, and received once."""

import asyncio
import email
import email.policy
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support.command_line import Backends, started, today
from tests.support.facts import Facts
from tests.support.processes import start_barrier
from tests.support.smtp_server import Mailbox, real_server

App = psycopg.Connection[tuple[object, ...]]

PROCESSES = 4
MENTORS = 55
KINDS = ("førstehjelp", "likeperson")
REMINDERS = MENTORS * len(KINDS)
"""More than the 100 of one claim, so that the first to come always leaves some to another."""
THRESHOLDS = (100, 80, 60, 40, 20)
DAYS_LEFT = (95, 75, 55, 54, 53, 35, 34, 15, 3, 0)
"""Until the expiry, round by round: five times the first reminder of a threshold, five times one about a new date."""


class MeetingMailbox(Mailbox):
    """A mail server that takes nothing until two processes have something to hand over."""

    def __init__(self) -> None:
        super().__init__()
        self.alone = 0
        """How often a process waited in vain for another one."""
        self._callers: set[object] = set()
        self._two_are_here = asyncio.Event()

    def begin_round(self) -> None:
        """Forget who has come; between rounds nobody is connected."""
        self.envelopes.clear()
        self._callers.clear()
        self._two_are_here = asyncio.Event()

    async def handle_DATA(self, server: object, session: Any, envelope: object) -> str:  # noqa: N802 - aiosmtpd's
        self._callers.add(session.peer)
        if len(self._callers) == 2:
            self._two_are_here.set()
        try:
            await asyncio.wait_for(self._two_are_here.wait(), timeout=60)
        except TimeoutError:
            self.alone += 1
            self._two_are_here.set()
        return await super().handle_DATA(server, session, envelope)


@pytest.fixture
def mailbox() -> MeetingMailbox:
    return MeetingMailbox()


@pytest.fixture
def environment(bare_environment: dict[str, str], database_url: str, mailbox: Mailbox) -> Iterator[dict[str, str]]:
    with real_server(mailbox) as server:
        yield bare_environment | {
            "CERTJOB_DATABASE_URL": database_url,
            "CERTJOB_NOTIFY_URL": f"smtp://127.0.0.1:{server.port}",
            "CERTJOB_MAIL_FROM": "certjob@example.org",
        }


@pytest.fixture
def addresses(facts: Facts) -> list[str]:
    """Mentors who read English, with a certificate of each kind that ends far from now."""
    organisation = facts.organisation("nhf", portal=None, thresholds=THRESHOLDS)
    for number in range(MENTORS):
        mentor = facts.mentor(organisation, email=f"m{number}@example.org", locale="en")
        for kind in KINDS:
            facts.certificate(mentor, today() + timedelta(days=1000), kind=kind)
    return [f"m{number}@example.org" for number in range(MENTORS)]


def test_four_nights_at_once_ten_times_send_every_reminder_once(
    app: App,
    facts: Facts,
    addresses: list[str],
    environment: dict[str, str],
    tmp_path: Path,
    mailbox: MeetingMailbox,
) -> None:
    """Each round makes a reminder due for every certificate; no process fails, or has all the work to itself."""
    message_ids: Counter[str] = Counter()
    for days_left in DAYS_LEFT:
        expires_on = today() + timedelta(days=days_left)
        facts.connection.execute("UPDATE certificates SET expires_on = %s", (expires_on,))
        mailbox.begin_round()

        reports = run_at_once(app, facts, environment=environment, folder=tmp_path)

        assert received(mailbox) == {
            (address, subject_of(expires_on, days_left=days_left, kind=kind)): 1
            for address in addresses
            for kind in KINDS
        }
        assert sum(report["reminders"]["queued"] for report in reports) == REMINDERS
        assert sum(report["reminders"]["sent"] for report in reports) == REMINDERS
        assert {report["reminders"]["lost"] for report in reports} == {0}
        assert mailbox.alone == 0, "one process had all the work to itself"
        message_ids.update(parsed(envelope)["Message-ID"] for envelope in mailbox.envelopes)

    assert set(message_ids.values()) == {1}
    assert len(message_ids) == REMINDERS * len(DAYS_LEFT)
    assert facts.rows(
        "SELECT threshold_days, status, attempts, claim_token, jsonb_array_length(history), count(*)::int"
        " FROM cert_notification_log GROUP BY 1, 2, 3, 4, 5 ORDER BY threshold_days DESC"
    ) == [
        (threshold, "sent", 1, None, earlier_dates, REMINDERS)
        for threshold, earlier_dates in zip(THRESHOLDS, (0, 0, 2, 1, 2), strict=True)
    ]
    outcomes = facts.rows("SELECT outcome, count(*)::int FROM job_runs GROUP BY outcome")
    assert outcomes == [("ok", PROCESSES * len(DAYS_LEFT))]


def run_at_once(
    app: App, facts: Facts, *, environment: dict[str, str], folder: Path
) -> list[dict[str, dict[str, int]]]:
    """Set off the processes together and return their reports; each exits 0 and has nothing to say."""
    backends = Backends(facts.connection)
    with ExitStack() as stack:
        with start_barrier(app, backends) as children:
            for _ in range(PROCESSES):
                children.append(stack.enter_context(started("run", "--json", environment=environment, folder=folder)))
        ended = [child.finish(timeout_seconds=120) for child in children]
    assert [(result.returncode, result.stderr) for result in ended] == [(0, "")] * PROCESSES
    backends.wait_until_gone()
    return [json.loads(result.stdout) for result in ended]


def received(mailbox: Mailbox) -> Counter[tuple[str, str]]:
    """How often each recipient got each subject."""
    return Counter(
        (recipient, str(parsed(envelope)["Subject"]))
        for envelope in mailbox.envelopes
        for recipient in envelope.rcpt_tos
    )


def parsed(envelope: Any) -> Any:
    return email.message_from_bytes(envelope.content, policy=email.policy.default)


def subject_of(expires_on: date, *, days_left: int, kind: str) -> str:
    """The subject that a mentor is to read."""
    left = {0: "today,", 1: "tomorrow,"}.get(days_left, f"in {days_left}\N{NO-BREAK SPACE}days, on")
    day = f"{expires_on.day}\N{NO-BREAK SPACE}{expires_on:%B}"
    return f"Your certificate expires {left} {day} (“{kind}”)"
