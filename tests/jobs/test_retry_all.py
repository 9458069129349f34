"""``certjob alerts --retry-all``: every open push is tried now, before its retry time."""

import json

from tests.conftest import Certjob
from tests.support.command_line import assert_one_line
from tests.support.facts import TODAY
from tests.support.nights import in_background
from tests.support.portal_answers import error, hang, ok
from tests.support.scene import Scene

OPEN = "SELECT status, attempts, version FROM portal_sync_events ORDER BY id"


def test_blocked_and_delayed_pushes_are_sent_but_no_mail(scene: Scene) -> None:
    """Their failures are resolved."""
    refused, failing = scene.backlog(2)
    scene.facts.certified_mentor(scene.facts.organisation("nhf", portal=None), TODAY)
    scene.portal.then(error(404, "contact_not_found"))
    scene.portal.default = error(503, "dynamics_unavailable")
    scene.night(scene.portal, channel=None)
    assert scene.rows(OPEN) == [("blocked", 1, 1), ("pending", 1, 1)]
    scene.portal.default = ok()

    document = scene.retry_all(scene.portal).to_document()

    assert scene.portal.visible == {refused: False, failing: False}
    assert scene.rows(OPEN) == [("delivered", 1, 2), ("delivered", 1, 2)]
    assert scene.rows("SELECT count(*) FROM dynamics_sync_failures WHERE resolved_at IS NULL") == [(0,)]
    counts = document["portal"]
    assert (document["outcome"], counts["reopened"], counts["delivered"]) == ("ok", 2, 2)
    assert "reminders" not in document
    assert scene.rows("SELECT status FROM cert_notification_log") == [("pending",)]


def test_push_that_fails_again_keeps_the_age_of_its_alert(scene: Scene) -> None:
    """The oldest alert stays the first of the list."""
    scene.backlog(1)
    scene.portal.default = error(503, "dynamics_unavailable")
    scene.night(scene.portal)
    scene.run_sql("UPDATE portal_sync_events SET wanted_at = now() - interval '3 days'")

    assert scene.retry_all(scene.portal).outcome == "attention"

    assert scene.rows("SELECT count(*) FROM alerts WHERE since < now() - interval '2 days'") == [(1,)]


def test_push_in_flight_is_not_tried_at_the_same_time(scene: Scene) -> None:
    """Its event keeps the lease, and is due again when the call ends."""
    scene.backlog(1)
    scene.portal.then(hang(then=ok()))

    with in_background(lambda: scene.night(scene.portal, connection=scene.other)):
        scene.portal.wait_until(lambda: len(scene.portal.requests) == 1)
        scene.retry_all(scene.portal)
        assert len(scene.portal.requests) == 1
        scene.portal.release()

    assert (scene.portal.overlaps, len(scene.portal.requests)) == ([], 2)


def test_locked_push_is_left_out(scene: Scene) -> None:
    """The push of a locked mentor is sent."""
    contacts = scene.backlog(5)
    scene.run_sql("UPDATE portal_sync_events SET status = 'blocked'")
    scene.app.execute("UPDATE mentors SET member_no = member_no WHERE dynamics_contact_id = %s", (contacts[1],))
    scene.app.execute("SELECT FROM portal_sync_events ORDER BY id LIMIT 1 FOR UPDATE")

    report = scene.retry_all(scene.portal)

    assert (len(scene.portal.requests), report.reopened) == (4, 4)


def test_hides_are_tried_before_the_breaker_ends_the_stage(scene: Scene) -> None:
    """Five failures in a row end the stage. The other shows stay pending, and the report says so."""
    scene.backlog(20, visible=True)
    hidden = scene.backlog(5)
    scene.run_sql("UPDATE portal_sync_events SET status = 'blocked', attempts = 4")
    scene.portal.decide = lambda request: ok() if request.visible is False else error(503, "dynamics_unavailable")

    report = scene.retry_all(scene.portal)

    assert scene.portal.visible == dict.fromkeys(hidden, False)
    assert len(scene.portal.requests) == 5 + 15
    assert (report.reopened, report.outcome) == (25, "attention")
    assert "the rest stays pending" in report.reasons[0]
    assert scene.rows("SELECT count(*) FROM portal_sync_events WHERE status = 'pending'") == [(20,)]


def test_retry_all_shows_the_remaining_alerts(scene: Scene, certjob: Certjob, ways_out: dict[str, str]) -> None:
    """Exit 3 with the reasons while there is any, otherwise 0 without output."""
    scene.backlog(2)
    scene.portal.default = error(404, "contact_not_found")

    no_url = certjob("alerts", "--retry-all")
    stuck = certjob("alerts", "--retry-all", **ways_out)
    scene.portal.then(ok())
    half = certjob("alerts", "--retry-all", "--json", **ways_out)
    scene.portal.default = ok()
    mended = certjob("alerts", "--retry-all", **ways_out)

    assert no_url.returncode == 3
    assert "portal: CERTJOB_PORTAL_URL is not set; the pushes stay pending" in no_url.stderr
    assert no_url.stdout.count(": CERTJOB_PORTAL_URL is not set; what to do: Correct the setting") == 1
    assert_one_line(stuck, "2 portal pushes failed\n", code=3, command="certjob alerts")
    assert stuck.stdout.count("Dynamics sync pending — mentor may still be visible on portal") == 2
    document = json.loads(half.stdout)
    assert (half.returncode, document["outcome"], document["command"]) == (3, "attention", "alerts")
    assert (document["portal"]["delivered"], document["portal"]["blocked"]) == (1, 1)
    (alert,) = document["alerts"]
    assert (alert["cause"], alert["why"]) == ("contact_not_found", "Dynamics has no contact with this ID.")
    assert (mended.returncode, mended.stdout, mended.stderr) == (0, "", "")
