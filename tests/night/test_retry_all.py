"""``certjob alerts --retry-all``: everything that is stuck is tried now, whatever its retry time says."""

import json
from collections.abc import Iterator
from datetime import timedelta

import pytest

from certjob import database
from certjob.database import Connection
from certjob.errors import Outcome
from certjob.night import nightly
from certjob.night.report import RunReport
from certjob.stopping import StopFlag
from tests.conftest import Certjob
from tests.support.command_line import assert_one_line
from tests.support.facts import TODAY, Facts
from tests.support.intents import backlog
from tests.support.nights import CollectingChannel, NoProgress, delivery, in_background, night
from tests.support.portal_answers import PortalRequest, error, hang, html, ok
from tests.support.portal_server import PortalServer
from tests.support.waiting import until

OPEN = "SELECT status, attempts, version FROM portal_sync_events ORDER BY id"


@pytest.fixture
def portal() -> Iterator[PortalServer]:
    """The Edge Function's stand-in."""
    with PortalServer() as server:
        yield server
        server.release()


def retry_all(connection: Connection, portal: PortalServer | None, *, concurrency: int = 1) -> RunReport:
    return nightly.retry_all(
        connection,
        today=TODAY,
        delivery=delivery(portal=portal, channel=CollectingChannel(), concurrency=concurrency),
        stop=StopFlag(),
        progress=NoProgress(),
    )


class TestReopening:
    """What is tried again."""

    def test_blocked_and_delayed_pushes_go_out(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """And their failures are resolved."""
        refused, failing = backlog(facts, 2)
        portal.then(error(404, "contact_not_found"))
        portal.default = error(503, "dynamics_unavailable")
        night(connection, portal=portal)
        assert facts.rows(OPEN) == [("blocked", 1, 1), ("pending", 1, 1)]
        portal.default = ok()

        report = retry_all(connection, portal)

        assert portal.visible == {refused: False, failing: False}
        assert report.outcome is Outcome.OK
        assert facts.rows(OPEN) == [("delivered", 1, 2), ("delivered", 1, 2)]
        assert facts.rows("SELECT count(*) FROM dynamics_sync_failures WHERE resolved_at IS NULL") == [(0,)]
        assert (
            report.to_document()["portal"] | {"reopened": 2, "unreached": 0, "delivered": 2}
            == (report.to_document()["portal"])
        )

    def test_a_wish_is_as_old_as_before(self, connection: Connection, facts: Facts, portal: PortalServer) -> None:
        """The alerts still show the one first that has waited longest."""
        backlog(facts, 1)
        facts.connection.execute("UPDATE portal_sync_events SET wanted_at = now() - interval '3 days'")
        portal.default = error(503, "dynamics_unavailable")

        retry_all(connection, portal)

        assert facts.rows("SELECT wanted_at < now() - interval '2 days' FROM portal_alerts") == [(True,)]

    def test_nothing_is_mailed(self, connection: Connection, facts: Facts, portal: PortalServer) -> None:
        """It is about the portal."""
        facts.certified_mentor(facts.organisation(), TODAY + timedelta(days=7))
        night(connection, portal=portal, deliver=False)

        report = retry_all(connection, portal)

        assert "reminders" not in report.to_document()
        assert facts.rows("SELECT status FROM cert_notification_log") == [("pending",)]

    def test_a_call_in_flight_is_followed_by_another(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """Never a second one beside it: its event keeps the lease, and is due again when the call ends."""
        backlog(facts, 1)
        portal.then(hang(then=ok()))
        with database.connect(connection.info.dsn) as other, in_background(lambda: night(other, portal=portal)):
            portal.wait_until(lambda: len(portal.requests) == 1)

            report = retry_all(connection, portal)

            assert len(portal.requests) == 1
            portal.release()
        assert portal.overlaps == []
        assert report.unreached == 1
        assert len(portal.requests) == 2

    def test_several_claims_are_reopened_in_one_statement(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """However many there are; a signal in the middle leaves all of them open and due."""
        backlog(facts, 250)
        facts.connection.execute("UPDATE portal_sync_events SET status = 'blocked', attempts = 4")

        report = retry_all(connection, portal, concurrency=4)

        assert report.reopened == 250
        assert facts.rows("SELECT status, count(*) FROM portal_sync_events GROUP BY status") == [("delivered", 250)]


class TestUnderTheBreaker:
    """A portal that is still down is not hammered."""

    def test_what_was_not_reached_is_said(self, connection: Connection, facts: Facts, portal: PortalServer) -> None:
        """Five tries, the rest is due and untouched."""
        backlog(facts, 200)
        facts.connection.execute("UPDATE portal_sync_events SET status = 'blocked', attempts = 4")
        portal.default = error(503, "dynamics_unavailable")

        report = retry_all(connection, portal)

        assert len(portal.requests) == 15
        assert report.reopened == 200
        assert report.unreached == 195
        assert "195 reopened pushes were not reached" in report.reasons
        assert report.outcome is Outcome.ATTENTION
        assert facts.rows("SELECT count(*) FROM portal_alerts") == [(200,)]

    def test_a_stage_error_reaches_nobody_else(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """A web page instead of the function: one call."""
        backlog(facts, 3)
        portal.default = html(404)

        report = retry_all(connection, portal)

        assert len(portal.requests) == 1
        assert report.unreached == 3
        assert [stop.code for stop in report.stopped] == ["refused:404"]

    def test_hides_are_reached_before_shows(self, connection: Connection, facts: Facts) -> None:
        """If only some are, then the more harmful."""
        shown = set(backlog(facts, 20, visible=True))
        hidden = set(backlog(facts, 5))

        def script(request: PortalRequest) -> object:
            return ok() if request.visible is False else error(503, "dynamics_unavailable")

        with PortalServer(script) as portal:  # type: ignore[arg-type]
            retry_all(connection, portal)

        assert set(portal.visible) == hidden
        assert not shown & set(portal.visible)


class TestCommand:
    """As it is typed."""

    def test_the_page_shows_what_is_left(self, certjob: Certjob, facts: Facts, portal: PortalServer) -> None:
        """Exit 3 while it shows anything, with the reasons; 0 and silent once all is well."""
        backlog(facts, 2)
        portal.default = error(503, "dynamics_unavailable")
        settings = {"CERTJOB_PORTAL_URL": portal.url, "CERTJOB_PORTAL_KEY": portal.key, "CERTJOB_PORTAL_ATTEMPTS": "1"}

        stuck = certjob("alerts", "--retry-all", **settings)
        portal.default = ok()
        mended = certjob("alerts", "--retry-all", **settings)

        assert_one_line(stuck, "2 portal pushes failed\n", code=3, command="certjob alerts")
        assert stuck.stdout.count("Dynamics sync pending — mentor may still be visible on portal") == 2
        assert (mended.returncode, mended.stdout, mended.stderr) == (0, "", "")

    def test_the_document_has_both_halves(self, certjob: Certjob, facts: Facts, portal: PortalServer) -> None:
        """What was tried, and what still needs a person."""
        backlog(facts, 2)
        portal.then(ok())
        portal.default = error(404, "contact_not_found")

        result = certjob(
            "alerts",
            "--retry-all",
            "--json",
            CERTJOB_PORTAL_URL=portal.url,
            CERTJOB_PORTAL_KEY=portal.key,
            CERTJOB_PORTAL_CONCURRENCY="1",
        )

        document = json.loads(result.stdout)
        assert result.returncode == 3
        assert document["outcome"] == "attention"
        assert document["command"] == "alerts"
        assert document["portal"]["delivered"] == 1
        assert document["portal"]["blocked"] == 1
        assert len(document["alerts"]) == 1
        assert document["failed_reminders"] == []

    def test_without_a_portal_url_nothing_is_reached(self, certjob: Certjob, facts: Facts) -> None:
        """The first thing to mend is said."""
        backlog(facts, 1)

        result = certjob("alerts", "--retry-all")

        assert result.returncode == 3
        assert "portal: CERTJOB_PORTAL_URL is not set; 1 push stays pending" in result.stderr
        assert "1 reopened push was not reached" in result.stderr
        until(lambda: facts.rows("SELECT outcome FROM job_runs") == [("attention",)])
