"""A queued push is sent only while it is still true."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from certjob.jobs import job_runs, runs
from certjob.review import certification
from tests.support import nights
from tests.support.facts import TODAY
from tests.support.nights import delivery
from tests.support.portal_answers import error
from tests.support.scene import NEXT_YEAR, Scene

PAUSE = "INSERT INTO mentor_pauses (mentor_id, reason, actor) VALUES (%s, 'complaint', 'anna')"
REVOKE = "UPDATE certificates SET revoked_at = now() WHERE mentor_id = %s"
LEAVE = "UPDATE mentors SET left_at = now() WHERE id = %s"


def queue_show(scene: Scene) -> UUID:
    """Return a certified mentor with a show that was queued but not sent."""
    mentor: UUID = scene.certified()
    scene.run_sql("UPDATE mentors SET portal_visible = false")
    scene.night(deliver=False)
    assert scene.rows("SELECT visible FROM portal_sync_events WHERE status = 'pending'") == [(True,)]
    return mentor


@pytest.mark.parametrize(
    ("start", "change"),
    [(Scene.deliver, PAUSE), (Scene.deliver, REVOKE), (Scene.deliver, LEAVE), (Scene.retry_all, PAUSE)],
    ids=["paused", "revoked", "left", "alerts --retry-all"],
)
def test_outdated_show_becomes_a_hide(scene: Scene, start: Callable[..., Any], change: str) -> None:
    """A coordinator has changed the facts since the show was queued."""
    scene.run_sql(change, queue_show(scene))

    report = start(scene, scene.portal)

    assert (scene.portal.values, report.outcome) == ([False], "ok")


def test_outdated_hide_becomes_a_show(scene: Scene) -> None:
    """The certificate was renewed after the hide was queued."""
    mentor = scene.expired()
    scene.night(deliver=False)
    scene.facts.certificate(mentor, NEXT_YEAR, issued_on=TODAY)

    scene.deliver(scene.portal)

    assert scene.portal.values == [True]
    assert scene.rows("SELECT lifted_at IS NOT NULL FROM mentor_pauses") == [(True,)]


def test_locked_table_does_not_stop_the_deliveries(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The review gives up, the pushes go on, and the report has the reason."""
    monkeypatch.setattr(certification, "WAIT_FOR_LOCKS_SECONDS", 0.0)
    monkeypatch.setattr(certification, "LOCK_TIMEOUT_MS", 50)
    monkeypatch.setattr(runs, "_LOCK_TIMEOUT_MS", 100)
    monkeypatch.setattr(job_runs, "_LOCK_TIMEOUT_MS", 100)
    scene.run_sql(PAUSE, queue_show(scene))
    scene.queue(scene.expired(), visible=False)
    scene.app.execute("LOCK TABLE mentor_pauses")

    report = scene.deliver(scene.portal)

    assert (scene.portal.values, report.outcome) == ([False], "attention")


def test_deliver_reviews_only_mentors_with_an_open_push(scene: Scene) -> None:
    """The next run reviews the others."""
    scene.run_sql(PAUSE, queue_show(scene))
    scene.expired()

    scene.deliver(scene.portal)

    assert scene.rows("SELECT count(*) FROM mentor_pauses WHERE actor = 'certjob'") == [(0,)]


def test_show_before_a_due_review_is_not_claimed(scene: Scene) -> None:
    """Neither a stage nor a resync claims it. A hide is claimed."""
    shown, hidden = scene.certified(), scene.certified()
    scene.queue(shown, visible=True)
    scene.queue(hidden, visible=False)
    scene.run_sql("UPDATE mentors SET review_on = %s", TODAY)

    assert scene.service.claim_mentor(shown, today=TODAY) == []
    assert [event.mentor_id for event in scene.claim()] == [hidden]


def test_run_sends_no_show_of_yesterday_after_midnight(scene: Scene) -> None:
    """The certificate ends with the day on which the run began."""
    scene.run_sql("UPDATE mentors SET portal_visible = false WHERE id = %s", scene.certified(TODAY))
    after_midnight = delivery(portal=scene.portal, present_day=lambda: TODAY + timedelta(days=1))

    scene.night(scene.portal, ways_out=after_midnight)

    assert scene.portal.pushes == []
    scene.night(scene.portal, today=TODAY + timedelta(days=1))
    assert scene.portal.values == [False]


def test_deliver_holds_a_wrong_import_and_sends_open_hides(scene: Scene) -> None:
    """`deliver` reviews with the guard. It reports a hold once, because it runs every 15 minutes."""
    for _ in range(30):
        scene.expired()
        scene.certified()
    nights.review(scene.connection)
    scene.run_sql("UPDATE certificates SET expires_on = expires_on + 730")

    first, second = scene.deliver(scene.portal), scene.deliver(scene.portal)

    assert scene.portal.values == [False] * 30
    assert [report.outcome for report in (first, second)] == ["attention", "ok"]
    assert first.reasons[0].startswith("hlf: 30 mentors are held back (30 returns)")


def test_deliver_reports_a_hold_although_the_review_fails_later(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next delivery reports only new ones."""
    for _ in range(30):
        scene.expired()
    nights.review(scene.connection)
    scene.run_sql("UPDATE certificates SET expires_on = expires_on + 730")

    review = certification.CertificationManagementService._pass

    def fail(*arguments: Any, **options: Any) -> None:
        review(*arguments, **options)
        raise LookupError

    monkeypatch.setattr(certification.CertificationManagementService, "_pass", fail)
    report = scene.deliver(scene.portal)

    assert report.reasons[0].startswith("hlf: 30 mentors are held back (30 returns)")


def test_held_change_stays_held_although_the_mentor_has_an_open_push(scene: Scene) -> None:
    """15 of 70 held mentors have one. Alone they would be fewer than the guard's limit of 20."""
    for _ in range(70):
        scene.certified()
    scene.run_sql("UPDATE mentors SET portal_visible = false WHERE member_no <= 'M1015'")
    scene.night(deliver=False)
    scene.run_sql("UPDATE certificates SET expires_on = expires_on - 730")
    scene.portal.default = error(503, "dynamics_unavailable")

    scene.night(scene.portal)
    scene.deliver(scene.portal)

    assert scene.rows("SELECT count(*) FROM mentor_pauses") == [(0,)]
