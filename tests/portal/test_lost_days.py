"""The days that the portal may have: each attempt widens them, and a confirmation or a reading sets them."""

from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from certjob.outbox.claims import Answer
from tests.support.command_line import today
from tests.support.nights import review
from tests.support.portal_answers import Behaviour, error, ok, reset
from tests.support.scene import Scene

CONTACT = UUID("6f9619ff-8b86-4d01-b42d-00cf4fc964ff")
SOON, LATER = today() + timedelta(days=30), today() + timedelta(days=300)
"""The database compares them with the real date."""
AFTER = SOON + timedelta(days=2)
ALERTS = "SELECT kind, cause, day FROM alerts"
UNHIDDEN = "SELECT count(*) FROM certjob_private.unhidden_mentors(%s)"
URGENT = "SELECT is_urgent, status FROM portal_sync_events ORDER BY id DESC LIMIT 1"
DOWN, LOST = error(503, "dynamics_unavailable"), reset(applied=True)


@pytest.fixture
def shown(scene: Scene) -> UUID:
    """A mentor whom the portal has confirmed until SOON."""
    scene.portal.until = {}
    mentor = scene.certified(SOON, contact_id=CONTACT, member_no="M1042", portal_visible=None)
    scene.night(scene.portal, today=today())
    assert scene.portal.until == {CONTACT: str(SOON)}
    return mentor


def end_on(scene: Scene, day: object) -> None:
    scene.run_sql("UPDATE certificates SET expires_on = %s", day)


def run(scene: Scene) -> list[str]:
    """Run a night in which the portal fails, and return the lines that need attention."""
    return scene.night(scene.portal, today=today()).reasons


def ask_for_a_push(scene: Scene, mentor: UUID) -> None:
    """Call ``request_portal_resync`` as a coordinator."""
    scene.run_sql("CREATE SCHEMA IF NOT EXISTS auth")
    scene.run_sql("CREATE FUNCTION auth.uid() RETURNS uuid LANGUAGE sql AS $$ SELECT id FROM certjob.coordinators $$")
    coordinator = {"organisation_id": scene.hlf, "email": "eva@example.org"}
    scene.facts.insert("coordinators", **coordinator)
    scene.run_sql("SELECT certjob.request_portal_resync(%s)", mentor)


def test_lost_later_day_is_an_alert_when_the_certificate_is_shortened(scene: Scene, shown: UUID) -> None:
    """The portal took the later day and lost the answer. After the shortened day, the mentor is still shown."""
    scene.portal.default = LOST
    end_on(scene, LATER)
    assert run(scene) == []
    assert scene.portal.until == {CONTACT: str(LATER)}

    scene.portal.default = DOWN
    end_on(scene, SOON)

    assert run(scene) == ["1 mentor may still be visible on the portal; see `certjob alerts`"]
    assert scene.rows(ALERTS) == [("may_be_visible", "later_day_on_portal", LATER)]
    assert scene.rows(UNHIDDEN, AFTER) == [(1,)]


def test_deliver_prints_an_earlier_day_after_a_later_one(scene: Scene, shown: UUID) -> None:
    """Both fail with the same cause, but only the earlier day is an alert."""
    scene.portal.default = DOWN
    end_on(scene, LATER)
    assert run(scene) == []
    scene.make_due()

    end_on(scene, SOON - timedelta(days=1))

    assert len(scene.deliver(scene.portal, today=today()).news) == 1


def test_later_day_of_a_killed_process_is_urgent_and_ends_with_a_confirmation(scene: Scene, shown: UUID) -> None:
    """It was killed between the call and the settle."""
    end_on(scene, LATER)
    review(scene.connection, today())
    assert len(scene.service.claim(1, today=today())) == 1
    scene.expire_leases()

    end_on(scene, SOON)
    review(scene.connection, today())
    assert scene.rows(URGENT) == [(True, "pending")]
    run(scene)

    assert scene.rows(URGENT) == [(False, "delivered")]
    assert scene.rows(UNHIDDEN, AFTER) == [(0,)]


def test_later_day_of_a_call_in_flight_is_urgent(scene: Scene, shown: UUID) -> None:
    """The portal confirms it after the earlier day was queued."""
    end_on(scene, LATER)
    review(scene.connection, today())
    (event,) = scene.service.claim(1, today=today())

    end_on(scene, SOON)
    review(scene.connection, today())

    assert scene.rows(URGENT) == [(True, "pending")]
    assert scene.push(event=event) is Answer.RAISED
    assert scene.rows(URGENT) == [(True, "pending")]


def test_later_day_that_the_app_has_asked_for_again_is_remembered(scene: Scene, shown: UUID) -> None:
    """Its push continues the days of the last one."""
    ask_for_a_push(scene, shown)
    scene.portal.default = DOWN

    end_on(scene, today() + timedelta(days=9))
    run(scene)

    assert scene.rows(ALERTS) == [("may_be_visible", "later_day_on_portal", SOON)]


@pytest.mark.parametrize("is_open", [False, True], ids=["no open push", "open later day"])
def test_failed_push_that_a_coordinator_asked_for_is_an_alert(scene: Scene, shown: UUID, *, is_open: bool) -> None:
    """The portal has confirmed that it shows the mentor, but someone doubts it."""
    scene.portal.default = DOWN
    if is_open:
        end_on(scene, LATER)
        assert run(scene) == []
    ask_for_a_push(scene, shown)

    run(scene)

    assert [row[:2] for row in scene.rows(ALERTS)] == [("may_be_hidden", "portal_down")]


def test_lost_later_day_without_the_column_is_not_urgent(scene: Scene, shown: UUID) -> None:
    """Such a portal knows only shown and hidden. So it hides no one on a day, and the overdue run counts the mentor."""
    scene.portal.until = None
    scene.run_sql("UPDATE mentors SET portal_visible = NULL, review_on = current_date")
    run(scene)
    scene.portal.default = LOST
    end_on(scene, LATER)
    run(scene)
    scene.portal.default = DOWN

    for last_day in (SOON, today() + timedelta(days=3)):
        end_on(scene, last_day)
        assert run(scene) == []
    assert scene.rows(UNHIDDEN, AFTER) == [(1,)]


def test_reading_without_the_column_is_newer_than_a_confirmed_day(scene: Scene, shown: UUID) -> None:
    """The portal does not hide the mentor after that day any more, and an earlier day is not urgent."""
    assert scene.rows(UNHIDDEN, AFTER) == [(0,)]
    scene.portal.until = None

    scene.reconcile()

    assert scene.rows(UNHIDDEN, AFTER) == [(1,)]
    scene.portal.default = DOWN
    end_on(scene, today() + timedelta(days=9))
    assert run(scene) == []


def test_contact_that_is_lost_after_its_day_is_an_alert_without_the_column(scene: Scene, shown: UUID) -> None:
    """With the column, the portal would have hidden it."""
    unknown = "SELECT contact_id FROM portal_unknown_contacts"
    scene.run_sql("UPDATE portal_sync_events SET sure_until = current_date - 1, shown_until = current_date - 1")
    with scene.connection.transaction(force_rollback=True):
        scene.run_sql("UPDATE mentors SET dynamics_contact_id = NULL")
        assert scene.rows(unknown) == []
    scene.run_sql("UPDATE portal_sync_events SET shown_until = 'infinity'")

    scene.run_sql("UPDATE mentors SET dynamics_contact_id = NULL")

    assert scene.rows(unknown) == [(CONTACT,)]


def test_show_after_a_lost_hide_is_an_alert_at_once(scene: Scene, shown: UUID) -> None:
    """The portal may have hidden the mentor, although it confirmed a day before."""
    scene.portal.default = LOST
    pause = scene.facts.pause(shown)
    run(scene)
    assert scene.portal.visible == {CONTACT: False}
    scene.portal.default = DOWN

    scene.run_sql("UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'eva' WHERE id = %s", pause)
    run(scene)

    assert [row[:2] for row in scene.rows(ALERTS)] == [("may_be_hidden", "portal_down")]


@pytest.mark.parametrize("answer", [LOST, ok()], ids=["lost", "confirmed"])
def test_new_contact_has_no_known_day(scene: Scene, shown: UUID, answer: Behaviour) -> None:
    """A push that fails is an alert like the first show of a mentor."""
    end_on(scene, LATER)
    scene.portal.default = answer
    run(scene)
    scene.run_sql("UPDATE mentors SET dynamics_contact_id = %s", uuid4())
    scene.portal.default = DOWN

    end_on(scene, SOON)
    run(scene)

    assert [row[:2] for row in scene.rows(ALERTS)] == [("may_be_hidden", "portal_down")]
