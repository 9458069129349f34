"""The stages of a delivery: one after the other, and none stops the next."""

import asyncio
import json
import subprocess
import time
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import NoReturn

import pytest

from certjob.errors import ChannelDownError
from certjob.jobs import job_runs
from certjob.mail.message import OutgoingMessage
from certjob.outbox import claims
from certjob.outbox.open_work import NO_WORK
from certjob.portal.sync import PortalSyncService
from tests.conftest import Certjob, installed_command
from tests.support.command_line import today
from tests.support.facts import TODAY
from tests.support.nights import CollectingChannel, FlakyPortal, delivery, make_due
from tests.support.portal_answers import error, ok
from tests.support.scene import Scene


@pytest.fixture
def due(scene: Scene) -> Scene:
    """HLF with a mentor to hide, another one to remind, and a coordinator to tell of it."""
    hlf = scene.facts.organisation("hlf")
    scene.facts.insert("coordinators", organisation_id=hlf, full_name="Eva", email="eva@example.org")
    scene.facts.certified_mentor(hlf, TODAY - timedelta(days=40))
    scene.facts.certified_mentor(hlf, TODAY + timedelta(days=5), email="kari@example.org")
    return scene


def kinds(scene: Scene) -> list[str]:
    """What was mailed."""
    return [message.kind for message in scene.channel.sent]


def test_the_portal_comes_first_then_reminders_then_digests(due: Scene) -> None:
    """In one event loop: what one stage has set up, such as a connection to the mail server, is good for the next."""
    happened: list[tuple[str, asyncio.AbstractEventLoop]] = []

    class Watched(FlakyPortal):
        async def update_portal_visibility(self, *_contact: object, **_wanted: object) -> None:
            happened.append(("push", asyncio.get_running_loop()))

    class WatchedChannel(CollectingChannel):
        async def send(self, message: OutgoingMessage) -> None:
            happened.append((message.kind, asyncio.get_running_loop()))

        async def close(self) -> None:
            happened.append(("closed", asyncio.get_running_loop()))

    due.night(Watched(), channel=WatchedChannel())

    assert [what for what, _ in happened] == ["push", "reminder", "digest", "closed"]
    assert len({each for _, each in happened}) == 1


def test_a_portal_stage_that_crashes_does_not_stop_the_mail(due: Scene) -> None:
    """The run has failed; the hide that was not made is an alert, and the digest tells of it. It is said every time."""
    portal = FlakyPortal(lambda _number: LookupError("kari@example.org"))

    report = due.night(portal)

    assert ([stop.code for stop in report.stopped], report.outcome) == (["crash"], "failed")
    assert kinds(due) == ["reminder", "digest"]
    assert "kari" not in " ".join(report.reasons)
    assert due.rows("SELECT failure_code FROM dynamics_sync_failures WHERE resolved_at IS NULL") == [
        ("portal_stopped",)
    ]
    assert due.rows("SELECT outcome FROM job_runs WHERE command = 'run'") == [("failed",)]
    due.run_out()
    report = due.deliver(portal, channel=due.channel)
    assert "LookupError" in " ".join(report.reasons)
    assert "LookupError" in report.to_document()["error"]["message"]


@pytest.mark.parametrize("code", ["crash", "no_url"])
def test_a_portal_that_cannot_even_be_opened_is_noted(due: Scene, code: str) -> None:
    """Before anything is claimed, so that no push can tell of it."""

    def make_portal() -> NoReturn:
        raise LookupError

    ways_out = replace(delivery(), make_portal=None if code == "no_url" else make_portal)
    due.night(ways_out=ways_out)

    assert due.rows("SELECT failure_code FROM dynamics_sync_failures") == [("portal_stopped",)]


def test_a_portal_stage_that_waits_for_a_locked_table_leaves_time_to_the_mail(
    due: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim waits for ten seconds, and here for one; that is no crash. Taking back old claims waits longer."""
    monkeypatch.setattr(claims, "_CLAIM_LOCK_TIMEOUT_MS", 1000)
    monkeypatch.setattr(PortalSyncService, "take_back", lambda _self: 0)
    due.night(deliver=False)
    due.app.execute("LOCK TABLE portal_sync_events IN ACCESS EXCLUSIVE MODE")
    due.channel.on_send = lambda _message: due.app.rollback()  # so that the run can be reported

    started = time.monotonic()
    report = due.night(ways_out=delivery(portal=FlakyPortal(), channel=due.channel, deadline_seconds=20))

    assert 0.9 < time.monotonic() - started < 30
    assert report.outcome == "attention"
    assert [(stop.stage, stop.code) for stop in report.stopped] == [("portal", "locked")]
    assert kinds(due) == ["reminder", "digest"]


def test_digests_go_out_although_the_reminders_crashed(due: Scene) -> None:
    """They tell of it."""
    due.channel.on_send = lambda message: LookupError() if message.kind == "reminder" else None

    report = due.night(FlakyPortal())

    assert kinds(due) == ["digest"]
    assert [(stop.stage, stop.code) for stop in report.stopped] == [("mail", "crash")]


def test_a_list_of_alerts_that_cannot_be_read_is_said(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A night that could not ask what needs attention does not end as if nothing did."""
    monkeypatch.setattr(job_runs, "_LOCK_TIMEOUT_MS", 100)
    lock = "LOCK TABLE portal_unknown_contacts IN ACCESS EXCLUSIVE MODE"
    monkeypatch.setattr(job_runs, "read_open_work", lambda _own: scene.app.execute(lock) and NO_WORK)

    report = scene.night(deliver=False)

    assert [(stop.stage, stop.code) for stop in report.stopped] == [("alerts", "locked")]
    assert report.outcome == "attention"


def test_deliver_says_a_failing_push_once_and_only_another_mentor_or_reason_again(
    scene: Scene, certjob: Certjob, ways_out: dict[str, str]
) -> None:
    """It runs every 15 minutes. All are tried each time, and `alerts` has them."""
    scene.portal.default = error(502, "dynamics_unavailable")

    def mentors_expire(number: int) -> None:
        for _ in range(number):
            scene.certified(date(2025, 1, 1))
        scene.night(today=today(), deliver=False)

    def deliver_says(what: str) -> None:
        scene.make_due()
        result = certjob("deliver", **ways_out)
        line = f"certjob deliver: {what}; see `certjob alerts`\n" if what else ""
        assert (result.returncode, result.stdout, result.stderr) == (3 if what else 0, "", line)

    mentors_expire(2)  # fewer than end the stage
    deliver_says("2 portal pushes failed")
    deliver_says("")
    deliver_says("")
    assert len(scene.portal.requests) == 3 * 2 * 3  # rounds, mentors, calls
    assert certjob("alerts").returncode == 3

    mentors_expire(1)
    deliver_says("1 portal push failed")
    deliver_says("")

    # The portal is back, and does not know one of them; the others' failures are over, and would be new again.
    scene.portal.then(error(404, "contact_not_found"))
    scene.portal.default = ok()
    deliver_says("1 portal push failed")


def test_deliver_says_once_why_nobody_can_be_mailed_or_pushed_and_again_when_that_is_another_reason(
    due: Scene,
) -> None:
    """Both are faults of everybody's, with one code. The number of a session makes no other reason."""
    due.night(deliver=False)

    def deliver_says(mail: str, function: str) -> list[str]:
        due.channel.on_send = lambda _message: ChannelDownError(f"refused ({mail})")
        due.portal.default = error(500, "misconfigured", message=function)
        report = due.deliver(due.portal, channel=due.channel)
        return [line.partition("(")[2].partition(")")[0] for line in report.reasons]

    expired, narrow = "the secret has expired", "the role is too narrow"
    assert deliver_says("550 sender, session a1", expired) == [expired, "550 sender, session a1"]
    assert deliver_says("550 sender, session b2", expired) == []
    assert deliver_says("535 login", expired) == ["535 login"]
    assert deliver_says("535 login", narrow) == [narrow]
    assert deliver_says("535 login", narrow) == []


def test_deliver_repeats_no_reason_because_there_was_nothing_to_do_meanwhile(due: Scene) -> None:
    """A delivery with nothing due does not show that the mail server is back."""
    due.night(deliver=False)
    due.channel.on_send = lambda _message: ChannelDownError("refused")

    said = []
    for _ in range(3):
        said.append(due.deliver(due.portal, channel=due.channel).reasons)
        due.run_sql("UPDATE cert_notification_log SET next_attempt_at = now() + interval '1 hour'")
        due.run_sql("UPDATE coordinator_digests SET next_attempt_at = now() + interval '1 hour'")
        said.append(due.deliver(due.portal, channel=due.channel).reasons)
        due.make_due()
        for table in ("cert_notification_log", "coordinator_digests"):
            make_due(due.facts, table)

    assert said == [["mail: refused; the rest stays pending"], [], [], [], [], []]


def test_deliver_says_a_reason_again_after_it_was_over_and_on_the_next_day(due: Scene) -> None:
    """Once a message has gone out, the next outage is another one."""
    due.night(deliver=False)
    down = ["mail: refused; the rest stays pending"]

    def deliver(fault: Exception | None) -> list[str]:
        due.channel.on_send = lambda _message: fault
        return due.deliver(due.portal, channel=due.channel).reasons

    assert deliver(ChannelDownError("refused")) == down
    assert deliver(ChannelDownError("refused")) == []
    assert deliver(None) == []
    due.run_sql("UPDATE cert_notification_log SET status = 'pending', next_attempt_at = now()")
    assert deliver(ChannelDownError("refused")) == down
    due.run_sql("UPDATE job_runs SET as_of = as_of - 1")
    assert deliver(ChannelDownError("refused")) == down


def test_lines_that_could_not_be_written_are_said_by_the_next_run(
    scene: Scene, environment: dict[str, str], certjob: Certjob
) -> None:
    """A crontab that appends to a log on a full disk; `certjob status` has the reasons of every run."""
    scene.expired()
    with Path("/dev/full").open("w") as full:
        command = [str(installed_command()), "run"]
        subprocess.run(command, env=environment, stderr=full, check=False, timeout=60)
    ours = {"CERTJOB_PORTAL_URL": "", "CERTJOB_PORTAL_KEY": ""}

    said = [certjob("run", **ours).stderr for _ in range(2)]

    line = "1 mentor may still be visible on the portal; see `certjob alerts`"
    assert [f"certjob run: {line}\n" in each for each in said] == [True, False]
    runs = json.loads(certjob("status", "--json").stdout)["runs"]
    assert [line in run["lines"] for run in runs] == [True, True, True]


def test_status_names_why_a_run_failed(scene: Scene, certjob: Certjob) -> None:
    """The database refused a statement: its words are in the ledger, with ids and without personal data."""
    scene.expired(full_name="Kari Nordmann")
    scene.run_sql("ALTER TABLE portal_sync_events RENAME COLUMN visible TO shown")
    failed = certjob("run")
    scene.run_sql("ALTER TABLE portal_sync_events RENAME COLUMN shown TO visible")

    assert failed.returncode == 1
    ((lines,),) = scene.rows("SELECT lines FROM job_runs")
    assert lines == ["unforeseen UndefinedColumn"]
    assert "run, failed, under 1 s, on " in certjob("status").stdout
    assert ": unforeseen UndefinedColumn\n" in certjob("status").stdout
