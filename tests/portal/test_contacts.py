"""Whose contact it is may change at any moment: the right one is called for, and never two calls at once for one."""

from contextlib import ExitStack
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from certjob import database
from certjob.database import Connection
from certjob.errors import Outcome, PermanentPortalError, PortalCallError, TransientPortalError
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
def hlf(facts: Facts) -> UUID:
    """An organisation with a portal and without reminders."""
    return facts.organisation(thresholds=())


@pytest.fixture
def twins(connection: Connection, facts: Facts, hlf: UUID) -> list[UUID]:
    """Two mentors of two organisations with the same contact, for whom a show, and then a hide was queued."""
    contact = uuid4()
    mentors = [facts.mentor(of, contact_id=contact) for of in (hlf, facts.organisation("other", thresholds=()))]
    for mentor, visible in zip(mentors, (True, False), strict=True):
        queue_wish(connection, mentor, visible=visible)
    return mentors


def deliver(connection: Connection, portal: FlakyPortal | DisturbedPortal) -> RunReport:
    """The delivery half alone, as cron starts it between the nights."""
    ways_out = delivery(portal=portal)
    return nightly.deliver(connection, today=TODAY, delivery=ways_out, stop=StopFlag(), progress=NoProgress())


class TestCorrected:
    """The coordinator corrects a mentor's contact id."""

    @pytest.mark.parametrize("error", [PermanentPortalError("404"), TransientPortalError("503")])
    def test_an_open_push_goes_out_without_waiting_for_the_night(
        self, connection: Connection, facts: Facts, hlf: UUID, error: PortalCallError
    ) -> None:
        """Under another key: a portal that has seen the old one would do nothing for the new contact."""
        facts.certified_mentor(hlf, YESTERDAY)
        portal = FlakyPortal(failures=3, error=lambda: error)
        night(connection, portal=portal)
        portal.failures = 0
        corrected = uuid4()
        connection.execute("UPDATE mentors SET dynamics_contact_id = %s", (corrected,))

        deliver(connection, portal)

        assert portal.visible == {corrected: False}
        keys = {(contact == corrected, key) for contact, _, key in portal.calls}
        assert len(keys) == len({key for _, key in keys}) == 2

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
        queue_wish(connection, facts.mentor(hlf), visible=False)

        def correct() -> None:
            app.execute("UPDATE mentors SET dynamics_contact_id = %s", (uuid4(),))
            app.commit()

        with ExitStack() as correcting, other.transaction():
            events = claim(other)
            correcting.enter_context(in_background(correct))
            until(lambda: waits_for_a_lock(connection, app))

        push = Push(event=events[0], outcome=PushOutcome.DELIVERED)
        assert PortalSyncService(other, run_id=uuid4()).settle(push, PortalCounts()) is Answer.RAISED
        assert facts.rows("SELECT status, version FROM portal_sync_events") == [("pending", 2)]

    def test_one_that_the_app_has_under_way_does_not_hold_up_the_night(
        self, connection: Connection, facts: Facts, app: App
    ) -> None:
        """It begins during the call: everybody else is settled; this one keeps its lease and is pushed again."""
        contacts = backlog(facts, 5)

        def correct(number: int) -> None:
            if number == 2:
                new = "UPDATE mentors SET dynamics_contact_id = %s WHERE dynamics_contact_id = %s"
                app.execute(new, (uuid4(), contacts[1]))

        portal = DisturbedPortal(correct)

        report = deliver(connection, portal)

        assert report.to_document()["portal"]["delivered"] == 4
        assert report.outcome is not Outcome.FAILED
        app.commit()
        run_out(facts)
        deliver(connection, portal)
        assert facts.rows("SELECT DISTINCT status FROM portal_sync_events") == [("delivered",)]
        assert portal.overlaps == []


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
                for contact, mentor in ((None, first), (wrong, second), (right, first)):
                    other.execute("UPDATE mentors SET dynamics_contact_id = %s WHERE id = %s", (contact, mentor))
            night(other, portal=portal)
            message = "503"
            raise TransientPortalError(message)

        portal = DisturbedPortal(swap)

        deliver(connection, portal)
        deliver(connection, portal)

        assert portal.overlaps == []
        assert portal.visible == {wrong: False, right: True}

    @pytest.mark.parametrize("leaves", ["organisation", "mentor"])
    def test_away_and_back_waits_for_the_call_in_flight(
        self, connection: Connection, facts: Facts, other: Connection, hlf: UUID, leaves: str
    ) -> None:
        """The old event is withdrawn, but its call is not over; the new one's comes after it."""
        elsewhere = facts.organisation("nhf", portal=None, thresholds=())
        contact = uuid4()
        mentor = facts.certified_mentor(hlf, NEXT_YEAR, contact_id=contact)
        night(connection, portal=FlakyPortal())
        queue_wish(connection, mentor, visible=True)
        move, drop = (
            "UPDATE mentors SET organisation_id = %s",
            "UPDATE organisations SET portal = %s WHERE slug = 'hlf'",
        )
        statement, away, back = (move, elsewhere, hlf) if leaves == "mentor" else (drop, None, "dynamics")

        def away_and_back(number: int) -> None:
            if number > 1:
                return
            other.execute(statement.encode(), (away,))
            review(other)
            other.execute(statement.encode(), (back,))
            other.execute("UPDATE certificates SET expires_on = %s", (YESTERDAY,))
            night(other, portal=portal)
            message = "503"
            raise TransientPortalError(message)

        portal = DisturbedPortal(away_and_back)

        report = deliver(connection, portal)

        assert portal.overlaps == []
        assert portal.visible == {contact: False}
        assert report.to_document()["portal"]["lost"] == 0

    def test_a_call_whose_lease_is_over_is_not_waited_for(
        self, connection: Connection, other: Connection, facts: Facts, hlf: UUID
    ) -> None:
        """Its process is gone. A resync goes on, too."""
        contact = uuid4()
        first = facts.mentor(hlf, contact_id=contact)
        queue_wish(connection, first, visible=True)
        claim(connection)
        second = facts.mentor(hlf)
        connection.execute("UPDATE mentors SET dynamics_contact_id = NULL WHERE id = %s", (first,))
        connection.execute("UPDATE mentors SET dynamics_contact_id = %s WHERE id = %s", (contact, second))
        queue_wish(connection, second, visible=False)
        assert claim(connection) == []
        assert PortalSyncService(connection, run_id=uuid4()).claim_mentor(second) == []

        run_out(facts)
        with other.transaction(force_rollback=True):
            resynced = [PortalSyncService(other, run_id=uuid4()).claim_mentor(mentor) for mentor in (first, second)]
        events = claim(connection)

        assert all(resynced)
        assert second in {event.mentor_id for event in events}

    def test_nobody_is_deleted_while_a_call_may_be_under_way(
        self, connection: Connection, facts: Facts, hlf: UUID
    ) -> None:
        """With the mentor its lease would go, and the contact, entered anew, could be called for twice at once."""
        mentor = facts.mentor(hlf)
        queue_wish(connection, mentor, visible=True)
        claim(connection)
        connection.execute("UPDATE mentors SET organisation_id = %s", (facts.organisation("none", portal=None),))
        with database.transaction(connection):
            PortalSyncService(connection, run_id=uuid4()).withdraw([mentor])

        with pytest.raises(psycopg.errors.RestrictViolation, match="a call to the portal may be under way"):
            connection.execute("DELETE FROM mentors")

        run_out(facts)
        connection.execute("DELETE FROM mentors")

    def test_twins_take_turns_and_hold_up_nobody_behind_them(
        self, connection: Connection, facts: Facts, hlf: UUID, twins: list[UUID]
    ) -> None:
        """A claim takes one of them, and the hide first, although the show was queued before it."""
        behind = facts.mentor(hlf)
        queue_wish(connection, behind, visible=True)

        claimed = [
            [(event.mentor_id, event.visible) for event in claim(connection, limit=limit)] for limit in (1, 1, 9)
        ]

        assert claimed == [[(twins[1], False)], [(behind, True)], []]

    def test_twins_take_turns_also_between_runs_that_claim_at_the_same_moment(
        self, connection: Connection, other: Connection, facts: Facts, twins: list[UUID]
    ) -> None:
        """Neither sees yet what the other one writes; what is left waits until the call has ended."""
        with other.transaction():
            first = claim(other, limit=1)
            meanwhile = claim(connection)
        afterwards = claim(connection)
        run_out(facts)
        at_last = claim(connection)

        assert [len(events) for events in (first, meanwhile, afterwards, at_last)] == [1, 0, 0, 1]

    def test_a_call_that_began_while_the_event_was_looked_for_is_waited_for(
        self, connection: Connection, other: Connection, twins: list[UUID], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Another run's claim was committed after this one had looked, and before it kept the contact from others."""
        real = database.fetch

        def fetch(own: Connection, name: str, *arguments: Any, **named: Any) -> list[Any]:
            rows = real(own, name, *arguments, **named)
            if name == "lock_due_portal_events":
                other.execute(
                    "UPDATE portal_sync_events SET claim_token = gen_random_uuid(), next_attempt_at = now() + interval"
                    " '5 minutes', claim_contact_id = (SELECT max(dynamics_contact_id::text)::uuid FROM mentors)"
                    " WHERE mentor_id = %s",
                    (twins[0],),
                )
            return rows

        monkeypatch.setattr(database, "fetch", fetch)

        assert claim(connection, limit=1) == []

    def test_mentors_without_a_contact_do_not_wait_for_each_other(
        self, connection: Connection, facts: Facts, hlf: UUID
    ) -> None:
        """Nobody is called for them; one claim takes them all."""
        for _ in range(3):
            queue_wish(connection, facts.mentor(hlf, contact_id=None), visible=False)

        assert len(claim(connection)) == 3


def test_a_hide_withdrawn_because_the_mentor_moved_needs_a_person(
    connection: Connection, facts: Facts, hlf: UUID
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
