"""The stages of a delivery: in one event loop, one after the other, and none stops the next."""

import asyncio
import time
from dataclasses import replace
from datetime import date, timedelta
from typing import NoReturn
from uuid import UUID

import psycopg
import pytest

from certjob.database import Connection
from certjob.errors import ChannelDownError
from certjob.mail.message import OutgoingMessage
from certjob.night import deliveries, job_runs, nightly
from certjob.outbox import loop
from certjob.outbox.open_work import NO_WORK
from certjob.stopping import StopFlag
from tests.conftest import Certjob
from tests.support.facts import TODAY, Facts
from tests.support.intents import make_due, run_out
from tests.support.nights import CollectingChannel, FlakyPortal, NoProgress, delivery, night
from tests.support.portal_answers import error, ok
from tests.support.portal_server import PortalServer

App = psycopg.Connection[tuple[object, ...]]


@pytest.fixture
def due(facts: Facts) -> UUID:
    """HLF with a mentor to hide, another one to remind, and a coordinator to tell of it."""
    hlf = facts.organisation("hlf")
    facts.connection.execute(
        "INSERT INTO coordinators (organisation_id, full_name, email) VALUES (%s, 'Eva', 'eva@example.org')", (hlf,)
    )
    facts.certified_mentor(hlf, TODAY - timedelta(days=40), member_no="to hide")
    facts.certified_mentor(hlf, TODAY + timedelta(days=5), member_no="to remind", email="kari@example.org")
    return hlf


def test_the_portal_comes_first_then_reminders_then_digests(connection: Connection, due: UUID) -> None:
    """In one event loop: what one stage has set up, such as a connection to the mail server, is good for the next."""
    happened: list[tuple[str, asyncio.AbstractEventLoop]] = []

    class Both(CollectingChannel):
        async def update_portal_visibility(self, *_contact: object, **_wanted: object) -> None:
            happened.append(("push", asyncio.get_running_loop()))

        async def send(self, message: OutgoingMessage) -> None:
            happened.append((message.kind, asyncio.get_running_loop()))

        async def close(self) -> None:
            happened.append(("closed", asyncio.get_running_loop()))

    night(connection, portal=Both(), channel=Both())

    assert [what for what, _ in happened] == ["push", "reminder", "digest", "closed"]
    assert len({each for _, each in happened}) == 1


def test_a_portal_stage_that_crashes_does_not_stop_the_mail(connection: Connection, facts: Facts, due: UUID) -> None:
    """The run has failed; the hide that was not made is an alert, and the digest tells of it. It is said every time."""

    class Crashing(FlakyPortal):
        async def update_portal_visibility(self, contact_id: UUID, *, visible: bool, idempotency_key: str) -> None:
            message = "kari@example.org"
            raise LookupError(message)

    channel = CollectingChannel()
    report = night(connection, portal=Crashing(), channel=channel)

    assert ([stop.code for stop in report.stopped], report.outcome) == (["crash"], "failed")
    assert [message.kind for message in channel.sent] == ["reminder", "digest"]
    assert "kari" not in " ".join(report.reasons)
    assert facts.rows("SELECT failure_code FROM dynamics_sync_failures WHERE resolved_at IS NULL") == [("crash",)]
    assert facts.rows("SELECT outcome FROM job_runs WHERE command = 'run'") == [("failed",)]
    run_out(facts)
    ways_out = delivery(portal=Crashing(), channel=channel)
    report = nightly.deliver(connection, today=TODAY, delivery=ways_out, stop=StopFlag(), progress=NoProgress())
    assert "LookupError" in " ".join(report.reasons)
    assert "LookupError" in report.to_document()["error"]["message"]


@pytest.mark.usefixtures("due")
@pytest.mark.parametrize("code", ["crash", "no_url"])
def test_a_portal_that_cannot_even_be_opened_is_noted(connection: Connection, facts: Facts, code: str) -> None:
    """Before anything is claimed, so that no push can tell of it."""

    def make_target() -> NoReturn:
        raise LookupError

    ways_out = delivery(channel=CollectingChannel())
    night(connection, ways_out=replace(ways_out, make_target=None if code == "no_url" else make_target))

    assert facts.rows("SELECT failure_code FROM dynamics_sync_failures") == [(code,)]


def test_a_portal_stage_that_waits_for_a_locked_table_leaves_time_to_the_mail(
    connection: Connection, app: App, due: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its part of the time (three quarters, here a tenth) ends in the middle of a statement; that is no crash."""
    monkeypatch.setattr(deliveries, "PORTAL_SHARE", 0.1)
    monkeypatch.setattr(loop, "LONGEST_WORK_AFTER_DEADLINE_SECONDS", 0.2)
    night(connection, deliver=False)
    app.execute("LOCK TABLE portal_sync_events IN ACCESS EXCLUSIVE MODE")
    channel = CollectingChannel(on_send=lambda _message: app.rollback())  # so that the run can be reported

    started = time.monotonic()
    report = night(connection, ways_out=delivery(portal=FlakyPortal(), channel=channel, deadline_seconds=20))

    assert 1.5 < time.monotonic() - started < 30
    assert report.outcome == "attention"
    assert [(stop.stage, stop.code) for stop in report.stopped] == [("portal", "locked")]
    assert [message.kind for message in channel.sent] == ["reminder", "digest"]


def test_digests_go_out_although_the_reminders_crashed(connection: Connection, due: UUID) -> None:
    """They tell of it."""
    sent: list[str] = []

    def send(message: OutgoingMessage) -> None:
        if message.kind == "reminder":
            raise LookupError
        sent.append(message.kind)

    report = night(connection, portal=FlakyPortal(), channel=CollectingChannel(on_send=send))

    assert sent == ["digest"]
    assert [(stop.stage, stop.code) for stop in report.stopped] == [("mail", "crash")]


def test_a_list_of_alerts_that_cannot_be_read_is_said(
    connection: Connection, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A night that could not ask what needs attention does not end as if nothing did."""
    monkeypatch.setattr(job_runs, "_LOCK_TIMEOUT_MS", 100)
    lock = "LOCK TABLE portal_unknown_contacts IN ACCESS EXCLUSIVE MODE"
    monkeypatch.setattr(job_runs, "read_open_work", lambda _own: app.execute(lock) and NO_WORK)

    report = night(connection, deliver=False)

    assert [(stop.stage, stop.code) for stop in report.stopped] == [("alerts", "locked")]
    assert report.outcome == "attention"


def test_deliver_says_a_failing_push_once_and_only_another_mentor_or_reason_again(
    certjob: Certjob, facts: Facts, portal: PortalServer
) -> None:
    """It runs every 15 minutes. All are tried each time, and `alerts` has them."""
    portal.default = error(502, "dynamics_unavailable")
    organisation = facts.organisation()

    settings = {"CERTJOB_PORTAL_URL": portal.url, "CERTJOB_PORTAL_KEY": portal.key, "CERTJOB_PORTAL_ATTEMPTS": "1"}

    def a_mentor_expires() -> None:
        facts.certified_mentor(organisation, date(2025, 1, 1))
        certjob("run", "--no-deliver")

    def deliver_says(what: str) -> None:
        make_due(facts)
        result = certjob("deliver", **settings)
        line = f"certjob deliver: {what}; see `certjob alerts`\n" if what else ""
        assert (result.returncode, result.stdout, result.stderr) == (3 if what else 0, "", line)

    a_mentor_expires()
    a_mentor_expires()  # fewer than end the stage
    deliver_says("2 portal pushes failed")
    calls = len(portal.requests)
    deliver_says("")
    deliver_says("")
    assert len(portal.requests) == calls + 4
    assert certjob("alerts").returncode == 3

    a_mentor_expires()
    deliver_says("1 portal push failed")
    deliver_says("")

    # The portal is back, and does not know one of them; the others' failures are over, and would be new again.
    portal.then(error(404, "contact_not_found"))
    portal.default = ok()
    deliver_says("1 portal push failed")


@pytest.mark.usefixtures("due")
def test_deliver_says_once_why_nobody_can_be_mailed_or_pushed_and_again_when_that_is_another_reason(
    connection: Connection, portal: PortalServer
) -> None:
    """Both are faults of everybody's, with one code. The number of a session makes no other reason."""
    night(connection, deliver=False)

    def deliver_says(mail: str, function: str) -> list[str]:
        def refuse(_message: OutgoingMessage) -> NoReturn:
            raise ChannelDownError(mail)

        portal.default = error(500, "misconfigured", message=function)
        ways_out = delivery(portal=portal, channel=CollectingChannel(on_send=refuse))
        report = nightly.deliver(connection, today=TODAY, delivery=ways_out, stop=StopFlag(), progress=NoProgress())
        return [line.partition("(")[2].partition(")")[0] for line in report.reasons]

    assert deliver_says("refused (550 sender, session a1)", "the secret has expired") == [
        "the secret has expired",
        "550 sender, session a1",
    ]
    assert deliver_says("refused (550 sender, session b2)", "the secret has expired") == []
    assert deliver_says("refused (535 login)", "the secret has expired") == ["535 login"]
    assert deliver_says("refused (535 login)", "the role is too narrow") == ["the role is too narrow"]
    assert deliver_says("refused (535 login)", "the role is too narrow") == []
