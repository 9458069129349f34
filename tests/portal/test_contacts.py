"""Whose contact it is may change at any moment: the right one is called for, and never two calls at once for one."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from certjob import database
from certjob.database import Connection
from certjob.errors import PermanentPortalError, PortalCallError, TransientPortalError
from certjob.outbox.claims import Answer
from certjob.portal.push import Push, PushOutcome
from certjob.portal.sync import PortalCounts, PortalSyncService
from tests.support.intents import claim, review
from tests.support.nights import FlakyPortal, in_background, night
from tests.support.scene import NEXT_YEAR, YESTERDAY, Scene
from tests.support.waiting import until, waits_for_a_lock

CORRECT = "UPDATE mentors SET dynamics_contact_id = %s"
CORRECT_ONE = f"{CORRECT} WHERE id = %s"
MOVE = "UPDATE mentors SET organisation_id = %s WHERE id = %s"
DROP = "UPDATE organisations SET portal = %s WHERE slug = 'hlf'"
EXPIRE = ("UPDATE certificates SET expires_on = %s", YESTERDAY)


@pytest.fixture
def twins(scene: Scene) -> list[UUID]:
    """Two mentors of two organisations with the same contact, for whom a show, and then a hide was queued."""
    contact, homes = uuid4(), (scene.hlf, scene.facts.organisation("other", thresholds=()))
    mentors = [scene.facts.mentor(home, contact_id=contact) for home in homes]
    for mentor, visible in zip(mentors, (True, False), strict=True):
        scene.wish(mentor, visible=visible)
    return mentors


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
    scene.wish(first, visible=True)
    scene.claim()
    scene.run_sql(CORRECT_ONE, None, first)
    scene.run_sql(CORRECT_ONE, contact, second)
    scene.wish(second, visible=False)
    assert (scene.claim(), scene.service.claim_mentor(second)) == ([], [])

    scene.run_out()
    with scene.other.transaction(force_rollback=True):
        resyncing = PortalSyncService(scene.other, run_id=uuid4())
        assert all(resyncing.claim_mentor(mentor) for mentor in (first, second))

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


def test_twins_take_turns_and_hold_up_nobody_behind_them(scene: Scene, twins: list[UUID]) -> None:
    """The hide first, although the show was queued before it. Who has no contact waits for nobody."""
    behind = scene.mentor()
    scene.wish(behind, visible=True)
    claims = [[(event.mentor_id, event.visible) for event in scene.claim(limit)] for limit in (1, 1, 9)]
    assert claims == [[(twins[1], False)], [(behind, True)], []]

    for _ in range(3):
        scene.wish(scene.mentor(contact_id=None), visible=False)
    assert len(scene.claim()) == 3


@pytest.mark.usefixtures("twins")
def test_twins_take_turns_between_runs_that_claim_at_once(scene: Scene) -> None:
    """Neither sees yet what the other one writes; what is left waits until the call has ended."""
    with scene.other.transaction():
        claimed = [claim(scene.other, limit=1), scene.claim()]
    claimed.append(scene.claim())
    scene.run_out()
    claimed.append(scene.claim())

    assert list(map(len, claimed)) == [1, 0, 0, 1]


def test_what_changes_while_the_event_is_looked_for_is_seen_by_the_claim(
    scene: Scene, twins: list[UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the two statements another run claims for the contact; or the first has read one that was corrected."""
    real = database.fetch
    happenings: list[Callable[[list[Any]], list[Any]]] = []

    def fetch(own: Connection, name: str, *arguments: Any, **named: Any) -> list[Any]:
        rows = real(own, name, *arguments, **named)
        return happenings.pop()(rows) if name == "lock_due_portal_events" and happenings else rows

    monkeypatch.setattr(database, "fetch", fetch)

    def other_claims(rows: list[Any]) -> list[Any]:
        scene.other.execute(
            "UPDATE portal_sync_events SET claim_token = gen_random_uuid(), next_attempt_at = now() + interval"
            " '5 minutes', claim_contact_id = (SELECT max(dynamics_contact_id::text)::uuid FROM mentors)"
            " WHERE mentor_id = %s",
            (twins[0],),
        )
        return rows

    happenings.append(other_claims)
    assert (scene.claim(limit=1), happenings) == ([], [])

    scene.run_sql("DELETE FROM portal_sync_events")
    scene.wish(twins[1], visible=False)
    happenings += [lambda rows: rows, lambda rows: [(row[0], uuid4()) for row in rows]]  # it looks again
    ((contact,),) = scene.rows("SELECT dynamics_contact_id FROM mentors WHERE id = %s", twins[1])
    assert [(event.contact_id, event.attempts) for event in scene.claim()] == [(contact, 1)]
    assert happenings == []
