"""A push goes to the contact that the mentor has at that moment, and a contact never gets two calls at once."""

from contextlib import ExitStack
from uuid import uuid4

import psycopg
import pytest

from certjob import database
from certjob.outbox.claims import Answer
from certjob.portal.push import Push, PushOutcome
from certjob.portal.sync import PortalCounts, PortalSyncService
from tests.support.facts import TODAY
from tests.support.nights import claim, in_background, night
from tests.support.portal_answers import Behaviour, during, error, ok
from tests.support.scene import Scene
from tests.support.waiting import until, waits_for_a_lock

DOWN = error(503, "dynamics_unavailable")
CORRECT_ALL = "UPDATE mentors SET dynamics_contact_id = %s"
CORRECT = f"{CORRECT_ALL} WHERE id = %s"


def test_run_shows_a_new_mentor_with_a_contact(scene: Scene) -> None:
    """The state of a new contact is unknown, so it is pushed. Without a contact, no one can be shown."""
    contact = uuid4()
    with_contact = scene.certified(contact_id=contact, portal_visible=None)
    scene.certified(contact_id=None, portal_visible=None)

    report = scene.night(scene.portal)

    assert (scene.portal.visible, report.reasons) == ({contact: True}, [])
    assert scene.rows("SELECT mentor_id FROM portal_sync_events") == [(with_contact,)]


@pytest.mark.parametrize("answer", [error(404, "contact_not_found"), DOWN], ids=["blocked", "failed"])
def test_open_push_goes_to_a_corrected_contact_at_once(scene: Scene, answer: Behaviour) -> None:
    """It has another key, because a portal that knows the old key might ignore the push."""
    scene.expired()
    scene.portal.default = answer
    scene.night(scene.portal)
    scene.portal.default = ok()
    corrected = uuid4()
    scene.run_sql(CORRECT_ALL, corrected)

    scene.deliver(scene.portal)

    assert scene.portal.visible == {corrected: False}
    *earlier_keys, key = [push.idempotency_key for push in scene.portal.pushes]
    assert key not in earlier_keys


def test_claim_waits_for_the_commit_of_a_correction(scene: Scene) -> None:
    """It never pairs the new version with the old contact."""
    scene.hidden()
    corrected = uuid4()
    scene.app.execute(CORRECT_ALL, (corrected,))

    assert claim(scene.other) == []
    scene.app.commit()

    assert [(event.version, event.contact_id) for event in claim(scene.other)] == [(2, corrected)]


def test_correction_during_a_claim_is_not_lost(scene: Scene) -> None:
    """It waits for the claim, and raises the version: the call to the old contact settles nothing."""
    scene.hidden()
    app = scene.app

    def correct() -> None:
        app.execute(CORRECT_ALL, (uuid4(),))
        app.commit()

    with ExitStack() as correcting, scene.other.transaction():
        (event,) = claim(scene.other)
        correcting.enter_context(in_background(correct))
        until(lambda: waits_for_a_lock(scene.connection, app))

    push = Push(event=event, outcome=PushOutcome.DELIVERED)
    assert scene.service.settle(push, PortalCounts()) is Answer.RAISED
    assert scene.rows("SELECT status, version FROM portal_sync_events") == [("pending", 2)]


@pytest.mark.parametrize("is_killed", [False, True])
def test_contact_replaced_during_its_show_is_an_alert(scene: Scene, is_killed: bool) -> None:
    """The portal may show it, and it belongs to no mentor now. After a kill, the outcome is unknown."""
    mentor = scene.certified(contact_id=(contact := uuid4()))
    scene.queue(mentor, visible=True)
    (event,) = scene.claim()
    if is_killed:
        scene.expire_leases()

    scene.run_sql(CORRECT_ALL, uuid4())
    if not is_killed:
        scene.service.settle(Push(event=event, outcome=PushOutcome.DELIVERED), PortalCounts())

    ((alert_id,),) = scene.rows("SELECT alert_id FROM current_alerts(current_date)")
    assert alert_id.startswith(f"all:unknown_contacts:{contact}:")


def test_contact_with_a_call_in_flight_gets_no_second_call(scene: Scene) -> None:
    """During a show, the contact moves to a mentor who must be hidden. The hide comes after the show."""
    first, second = scene.certified(contact_id=(contact := uuid4())), scene.expired()
    scene.night(scene.portal)
    scene.queue(first, visible=True)

    def move_and_run() -> None:
        move = "UPDATE mentors SET dynamics_contact_id = CASE id WHEN %s THEN %s ELSE %s END"
        scene.other.execute(move, (second, contact, uuid4()))
        night(scene.other, portal=scene.portal)

    scene.portal.then(during(move_and_run, DOWN))

    reports = [scene.deliver(scene.portal) for _ in range(2)]

    assert (scene.portal.overlaps, scene.portal.visible[contact]) == ([], False)
    assert [report.portal.lost for report in reports] == [0, 0]


def test_contact_is_free_when_the_lease_of_its_call_has_expired(scene: Scene) -> None:
    """The process of the call has died. This applies to a stage and to a resync."""
    contact = uuid4()
    first, second = scene.mentor(contact_id=contact), scene.mentor()
    scene.queue(first, visible=False)
    scene.claim()
    scene.run_sql(CORRECT, None, first)
    scene.run_sql(CORRECT, contact, second)
    scene.queue(second, visible=False)
    assert (scene.claim(), scene.service.claim_mentor(second, today=TODAY)) == ([], [])

    scene.expire_leases()

    with scene.other.transaction(force_rollback=True):
        assert PortalSyncService(scene.other, run_id=uuid4()).claim_mentor(second, today=TODAY)
    assert second in {event.mentor_id for event in scene.claim()}


def test_mentor_is_not_deleted_while_a_call_may_be_in_flight(scene: Scene) -> None:
    """The lease would be deleted with the mentor, and the same contact could get a second call."""
    scene.queue(scene.mentor(), visible=True)
    scene.claim()
    scene.run_sql("UPDATE organisations SET portal = NULL")
    scene.run_sql("UPDATE portal_sync_events SET status = 'withdrawn'")

    with pytest.raises(psycopg.errors.RestrictViolation, match="a call to the portal may be under way"):
        scene.run_sql("DELETE FROM mentors")

    scene.expire_leases()
    with pytest.raises(psycopg.errors.RestrictViolation, match="may still be shown on the portal"):
        scene.run_sql("DELETE FROM mentors")


def test_removed_contact_that_is_hidden_needs_no_push(scene: Scene) -> None:
    """The portal has confirmed the hide, so the mentor can be deleted."""
    mentor = scene.expired()
    scene.night(scene.portal)
    scene.run_sql(CORRECT, None, mentor)

    assert scene.night(scene.portal).outcome == "ok"

    assert scene.portal.values == [False]
    scene.run_sql("DELETE FROM mentors WHERE id = %s", mentor)


def test_removed_contact_that_may_be_visible_is_an_alert(scene: Scene) -> None:
    """The alert ends when another mentor has the contact."""
    contact, alerts = uuid4(), "SELECT cause FROM alerts WHERE kind = 'may_be_visible'"
    first, second = scene.certified(contact_id=contact), scene.certified(contact_id=None)
    scene.run_sql("UPDATE mentors SET portal_visible = NULL WHERE id = %s", first)
    scene.night(scene.portal)

    scene.run_sql("UPDATE mentors SET dynamics_contact_id = NULL, left_at = now() WHERE id = %s", first)
    scene.night(scene.portal)
    assert scene.rows(alerts) == [("no_contact_id",)]
    scene.run_sql(CORRECT, contact, second)
    scene.night(scene.portal)

    assert scene.rows(alerts) == []
    assert scene.portal.visible == {contact: True}


def test_removed_contact_that_a_mentor_without_a_portal_has_is_an_alert(scene: Scene) -> None:
    """No push would ever reach it through that organisation. So the first mentor cannot be deleted either."""
    contact = uuid4()
    first = scene.certified(contact_id=contact, portal_visible=None)
    scene.night(scene.portal)
    scene.run_sql("UPDATE mentors SET dynamics_contact_id = NULL, left_at = now() WHERE id = %s", first)

    scene.facts.mentor(scene.facts.organisation("drammen", portal=None), contact_id=contact)
    scene.night(scene.portal)

    assert scene.rows("SELECT cause FROM alerts WHERE kind = 'may_be_visible'") == [("no_contact_id",)]
    with pytest.raises(psycopg.errors.RestrictViolation, match="may still be shown"):
        scene.run_sql("DELETE FROM mentors WHERE id = %s", first)


def test_claim_without_a_contact_keeps_that_of_the_last_call(scene: Scene) -> None:
    """The hide failed before the contact was removed. So the alert ends when another mentor has the contact."""
    contact = uuid4()
    first, second = scene.expired(contact_id=contact), scene.certified(contact_id=None)
    scene.portal.then(*[DOWN] * 3)
    scene.night(scene.portal)
    scene.run_sql(CORRECT, None, first)
    scene.make_due()
    scene.night(scene.portal)
    assert scene.rows("SELECT cause FROM alerts WHERE mentor_id = %s", first) == [("no_contact_id",)]

    scene.run_sql(CORRECT, contact, second)

    assert scene.rows("SELECT cause FROM alerts WHERE mentor_id = %s", first) == []


FLYING = """
    UPDATE portal_sync_events SET claim_token = gen_random_uuid(), next_attempt_at = now() + interval '1 minute',
        claim_contact_id = (SELECT dynamics_contact_id FROM mentors WHERE id = %s)
    WHERE mentor_id <> %s
"""
DUE = "UPDATE mentors SET review_on = '-infinity' WHERE %s IN (id, %s)"
LEFT = "UPDATE organisations SET portal = NULL WHERE %s <> %s OR true"


@pytest.mark.parametrize(
    ("change", "visible"),
    [(FLYING, False), (DUE, True), (LEFT, False)],
    ids=["call in flight", "due for a review", "portal lost"],
)
def test_claim_checks_the_mentor_again_after_its_lock(scene: Scene, change: str, visible: bool) -> None:
    """The statement that locks the event has an older snapshot."""
    mentor = scene.mentor()
    scene.queue(scene.mentor(), visible=False)
    assert len(scene.claim()) == 1
    scene.expire_leases()
    scene.run_sql("UPDATE portal_sync_events SET next_attempt_at = now() + interval '1 hour'")
    scene.queue(mentor, visible=visible)
    parameters = {"limit": 9, "today": TODAY, "token": uuid4(), "lease_seconds": 300}

    with database.transaction(scene.connection):
        ids = [row[0] for row in database.fetch(scene.connection, "lock_due_portal_events", parameters)]
        scene.other.execute(change.encode(), (mentor, mentor))
        claimed = database.fetch(scene.connection, "claim_portal_events", parameters | {"ids": ids})

    assert (len(ids), claimed) == (1, [])
