"""Whose contact it is may change at any moment: the right one is called for, and never two calls at once for one."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from certjob import database
from certjob.database import Connection
from certjob.errors import PermanentPortalError, PortalCallError, TransientPortalError
from certjob.outbox.claims import Answer
from certjob.portal.push import Push, PushOutcome
from certjob.portal.sync import PortalCounts, PortalSyncService
from tests.support.facts import TODAY
from tests.support.nights import FlakyPortal, claim, in_background, night, review
from tests.support.scene import NEXT_YEAR, YESTERDAY, Scene
from tests.support.waiting import until, waits_for_a_lock

CORRECT = "UPDATE mentors SET dynamics_contact_id = %s"
CORRECT_ONE = f"{CORRECT} WHERE id = %s"
MOVE = "UPDATE mentors SET organisation_id = %s WHERE id = %s"
DROP = "UPDATE organisations SET portal = %s WHERE slug = 'hlf'"
EXPIRE = ("UPDATE certificates SET expires_on = %s", YESTERDAY)


@pytest.mark.parametrize("error", [PermanentPortalError("404"), TransientPortalError("503")])
def test_an_open_push_goes_out_without_waiting_for_the_night(scene: Scene, error: PortalCallError) -> None:
    """Under another key: a portal that has seen the old one would do nothing for the new contact."""
    scene.expired()
    portal = FlakyPortal(failures=99, error=lambda: error)
    scene.night(portal)
    portal.failures = 0
    corrected = uuid4()
    scene.run_sql(CORRECT, corrected)

    scene.deliver(portal)

    assert portal.visible == {corrected: False}
    keys = {(contact == corrected, key) for contact, _, key in portal.calls}
    assert len(keys) == len({key for _, key in keys}) == 2


def test_a_claim_never_pairs_the_new_wish_with_the_old_contact(scene: Scene) -> None:
    """While the correction is not committed the claim passes the event by; then it reads the new contact."""
    scene.hidden()
    corrected = uuid4()
    scene.app.execute(CORRECT, (corrected,))

    assert claim(scene.other) == []
    scene.app.commit()

    assert [(event.version, event.contact_id) for event in claim(scene.other)] == [(2, corrected)]


def test_a_correction_waits_for_a_claim_and_is_not_lost(scene: Scene) -> None:
    """The claim has just locked the event, and calls for the old contact; the correction raises the version."""
    scene.hidden()
    app = scene.app

    def correct() -> None:
        app.execute(CORRECT, (uuid4(),))
        app.commit()

    with ExitStack() as correcting, scene.other.transaction():
        (event,) = claim(scene.other)
        correcting.enter_context(in_background(correct))
        until(lambda: waits_for_a_lock(scene.connection, app))

    push = Push(event=event, outcome=PushOutcome.DELIVERED)
    assert scene.service.settle(push, PortalCounts()) is Answer.RAISED
    assert scene.rows("SELECT status, version FROM portal_sync_events") == [("pending", 2)]


@pytest.mark.parametrize("what", ["ids are swapped", "the organisation is away", "the mentor is away"])
def test_whoever_has_the_contact_by_then_waits_for_the_call_in_flight(scene: Scene, what: str) -> None:
    """A show is in flight and flaky, its event may be withdrawn; the hide comes after it, and nothing is lost."""
    elsewhere, contact = scene.facts.organisation("nhf", portal=None, thresholds=()), uuid4()
    first = scene.facts.certified_mentor(scene.hlf, NEXT_YEAR, contact_id=contact)
    second = scene.expired()
    scene.night(FlakyPortal())
    scene.wish(first, visible=True)
    changes: dict[str, list[list[tuple[Any, ...]]]] = {
        "ids are swapped": [
            [(CORRECT_ONE, None, first), (CORRECT_ONE, contact, second), (CORRECT_ONE, uuid4(), first)]
        ],
        "the organisation is away": [[(DROP, None)], [(DROP, "dynamics"), EXPIRE]],
        "the mentor is away": [[(MOVE, elsewhere, first)], [(MOVE, scene.hlf, first), EXPIRE]],
    }

    def change(number: int) -> Exception | None:
        if number > 1:
            return None
        for together in changes[what]:
            with scene.other.transaction():
                for statement, *values in together:
                    scene.other.execute(statement.encode(), values)
            review(scene.other)
        night(scene.other, portal=portal)
        return TransientPortalError("reset")

    portal = FlakyPortal(change)

    reports = [scene.deliver(portal) for _ in range(2)]

    assert (portal.overlaps, portal.visible[contact]) == ([], False)
    assert [report.portal.lost for report in reports] == [0, 0]


def test_a_call_whose_lease_is_over_is_not_waited_for(scene: Scene) -> None:
    """Its process is gone. A resync goes on, too."""
    contact = uuid4()
    first, second = scene.mentor(contact_id=contact), scene.mentor()
    scene.wish(first, visible=False)
    scene.claim()
    scene.run_sql(CORRECT_ONE, None, first)
    scene.run_sql(CORRECT_ONE, contact, second)
    scene.wish(second, visible=False)
    assert (scene.claim(), scene.service.claim_mentor(second, today=TODAY)) == ([], [])

    scene.run_out()
    with scene.other.transaction(force_rollback=True):
        resyncing = PortalSyncService(scene.other, run_id=uuid4())
        assert all(resyncing.claim_mentor(mentor, today=TODAY) for mentor in (second, first))

    assert second in {event.mentor_id for event in scene.claim()}


def test_nobody_is_deleted_while_a_call_may_be_under_way(scene: Scene) -> None:
    """With the mentor its lease would go, and the contact, entered anew, could be called for twice at once."""
    mentor = scene.hidden()
    scene.claim()
    scene.run_sql("UPDATE mentors SET organisation_id = %s", scene.facts.organisation("none", portal=None))
    with database.transaction(scene.connection):
        scene.service.withdraw([mentor])

    with pytest.raises(psycopg.errors.RestrictViolation, match="a call to the portal may be under way"):
        scene.run_sql("DELETE FROM mentors")

    scene.run_out()
    scene.run_sql("DELETE FROM mentors")


def test_mentor_without_a_contact_waits_for_no_call(scene: Scene) -> None:
    """Their pushes are blocked without a call, all at once."""
    for _ in range(3):
        scene.wish(scene.mentor(contact_id=None), visible=False)

    assert len(scene.claim()) == 3


def test_claim_asks_again_about_a_contact_corrected_meanwhile(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its two statements the mentor gets a contact for which a call is in flight: it looks again later."""
    first, second = scene.mentor(), scene.mentor()
    contact = scene.rows("SELECT dynamics_contact_id FROM mentors WHERE id = %s", first)[0][0]
    scene.wish(first, visible=True)
    assert len(scene.claim()) == 1
    scene.wish(second, visible=False)
    real = database.fetch
    happenings: list[Callable[[], None]] = []

    def fetch(own: Connection, name: str, *arguments: Any, **named: Any) -> list[Any]:
        rows = real(own, name, *arguments, **named)
        if name == "lock_due_portal_events" and happenings:
            happenings.pop()()
        return rows

    def correct() -> None:
        scene.run_sql("ALTER TABLE mentors DISABLE TRIGGER USER")  # the trigger would wait for the claim
        scene.run_sql(CORRECT_ONE, None, first)
        scene.run_sql(CORRECT_ONE, contact, second)
        scene.run_sql("ALTER TABLE mentors ENABLE TRIGGER USER")

    monkeypatch.setattr(database, "fetch", fetch)
    happenings.append(correct)

    assert (claim(scene.other), happenings) == ([], [])
    scene.run_out()
    assert (second, contact) in [(event.mentor_id, event.contact_id) for event in claim(scene.other)]


def test_contact_belongs_to_one_mentor(scene: Scene) -> None:
    """Also across organisations. Two contact IDs can be swapped in one statement, or in one transaction."""
    elsewhere = scene.facts.organisation("other")
    first, second = uuid4(), uuid4()
    mine, theirs = scene.mentor(contact_id=first), scene.facts.mentor(elsewhere, contact_id=second)
    with pytest.raises(psycopg.errors.UniqueViolation, match="mentors_dynamics_contact_id_key"):
        scene.run_sql(CORRECT_ONE, second, mine)

    swap = "UPDATE mentors SET dynamics_contact_id = CASE id WHEN %s THEN %s ELSE %s END::uuid"
    scene.run_sql(swap, mine, second, first)
    with scene.connection.transaction():
        scene.run_sql("SET CONSTRAINTS mentors_dynamics_contact_id_key DEFERRED")
        scene.run_sql(CORRECT_ONE, first, mine)
        scene.run_sql(CORRECT_ONE, second, theirs)

    assert scene.rows("SELECT id, dynamics_contact_id FROM mentors ORDER BY id") == sorted(
        [(mine, first), (theirs, second)]
    )


def test_removed_contact_that_is_hidden_needs_no_push(scene: Scene) -> None:
    """The portal has confirmed the hide; the mentor can be deleted."""
    mentor, portal = scene.expired(), FlakyPortal()
    scene.night(portal)
    scene.run_sql(CORRECT_ONE, None, mentor)

    assert scene.night(portal).outcome == "ok"

    assert portal.values == [False]
    scene.run_sql("DELETE FROM mentors WHERE id = %s", mentor)


def test_removed_contact_that_may_be_visible_is_an_alert(scene: Scene) -> None:
    """Until another mentor has the contact, or someone acknowledges the alert."""
    first, second, portal = scene.certified(), scene.certified(contact_id=None), FlakyPortal()
    scene.run_sql("UPDATE mentors SET portal_visible = NULL WHERE id = %s", first)
    scene.night(portal)
    ((contact,),) = scene.rows("SELECT dynamics_contact_id FROM mentors WHERE id = %s", first)
    alerts = "SELECT cause FROM alerts WHERE kind = 'may_be_visible'"

    scene.run_sql("UPDATE mentors SET dynamics_contact_id = NULL, left_at = now() WHERE id = %s", first)
    scene.night(portal)
    assert scene.rows(alerts) == [("no_contact_id",)]
    scene.run_sql(CORRECT_ONE, contact, second)
    scene.night(portal)

    assert scene.rows(alerts) == []
    assert portal.visible == {contact: True}
