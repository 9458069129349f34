"""``certjob reconcile``: the portal is read as a set, and only what differs is pushed."""

import json
import re
from collections.abc import Iterable, Iterator
from datetime import timedelta
from uuid import UUID, uuid4

import psycopg
import pytest

from certjob import database
from certjob.database import Connection
from certjob.errors import ConfigurationError, Outcome, StoppedBySignalError
from certjob.night import reconcile as reconciling
from certjob.night.report import RunReport
from certjob.portal import comparison
from certjob.portal.hlf_dynamics import HLFDynamicsSyncService
from certjob.stopping import StopFlag
from certjob.views.alerts import read_documents
from certjob.views.metrics import read_metrics
from tests.conftest import Certjob
from tests.support.facts import TODAY, Facts
from tests.support.nights import CollectingChannel, NoProgress, delivery, in_background, night
from tests.support.portal_answers import Exchange, answer, error, hang, ok
from tests.support.portal_server import PortalServer
from tests.support.waiting import until

EXPIRED = TODAY - timedelta(days=1)
IN_FORCE = TODAY + timedelta(days=300)
NO_DIFFERENCE = {"shown_wrongly": 0, "hidden_wrongly": 0, "unknown": 0, "accepted": 0, "contradictory": 0}


@pytest.fixture
def portal() -> Iterator[PortalServer]:
    """The Edge Function's stand-in, which lists what it shows, three contacts a page."""
    with PortalServer(default=ok(page_size=3)) as server:
        yield server
        server.release()


@pytest.fixture
def other(database_url: str) -> Iterator[Connection]:
    """The connection of another session."""
    with database.connect(database_url) as connection:
        yield connection


def reconcile(
    connection: Connection,
    portal: PortalServer,
    *,
    dry_run: bool = False,
    allow_mass_change: bool = False,
    stop: StopFlag | None = None,
    max_attempts: int = 3,
) -> RunReport:
    options = reconciling.ReconcileOptions(
        ignore_database_clock=True, today=TODAY, dry_run=dry_run, allow_mass_change=allow_mass_change
    )
    return reconciling.reconcile(
        connection,
        options=options,
        make_reader=lambda: HLFDynamicsSyncService(portal.url, portal.key, deadline_seconds=5),
        delivery=delivery(portal=portal, max_attempts=max_attempts),
        stop=stop or StopFlag(),
        progress=NoProgress(),
    )


def mentors(facts: Facts, count: int, *, expired: int = 0, slug: str | None = None) -> list[UUID]:
    """Contact ids of so many mentors of a new organisation, the first ``expired`` without a certificate in force."""
    organisation = facts.organisation(slug or f"hlf-{uuid4().hex[:6]}", thresholds=())
    contacts = [uuid4() for _ in range(count)]
    for number, contact_id in enumerate(contacts):
        facts.certified_mentor(organisation, EXPIRED if number < expired else IN_FORCE, contact_id=contact_id)
    return contacts


def agreeing(connection: Connection, portal: PortalServer, contacts: Iterable[UUID]) -> None:
    """Let the portal show these contacts, and a night hide whoever must not be shown."""
    portal.visible |= dict.fromkeys(contacts, True)
    night(connection, portal=portal, allow_mass_change=True)
    portal.requests.clear()


def pushes(portal: PortalServer) -> list[tuple[UUID | None, bool | None]]:
    return [(request.contact_id, request.visible) for request in portal.requests if request.method == "POST"]


def differences(report: RunReport) -> dict[str, int]:
    """The figures that are not nothing."""
    return {name: number for name, number in report.to_document()["differences"].items() if number}


class TestDifferences:
    """What is pushed, and what is not."""

    def test_agreement_costs_reads_and_no_push(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """Seven visible contacts are three pages."""
        agreeing(connection, portal, mentors(facts, 9, expired=2))

        report = reconcile(connection, portal)

        assert [request.method for request in portal.requests] == ["GET"] * 3
        assert report.outcome is Outcome.OK
        document = report.to_document()
        assert document["read"] == {"pages": 3, "visible": 7}
        assert document["differences"] == NO_DIFFERENCE

    def test_a_hand_edit_in_either_direction_is_put_right_by_exactly_those_pushes(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """The hide comes first; nobody has to act."""
        contacts = mentors(facts, 6, expired=3)
        agreeing(connection, portal, contacts)
        portal.visible[contacts[0]] = True
        portal.visible[contacts[5]] = False

        report = reconcile(connection, portal)

        assert pushes(portal) == [(contacts[0], False), (contacts[5], True)]
        assert report.outcome is Outcome.OK
        assert report.to_document()["portal"] == {
            "queued": 2,
            "delivered": 2,
            "failed": 0,
            "blocked": 0,
            "lost": 0,
            "pending": 0,
        }
        assert differences(report) == {"shown_wrongly": 1, "hidden_wrongly": 1}
        assert reconcile(connection, portal).to_document()["differences"] == NO_DIFFERENCE

    def test_each_correction_is_a_new_wish_for_the_portal(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """With the key of last week's call the portal would do nothing."""
        (contact,) = mentors(facts, 1, expired=1)
        portal.visible[contact] = True
        night(connection, portal=portal)
        for _ in range(2):
            portal.visible[contact] = True
            reconcile(connection, portal)

        keys = [request.idempotency_key for request in portal.requests if request.method == "POST"]
        assert len(set(keys)) == 3

    def test_a_call_that_landed_late_is_found_the_next_night(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """A show of long ago, which nobody waits for any more, was acted on after the hide was confirmed."""
        (contact,) = mentors(facts, 1, expired=1)
        agreeing(connection, portal, [contact])
        portal.visible[contact] = True

        reconcile(connection, portal)

        assert portal.visible == {contact: False}

    def test_nobody_who_waits_for_a_review_is_shown(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """The pause of this afternoon counts, though no night has seen it; a hide goes all the same."""
        hidden, shown = mentors(facts, 2, expired=1)
        agreeing(connection, portal, [hidden, shown])
        connection.execute(
            "INSERT INTO mentor_pauses (mentor_id, reason, actor) SELECT id, 'illness', 'coordinator' FROM mentors"
        )
        portal.visible = {hidden: True, shown: False}

        reconcile(connection, portal)

        assert pushes(portal) == [(hidden, False)]

    def test_nobody_is_judged_before_the_first_review(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """Straight after an import nobody knows who is certified; and their contacts are not unknown."""
        contacts = mentors(facts, 2, expired=1)
        portal.visible[contacts[0]] = True

        report = reconcile(connection, portal)

        assert (pushes(portal), report.outcome) == ([], Outcome.OK)

    @pytest.mark.parametrize("certificate", [None, "upcoming"])
    def test_nobody_is_shown_who_was_never_certified(
        self, connection: Connection, facts: Facts, portal: PortalServer, certificate: str | None
    ) -> None:
        """Nobody watches them, and certjob never shows whom it did not hide; hidden by hand they stay hidden."""
        mentor = facts.mentor(facts.organisation(thresholds=()))
        if certificate:
            facts.certificate(mentor, IN_FORCE, issued_on=TODAY + timedelta(days=30))
        night(connection, portal=portal)

        report = reconcile(connection, portal)

        assert (pushes(portal), report.outcome) == ([], Outcome.OK)

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

        reconcile(connection, portal)

        assert portal.visible == {contact: True}

    def test_nobody_who_has_an_event_under_way_is_touched(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """A blocked event and a waiting one have their own way, and their own alert."""
        blocked, waiting = mentors(facts, 2, expired=2)
        portal.visible |= {blocked: True, waiting: True}
        portal.then(error(404, "contact_not_found"), *[error(503, "token_unavailable")] * 3)
        night(connection, portal=portal)
        portal.requests.clear()

        report = reconcile(connection, portal)

        assert pushes(portal) == []
        assert report.to_document()["differences"] == NO_DIFFERENCE
        assert sorted(facts.rows("SELECT status, version FROM portal_sync_events")) == [("blocked", 1), ("pending", 1)]

    def test_a_call_that_died_before_its_event_was_withdrawn_is_not_waited_for_for_ever(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """Its token stays, its lease ends."""
        (contact,) = mentors(facts, 1, expired=1)
        agreeing(connection, portal, [contact])
        connection.execute(
            "INSERT INTO portal_sync_events (mentor_id, visible, status, claim_token, next_attempt_at)"
            " SELECT id, true, 'withdrawn', gen_random_uuid(), now() + interval '1 minute' FROM mentors"
        )
        portal.visible[contact] = True
        reconcile(connection, portal)
        assert pushes(portal) == []

        connection.execute(
            "UPDATE portal_sync_events SET next_attempt_at = now() - interval '1 s' WHERE status = 'withdrawn'"
        )
        reconcile(connection, portal)

        assert pushes(portal) == [(contact, False)]

    def test_whoever_has_left_is_hidden_again(self, connection: Connection, facts: Facts, portal: PortalServer) -> None:
        """Their wish has not ended with their membership."""
        (contact,) = mentors(facts, 1)
        connection.execute("UPDATE mentors SET left_at = now()")
        night(connection, portal=portal)
        portal.visible[contact] = True

        reconcile(connection, portal)

        assert portal.visible == {contact: False}

    def test_500_people_shown_by_hand_are_all_hidden_again(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """The guard holds no hide."""
        portal.default = ok()
        contacts = mentors(facts, 500, expired=500)
        agreeing(connection, portal, contacts)
        portal.visible = dict.fromkeys(contacts, True)

        report = reconcile(connection, portal)

        assert set(portal.visible.values()) == {False}
        assert (report.outcome, report.held) == (Outcome.OK, [])

    def test_a_push_that_fails_is_an_alert_as_any_other(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """The event stays open, and somebody is told."""
        (contact,) = mentors(facts, 1, expired=1)
        agreeing(connection, portal, [contact])
        portal.visible[contact] = True
        portal.then(ok(), *[error(503, "token_unavailable")] * 3)

        report = reconcile(connection, portal)

        assert report.outcome is Outcome.ATTENTION
        assert report.reasons == ["1 portal push failed; see `certjob alerts`"]
        assert facts.rows("SELECT visible, status FROM portal_sync_events ORDER BY id DESC LIMIT 1") == [
            (False, "pending")
        ]

    def test_what_is_due_anyway_is_pushed_as_well(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """The stage is the one of every delivery."""
        (contact,) = mentors(facts, 1, expired=1)
        portal.visible[contact] = True
        night(connection, deliver=False)

        report = reconcile(connection, portal)

        assert portal.visible == {contact: False}
        assert report.to_document()["differences"] == NO_DIFFERENCE

    def test_a_day_before_the_last_nights_is_refused(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """Such a clock does not know who waits for a review."""
        night(connection, TODAY + timedelta(days=1), portal=portal)

        with pytest.raises(ConfigurationError, match="today would be"):
            reconcile(connection, portal)

        assert portal.requests == []


class TestReading:
    """All pages, or nothing."""

    @pytest.mark.parametrize(
        ("fault", "words"),
        [
            (error(502, "dynamics_unavailable"), "502 dynamics_unavailable"),
            (error(429, "throttled", retry_after="60"), "429 throttled"),
            (error(500, "misconfigured"), "500 misconfigured"),
            (answer(200, {"visible": ["x"], "next": None}), "not what the contract says"),
        ],
    )
    def test_a_page_that_fails_for_good_changes_nothing(
        self, connection: Connection, facts: Facts, portal: PortalServer, fault: object, words: str
    ) -> None:
        """Though the first page showed somebody who must be hidden: without the rest nobody can say who is missing."""
        contacts = mentors(facts, 5, expired=1)
        agreeing(connection, portal, contacts)
        portal.visible = dict.fromkeys(contacts, True)
        portal.then(ok(page_size=3))
        portal.default = fault  # type: ignore[assignment]

        report = reconcile(connection, portal)

        assert report.outcome is Outcome.ATTENTION
        assert [words in reason for reason in report.reasons] == [True]
        assert report.reasons[0].endswith(
            "the portal was not read to its end, nothing was compared and nothing changed"
        )
        assert report.to_document()["differences"] is None
        assert pushes(portal) == []
        assert facts.rows("SELECT count(*) FROM portal_last_reading") == [(0,)]
        assert facts.rows("SELECT outcome FROM job_runs WHERE command = 'reconcile'") == [("attention",)]

    def test_a_page_that_fails_once_is_read_again(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """By the policy of the pushes."""
        agreeing(connection, portal, mentors(facts, 5))
        portal.then(ok(page_size=3), error(503, "token_unavailable"))

        report = reconcile(connection, portal)

        assert report.outcome is Outcome.OK
        assert len(portal.requests) == 3

    def test_a_function_that_does_not_list_yet_is_named(self, connection: Connection, portal: PortalServer) -> None:
        """It answers that it is there, whatever it is asked."""
        portal.default = answer(200, {"ok": True})

        (reason,) = reconcile(connection, portal).reasons

        assert "too old to list contacts; deploy it again" in reason

    def test_a_signal_ends_the_reading(self, connection: Connection, facts: Facts, portal: PortalServer) -> None:
        """In time, and the run is recorded as failed."""
        portal.default = hang()
        stop = StopFlag()

        def send_signal() -> None:
            portal.wait_until(lambda: bool(portal.requests))
            stop.set()

        with in_background(send_signal), pytest.raises(StoppedBySignalError):
            reconcile(connection, portal, stop=stop)

        assert facts.rows("SELECT outcome FROM job_runs WHERE command = 'reconcile'") == [("failed",)]

    def test_a_dry_run_reads_and_writes_nothing(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """It says what it would do."""
        contacts = mentors(facts, 4, expired=2, slug="hlf")
        agreeing(connection, portal, contacts)
        portal.visible[contacts[0]] = True
        portal.visible[contacts[3]] = False
        portal.visible[uuid4()] = True
        before = facts.rows("SELECT count(*) FROM portal_sync_events"), facts.rows("SELECT count(*) FROM job_runs")

        document = reconcile(connection, portal, dry_run=True).to_document()

        assert [(each["organisation"], each["portal"]) for each in document["changes"]] == [
            ("hlf", False),
            ("hlf", True),
        ]
        assert document["differences"]["unknown"] == 1
        assert pushes(portal) == []
        after = facts.rows("SELECT count(*) FROM portal_sync_events"), facts.rows("SELECT count(*) FROM job_runs")
        assert after == before
        assert facts.rows("SELECT count(*) FROM portal_unknown_contacts") == [(0,)]
        assert facts.rows("SELECT count(*) FROM portal_last_reading") == [(0,)]


class TestGuard:
    """Shows that look like a wrong column or another Dynamics are held."""

    def test_nobody_visible_is_held(self, connection: Connection, facts: Facts, portal: PortalServer) -> None:
        """A wrong column says of everybody that they are hidden."""
        contacts = mentors(facts, 21, slug="hlf")
        agreeing(connection, portal, contacts)
        portal.visible.clear()

        report = reconcile(connection, portal)

        assert (pushes(portal), report.outcome) == ([], Outcome.ATTENTION)
        (held,) = report.held
        assert held.startswith("hlf: 21 mentors would be shown again, the portal shows nobody at all; none of them was")
        assert "`certjob reconcile --allow-mass-change`" in held

    def test_nobody_visible_is_held_for_small_organisations_as_well(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """Each has few, and together they are too many."""
        contacts = [contact for _ in range(3) for contact in mentors(facts, 8)]
        agreeing(connection, portal, contacts)
        portal.visible.clear()

        report = reconcile(connection, portal)

        assert (pushes(portal), len(report.held)) == ([], 3)

    def test_20_may_be_shown_though_nobody_is_visible(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """A small programme whose portal was cleared by hand."""
        contacts = mentors(facts, 20)
        agreeing(connection, portal, contacts)
        portal.visible.clear()

        report = reconcile(connection, portal)

        assert (len(pushes(portal)), report.outcome) == (20, Outcome.OK)

    def test_too_many_shows_of_an_organisation_are_held_and_hides_go_on(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """And the shows of the others."""
        many = mentors(facts, 40, expired=2, slug="hlf")
        few = mentors(facts, 2, slug="nhf")
        agreeing(connection, portal, [*many, *few])
        portal.visible = dict.fromkeys([*many[:3], few[0]], True)

        report = reconcile(connection, portal)

        assert set(pushes(portal)) == {(many[0], False), (many[1], False), (few[1], True)}
        assert report.held == [
            "hlf: 37 mentors would be shown again, the limit is 20 (of 40 on the portal); none of them was shown, "
            "hides went on. Check DYNAMICS_VISIBILITY_FIELD and DYNAMICS_URL of the function, then `certjob reconcile "
            "--allow-mass-change`"
        ]

    def test_the_flag_lets_them_through(self, connection: Connection, facts: Facts, portal: PortalServer) -> None:
        """Somebody has looked."""
        contacts = mentors(facts, 30)
        agreeing(connection, portal, contacts)
        portal.visible.clear()

        report = reconcile(connection, portal, allow_mass_change=True)

        assert (len(pushes(portal)), report.outcome) == (30, Outcome.OK)


class TestUnknownContacts:
    """Whom the portal shows, and nobody has asked for."""

    def test_the_contact_of_a_deleted_mentor_is_reported_until_it_is_gone(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """Somebody has shown it by hand. certjob does not hide it: it may be anybody's."""
        gone, *others = mentors(facts, 3)
        agreeing(connection, portal, [gone, *others])
        connection.execute("UPDATE mentors SET left_at = now() WHERE dynamics_contact_id = %s", (gone,))
        night(connection, portal=portal)
        connection.execute("DELETE FROM mentors WHERE dynamics_contact_id = %s", (gone,))
        portal.visible[gone] = True
        portal.requests.clear()

        for _ in range(2):
            report = reconcile(connection, portal)
            assert report.outcome is Outcome.ATTENTION
            assert report.reasons == ["1 contact on the portal is no mentor's; see `certjob alerts`"]
        portal.visible[gone] = False
        last = reconcile(connection, portal)

        assert (last.outcome, pushes(portal)) == (Outcome.OK, [])
        assert facts.rows("SELECT contact_id, gone_at > first_seen_at FROM portal_unknown_contacts") == [(gone, True)]

    def test_a_mentor_of_an_organisation_without_a_portal_is_unknown(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """Their organisation never asked for it."""
        facts.certified_mentor(facts.organisation("nhf", portal=None), IN_FORCE, contact_id=(contact := uuid4()))
        agreeing(connection, portal, [contact])

        assert differences(reconcile(connection, portal)) == {"unknown": 1}

    def test_an_accepted_contact_stays_quiet(self, connection: Connection, facts: Facts, portal: PortalServer) -> None:
        """Staff who are shown on purpose."""
        staff = uuid4()
        portal.visible[staff] = True
        reconcile(connection, portal)

        assert comparison.accept(connection, staff, because="the programme's office", who="kari")

        report = reconcile(connection, portal)
        assert (report.outcome, differences(report)) == (Outcome.OK, {"accepted": 1})

    def test_only_what_a_reading_has_found_can_be_accepted(self, connection: Connection, portal: PortalServer) -> None:
        """A typo must not accept somebody in advance."""
        assert not comparison.accept(connection, uuid4(), because="a typo", who="kari")

    def test_whoever_becomes_a_mentor_is_no_longer_accepted(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """Once the contact is no mentor's again, somebody has to decide anew."""
        contact = uuid4()
        portal.visible[contact] = True
        reconcile(connection, portal)
        comparison.accept(connection, contact, because="staff", who="kari")
        mentor = facts.mentor(facts.organisation(), contact_id=contact)
        assert differences(reconcile(connection, portal)) == {}
        connection.execute("UPDATE mentors SET dynamics_contact_id = %s WHERE id = %s", (uuid4(), mentor))

        assert differences(reconcile(connection, portal)) == {"unknown": 1}

    def test_a_reading_that_is_held_takes_nobody_for_gone(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """A wrong column shows nobody, and so none of these."""
        contacts = mentors(facts, 30)
        agreeing(connection, portal, contacts)
        portal.visible[uuid4()] = True
        reconcile(connection, portal)
        portal.visible.clear()

        reconcile(connection, portal)

        assert facts.rows("SELECT gone_at FROM portal_unknown_contacts") == [(None,)]

    def test_an_older_reading_that_ends_later_changes_nothing(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """Two at once: what began last is what is known."""
        contact = uuid4()
        old = comparison.Reading(read_at=database.clock(connection), pages=1, visible=[])
        portal.visible[contact] = True
        reconcile(connection, portal)

        found = comparison.compare(connection, old, today=TODAY, allow_mass_change=False)
        comparison.store(connection, found, run_id=uuid4())

        assert facts.rows("SELECT contact_id, gone_at FROM portal_unknown_contacts") == [(contact, None)]
        assert facts.rows("SELECT visible = ARRAY[%s::uuid] FROM portal_last_reading", contact) == [(True,)]


class TestContradictions:
    """Two organisations have the same contact and want opposite things of it."""

    @pytest.fixture
    def contact(self, connection: Connection, facts: Facts, portal: PortalServer) -> UUID:
        """HLF wants it hidden, NHF visible."""
        contact = uuid4()
        for slug, expires_on in (("hlf", EXPIRED), ("nhf", IN_FORCE)):
            facts.certified_mentor(facts.organisation(slug, thresholds=()), expires_on, contact_id=contact)
        agreeing(connection, portal, [contact])
        return contact

    def test_only_the_hide_is_raised(self, connection: Connection, portal: PortalServer, contact: UUID) -> None:
        """Whoever may not be shown for one organisation is not shown."""
        portal.visible[contact] = True

        report = reconcile(connection, portal)

        assert pushes(portal) == [(contact, False)]
        assert differences(report) == {"shown_wrongly": 1, "contradictory": 1}
        assert report.outcome is Outcome.ATTENTION

    def test_a_hidden_one_stays_hidden(self, connection: Connection, portal: PortalServer, contact: UUID) -> None:
        """Night after night, with no push; but somebody is told."""
        report = reconcile(connection, portal)

        assert pushes(portal) == []
        assert differences(report) == {"contradictory": 1}
        assert "is to be visible for one organisation and hidden for another" in report.reasons[0]

    def test_organisations_that_agree_are_no_contradiction(
        self, connection: Connection, facts: Facts, portal: PortalServer, contact: UUID
    ) -> None:
        """Both want to hide it."""
        connection.execute("UPDATE certificates SET expires_on = %s", (EXPIRED,))
        night(connection, portal=portal)
        portal.visible[contact] = True

        report = reconcile(connection, portal)

        assert differences(report) == {"shown_wrongly": 2}
        assert portal.visible == {contact: False}


class TestRaces:
    """What changes while it works."""

    def test_a_push_that_is_confirmed_while_the_portal_is_read_is_left_alone(
        self, connection: Connection, facts: Facts, other: Connection, portal: PortalServer
    ) -> None:
        """The page may have been read before it."""
        contacts = mentors(facts, 2)
        agreeing(connection, portal, contacts)

        def read_then_night(exchange: Exchange) -> None:
            stale = sorted(map(str, contacts))
            other.execute("UPDATE certificates SET expires_on = %s", (EXPIRED,))
            night(other, portal=portal)
            answer(200, {"visible": stale, "next": None})(exchange)

        portal.then(read_then_night)

        report = reconcile(connection, portal)

        assert report.to_document()["differences"] == NO_DIFFERENCE
        assert len(pushes(portal)) == 2

    def test_a_hide_that_is_committed_after_the_comparison_is_not_undone(
        self, connection: Connection, facts: Facts, other: Connection, portal: PortalServer
    ) -> None:
        """Under the lock the same question is asked again."""
        (contact,) = mentors(facts, 1)
        agreeing(connection, portal, [contact])
        reading = comparison.Reading(read_at=database.clock(connection), pages=1, visible=[])
        found = comparison.compare(connection, reading, today=TODAY, allow_mass_change=False)
        assert [each.visible for each in found.differences] == [True]
        other.execute("UPDATE certificates SET expires_on = %s", (EXPIRED,))
        night(other, deliver=False)

        raised = comparison.raise_events(
            connection, reading, found.differences, today=TODAY, run_id=uuid4(), stop=StopFlag()
        )

        assert raised == (0, [])
        assert facts.rows("SELECT visible, version FROM portal_sync_events") == [(False, 1)]

    def test_a_mentor_whom_the_app_locks_for_a_moment_is_waited_for(
        self,
        connection: Connection,
        facts: Facts,
        other: Connection,
        portal: PortalServer,
        app: psycopg.Connection[tuple[object, ...]],
    ) -> None:
        """And corrected once they are free."""
        contacts = mentors(facts, 3, expired=3)
        agreeing(connection, portal, contacts)
        portal.visible = dict.fromkeys(contacts, True)
        app.execute("SELECT FROM mentors WHERE dynamics_contact_id = %s FOR UPDATE", (contacts[0],))

        def let_go() -> None:
            corrected = "SELECT count(*) = 2 FROM portal_sync_events WHERE corrects_portal"
            until(lambda: other.execute(corrected).fetchone() == (True,))
            app.rollback()

        with in_background(let_go):
            report = reconcile(connection, portal)

        assert report.outcome is Outcome.OK
        assert set(portal.visible.values()) == {False}

    def test_a_mentor_who_stays_locked_is_reported(
        self,
        connection: Connection,
        facts: Facts,
        portal: PortalServer,
        app: psycopg.Connection[tuple[object, ...]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The others are corrected; this one may still be shown."""
        monkeypatch.setattr(comparison, "_LOCKED_FOR_SECONDS", 0.0)
        contacts = mentors(facts, 3, expired=3)
        agreeing(connection, portal, contacts)
        portal.visible = dict.fromkeys(contacts, True)
        app.execute("SELECT FROM mentors WHERE dynamics_contact_id = %s FOR UPDATE", (contacts[0],))

        report = reconcile(connection, portal)

        assert sum(portal.visible.values()) == 1
        (reason,) = report.reasons
        assert reason.startswith("1 mentor is locked by another session and not corrected (M1001)")


class TestWhatIsKnownAfterwards:
    """Where people look."""

    def test_explain_says_when_the_portal_was_read_and_what_it_showed(
        self, connection: Connection, facts: Facts, portal: PortalServer, certjob: Certjob
    ) -> None:
        """Of this mentor."""
        shown, _hidden = mentors(facts, 2)
        agreeing(connection, portal, [shown])
        before = json.loads(certjob("explain", "M1001", "--json").stdout)["portal"]

        reconcile(connection, portal, dry_run=True)
        reconcile(connection, portal)

        assert (before["read_at"], before["was_shown"]) == (None, None)
        pages = [certjob("explain", number).stdout for number in ("M1001", "M1002")]
        assert "the mentor was visible" in pages[0]
        assert "the mentor was not visible" in pages[1]
        document = json.loads(certjob("explain", "M1002", "--json").stdout)["portal"]
        assert (document["read_at"][:4], document["was_shown"]) == (str(database.clock(connection).year), False)

    def test_the_metrics_have_the_last_reading(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """Before the first one they say nothing of it; afterwards, what was found."""
        contacts = mentors(facts, 3, expired=1)
        agreeing(connection, portal, contacts)
        portal.visible |= {contacts[0]: True, contacts[1]: False, uuid4(): True}
        before = read_metrics(connection, today=TODAY).decode()

        reconcile(connection, portal)

        metrics = read_metrics(connection, today=TODAY).decode()
        assert "certjob_portal" not in before
        found = dict(re.findall(r'^certjob_portal_differences\{what="(\w+)"\} (\S+)$', metrics, flags=re.MULTILINE))
        assert {name: float(number) for name, number in found.items()} == {
            "shown_wrongly": 1,
            "hidden_wrongly": 1,
            "unknown": 1,
            "accepted": 0,
            "contradictory": 0,
        }
        assert "certjob_portal_read_timestamp_seconds" in metrics


class TestAlerts:
    """What a reading leaves for people to do is in the one list."""

    def test_unknown_contacts_are_alerts_until_they_are_gone_or_accepted(
        self, connection: Connection, facts: Facts, portal: PortalServer, certjob: Certjob
    ) -> None:
        """The number and five of them; of a mentor of another organisation, who it is."""
        facts.mentor(facts.organisation("nhf", portal=None), contact_id=(theirs := uuid4()))
        portal.visible = dict.fromkeys([theirs, *(uuid4() for _ in range(6))], True)
        reconcile(connection, portal)

        page = certjob("alerts")
        documents = read_documents(connection, today=TODAY)["unknown_contacts"]

        assert page.returncode == 3
        assert page.stdout.count("certjob reconcile --accept") == 5
        assert "2 more; `certjob alerts --json` lists all" in page.stdout
        assert {each["contact_id"] for each in documents} == set(portal.visible)
        assert [each["organisation"] for each in documents if each["contact_id"] == theirs] == ["nhf"]
        for option in ("--dry-run", "--allow-mass-change"):  # neither has a meaning there, and a dry run writes nothing
            refused = certjob("reconcile", "--accept", str(theirs), "--because", "the office", option)
            assert refused.returncode == 2
            assert option in refused.stderr
        assert facts.rows("SELECT FROM portal_unknown_contacts WHERE accepted_at IS NOT NULL") == []
        for contact_id in list(portal.visible)[1:]:
            assert certjob("reconcile", "--accept", str(contact_id), "--because", "the office").returncode == 0
        portal.visible[theirs] = False
        reconcile(connection, portal)
        assert certjob("alerts").returncode == 0

    def test_held_shows_are_an_alert_until_a_reading_does_not_hold_them(
        self, connection: Connection, facts: Facts, portal: PortalServer, certjob: Certjob
    ) -> None:
        """With the command that lets them through."""
        contacts = mentors(facts, 21, slug="hlf")
        agreeing(connection, portal, contacts)
        portal.visible.clear()
        reconcile(connection, portal)

        (held,) = read_documents(connection, today=TODAY)["held"]
        page = certjob("alerts").stdout

        assert (held["what"], held["mentors"]) == ("portal", 21)
        assert held["command"] == "certjob reconcile --allow-mass-change"
        assert page.startswith("Held: hlf: 21 mentors would be shown again")
        reconcile(connection, portal, allow_mass_change=True)
        assert certjob("alerts").returncode == 0

    def test_held_shows_are_over_with_the_first_night_without_a_portal(
        self, connection: Connection, facts: Facts, portal: PortalServer, certjob: Certjob
    ) -> None:
        """The portal was given up: no reading will ever come to say that nothing is held."""
        agreeing(connection, portal, mentors(facts, 21, slug="hlf"))
        portal.visible.clear()
        reconcile(connection, portal)
        night(connection)
        assert certjob("alerts").returncode == 3

        connection.execute("UPDATE organisations SET portal = NULL")
        report = night(connection)

        assert report.outcome is Outcome.OK
        assert certjob("alerts").returncode == certjob("status", "-q").returncode == 0

    def test_a_contradiction_names_both_mentors_until_they_agree(
        self, connection: Connection, facts: Facts, portal: PortalServer, certjob: Certjob
    ) -> None:
        """Whether the portal is read again or not."""
        contact = uuid4()
        for slug, expires_on in (("hlf", EXPIRED), ("nhf", IN_FORCE)):
            facts.certified_mentor(facts.organisation(slug, thresholds=()), expires_on, contact_id=contact)
        agreeing(connection, portal, [contact])
        reconcile(connection, portal)

        page = certjob("alerts")

        assert page.returncode == 3
        assert f"contact {contact}, visible for nhf M1002, hidden for hlf M1001" in page.stdout
        connection.execute("UPDATE certificates SET expires_on = %s", (IN_FORCE,))
        night(connection, portal=portal)
        assert certjob("alerts").returncode == 0

    def test_a_reading_older_than_three_days_is_an_alert(
        self, connection: Connection, facts: Facts, portal: PortalServer, certjob: Certjob
    ) -> None:
        """Where the portal was ever read; and a run says so, too."""
        agreeing(connection, portal, mentors(facts, 1))
        assert certjob("alerts").returncode == 0
        reconcile(connection, portal)
        assert certjob("alerts").returncode == 0
        connection.execute("UPDATE portal_last_reading SET read_at = now() - interval '73 hours'")

        assert "run `certjob reconcile`" in certjob("alerts").stdout
        assert "1 portal was not read for three days; see `certjob alerts`" in night(connection, portal=portal).reasons


def test_the_next_digest_tells_of_a_hand_edit_that_was_put_right_and_only_the_next(
    connection: Connection, facts: Facts, portal: PortalServer
) -> None:
    """It is no alert, but coordinators should know that somebody edits the portal."""
    contacts = mentors(facts, 2, slug="hlf", expired=1)
    connection.execute(
        "INSERT INTO coordinators (organisation_id, email, locale)"
        " SELECT id, 'ola@hlf.example', 'en' FROM organisations"
    )
    agreeing(connection, portal, contacts)
    first = CollectingChannel()
    night(connection, portal=portal, channel=first)
    portal.visible = {contacts[0]: True, contacts[1]: False}
    assert reconcile(connection, portal).outcome is Outcome.OK

    channel = CollectingChannel()
    for days in (1, 2):
        night(connection, TODAY + timedelta(days=days), portal=portal, channel=channel)

    (text,) = [message.text for message in channel.sent if message.kind == "digest"]
    assert "Corrected on the portal (2)" in text
    assert "was visible, and is hidden again" in text
    assert "was hidden, and is visible again" in text
