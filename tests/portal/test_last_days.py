"""The last visible day on a portal with a date column: an earlier day is urgent, a later one can wait."""

from datetime import date, timedelta
from uuid import UUID, uuid4

import pytest

from certjob.reports.alerts import read_alerts
from tests.conftest import Certjob
from tests.support.command_line import today
from tests.support.facts import TODAY, Facts
from tests.support.nights import review
from tests.support.portal_answers import Behaviour, error
from tests.support.portal_server import PortalServer
from tests.support.scene import Scene

CONTACT = UUID("6f9619ff-8b86-4d01-b42d-00cf4fc964ff")
FAR, NEAR = date(2095, 1, 1), date(2090, 1, 1)
"""The database compares them with the real date."""
ALERTS = "SELECT kind, cause, action, day FROM alerts"
EVENT = "SELECT is_urgent, sure_until::text, shown_until::text, status FROM portal_sync_events ORDER BY id DESC LIMIT 1"
DOWN, REJECTED = error(503, "dynamics_unavailable"), error(422, "dynamics_rejected")
WRONG_KEY = error(401, "unauthorized")


@pytest.fixture
def shown(scene: Scene) -> UUID:
    """A mentor on the portal until FAR."""
    scene.portal.until = {}
    mentor = scene.certified(FAR, contact_id=CONTACT, member_no="M1042")
    scene.run_sql("UPDATE mentors SET portal_visible = NULL")
    scene.night(scene.portal)
    assert scene.portal.until == {CONTACT: FAR.isoformat()}
    return mentor


def move(scene: Scene, day: object) -> None:
    scene.run_sql("UPDATE certificates SET expires_on = %s WHERE mentor_id IN (SELECT id FROM mentors)", day)


def test_delivered_event_keeps_what_the_portal_has_confirmed(scene: Scene, shown: UUID) -> None:
    """A portal without the column confirms no day."""
    assert scene.rows(EVENT) == [(False, str(FAR), str(FAR), "delivered")]

    scene.portal.until = None
    scene.resync(shown, scene.portal)

    assert scene.rows(EVENT) == [(False, "infinity", "infinity", "delivered")]


@pytest.mark.parametrize(
    ("answer", "kind", "action"),
    [(DOWN, "transient", "retry"), (REJECTED, "permanent", "check_contact"), (WRONG_KEY, "stage", "tell_operator")],
    ids=["503", "422", "401"],
)
def test_earlier_last_day_that_fails_is_an_alert(
    scene: Scene, shown: UUID, answer: Behaviour, kind: str, action: str
) -> None:
    """Without certjob, the portal would show the mentor until the later day. A stage that ends early records it."""
    move(scene, NEAR)
    scene.portal.default = answer

    report = scene.night(scene.portal)

    line = "1 mentor may still be visible on the portal; see `certjob alerts`"
    assert (report.reasons[-1], len(report.reasons)) == (line, 2 if answer is WRONG_KEY else 1)
    assert scene.rows(ALERTS) == [("may_be_visible", "later_day_on_portal", action, FAR)]
    assert scene.rows("SELECT mentor_id, kind FROM dynamics_sync_failures") == [(shown, kind)]
    assert scene.rows(EVENT) == [(True, str(NEAR), str(FAR), "blocked" if answer is REJECTED else "pending")]


def test_earlier_day_of_a_mentor_whom_certjob_never_pushed_is_an_alert(scene: Scene) -> None:
    """The portal already showed the mentor until the right day, so each reading has agreed."""
    scene.certified(FAR, contact_id=CONTACT, member_no="M1042")
    scene.portal.visible, scene.portal.until = {CONTACT: True}, {CONTACT: FAR.isoformat()}
    review(scene.connection)
    scene.reconcile()
    assert scene.rows(EVENT) == []
    move(scene, NEAR)
    scene.portal.default = REJECTED

    scene.night(scene.portal)

    assert scene.rows(ALERTS) == [("may_be_visible", "later_day_on_portal", "check_contact", FAR)]


@pytest.mark.parametrize("portal_visible", [True, None], ids=["read", "pushed"])
def test_earlier_day_on_a_portal_without_the_column_is_no_alert(scene: Scene, portal_visible: bool | None) -> None:
    """Such a portal hides mentors only after a push, so no day on it can be wrong."""
    scene.certified(FAR, contact_id=CONTACT, member_no="M1042", portal_visible=portal_visible)
    scene.portal.visible = {CONTACT: True}
    scene.night(scene.portal)
    scene.reconcile()
    move(scene, NEAR)
    scene.portal.default = DOWN

    assert scene.night(scene.portal).reasons == []


def test_certificate_without_an_end_is_shown_until_the_last_day_of_the_portals_filter(scene: Scene) -> None:
    """Dataverse's filter of the portal ends there. Readings agree, and a last day beyond it moves nothing."""
    scene.portal.until = {}
    scene.certified(date.max, contact_id=CONTACT, portal_visible=None)
    scene.night(scene.portal)
    assert scene.portal.until == {CONTACT: "2099-12-31"}

    report = scene.reconcile()
    move(scene, date(2150, 1, 1))
    scene.night(scene.portal)

    assert (report.to_document()["differences"]["with_another_day"], len(scene.rows(EVENT))) == (0, 1)
    assert [request.method for request in scene.portal.requests] == ["POST", "GET"]


def test_earlier_day_alerts_for_an_hour_that_no_one_pushes_it(scene: Scene, shown: UUID) -> None:
    """So does a hide. The day of a due mentor may be wrong as well."""
    move(scene, NEAR)
    review(scene.connection)
    assert scene.rows(ALERTS) == []

    scene.run_sql("UPDATE portal_sync_events SET wanted_at = now() - interval '61 min'")
    scene.run_sql("UPDATE mentors SET review_on = '-infinity'")

    assert scene.rows(ALERTS) == [("may_be_visible", "later_day_on_portal", "tell_operator", FAR)]


def test_day_that_has_passed_asks_for_a_hide_by_hand(scene: Scene, shown: UUID) -> None:
    """Until then, the mentor may be visible, and the page does not ask. For runs and digests it is news."""
    move(scene, NEAR)
    scene.portal.default = DOWN
    scene.night(scene.portal)
    ((before,),) = scene.rows("SELECT keys FROM current_alerts(%s)", TODAY)

    scene.run_sql("UPDATE mentors SET certified_until = '2020-01-01'")

    ((cause, after),) = scene.rows("SELECT cause, keys FROM current_alerts(%s)", TODAY)
    assert (cause, before != after) == ("portal_down", True)


def test_earlier_day_is_pushed_like_a_hide(scene: Scene, shown: UUID) -> None:
    """Before a show, and after an older hide. Failed attempts put it behind new events."""
    show, hide = scene.mentor(contact_id=uuid4()), scene.mentor(contact_id=uuid4())
    contacts = dict(scene.rows("SELECT id, dynamics_contact_id FROM mentors"))
    scene.queue(show, visible=True)
    scene.queue(hide, visible=False)
    move(scene, NEAR)
    review(scene.connection)
    scene.run_sql("UPDATE mentors SET review_on = '9999-12-31'")
    scene.portal.requests.clear()

    scene.run_stage()

    assert [request.contact_id for request in scene.portal.requests] == [contacts[hide], CONTACT, contacts[show]]


def test_new_values_of_an_open_earlier_day(scene: Scene, shown: UUID) -> None:
    """A day after that of the portal is not urgent. A resync of the same value makes no change."""
    move(scene, NEAR)
    scene.portal.default = DOWN
    scene.night(scene.portal)
    wanted_at = scene.rows("SELECT wanted_at FROM portal_sync_events WHERE status = 'pending'")

    scene.resync(shown, scene.portal)
    assert scene.rows(EVENT)[0][0] is True
    assert scene.rows("SELECT wanted_at FROM portal_sync_events WHERE status = 'pending'") == wanted_at

    move(scene, FAR + timedelta(days=1))
    review(scene.connection)
    assert scene.rows(EVENT)[0][0] is False

    scene.facts.pause(shown)
    review(scene.connection)
    assert scene.rows(EVENT)[0][0] is True


@pytest.mark.parametrize("day", [(FAR + timedelta(days=9)).isoformat(), None], ids=["a later day", "no day"])
def test_later_day_that_someone_has_entered_is_pushed_like_a_hide(scene: Scene, shown: UUID, day: str | None) -> None:
    """`reconcile` finds it. The last reading keeps whether the portal has the column."""
    assert scene.portal.until is not None
    scene.portal.until[CONTACT] = day
    scene.portal.decide = lambda request: DOWN if request.method == "POST" else scene.portal.default

    scene.reconcile()

    alerts = read_alerts(scene.connection, today=TODAY)
    assert [(alert.cause, alert.day and alert.day.isoformat()) for alert in alerts] == [("later_day_on_portal", day)]
    assert scene.rows("SELECT dates FROM portal_last_reading") == [(True,)]


def test_command_names_the_day_and_asks_no_one_to_hide(facts: Facts, here: Certjob, portal: PortalServer) -> None:
    """The portal hides the mentor after the later day, so hiding by hand is not suggested."""
    far, near = today() + timedelta(days=400), today() + timedelta(days=100)
    portal.until = {}
    mentor = facts.certified_mentor(facts.organisation(), far, member_no="M1042", contact_id=CONTACT)
    facts.connection.execute("UPDATE mentors SET portal_visible = NULL")
    here("run", **portal.settings)
    facts.connection.execute("UPDATE certificates SET expires_on = %s WHERE mentor_id = %s", (near, mentor))
    portal.default = DOWN

    result = here("run", **portal.settings)
    page = here("alerts").stdout

    assert (result.returncode, "1 mentor may still be visible on the portal" in result.stderr) == (3, True)
    assert f", Kari Nordmann, on the portal until {far.day} {far:%B} {far.year}" in page
    assert "by hand" not in page
