"""The stages of a delivery: portal, reminders, digests. A failed stage does not stop the next one."""

import asyncio
import json
import subprocess
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import pytest

from certjob.database import statements
from certjob.errors import ChannelDownError, DatabaseUnavailableError
from certjob.jobs import deliveries, job_runs
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

MAIL_IS_DOWN = ["mail: refused; the rest stays pending"]


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
    """One event loop serves all, because a connection to the mail server belongs to its loop."""
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
    assert len({loop for _, loop in happened}) == 1


def test_crash_of_the_portal_stage_does_not_stop_the_mail(due: Scene) -> None:
    """The run has failed, and the open hide is an alert. A delivery repeats the reason of a crash each time."""
    portal = FlakyPortal(lambda _number: LookupError("kari@example.org"))

    report = due.night(portal)

    assert ([stop.code for stop in report.stopped], report.outcome) == (["crash"], "failed")
    assert mailed(due) == ["reminder", "digest"]
    assert "kari" not in " ".join(report.reasons)
    failures = due.rows("SELECT failure_code FROM dynamics_sync_failures WHERE resolved_at IS NULL")
    assert failures == [("portal_stopped",)]
    assert due.rows("SELECT outcome FROM job_runs WHERE command = 'run'") == [("failed",)]
    due.run_out()
    report = due.deliver(portal, channel=due.channel)
    assert "LookupError" in " ".join(report.reasons)
    assert "LookupError" in report.to_document()["error"]["message"]


def test_open_hide_without_a_portal_client_is_an_alert(due: Scene) -> None:
    """The stage crashes before it claims any push."""

    def make_portal() -> NoReturn:
        raise LookupError

    due.night(ways_out=replace(delivery(), make_portal=make_portal))

    assert due.rows("SELECT failure_code FROM dynamics_sync_failures") == [("portal_stopped",)]


def test_locked_table_ends_the_portal_stage_and_not_the_mail(due: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The claim gives up after its timeout (here 1 s). It is not a crash."""
    monkeypatch.setattr(claims, "_CLAIM_LOCK_TIMEOUT_MS", 1000)
    monkeypatch.setattr(PortalSyncService, "take_back", lambda _self: 0)
    due.night(deliver=False)
    due.app.execute("LOCK TABLE portal_sync_events IN ACCESS EXCLUSIVE MODE")
    due.channel.on_send = lambda _message: due.app.rollback()  # the end of the run reads the table

    started = time.monotonic()
    report = due.night(ways_out=delivery(portal=FlakyPortal(), channel=due.channel, deadline_seconds=20))

    assert 0.9 < time.monotonic() - started < 30
    assert report.outcome == "attention"
    assert [(stop.stage, stop.code) for stop in report.stopped] == [("portal", "locked")]
    assert mailed(due) == ["reminder", "digest"]


def test_crash_of_the_reminders_does_not_stop_the_digests(due: Scene) -> None:
    """The digests report it."""
    due.channel.on_send = lambda message: LookupError() if message.kind == "reminder" else None

    report = due.night(FlakyPortal())

    assert mailed(due) == ["digest"]
    assert [(stop.stage, stop.code) for stop in report.stopped] == [("mail", "crash")]


def test_unreadable_list_of_alerts_is_a_reason_for_attention(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a run that cannot read the alerts would end like a run without alerts."""
    monkeypatch.setattr(job_runs, "_LOCK_TIMEOUT_MS", 100)
    lock = "LOCK TABLE portal_unknown_contacts IN ACCESS EXCLUSIVE MODE"
    monkeypatch.setattr(job_runs, "read_open_work", lambda _own: scene.app.execute(lock) and NO_WORK)

    report = scene.night(deliver=False)

    assert ([(stop.stage, stop.code) for stop in report.stopped], report.outcome) == (
        [("alerts", "locked")],
        "attention",
    )


def test_error_of_a_delivery_names_the_locked_table(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A delivery locks no mentors at its beginning."""
    monkeypatch.setattr(job_runs, "_LOCK_TIMEOUT_MS", 100)
    scene.app.execute("LOCK TABLE job_runs IN EXCLUSIVE MODE")

    with pytest.raises(DatabaseUnavailableError, match="another session has locked the table job_runs"):
        scene.deliver(FlakyPortal())


def test_run_that_ends_beside_a_locked_table_keeps_its_report(due: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its work is done, and its reasons would be lost with an error of the last statement."""
    for module, name in (
        (job_runs, "_LOCK_TIMEOUT_MS"),
        (deliveries, "_LOCK_TIMEOUT_MS"),
        (statements, "LOCK_TIMEOUT_MS"),
    ):
        monkeypatch.setattr(module, name, 100)
    due.channel.on_send = lambda _message: (
        due.app.execute("LOCK TABLE portal_sync_events IN ACCESS EXCLUSIVE MODE") and None
    )

    report = due.night(FlakyPortal())
    due.app.rollback()

    assert (report.outcome, report.reminders.sent) == ("attention", 1)
    assert ("alerts", "locked") in [(stop.stage, stop.code) for stop in report.stopped]
    assert due.rows("SELECT outcome FROM job_runs WHERE id = %s", report.run_id) == [("attention",)]


# A delivery starts every 15 minutes, so it prints a reason once.


def test_deliver_prints_only_new_failures(scene: Scene, certjob: Certjob, ways_out: dict[str, str]) -> None:
    """A failure is new for another mentor or with another cause. `alerts` has all of them."""
    scene.portal.default = error(502, "dynamics_unavailable")

    def mentors_expire(number: int) -> None:
        for _ in range(number):
            scene.certified(TODAY - timedelta(days=40))
        scene.night(today=today(), deliver=False)

    def printed() -> str:
        scene.make_due()
        result = certjob("deliver", **ways_out)
        assert (result.returncode, result.stdout) == (3 if result.stderr else 0, "")
        return result.stderr.removeprefix("certjob deliver: ").removesuffix("; see `certjob alerts`\n")

    mentors_expire(2)
    assert [printed() for _ in range(3)] == ["2 portal pushes failed", "", ""]
    assert len(scene.portal.requests) == 3 * 2 * 3  # deliveries, mentors, calls
    assert certjob("alerts").returncode == 3
    mentors_expire(1)
    assert [printed() for _ in range(2)] == ["1 portal push failed", ""]
    scene.portal.then(error(404, "contact_not_found"))
    scene.portal.default = ok()
    assert printed() == "1 portal push failed"


def deliver(due: Scene, *, mail: str | None, function: str | None = None) -> list[str]:
    """Deliver with these errors of the mail server and of the Edge Function; return the reasons for attention."""
    due.channel.on_send = lambda _message: ChannelDownError(mail) if mail else None
    due.portal.default = error(500, "misconfigured", message=function) if function else ok()
    return due.deliver(due.portal, channel=due.channel).reasons


def test_deliver_prints_only_new_reasons_of_stages(due: Scene) -> None:
    """A reason with the same code and other words is new, but not with another session number."""
    due.night(deliver=False)

    def causes(mail: str, function: str) -> list[str]:
        reasons = deliver(due, mail=f"refused ({mail})", function=function)
        return [line.partition("(")[2].partition(")")[0] for line in reasons]

    expired, narrow = "the secret has expired", "the role is too narrow"
    assert causes("550 sender, session a1", expired) == [expired, "550 sender, session a1"]
    assert causes("550 sender, session b2", expired) == []
    assert causes("535 login", expired) == ["535 login"]
    assert causes("535 login", narrow) == [narrow]
    assert causes("535 login", narrow) == []


def test_reason_is_printed_again_after_its_end_and_on_the_next_day(due: Scene) -> None:
    """A message that was sent ends it. A delivery with nothing to do does not end it."""
    due.night(deliver=False)
    assert deliver(due, mail="refused") == MAIL_IS_DOWN
    for table in ("cert_notification_log", "coordinator_digests"):
        due.run_sql(f"UPDATE {table} SET next_attempt_at = now() + interval '1 hour'")
    assert deliver(due, mail="refused") == []
    make_due(due.facts, "cert_notification_log")
    assert [deliver(due, mail="refused"), deliver(due, mail=None)] == [[], []]

    due.run_sql("UPDATE cert_notification_log SET status = 'pending', next_attempt_at = now()")

    assert deliver(due, mail="refused") == MAIL_IS_DOWN
    due.run_sql("UPDATE job_runs SET as_of = as_of - 1")
    assert deliver(due, mail="refused") == MAIL_IS_DOWN


def test_lines_lost_on_a_full_disk_are_printed_by_the_next_run(
    scene: Scene, environment: dict[str, str], certjob: Certjob
) -> None:
    """A crontab appends the output to a log. `certjob status` has the lines of all runs."""
    scene.expired()
    with Path("/dev/full").open("w") as full:
        command = [str(installed_command()), "run"]
        subprocess.run(command, env=environment, stderr=full, check=False, timeout=60)
    ours = {"CERTJOB_PORTAL_URL": "", "CERTJOB_PORTAL_KEY": ""}

    outputs = [certjob("run", **ours).stderr for _ in range(2)]

    line = "1 mentor may still be visible on the portal; see `certjob alerts`"
    assert [f"certjob run: {line}\n" in each for each in outputs] == [True, False]
    runs = json.loads(certjob("status", "--json").stdout)["runs"]
    assert [line in run["lines"] for run in runs] == [True, True, True]


def test_status_names_the_error_of_a_failed_run_without_its_text(scene: Scene, certjob: Certjob) -> None:
    """The text of a database error may have data about people."""
    scene.expired(full_name="Kari Nordmann")
    scene.run_sql("ALTER TABLE portal_sync_events RENAME COLUMN visible TO shown")
    failed = certjob("run")
    scene.run_sql("ALTER TABLE portal_sync_events RENAME COLUMN shown TO visible")

    assert (failed.returncode, scene.rows("SELECT lines FROM job_runs")) == (1, [(["unforeseen UndefinedColumn"],)])
    page = certjob("status").stdout
    assert "run, failed, under 1 s, on " in page
    assert ": unforeseen UndefinedColumn\n" in page
