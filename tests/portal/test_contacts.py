"""Whose contact it is may change at any moment: the right one is called for, and never two calls at once for one."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from certjob import database
from certjob.database import Connection
from certjob.errors import Outcome, PermanentPortalError, TransientPortalError
from certjob.night import nightly
from certjob.night.report import RunReport
from certjob.outbox.claims import Answer
from certjob.portal.push import Push, PushOutcome
from certjob.portal.sync import PortalCounts, PortalSyncService
from certjob.stopping import StopFlag
from tests.support.facts import TODAY, Facts
from tests.support.intents import DisturbedPortal, backlog, claim, make_due, queue_wish, review, run_out
from tests.support.nights import CollectingChannel, FlakyPortal, NoProgress, delivery, in_background, night
from tests.support.waiting import until, waits_for_a_lock

App = psycopg.Connection[tuple[object, ...]]
YESTERDAY = TODAY - timedelta(days=1)
NEXT_YEAR = TODAY + timedelta(days=365)


@pytest.fixture
def other(database_url: str) -> Iterator[Connection]:
    """The connection of another run."""
    with database.connect(database_url) as connection:
        yield connection


@pytest.fixture
def hlf(facts: Facts) -> UUID:
    """An organisation with a portal and without reminders."""
    return facts.organisation(thresholds=())


def deliver(connection: Connection, portal: FlakyPortal | DisturbedPortal) -> RunReport:
    """The delivery half alone, as cron starts it between the nights."""
    return nightly.deliver(
        connection,
        today=TODAY,
        delivery=delivery(portal=portal),
        stop=StopFlag(),
        progress=NoProgress(),
    )


def expire(session: Connection) -> None:
    session.execute("UPDATE certificates SET expires_on = %s", (YESTERDAY,))


class TestCorrected:
    """The coordinator corrects a mentor's contact id."""

    def test_a_blocked_push_goes_out_without_waiting_for_the_night(
        self, connection: Connection, facts: Facts, hlf: UUID
    ) -> None:
        """The correction reopens it; the job between the nights pushes it."""
        facts.certified_mentor(hlf, YESTERDAY)
        refused = FlakyPortal(failures=1, error=lambda: PermanentPortalError("404 contact_not_found"))
        night(connection, portal=refused)
        corrected = uuid4()
        connection.execute("UPDATE mentors SET dynamics_contact_id = %s", (corrected,))
        portal = FlakyPortal()

        deliver(connection, portal)

        assert portal.visible == {corrected: False}

    def test_a_call_in_flight_for_the_old_one_does_not_settle_it(
        self, connection: Connection, facts: Facts, other: Connection, hlf: UUID
    ) -> None:
        """The other contact gets the value in the same run, under a key of its own."""
        facts.certified_mentor(hlf, YESTERDAY)
        corrected = uuid4()

        def correct(number: int) -> None:
            if number == 1:
                other.execute("UPDATE mentors SET dynamics_contact_id = %s", (corrected,))

        portal = DisturbedPortal(correct)

        night(connection, portal=portal)

        assert portal.visible[corrected] is False
        (_, _, first), (_, _, second) = portal.calls
        assert first != second

    def test_an_older_key_is_not_used_for_another_contact(
        self, connection: Connection, facts: Facts, hlf: UUID
    ) -> None:
        """A portal that has seen the key would do nothing for the new contact."""
        facts.certified_mentor(hlf, YESTERDAY)
        portal = FlakyPortal(failures=3)
        night(connection, portal=portal)
        connection.execute("UPDATE mentors SET dynamics_contact_id = %s", (uuid4(),))

        deliver(connection, portal)

        contacts: dict[str, set[UUID]] = {}
        for contact, _, key in portal.calls:
            contacts.setdefault(key, set()).add(contact)
        assert [len(of_key) for of_key in contacts.values()] == [1, 1]

    def test_a_removed_one_blocks_the_push(self, connection: Connection, facts: Facts, hlf: UUID) -> None:
        """There is nobody to call for; it is an alert until somebody acts."""
        facts.certified_mentor(hlf, YESTERDAY)
        night(connection, portal=FlakyPortal(failures=99))
        connection.execute("UPDATE mentors SET dynamics_contact_id = NULL")
        make_due(facts)
        portal = FlakyPortal()

        deliver(connection, portal)

        assert portal.calls == []
        assert facts.rows("SELECT status FROM portal_sync_events") == [("blocked",)]
        assert facts.rows("SELECT count(*) FROM portal_alerts") == [(1,)]

    def test_a_claim_never_pairs_the_new_wish_with_the_old_contact(
        self, connection: Connection, facts: Facts, other: Connection, app: App, hlf: UUID
    ) -> None:
        """While the correction is not committed the claim passes the event by; then it reads the new contact."""
        mentor = facts.mentor(hlf)
        corrected = uuid4()
        queue_wish(connection, mentor, visible=False)
        app.execute("UPDATE mentors SET dynamics_contact_id = %s WHERE id = %s", (corrected, mentor))

        meanwhile = claim(other)
        app.commit()
        events = claim(other)

        assert meanwhile == []
        assert [(event.version, event.contact_id) for event in events] == [(2, corrected)]

    def test_a_claim_calls_only_for_the_contact_that_it_keeps_from_others(
        self, connection: Connection, facts: Facts, hlf: UUID, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its first statement has read one that was corrected before it got the event: it looks again."""
        contact = uuid4()
        queue_wish(connection, facts.mentor(hlf, contact_id=contact), visible=False)
        real, locks = database.fetch, 0

        def fetch(own: Connection, name: str, *arguments: Any, **named: Any) -> list[Any]:
            nonlocal locks
            rows = real(own, name, *arguments, **named)
            if name != "lock_due_portal_events":
                return rows
            locks += 1
            return [(row[0], uuid4() if locks == 1 else row[1]) for row in rows]

        monkeypatch.setattr(database, "fetch", fetch)

        events = claim(connection)

        assert [(event.contact_id, event.attempts) for event in events] == [(contact, 1)]
        assert locks == 2

    def test_a_correction_waits_for_a_claim_and_is_not_lost(
        self, connection: Connection, facts: Facts, other: Connection, app: App, hlf: UUID
    ) -> None:
        """The claim has just locked the event, and calls for the old contact; the correction raises the version."""
        mentor = facts.mentor(hlf)
        queue_wish(connection, mentor, visible=False)

        def correct() -> None:
            app.execute("UPDATE mentors SET dynamics_contact_id = %s", (uuid4(),))
            app.commit()

        with other.transaction():
            events = claim(other)
            correcting = in_background(correct)
            correcting.__enter__()
            until(lambda: waits_for_a_lock(connection, app))
        correcting.__exit__(None, None, None)

        answer = PortalSyncService(other, run_id=uuid4()).settle(
            Push(event=events[0], outcome=PushOutcome.DELIVERED), PortalCounts()
        )

        assert answer is Answer.RAISED
        assert facts.rows("SELECT status, version FROM portal_sync_events") == [("pending", 2)]


class TestHeldByTheApp:
    """The app has a correction under way and takes its time to commit; it holds the mentor and the event."""

    def test_one_correction_does_not_hold_up_the_night(
        self,
        connection: Connection,
        facts: Facts,
        app: App,
        other: Connection,
        hlf: UUID,
    ) -> None:
        """It begins during the call: everybody else is settled; this one keeps its lease and is pushed again."""
        contacts = backlog(facts, 5)

        def correct(number: int) -> None:
            if number == 2:
                app.execute(
                    "UPDATE mentors SET dynamics_contact_id = %s WHERE dynamics_contact_id = %s", (uuid4(), contacts[1])
                )

        portal = DisturbedPortal(correct)

        report = deliver(connection, portal)

        assert report.portal is not None
        assert report.portal.delivered == 4
        assert report.outcome is not Outcome.FAILED
        app.commit()
        run_out(facts)
        deliver(connection, portal)
        assert facts.rows("SELECT DISTINCT status FROM portal_sync_events") == [("delivered",)]
        assert portal.overlaps == []

    def test_everything_else_is_reopened(self, connection: Connection, facts: Facts, app: App, hlf: UUID) -> None:
        """alerts --retry-all waits for nobody, and says what it did not reach."""
        contacts = backlog(facts, 5)
        connection.execute("UPDATE portal_sync_events SET status = 'blocked'")
        app.execute("UPDATE mentors SET member_no = member_no WHERE dynamics_contact_id = %s", (contacts[1],))
        app.execute("SELECT FROM portal_sync_events ORDER BY id LIMIT 1 FOR UPDATE")
        portal = DisturbedPortal()

        report = nightly.retry_all(
            connection, today=TODAY, delivery=delivery(portal=portal), stop=StopFlag(), progress=NoProgress()
        )

        assert len(portal.calls) == 4
        assert (report.reopened, report.unreached) == (4, 1)
        assert "1 reopened push was not reached" in report.reasons


class TestOneCallPerContact:
    """Whichever event, whichever mentor: what must not overlap are calls for one contact."""

    def test_swapped_ids_wait_for_the_call_in_flight(
        self, connection: Connection, facts: Facts, other: Connection, hlf: UUID
    ) -> None:
        """A show for the wrong mentor is in flight and flaky; the right one, who is expired, is hidden after it."""
        wrong, right = uuid4(), uuid4()
        first = facts.certified_mentor(hlf, NEXT_YEAR, contact_id=wrong)
        second = facts.certified_mentor(hlf, YESTERDAY, contact_id=right)
        night(connection, portal=FlakyPortal())
        queue_wish(connection, first, visible=True)

        def swap(number: int) -> None:
            if number > 1:
                return
            with other.transaction():
                other.execute("UPDATE mentors SET dynamics_contact_id = NULL WHERE id = %s", (first,))
                other.execute("UPDATE mentors SET dynamics_contact_id = %s WHERE id = %s", (wrong, second))
                other.execute("UPDATE mentors SET dynamics_contact_id = %s WHERE id = %s", (right, first))
            night(other, portal=portal)
            message = "503"
            raise TransientPortalError(message)

        portal = DisturbedPortal(swap)

        deliver(connection, portal)
        deliver(connection, portal)

        assert portal.overlaps == []
        assert portal.visible == {wrong: False, right: True}

    @pytest.mark.parametrize("way", ["the organisation leaves the portal", "the mentor moves"])
    def test_away_and_back_waits_for_the_call_in_flight(
        self, connection: Connection, facts: Facts, other: Connection, hlf: UUID, way: str
    ) -> None:
        """The old event is withdrawn, but its call is not over; the new one's comes after it."""
        elsewhere = facts.organisation("nhf", portal=None, thresholds=())
        contact = uuid4()
        mentor = facts.certified_mentor(hlf, NEXT_YEAR, contact_id=contact)
        night(connection, portal=FlakyPortal())
        queue_wish(connection, mentor, visible=True)

        def away_and_back(number: int) -> None:
            if number > 1:
                return
            if way == "the mentor moves":
                other.execute("UPDATE mentors SET organisation_id = %s", (elsewhere,))
            else:
                other.execute("UPDATE organisations SET portal = NULL")
            review(other)
            if way == "the mentor moves":
                other.execute("UPDATE mentors SET organisation_id = %s", (hlf,))
            else:
                other.execute("UPDATE organisations SET portal = 'dynamics' WHERE slug = 'hlf'")
            expire(other)
            night(other, portal=portal)
            message = "503"
            raise TransientPortalError(message)

        portal = DisturbedPortal(away_and_back)

        report = deliver(connection, portal)

        assert portal.overlaps == []
        assert portal.visible == {contact: False}
        assert report.portal is not None
        assert report.portal.lost == 0

    def test_a_call_whose_lease_is_over_is_not_waited_for(
        self, connection: Connection, other: Connection, facts: Facts, hlf: UUID
    ) -> None:
        """Its process is gone. A resync goes on, too."""
        contact = uuid4()
        first = facts.mentor(hlf, contact_id=contact)
        queue_wish(connection, first, visible=True)
        service = PortalSyncService(connection, run_id=uuid4())
        claim(connection)
        second = facts.mentor(hlf)
        connection.execute("UPDATE mentors SET dynamics_contact_id = NULL WHERE id = %s", (first,))
        connection.execute("UPDATE mentors SET dynamics_contact_id = %s WHERE id = %s", (contact, second))
        queue_wish(connection, second, visible=False)
        assert claim(connection) == []
        assert service.claim_mentor(second) == []

        connection.execute(
            "UPDATE portal_sync_events SET next_attempt_at = now() - interval '1 second' WHERE claim_token IS NOT NULL"
        )
        with other.transaction(force_rollback=True):
            resynced = [PortalSyncService(other, run_id=uuid4()).claim_mentor(mentor) for mentor in (first, second)]
        events = claim(connection)

        assert all(resynced)
        assert second in {event.mentor_id for event in events}

    def test_nobody_is_deleted_while_a_call_may_be_under_way(
        self, connection: Connection, facts: Facts, hlf: UUID
    ) -> None:
        """With the mentor its lease would go, and the contact, entered anew, could be called for twice at once."""
        mentor = facts.mentor(hlf, contact_id=uuid4())
        queue_wish(connection, mentor, visible=True)
        service = PortalSyncService(connection, run_id=uuid4())
        claim(connection)
        connection.execute("UPDATE mentors SET organisation_id = %s", (facts.organisation("none", portal=None),))
        with database.transaction(connection):
            service.withdraw([mentor])

        with pytest.raises(psycopg.errors.RestrictViolation, match="a call to the portal may be under way"):
            connection.execute("DELETE FROM mentors")

        run_out(facts)
        connection.execute("DELETE FROM mentors")

    def test_two_organisations_with_the_same_contact_take_turns(
        self, connection: Connection, facts: Facts, hlf: UUID
    ) -> None:
        """A claim takes one of them."""
        contact = uuid4()
        for organisation in (hlf, facts.organisation("other", thresholds=())):
            queue_wish(connection, facts.mentor(organisation, contact_id=contact), visible=False)

        events = claim(connection)

        assert len(events) == 1

    def test_whoever_waits_for_a_call_does_not_hold_up_those_behind(
        self, connection: Connection, facts: Facts, hlf: UUID
    ) -> None:
        """A claim of one passes them by."""
        contact = uuid4()
        for organisation in (hlf, facts.organisation("other", thresholds=())):
            queue_wish(connection, facts.mentor(organisation, contact_id=contact), visible=False)
        behind = facts.mentor(hlf)
        queue_wish(connection, behind, visible=True)
        claim(connection, limit=1)

        events = claim(connection, limit=1)

        assert [event.mentor_id for event in events] == [behind]

    def test_of_two_organisations_with_the_same_contact_the_hide_goes_first(
        self, connection: Connection, facts: Facts, hlf: UUID
    ) -> None:
        """Also when the other one's show was queued before it."""
        contact = uuid4()
        for organisation, visible in ((hlf, True), (facts.organisation("other", thresholds=()), False)):
            queue_wish(connection, facts.mentor(organisation, contact_id=contact), visible=visible)

        events = claim(connection)

        assert [event.visible for event in events] == [False]

    def test_they_take_turns_also_between_runs_that_claim_at_the_same_moment(
        self, connection: Connection, other: Connection, facts: Facts, hlf: UUID
    ) -> None:
        """Neither sees yet what the other one writes; what is left waits until the call has ended."""
        contact = uuid4()
        for organisation in (hlf, facts.organisation("other", thresholds=())):
            queue_wish(connection, facts.mentor(organisation, contact_id=contact), visible=False)

        with other.transaction():
            first = claim(other, limit=1)
            meanwhile = claim(connection)
        afterwards = claim(connection)
        run_out(facts)
        at_last = claim(connection)

        assert [len(events) for events in (first, meanwhile, afterwards, at_last)] == [1, 0, 0, 1]

    def test_a_call_that_began_while_the_event_was_looked_for_is_waited_for(
        self, connection: Connection, other: Connection, facts: Facts, hlf: UUID, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Another run's claim was committed after this one had looked, and before it kept the contact from others."""
        contact = uuid4()
        mentors = [facts.mentor(of, contact_id=contact) for of in (hlf, facts.organisation("other", thresholds=()))]
        for mentor in mentors:
            queue_wish(connection, mentor, visible=False)
        real = database.fetch

        def fetch(own: Connection, name: str, *arguments: Any, **named: Any) -> list[Any]:
            rows = real(own, name, *arguments, **named)
            if name == "lock_due_portal_events":
                other.execute(
                    "UPDATE portal_sync_events SET claim_token = gen_random_uuid(), claim_contact_id = %s,"
                    " next_attempt_at = now() + interval '5 minutes' WHERE mentor_id = %s",
                    (contact, mentors[1]),
                )
            return rows

        monkeypatch.setattr(database, "fetch", fetch)

        events = claim(connection, limit=1)

        assert events == []

    def test_mentors_without_a_contact_do_not_wait_for_each_other(
        self, connection: Connection, facts: Facts, hlf: UUID
    ) -> None:
        """Nobody is called for them; one claim takes them all."""
        for _ in range(3):
            queue_wish(connection, facts.mentor(hlf, contact_id=None), visible=False)

        events = claim(connection)

        assert len(events) == 3


class TestMoved:
    """A mentor moves to an organisation without a portal."""

    def test_an_open_hide_that_is_withdrawn_needs_a_person(
        self, connection: Connection, facts: Facts, hlf: UUID
    ) -> None:
        """The portal of the organisation they came from may go on showing them; nobody will call for them any more."""
        elsewhere = facts.organisation("nhf", portal=None, thresholds=())
        mentor = facts.certified_mentor(hlf, YESTERDAY)
        night(connection, portal=FlakyPortal(failures=99))
        connection.execute("UPDATE mentors SET organisation_id = %s", (elsewhere,))

        report = night(connection, portal=FlakyPortal(), channel=CollectingChannel())

        assert report.outcome is Outcome.ATTENTION
        (reason,) = report.reasons
        assert reason.startswith("1 mentor may stay visible")
        assert str(mentor) in reason
        assert [problem["mentor_id"] for problem in report.to_document()["problems"]] == [str(mentor)]
