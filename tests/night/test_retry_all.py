"""``certjob alerts --retry-all``: everything that is stuck is tried now, whatever its retry time says."""

import json
from datetime import timedelta

import psycopg

from certjob import database
from certjob.database import Connection
from certjob.night import nightly
from certjob.night.report import RunReport
from certjob.stopping import StopFlag
from tests.conftest import Certjob
from tests.support.command_line import assert_one_line
from tests.support.facts import TODAY, Facts
from tests.support.intents import backlog
from tests.support.nights import CollectingChannel, NoProgress, delivery, in_background, night
from tests.support.portal_answers import error, hang, ok
from tests.support.portal_server import PortalServer

OPEN = "SELECT status, attempts, version FROM portal_sync_events ORDER BY id"


def retry_all(connection: Connection, portal: PortalServer) -> RunReport:
    ways_out = delivery(portal=portal, channel=CollectingChannel())
    return nightly.retry_all(connection, today=TODAY, delivery=ways_out, stop=StopFlag(), progress=NoProgress())


def test_blocked_and_delayed_pushes_go_out_and_nothing_is_mailed(facts: Facts, portal: PortalServer) -> None:
    """Their failures are resolved. A wish that fails again is as old as before: the oldest alert stays the first."""
    refused, failing = backlog(facts, 2)
    facts.certified_mentor(facts.organisation("nhf", portal=None), TODAY + timedelta(days=7))
    portal.then(error(404, "contact_not_found"))
    portal.default = error(503, "dynamics_unavailable")
    night(facts.connection, portal=portal)
    assert facts.rows(OPEN) == [("blocked", 1, 1), ("pending", 1, 1)]
    facts.connection.execute("UPDATE portal_sync_events SET wanted_at = now() - interval '3 days'")
    assert retry_all(facts.connection, portal).outcome == "attention"
    old = "SELECT count(*) FROM portal_alerts WHERE wanted_at < now() - interval '2 days'"
    assert facts.rows(old) == [(2,)]
    portal.default = ok()

    report = retry_all(facts.connection, portal)

    assert portal.visible == {refused: False, failing: False}
    assert facts.rows(OPEN) == [("delivered", 1, 3), ("delivered", 1, 3)]
    assert facts.rows("SELECT count(*) FROM dynamics_sync_failures WHERE resolved_at IS NULL") == [(0,)]
    document = report.to_document()
    counts = document["portal"]
    assert (document["outcome"], counts["reopened"], counts["delivered"]) == ("ok", 2, 2)
    assert "reminders" not in document
    assert facts.rows("SELECT status FROM cert_notification_log") == [("pending",)]


def test_what_is_in_flight_or_locked_is_not_waited_for(
    connection: Connection, facts: Facts, portal: PortalServer, app: psycopg.Connection[tuple[object, ...]]
) -> None:
    """Never a second call beside the first: its event keeps the lease, and is due again when the call ends."""
    backlog(facts, 1)
    portal.then(hang(then=ok()))
    with database.connect(connection.info.dsn) as other, in_background(lambda: night(other, portal=portal)):
        portal.wait_until(lambda: len(portal.requests) == 1)
        retry_all(connection, portal)
        assert len(portal.requests) == 1
        portal.release()
    assert portal.overlaps == []
    assert len(portal.requests) == 2

    contacts = backlog(facts, 5)
    connection.execute("UPDATE portal_sync_events SET status = 'blocked' WHERE status = 'pending'")
    app.execute("UPDATE mentors SET member_no = member_no WHERE dynamics_contact_id = %s", (contacts[1],))
    app.execute("SELECT FROM portal_sync_events WHERE status = 'blocked' ORDER BY id LIMIT 1 FOR UPDATE")

    report = retry_all(connection, portal)

    assert len(portal.requests) == 2 + 4
    assert report.reopened == 4


def test_under_the_breaker_hides_are_reached_first_and_what_was_not_is_said(facts: Facts, portal: PortalServer) -> None:
    """Five tries, the rest is due and untouched, and the line says that it waits."""
    backlog(facts, 20, visible=True)
    hidden = backlog(facts, 5)
    facts.connection.execute("UPDATE portal_sync_events SET status = 'blocked', attempts = 4")
    portal.decide = lambda request: ok() if request.visible is False else error(503, "dynamics_unavailable")

    report = retry_all(facts.connection, portal)

    assert portal.visible == dict.fromkeys(hidden, False)
    assert len(portal.requests) == 5 + 15
    assert (report.reopened, report.outcome) == (25, "attention")
    assert "the rest stays pending" in report.reasons[0]
    assert facts.rows("SELECT count(*) FROM portal_sync_events WHERE status = 'pending'") == [(20,)]


def test_the_command_shows_what_is_left(certjob: Certjob, facts: Facts, portal: PortalServer) -> None:
    """Exit 3 while it shows anything, with the reasons; 0 and silent once all is well. Its document has both halves."""
    backlog(facts, 2)
    settings = {"CERTJOB_PORTAL_URL": portal.url, "CERTJOB_PORTAL_KEY": portal.key, "CERTJOB_PORTAL_CONCURRENCY": "1"}
    portal.default = error(404, "contact_not_found")

    no_url = certjob("alerts", "--retry-all")
    stuck = certjob("alerts", "--retry-all", **settings)
    portal.then(ok())
    half = certjob("alerts", "--retry-all", "--json", **settings)
    portal.default = ok()
    mended = certjob("alerts", "--retry-all", **settings)

    assert no_url.returncode == 3
    assert "portal: CERTJOB_PORTAL_URL is not set; the pushes stay pending" in no_url.stderr
    assert no_url.stdout.count(": CERTJOB_PORTAL_URL is not set; what to do: contact the operator") == 2
    assert_one_line(stuck, "2 portal pushes failed\n", code=3, command="certjob alerts")
    assert stuck.stdout.count("Dynamics sync pending — mentor may still be visible on portal") == 2
    document = json.loads(half.stdout)
    assert (half.returncode, document["outcome"], document["command"]) == (3, "attention", "alerts")
    assert (document["portal"]["delivered"], document["portal"]["blocked"]) == (1, 1)
    (alert,) = document["alerts"]
    assert (alert["code"], alert["why"]) == ("contact_not_found", "The portal has no contact with this ID.")
    assert (mended.returncode, mended.stdout, mended.stderr) == (0, "", "")
