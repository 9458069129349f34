"""A push that was queued in the night is sent only while it is still true."""

from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from certjob import database
from certjob.database import Connection
from certjob.jobs import deliveries, job_runs, runs
from certjob.review import certification
from certjob.stopping import StopFlag
from tests.support import intents
from tests.support.facts import TODAY
from tests.support.nights import FlakyPortal, NoProgress, delivery
from tests.support.scene import NEXT_YEAR, YESTERDAY, Scene

PAUSE = "INSERT INTO mentor_pauses (mentor_id, reason, actor) VALUES (%s, 'complaint', 'anna')"
REVOKE = "UPDATE certificates SET revoked_at = now() WHERE mentor_id = %s"
LEAVE = "UPDATE mentors SET left_at = now() WHERE id = %s"
STALE = pytest.mark.parametrize("change", [PAUSE, REVOKE, LEAVE], ids=["paused", "revoked", "left"])


def queue_show(scene: Scene) -> UUID:
    """Return a certified mentor whose show a night has queued, but not sent: the portal was down."""
    mentor: UUID = scene.certified()
    scene.run_sql("UPDATE mentors SET portal_visible = false")
    scene.night(deliver=False)
    assert scene.rows("SELECT visible FROM portal_sync_events WHERE status = 'pending'") == [(True,)]
    return mentor


@STALE
def test_deliver_turns_a_stale_show_into_a_hide(scene: Scene, change: str) -> None:
    """A coordinator has changed the facts since the night."""
    scene.run_sql(change, queue_show(scene))
    portal = FlakyPortal()

    report = scene.deliver(portal)

    assert (portal.values, report.outcome) == ([False], "ok")


@STALE
def test_retry_all_turns_a_stale_show_into_a_hide(scene: Scene, change: str) -> None:
    """As ``deliver`` does."""
    scene.run_sql(change, queue_show(scene))
    portal, stop = FlakyPortal(), StopFlag()

    runs.retry_all(scene.connection, today=TODAY, delivery=delivery(portal=portal), stop=stop, progress=NoProgress())

    assert portal.values == [False]


def test_run_of_another_organisation_sends_no_outdated_hide(scene: Scene) -> None:
    """It delivers for all organisations, so it reviews their due mentors with an open push."""
    mentor = scene.expired()
    scene.night(deliver=False)
    scene.facts.organisation("nhf")
    scene.facts.certificate(mentor, NEXT_YEAR, issued_on=TODAY)
    portal = FlakyPortal()

    scene.night(portal, organisation="nhf")

    assert portal.values == [True]


def test_locked_table_does_not_stop_the_deliveries(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The review gives up, the pushes go on, and the report has the reason."""
    monkeypatch.setattr(certification, "WAIT_FOR_LOCKS_SECONDS", 0.0)
    for module in (deliveries, job_runs):
        monkeypatch.setattr(module, "_LOCK_TIMEOUT_MS", 500)
    scene.run_sql(PAUSE, queue_show(scene))
    scene.wish(scene.expired(), visible=False)
    scene.app.execute("LOCK TABLE mentor_pauses")
    portal = FlakyPortal()

    report = scene.deliver(portal)

    assert portal.values == [False]
    assert report.outcome == "attention"


def test_deliver_turns_a_stale_hide_into_a_show(scene: Scene) -> None:
    """The certificate was renewed while the portal was down."""
    mentor = scene.expired()
    scene.night(deliver=False)
    scene.facts.certificate(mentor, NEXT_YEAR, issued_on=TODAY)
    portal = FlakyPortal()

    scene.deliver(portal)

    assert portal.values == [True]
    assert scene.rows("SELECT lifted_at IS NOT NULL FROM mentor_pauses") == [(True,)]


def test_deliver_reviews_only_mentors_with_an_open_push(scene: Scene) -> None:
    """The others wait for the run, whose report counts them."""
    scene.run_sql(PAUSE, queue_show(scene))
    scene.expired()

    scene.deliver(FlakyPortal())

    assert scene.rows("SELECT count(*) FROM mentor_pauses WHERE actor = 'certjob'") == [(0,)]


@pytest.mark.parametrize("review_on", [TODAY, TODAY - timedelta(days=30)], ids=["due today", "overdue"])
def test_no_claim_takes_a_show_that_waits_for_a_review(scene: Scene, review_on: object) -> None:
    """Neither a stage nor a resync; a hide is claimed all the same."""
    shown, hidden = scene.certified(), scene.certified()
    scene.wish(shown, visible=True)
    scene.wish(hidden, visible=False)
    scene.run_sql("UPDATE mentors SET review_on = %s", review_on)

    assert scene.service.claim_mentor(shown, today=TODAY) == []
    assert [event.mentor_id for event in scene.claim()] == [hidden]


def test_show_is_checked_again_after_it_was_locked(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pause is committed between the two statements of the claim."""
    mentor = scene.certified()
    scene.wish(mentor, visible=True)
    fetch = database.fetch

    def fetch_and_pause(own: Connection, name: str, *arguments: Any, **named: Any) -> list[Any]:
        if name == "claim_portal_events":
            scene.other.execute(PAUSE.encode(), (mentor,))
        return fetch(own, name, *arguments, **named)

    monkeypatch.setattr(database, "fetch", fetch_and_pause)

    assert scene.claim() == []


def test_run_after_midnight_sends_no_show_of_yesterday(scene: Scene) -> None:
    """The certificate ends with the day on which the run began."""
    scene.run_sql("UPDATE mentors SET portal_visible = false WHERE id = %s", scene.certified(TODAY))
    portal = FlakyPortal()
    after_midnight = replace(delivery(portal=portal), today=lambda: TODAY + timedelta(days=1))

    scene.night(portal, ways_out=after_midnight)

    assert portal.calls == []
    scene.night(portal, today=TODAY + timedelta(days=1))
    assert portal.values == [False]


def test_wrong_import_is_held_and_open_hides_go_out(scene: Scene) -> None:
    """`deliver` reviews with the guard. It reports a hold once, because it runs every 15 minutes."""
    for _ in range(30):
        scene.expired()
        scene.certified()
    intents.review(scene.connection)
    scene.run_sql("UPDATE certificates SET expires_on = expires_on + 730")
    portal = FlakyPortal()

    first, second = scene.deliver(portal), scene.deliver(portal)

    assert portal.values == [False] * 30
    assert [report.outcome for report in (first, second)] == ["attention", "ok"]
    assert first.reasons[0].startswith("hlf: 30 mentors would be shown or brought back")


def test_deliver_on_a_wrong_day_pushes_hides_only(scene: Scene) -> None:
    """It reviews no one: on that day the certificate of the paused mentor would be in force again."""
    scene.night(today=TODAY)
    scene.wish(scene.expired(), visible=False)
    scene.wish(scene.certified(), visible=True)
    portal = FlakyPortal()

    report = runs.deliver(
        scene.connection,
        today=YESTERDAY,
        delivery=delivery(portal=portal),
        stop=StopFlag(),
        progress=NoProgress(),
    )

    assert portal.values == [False]
    assert [stop.code for stop in report.stopped] == ["clocks_disagree"]


def test_show_that_waits_for_a_review_is_no_alert(scene: Scene) -> None:
    """Two hours old: it is not sent before the review."""
    mentor = scene.certified()
    scene.wish(mentor, visible=True)
    scene.run_sql("UPDATE portal_sync_events SET wanted_at = now() - interval '2 hours'")
    assert scene.rows("SELECT kind FROM alerts") == [("may_be_hidden",)]

    scene.run_sql(PAUSE, mentor)

    assert scene.rows("SELECT kind FROM alerts") == []
