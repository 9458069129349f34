"""``certjob deliver --all``: the portal is told again what it should show, whoever edited it meanwhile."""

import dataclasses
import json
import time
from collections.abc import Iterator
from datetime import timedelta
from uuid import UUID, uuid4

import psycopg
import pytest

from certjob import database
from certjob.database import Connection
from certjob.errors import Outcome, TransientPortalError
from certjob.night import nightly
from certjob.night.deliveries import Delivery
from certjob.night.report import RunReport
from certjob.portal import drift as portal_drift
from certjob.portal.drift import PortalDrift
from certjob.portal.hlf_dynamics import HLFDynamicsSyncService
from certjob.stopping import StopFlag
from tests.conftest import Certjob
from tests.support.facts import TODAY, Facts
from tests.support.intents import DisturbedPortal, queue_wish, review
from tests.support.nights import FlakyPortal, NoProgress, delivery, in_background, night
from tests.support.portal_answers import error, hang, ok
from tests.support.portal_server import PortalServer
from tests.support.waiting import until

App = psycopg.Connection[tuple[object, ...]]
EXPIRED = TODAY - timedelta(days=1)
IN_FORCE = TODAY + timedelta(days=300)


@pytest.fixture
def portal() -> Iterator[PortalServer]:
    """The Edge Function's stand-in."""
    with PortalServer() as server:
        yield server
        server.release()


@pytest.fixture
def other(database_url: str) -> Iterator[Connection]:
    """The connection of another run."""
    with database.connect(database_url) as connection:
        yield connection


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> int:
    """Queue two at a time instead of a hundred."""
    monkeypatch.setattr(portal_drift, "SLICE", 2)
    return 2


def deliver_all(
    connection: Connection,
    portal: PortalServer | FlakyPortal | DisturbedPortal | None,
    *,
    ways_out: Delivery | None = None,
    stop: StopFlag | None = None,
) -> RunReport:
    return nightly.deliver(
        connection,
        today=TODAY,
        delivery=ways_out or delivery(portal=portal),
        stop=stop or StopFlag(),
        progress=NoProgress(),
        everybody=True,
    )


def mentors(facts: Facts, count: int, *, expired: int = 0, organisation: UUID | None = None) -> list[UUID]:
    """Contact ids of so many mentors, the first ``expired`` of them without a certificate in force."""
    organisation = organisation or facts.organisation(f"hlf-{uuid4().hex[:6]}", thresholds=())
    contacts = [uuid4() for _ in range(count)]
    for number, contact_id in enumerate(contacts):
        facts.certified_mentor(organisation, EXPIRED if number < expired else IN_FORCE, contact_id=contact_id)
    return contacts


class TestEverybody:
    """Who is pushed, and with what."""

    def test_what_somebody_changed_by_hand_is_put_right(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """Both ways, and nothing is left open."""
        contacts = mentors(facts, 4, expired=2)
        night(connection, portal=portal)
        portal.visible[contacts[0]] = True
        portal.visible[contacts[3]] = False

        report = deliver_all(connection, portal)

        assert portal.visible == dict(zip(contacts, [False, False, True, True], strict=True))
        assert report.outcome is Outcome.OK
        assert report.to_document()["portal"] == {
            "queued": 4,
            "waiting_for_review": 0,
            "never_certified": 0,
            "delivered": 4,
            "failed": 0,
            "blocked": 0,
            "lost": 0,
            "pending": 0,
        }

    def test_each_push_is_a_new_wish_for_the_portal(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """With the key of last week's call the portal would do nothing."""
        mentors(facts, 1, expired=1)
        night(connection, portal=portal)

        deliver_all(connection, portal)
        deliver_all(connection, portal)

        assert len({request.idempotency_key for request in portal.requests}) == 3

    def test_hides_come_first(self, connection: Connection, facts: Facts) -> None:
        """Whoever must not be seen is the more urgent."""
        portal = DisturbedPortal()
        mentors(facts, 6, expired=3)
        night(connection, portal=portal)

        deliver_all(connection, portal)

        assert portal.values[3:] == [False] * 3 + [True] * 3

    def test_nobody_is_shown_who_is_due_for_a_review(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """The pause of this afternoon counts, though no night has seen it; hides are pushed all the same."""
        contacts = mentors(facts, 2, expired=1)
        night(connection, portal=portal)
        facts.connection.execute(
            "INSERT INTO mentor_pauses (mentor_id, reason, actor) SELECT id, 'illness', 'coordinator' FROM mentors"
        )
        portal.visible.clear()

        report = deliver_all(connection, portal)

        assert portal.visible == {contacts[0]: False}
        assert report.drift is not None
        assert report.drift.waiting_for_review == 1

    def test_whoever_was_never_reviewed_is_left_to_the_night(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """Straight after an import nobody knows who is certified."""
        mentors(facts, 3, expired=2)

        report = deliver_all(connection, portal)

        assert portal.requests == []
        assert report.reasons == ["3 mentors wait for a review and were not pushed as visible; run `certjob run`"]
        assert report.to_document()["portal"]["waiting_for_review"] == 3

    @pytest.mark.parametrize("certificate", [None, "upcoming"])
    def test_nobody_is_shown_who_was_never_certified(
        self, connection: Connection, facts: Facts, portal: PortalServer, certificate: str | None
    ) -> None:
        """Nobody watches them, and certjob never shows whom it did not hide; hidden by hand they stay hidden."""
        mentor = facts.mentor(facts.organisation(thresholds=()))
        if certificate:
            facts.certificate(mentor, IN_FORCE, issued_on=TODAY + timedelta(days=30))
        night(connection, portal=portal)

        report = deliver_all(connection, portal)

        assert portal.requests == []
        assert report.outcome is Outcome.OK
        assert report.to_document()["portal"]["never_certified"] == 1

    def test_whoever_certjob_has_shown_is_shown_again(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """Their certificate is of a kind that pauses nobody any more, and over."""
        organisation = facts.organisation(thresholds=())
        facts.certified_mentor(organisation, EXPIRED, contact_id=(contact := uuid4()))
        night(connection, portal=portal)
        connection.execute("UPDATE organisations SET optional_kinds = '{likeperson}'")
        night(connection, portal=portal)
        assert portal.visible == {contact: True}
        portal.visible.clear()

        deliver_all(connection, portal)

        assert portal.visible == {contact: True}

    def test_a_few_that_always_fail_do_not_keep_the_others_from_their_turn(
        self, connection: Connection, facts: Facts
    ) -> None:
        """They come last: whatever ends the stage, the others have had theirs."""
        bad = set(mentors(facts, 6, expired=6))
        good = set(mentors(facts, 20, expired=20))

        def fail_for_some(_number: int) -> None:
            if failing.calls[-1][0] in bad:
                message = "502"
                raise TransientPortalError(message)

        failing = DisturbedPortal(fail_for_some)
        for _ in range(3):
            night(connection, portal=failing)
            connection.execute("UPDATE portal_sync_events SET next_attempt_at = now() WHERE status = 'pending'")
        assert set(failing.visible) == good
        connection.execute(
            "UPDATE portal_sync_events SET next_attempt_at = now() + interval '1 h' WHERE status = 'pending'"
        )
        failing.visible.clear()

        deliver_all(connection, failing)

        assert set(failing.visible) == good

    def test_without_portal_or_contact_there_is_nothing_to_push(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """No call, and no event that would be blocked every week."""
        facts.certified_mentor(facts.organisation("other", portal=None, thresholds=()), EXPIRED)
        facts.certified_mentor(facts.organisation("hlf"), IN_FORCE, contact_id=None)
        night(connection, portal=portal)

        report = deliver_all(connection, portal)

        assert portal.requests == []
        assert report.outcome is Outcome.OK
        assert facts.rows("SELECT * FROM portal_sync_events") == []

    def test_whoever_has_left_is_hidden_again(self, connection: Connection, facts: Facts, portal: PortalServer) -> None:
        """Their wish has not ended with their membership."""
        (contact,) = mentors(facts, 1)
        facts.connection.execute("UPDATE mentors SET left_at = now()")
        night(connection, portal=portal)
        portal.visible[contact] = True

        deliver_all(connection, portal)

        assert portal.visible == {contact: False}

    def test_what_was_blocked_is_tried_again(self, connection: Connection, facts: Facts, portal: PortalServer) -> None:
        """And its failure is resolved by the success."""
        mentors(facts, 1, expired=1)
        portal.then(error(404, "contact_not_found"))
        night(connection, portal=portal)
        assert facts.rows("SELECT status FROM portal_sync_events") == [("blocked",)]

        report = deliver_all(connection, portal)

        assert report.outcome is Outcome.OK
        assert facts.rows("SELECT status, version FROM portal_sync_events") == [("delivered", 2)]
        assert facts.rows("SELECT resolved_at IS NULL FROM dynamics_sync_failures") == [(False,)]


class TestSlices:
    """A few at a time, so that the night's own wishes never wait behind repeats."""

    @pytest.fixture(autouse=True)
    def _small(self, small_slices: int) -> None:
        """Every test here has slices of two."""

    def test_all_slices_are_pushed(self, connection: Connection, facts: Facts, portal: PortalServer) -> None:
        """Each mentor once."""
        contacts = mentors(facts, 7, expired=3)
        night(connection, portal=portal)
        before = len(portal.requests)

        report = deliver_all(connection, portal)

        assert sorted(request.contact_id for request in portal.requests[before:] if request.contact_id) == sorted(
            contacts
        )
        assert report.drift is not None
        assert report.drift.queued == 7

    def test_a_new_hide_does_not_wait_for_the_repeats(self, connection: Connection, facts: Facts) -> None:
        """At most for the slice that is claimed already."""
        new = facts.mentor(facts.organisation("hlf"), contact_id=uuid4())

        def during(number: int) -> None:
            if number == 1:
                queue_wish(facts.connection, new, visible=False)

        mentors(facts, 8, expired=8)
        night(connection, portal=FlakyPortal())
        portal = DisturbedPortal()
        with database.connect(connection.info.dsn) as second:
            facts.connection = second
            portal.during = during

            deliver_all(connection, portal)

        hidden = [str(contact_id) for contact_id, _, _ in portal.calls]
        row = connection.execute("SELECT dynamics_contact_id::text FROM mentors WHERE id = %s", (new,)).fetchone()
        assert row is not None
        assert hidden.index(row[0]) <= 2

    def test_a_portal_that_fails_leaves_only_one_slice_waiting(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """Nobody becomes an alert whom the portal was never asked about; the report says who was left out."""
        mentors(facts, 20, expired=20)
        night(connection, portal=portal)
        portal.default = error(503, "dynamics_unavailable")

        report = deliver_all(connection, portal)

        (stopped,) = report.stopped
        assert stopped.code == "breaker"
        assert stopped.reason.endswith("; 14 of 20 mentors were not pushed again")
        assert facts.rows("SELECT count(*) FROM portal_sync_events WHERE status = 'pending'") == [(6,)]
        assert facts.rows("SELECT count(*) FROM portal_alerts") == [(6,)]

    def test_those_confirmed_longest_ago_come_first(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """Weekly runs that end early come round to everybody in the end."""
        contacts = mentors(facts, 6, expired=6)
        night(connection, portal=portal)
        facts.connection.execute(
            "UPDATE portal_sync_events SET delivered_at = now() - n * interval '1 day'"
            " FROM unnest(%s::uuid[]) WITH ORDINALITY AS c (contact, n), mentors AS m"
            " WHERE m.dynamics_contact_id = c.contact AND m.id = mentor_id",
            (contacts,),
        )
        before = len(portal.requests)

        deliver_all(connection, portal)

        called = [request.contact_id for request in portal.requests[before:]]
        oldest_first = contacts[::-1]
        for start in (0, 2, 4):
            assert set(called[start : start + 2]) == set(oldest_first[start : start + 2])

    def test_a_deadline_leaves_the_rest_as_it_is(self, connection: Connection, facts: Facts) -> None:
        """Not queued, no alert, but said."""
        mentors(facts, 6, expired=6)
        night(connection, portal=FlakyPortal())
        ways_out = dataclasses.replace(delivery(portal=DisturbedPortal()), deadline_seconds=0)

        report = deliver_all(connection, None, ways_out=ways_out)

        assert [str(stop) for stop in report.stopped] == [
            "portal: the time for deliveries is over; the rest stays pending; 6 of 6 mentors were not pushed again"
        ]
        assert facts.rows("SELECT count(*) FROM portal_sync_events WHERE status = 'pending'") == [(0,)]

    def test_a_mentor_who_is_held_at_first_comes_at_the_end(
        self, connection: Connection, facts: Facts, app: App
    ) -> None:
        """Nobody else waits for the app's transaction."""
        contacts = mentors(facts, 5, expired=5)
        night(connection, portal=FlakyPortal())
        app.execute("SELECT FROM mentors WHERE dynamics_contact_id = %s FOR UPDATE", (contacts[0],))
        portal = DisturbedPortal(during=lambda number: app.rollback() if number == 4 else None)

        report = deliver_all(connection, portal)

        assert [contact_id for contact_id, _, _ in portal.calls][4] == contacts[0]
        assert report.outcome is Outcome.OK

    def test_a_mentor_who_stays_held_is_said(self, connection: Connection, facts: Facts, app: App) -> None:
        """The run is not good: one mentor may still be shown."""
        contacts = mentors(facts, 3, expired=3)
        night(connection, portal=FlakyPortal())
        app.execute("SELECT FROM mentors WHERE dynamics_contact_id = %s FOR UPDATE", (contacts[0],))
        portal = DisturbedPortal()

        report = deliver_all(connection, portal)

        assert report.outcome is Outcome.ATTENTION
        assert report.reasons == ["portal: 1 of 3 mentors were not pushed again: another session holds them"]
        assert len(portal.calls) == 2


class TestRaces:
    """What changes while it works."""

    def test_a_hide_committed_meanwhile_is_not_undone(
        self, connection: Connection, facts: Facts, other: Connection
    ) -> None:
        """The wanted value is read under the mentor's lock, not from the list made at the beginning."""
        (contact,) = mentors(facts, 1)
        night(connection, portal=FlakyPortal())
        drift = PortalDrift(connection, run_id=uuid4(), today=TODAY)
        assert drift.begin() == 1
        other.execute("UPDATE certificates SET expires_on = %s", (EXPIRED,))
        review(other)

        drift.queue_more()

        portal = FlakyPortal()
        nightly.deliver(
            connection,
            today=TODAY,
            delivery=delivery(portal=portal),
            stop=StopFlag(),
            progress=NoProgress(),
        )
        assert [visible for _, visible, _ in portal.calls] == [False]
        assert portal.visible == {contact: False}

    def test_a_hide_being_committed_is_waited_for(
        self, connection: Connection, facts: Facts, other: Connection
    ) -> None:
        """A review that holds the mentor is not overtaken: the mentor is left for the end, when it has committed."""
        mentors(facts, 1)
        night(connection, portal=FlakyPortal())
        drift = PortalDrift(connection, run_id=uuid4(), today=TODAY)
        drift.begin()
        other.execute("UPDATE certificates SET expires_on = %s", (EXPIRED,))

        with other.transaction():
            review(other)
            assert not drift.queue_more()  # the mentor is held
        assert drift.end(None) is not None

        assert facts.rows("SELECT visible FROM portal_sync_events WHERE status = 'pending'") == [(False,)]

    def test_a_call_in_flight_is_not_raced(
        self, connection: Connection, facts: Facts, other: Connection, portal: PortalServer
    ) -> None:
        """The event keeps its lease; its value is sent again after the call."""
        mentors(facts, 1, expired=1)
        review(connection)
        portal.then(hang(then=ok()))
        with in_background(lambda: night(other, portal=portal)):
            portal.wait_until(lambda: len(portal.requests) == 1)

            def release_when_raised() -> None:
                until(lambda: facts.rows("SELECT max(version) FROM portal_sync_events") == [(2,)])
                portal.release()

            with database.connect(connection.info.dsn) as third, in_background(release_when_raised):
                deliver_all(third, portal)

        assert portal.overlaps == []
        assert len(portal.requests) == 2
        assert facts.rows("SELECT status FROM portal_sync_events") == [("delivered",)]

    def test_two_at_once_share_the_work(self, connection: Connection, facts: Facts, other: Connection) -> None:
        """Both end, though each queues what the other has pushed."""
        portal = DisturbedPortal()
        mentors(facts, 30, expired=30)
        night(connection, portal=portal)

        with in_background(lambda: deliver_all(other, portal)):
            deliver_all(connection, portal)

        assert portal.overlaps == []
        assert len(portal.calls) <= 90
        assert facts.rows("SELECT count(*) FROM portal_sync_events WHERE status = 'pending'") == [(0,)]


class TestCommand:
    """As it is typed."""

    def test_it_says_nothing_when_all_is_well(
        self, certjob: Certjob, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """It stands in a weekly cron line."""
        organisation = facts.organisation()
        contact_id = uuid4()
        facts.certified_mentor(organisation, TODAY.replace(year=2099), contact_id=contact_id)
        settings = {"CERTJOB_PORTAL_URL": portal.url, "CERTJOB_PORTAL_KEY": portal.key}
        assert certjob("run", **settings).returncode == 0

        result = certjob("deliver", "--all", **settings)

        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
        assert portal.visible == {contact_id: True}

    def test_it_is_polite(self, connection: Connection, facts: Facts) -> None:
        """No faster than CERTJOB_PORTAL_RATE: the calls are let through by the stage's gate."""
        portal = FlakyPortal()
        mentors(facts, 10, expired=10)
        night(connection, portal=portal)
        began = time.monotonic()

        deliver_all(connection, None, ways_out=dataclasses.replace(delivery(portal=portal), calls_per_second=20))

        assert time.monotonic() - began >= 8 / 20

    def test_without_a_portal_url_it_says_so(self, certjob: Certjob, facts: Facts) -> None:
        """Every time: it was asked for."""
        for _ in range(2):
            result = certjob("deliver", "--all", "--json")

            assert result.returncode == 3
            assert json.loads(result.stdout)["stopped"] == ["portal: CERTJOB_PORTAL_URL is not set; nothing was pushed"]

    def test_a_stage_error_is_said_every_week(self, connection: Connection, facts: Facts, portal: PortalServer) -> None:
        """Unlike the job of every 15 minutes, it does not keep quiet about a reason that is known."""
        mentors(facts, 1, expired=1)
        night(connection, portal=portal)
        portal.key = "another"
        ways_out = dataclasses.replace(
            delivery(portal=portal),
            make_target=lambda: HLFDynamicsSyncService(portal.url, "planted-portal-key", deadline_seconds=5),
        )

        outcomes = [deliver_all(connection, None, ways_out=ways_out).outcome for _ in range(2)]

        assert outcomes == [Outcome.ATTENTION, Outcome.ATTENTION]
