"""The stages of a delivery: portal, reminders, digests. A failed stage does not stop the next one."""

import json
import subprocess
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from certjob.database import statements
from certjob.errors import Cause, MailRejectedError, RecipientRejectedError, StoppedBySignalError
from certjob.jobs import job_runs, runs
from certjob.outbox import claims
from certjob.portal import stage
from certjob.portal.hlf_dynamics import HLFDynamicsSyncService
from certjob.portal.sync import PortalSyncService
from certjob.stopping import StopFlag
from tests.conftest import Certjob, installed_command
from tests.support.command_line import assert_one_line
from tests.support.facts import TODAY
from tests.support.nights import delivery, new_job, pushes
from tests.support.portal_answers import Behaviour, during, error, ok
from tests.support.scene import Scene


@pytest.fixture
def due(scene: Scene) -> Scene:
    """HLF with a mentor to hide, a mentor to remind, and a coordinator to inform."""
    hlf = scene.facts.organisation("hlf")
    scene.facts.insert("coordinators", organisation_id=hlf, full_name="Eva", email="eva@example.org")
    scene.facts.certified_mentor(hlf, TODAY - timedelta(days=40))
    scene.facts.certified_mentor(hlf, TODAY + timedelta(days=5), email="kari@example.org")
    return scene


def mailed(scene: Scene) -> list[str]:
    return [message.kind for message in scene.channel.sent]


def test_portal_comes_first_then_reminders_then_digests(due: Scene) -> None:
    """A digest reports what failed before it."""
    happened: list[str] = []
    due.channel.on_send = lambda message: happened.append(message.kind)

    due.portal.then(during(lambda: happened.append("push")))

    due.night(due.portal)

    assert happened == ["push", "reminder", "digest"]


@pytest.mark.parametrize(("command", "calls"), [("run", 36), ("deliver", 9)])
def test_portal_has_three_quarters_of_the_time(
    scene: Scene, here: Certjob, monkeypatch: pytest.MonkeyPatch, command: str, calls: int
) -> None:
    """Of 40 minutes in a run, which cron ends after 55, and of 10 in a delivery. Each push takes 50 seconds.

    A late hide is worse than a late mail, but some mail goes out.
    """
    scene.backlog(40)
    clock: Any = SimpleNamespace(now=0.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(stage, "time", clock)

    scene.portal.default = during(lambda: setattr(clock, "now", clock.now + 50))

    with pushes(concurrency=1):
        result = here(command, **scene.portal.settings)

    assert "the time for deliveries is over" in result.stderr
    assert len(scene.portal.requests) == calls


def test_run_of_one_organisation_leaves_the_others(due: Scene) -> None:
    """Neither their mentors are reviewed, nor do their coordinators get digests."""
    nhf = due.facts.organisation("nhf", portal=None)
    due.facts.insert("coordinators", organisation_id=nhf, full_name="Ola", email="ola@example.org")
    mentor = due.facts.certified_mentor(nhf, TODAY - timedelta(days=40))

    due.night(due.portal, organisation="nhf")

    assert due.rows("SELECT mentor_id FROM mentor_pauses") == [(mentor,)]
    assert [message.to for message in due.channel.sent] == ["ola@example.org"]


def test_signal_queues_the_digests_about_the_stopped_run(due: Scene) -> None:
    """The next run may be stopped, too."""
    stop = StopFlag()
    due.portal.then(during(stop.set))

    with pytest.raises(StoppedBySignalError):
        runs.run(new_job(due.connection, stop=stop, ways_out=delivery(portal=due.portal)), accept_date=TODAY)

    assert due.rows("SELECT status FROM coordinator_digests") == [("pending",)]


def test_crash_of_the_portal_stage_does_not_stop_the_mail(due: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run has failed, and the open hide and an overdue run are alerts. A delivery repeats the reason each time."""
    died = "INSERT INTO job_runs (id, command, as_of, host, version, started_at) VALUES (gen_random_uuid(), 'run', %s,"
    due.run_sql(f"{died} 'night-1', '1.0.0', now() - interval '27 hours')", TODAY - timedelta(days=1))
    monkeypatch.setattr(HLFDynamicsSyncService, "update_portal_visibility", mock.AsyncMock(side_effect=LookupError))

    report = due.night(due.portal)

    assert (report.outcome, mailed(due)) == ("failed", ["reminder", "digest"])
    assert report.to_document()["alerts"]["no_full_run"] == 1
    assert due.rows("SELECT failure_code FROM dynamics_sync_failures") == [("portal_stopped",)]
    due.expire_leases()
    delivered = due.deliver(due.portal, channel=due.channel)
    assert "LookupError" in " ".join(delivered.reasons)
    assert "LookupError" in delivered.to_document()["error"]["message"]


def test_locked_table_ends_the_portal_stage_and_not_the_mail(due: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The claim gives up after its timeout. It is not a crash."""
    monkeypatch.setattr(claims, "_CLAIM_LOCK_TIMEOUT_MS", 100)
    monkeypatch.setattr(PortalSyncService, "take_back", lambda _self: 0)
    due.night(deliver=False)
    due.app.execute("LOCK TABLE portal_sync_events IN ACCESS EXCLUSIVE MODE")
    due.channel.on_send = lambda _message: due.app.rollback()  # the end of the run reads the table

    report = due.night(ways_out=delivery(portal=due.portal, channel=due.channel))

    assert report.outcome == "attention"
    assert [(stop.stage, stop.code) for stop in report.stopped] == [("portal", "locked")]
    assert mailed(due) == ["reminder", "digest"]


def test_crash_of_the_reminders_does_not_stop_the_digests(due: Scene) -> None:
    """The digests report it."""
    due.channel.on_send = lambda message: LookupError() if message.kind == "reminder" else None

    report = due.night(due.portal)

    assert mailed(due) == ["digest"]
    assert [(stop.stage, stop.code) for stop in report.stopped] == [("mail", "crash")]


def test_run_that_cannot_read_the_alerts_needs_attention(due: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps its report, because its work is done."""
    monkeypatch.setattr(job_runs, "_LOCK_TIMEOUT_MS", 100)
    monkeypatch.setattr(runs, "_LOCK_TIMEOUT_MS", 100)
    monkeypatch.setattr(statements, "LOCK_TIMEOUT_MS", 100)

    def lock(_message: object) -> None:
        due.app.execute("LOCK TABLE portal_sync_events IN ACCESS EXCLUSIVE MODE")

    due.channel.on_send = lock

    report = due.night(due.portal)
    due.app.rollback()

    assert (report.outcome, report.mail.reminders.sent) == ("attention", 1)
    assert ("alerts", "locked") in [(stop.stage, stop.code) for stop in report.stopped]
    assert due.rows("SELECT outcome FROM job_runs WHERE id = %s", report.run_id) == [("attention",)]


def test_deliver_prints_only_new_failures(scene: Scene) -> None:
    """New are another mentor, another cause, a hide after a show, or a return. The exit code has each."""

    def reasons(answer: Behaviour) -> list[str]:
        scene.make_due()
        scene.portal.default = answer
        report = scene.deliver(scene.portal)
        assert report.outcome == "attention"
        return report.news

    bad_gateway, mentor = error(502, "dynamics_unavailable"), scene.mentor()
    down, not_found = "the portal did not answer or could not make the change", "Dynamics has no contact with this ID"
    scene.queue(mentor, visible=False)
    assert reasons(bad_gateway) == [f"1 portal push failed: {down}; see `certjob alerts`"]
    assert reasons(bad_gateway) == []

    scene.queue(scene.mentor(), visible=False)
    assert reasons(bad_gateway) == [f"1 portal push failed: {down}; see `certjob alerts`"]

    assert reasons(error(404, "contact_not_found")) == [f"2 portal pushes failed: {not_found}; see `certjob alerts`"]

    for visible in (True, False):
        scene.queue(mentor, visible=visible)
        assert reasons(error(404, "contact_not_found")) == [f"1 portal push failed: {not_found}; see `certjob alerts`"]

    scene.portal.default = ok()
    scene.retry_all(scene.portal)
    scene.queue(mentor, visible=False)
    assert reasons(error(404, "contact_not_found")) == [f"1 portal push failed: {not_found}; see `certjob alerts`"]


def test_deliver_prints_only_new_reasons_of_stages(scene: Scene) -> None:
    """The same reason is new on the next day, but not with another number. The exit code has each."""

    def is_printed(answer: Behaviour) -> bool:
        scene.portal.default = answer
        report = scene.deliver(scene.portal)
        assert bool(report.stopped) == (report.outcome == "attention")
        return bool(report.news)

    first = error(500, "misconfigured", message="the secret has expired, trace 1")
    second = error(500, "misconfigured", message="the secret has expired, trace 2")
    other = error(500, "misconfigured", message="the role is too narrow")
    mentor = scene.mentor()
    scene.queue(mentor, visible=False)
    assert [is_printed(answer) for answer in (first, second, other, other)] == [True, False, True, False]

    assert not is_printed(ok())
    scene.queue(mentor, visible=True)
    assert not is_printed(other)
    scene.run_sql("UPDATE job_runs SET as_of = as_of - 1")
    assert is_printed(other)


@pytest.mark.parametrize(
    "redirection", ["2>/dev/full", "--json 2>/dev/full", "2>&-"], ids=["full disk", "full disk and JSON", "closed"]
)
def test_lost_lines_are_printed_by_the_next_run(
    scene: Scene, environment: dict[str, str], here: Certjob, redirection: str
) -> None:
    """A crontab appends the output to a log."""
    scene.expired()
    command = ["/bin/sh", "-c", f"exec {installed_command()} run {redirection}"]
    lost = subprocess.run(command, env=environment, check=False, timeout=60, stdout=subprocess.DEVNULL)

    outputs = [here("run").stderr for _ in range(2)]

    line = "certjob run: 1 mentor may still be visible on the portal; see `certjob alerts`\n"
    assert (lost.returncode, [line in each for each in outputs]) == (3, [True, False])


def test_status_names_the_error_of_a_failed_run_without_its_text(scene: Scene, here: Certjob) -> None:
    """The text of a database error may have data about people."""
    scene.expired(full_name="Kari Nordmann")
    scene.run_sql("ALTER TABLE portal_sync_events RENAME COLUMN visible TO shown")
    failed = here("run")
    scene.run_sql("ALTER TABLE portal_sync_events RENAME COLUMN shown TO visible")

    page = here("status").stdout

    assert (failed.returncode, scene.rows("SELECT lines FROM job_runs")) == (1, [(["unforeseen UndefinedColumn"],)])
    assert ",unforeseen UndefinedColumn\n" in page


# `certjob alerts --retry-all`: every open push is tried now, and mail is due.


UNDELIVERED = """
    SELECT status, next_attempt_at <= now() FROM cert_notification_log
    UNION ALL SELECT status, next_attempt_at <= now() FROM coordinator_digests ORDER BY 1, 2
"""
OPEN = "SELECT status, attempts, version FROM portal_sync_events ORDER BY id"


def test_blocked_and_delayed_pushes_are_sent_but_no_mail(scene: Scene) -> None:
    """Their failures are resolved."""
    rejected, failing = scene.backlog(2)
    scene.facts.certified_mentor(scene.facts.organisation("nhf", portal=None), TODAY)
    scene.portal.then(error(404, "contact_not_found"))
    scene.portal.default = error(503, "dynamics_unavailable")
    scene.night(scene.portal, channel=None)
    assert scene.rows(OPEN) == [("blocked", 1, 1), ("pending", 1, 1)]
    scene.portal.default = ok()

    report = scene.retry_all(scene.portal)

    assert scene.portal.visible == {rejected: False, failing: False}
    assert scene.rows(OPEN) == [("delivered", 1, 2), ("delivered", 1, 2)]
    assert scene.rows("SELECT count(*) FROM dynamics_sync_failures WHERE resolved_at IS NULL") == [(0,)]
    assert (report.outcome, report.reopened) == ("ok", 2)
    assert (scene.channel.sent, scene.rows("SELECT status FROM cert_notification_log")) == ([], [("pending",)])


def test_undelivered_mail_is_due(scene: Scene) -> None:
    """A failed reminder, one that the server has rejected, and a failed digest. The next delivery sends them."""
    organisation = scene.facts.organisation("nhf", portal=None)
    for number in range(2):
        scene.facts.certified_mentor(organisation, TODAY, email=f"m{number}@example.org")
    coordinator = {"full_name": "Berit", "email": "berit@example.org", "locale": "nb"}
    scene.facts.insert("coordinators", organisation_id=organisation, **coordinator)
    wrong = RecipientRejectedError("550 5.1.1 no", code=Cause.WRONG_ADDRESS)
    refused = MailRejectedError("550 5.7.1 no", may_be_address=False)
    scene.channel.on_send = lambda message: refused if message.to == "m1@example.org" else wrong
    scene.night(scene.portal, channel=scene.channel)
    scene.channel.on_send = None
    assert scene.rows(UNDELIVERED) == [("failed", True), ("failed", True), ("pending", False)]

    report = scene.retry_all(scene.portal)

    assert scene.rows(UNDELIVERED) == [("pending", True)] * 3
    assert (report.mail_reopened, report.to_document()["mail"]) == (3, {"reopened": 3})
    scene.deliver(scene.portal, channel=scene.channel)
    assert len(scene.channel.sent) == 3


def test_locked_push_is_left_out(scene: Scene) -> None:
    """The push of a locked mentor is sent."""
    contacts = scene.backlog(5)
    scene.run_sql("UPDATE portal_sync_events SET status = 'blocked'")
    scene.app.execute("UPDATE mentors SET member_no = member_no WHERE dynamics_contact_id = %s", (contacts[1],))
    scene.app.execute("SELECT FROM portal_sync_events ORDER BY id LIMIT 1 FOR UPDATE")

    report = scene.retry_all(scene.portal)

    assert (len(scene.portal.requests), report.reopened) == (4, 4)


def test_retry_all_shows_the_remaining_alerts(scene: Scene, here: Certjob, delivery_settings: dict[str, str]) -> None:
    """Exit 3 with the reasons while there is any, otherwise 0 without output."""
    scene.backlog(2)
    scene.portal.default = error(404, "contact_not_found")

    stuck = here("alerts", "--retry-all", **delivery_settings)
    scene.portal.then(ok())
    half = here("alerts", "--retry-all", "--json", **delivery_settings)
    scene.portal.default = ok()
    mended = here("alerts", "--retry-all", **delivery_settings)

    assert_one_line(
        stuck, "2 portal pushes failed: Dynamics has no contact with this ID\n", code=3, command="certjob alerts"
    )
    assert stuck.stdout.count("Dynamics sync pending — mentor may still be visible on portal") == 2
    document = json.loads(half.stdout)
    assert (half.returncode, document["outcome"], document["portal"]["delivered"]) == (3, "attention", 1)
    assert [alert["cause"] for alert in document["alerts"]] == ["contact_not_found"]
    assert (mended.returncode, mended.stdout, mended.stderr) == (0, "", "")
