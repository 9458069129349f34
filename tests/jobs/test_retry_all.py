"""``certjob alerts --retry-all``: everything that is stuck is tried now, whatever its retry time says."""

import json

from certjob.jobs import runs
from certjob.jobs.report import RunReport
from certjob.stopping import StopFlag
from tests.conftest import Certjob
from tests.support.command_line import assert_one_line
from tests.support.facts import TODAY
from tests.support.nights import NoProgress, delivery, in_background
from tests.support.portal_answers import error, hang, ok
from tests.support.scene import Scene

OPEN = "SELECT status, attempts, version FROM portal_sync_events ORDER BY id"


def retry_all(scene: Scene) -> RunReport:
    ways_out = delivery(portal=scene.portal, channel=scene.channel)
    return runs.retry_all(scene.connection, today=TODAY, delivery=ways_out, stop=StopFlag(), progress=NoProgress())


def test_blocked_and_delayed_pushes_go_out_and_nothing_is_mailed(scene: Scene) -> None:
    """Their failures are resolved. A wish that fails again is as old as before: the oldest alert stays the first."""
    refused, failing = scene.backlog(2)
    scene.facts.certified_mentor(scene.facts.organisation("nhf", portal=None), TODAY)
    scene.portal.then(error(404, "contact_not_found"))
    scene.portal.default = error(503, "dynamics_unavailable")
    scene.night(scene.portal, channel=None)
    assert scene.rows(OPEN) == [("blocked", 1, 1), ("pending", 1, 1)]
    scene.run_sql("UPDATE portal_sync_events SET wanted_at = now() - interval '3 days'")
    assert retry_all(scene).outcome == "attention"
    old = "SELECT count(*) FROM alerts WHERE since < now() - interval '2 days'"
    assert scene.rows(old) == [(2,)]
    scene.portal.default = ok()

    document = retry_all(scene).to_document()

    assert scene.portal.visible == {refused: False, failing: False}
    assert scene.rows(OPEN) == [("delivered", 1, 3), ("delivered", 1, 3)]
    assert scene.rows("SELECT count(*) FROM dynamics_sync_failures WHERE resolved_at IS NULL") == [(0,)]
    counts = document["portal"]
    assert (document["outcome"], counts["reopened"], counts["delivered"]) == ("ok", 2, 2)
    assert "reminders" not in document
    assert scene.rows("SELECT status FROM cert_notification_log") == [("pending",)]


def test_what_is_in_flight_or_locked_is_not_waited_for(scene: Scene) -> None:
    """Never a second call beside the first: its event keeps the lease, and is due again when the call ends."""
    scene.backlog(1)
    scene.portal.then(hang(then=ok()))
    with in_background(lambda: scene.night(scene.portal, connection=scene.other)):
        scene.portal.wait_until(lambda: len(scene.portal.requests) == 1)
        retry_all(scene)
        assert len(scene.portal.requests) == 1
        scene.portal.release()
    assert scene.portal.overlaps == []
    assert len(scene.portal.requests) == 2

    contacts = scene.backlog(5)
    scene.run_sql("UPDATE portal_sync_events SET status = 'blocked' WHERE status = 'pending'")
    scene.app.execute("UPDATE mentors SET member_no = member_no WHERE dynamics_contact_id = %s", (contacts[1],))
    scene.app.execute("SELECT FROM portal_sync_events WHERE status = 'blocked' ORDER BY id LIMIT 1 FOR UPDATE")

    report = retry_all(scene)

    assert (len(scene.portal.requests), report.reopened) == (2 + 4, 4)


def test_under_the_breaker_hides_are_reached_first_and_what_was_not_is_said(scene: Scene) -> None:
    """Five tries, the rest is due and untouched, and the line says that it waits."""
    scene.backlog(20, visible=True)
    hidden = scene.backlog(5)
    scene.run_sql("UPDATE portal_sync_events SET status = 'blocked', attempts = 4")
    scene.portal.decide = lambda request: ok() if request.visible is False else error(503, "dynamics_unavailable")

    report = retry_all(scene)

    assert scene.portal.visible == dict.fromkeys(hidden, False)
    assert len(scene.portal.requests) == 5 + 15
    assert (report.reopened, report.outcome) == (25, "attention")
    assert "the rest stays pending" in report.reasons[0]
    assert scene.rows("SELECT count(*) FROM portal_sync_events WHERE status = 'pending'") == [(20,)]


def test_the_command_shows_what_is_left(scene: Scene, certjob: Certjob, ways_out: dict[str, str]) -> None:
    """Exit 3 while it shows anything, with the reasons; 0 and silent once all is well. Its document has both halves."""
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
