"""How long someone was visible who must not be: from the fact to the confirmed hide."""

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from certjob.reports.status import read_status
from tests.conftest import Certjob
from tests.support.facts import TODAY
from tests.support.nights import EVERYTHING
from tests.support.portal_answers import error, ok
from tests.support.scene import NEXT_YEAR, YESTERDAY, Scene

DOWN = error(503, "dynamics_unavailable")
HOUR = timedelta(hours=1)
OSLO_MIDNIGHT = datetime(2026, 3, 9, 23, tzinfo=UTC)
Span = tuple[datetime, datetime | None]


def exposures(scene: Scene, *, zone: str = "UTC") -> list[Span]:
    """Return the beginning and the end of each exposure."""
    asked = "SELECT began_at, ended_at FROM certjob_private.exposures('-infinity', %s, %s) ORDER BY began_at, mentor_id"
    return scene.rows(asked, TODAY, zone)


def confirmed_at(scene: Scene, *, visible: bool) -> datetime:
    """Return when the portal confirmed the last hide or show."""
    asked = "SELECT max(delivered_at) FROM portal_sync_events WHERE status = 'delivered' AND visible = %s"
    ((at,),) = scene.rows(asked, visible)
    assert isinstance(at, datetime)
    return at


@pytest.fixture
def shown(scene: Scene) -> UUID:
    """A mentor whom the portal shows, for two hours."""
    mentor = scene.certified(NEXT_YEAR)
    scene.run_sql("UPDATE mentors SET portal_visible = NULL")
    scene.night(scene.portal)
    scene.run_sql("UPDATE portal_sync_events SET delivered_at = now() - interval '2 hours'")
    return mentor


def leave(scene: Scene, mentor: UUID) -> datetime:
    """Let the mentor leave, an hour ago."""
    left_at = datetime.now(UTC) - HOUR
    scene.run_sql("UPDATE mentors SET left_at = %s WHERE id = %s", left_at, mentor)
    return left_at


def test_exposure_lasts_from_the_fact_to_the_confirmed_hide(scene: Scene, shown: UUID) -> None:
    """A failed push makes it longer."""
    left_at = leave(scene, shown)
    scene.portal.default = DOWN
    scene.night(scene.portal)
    assert exposures(scene) == [(left_at, None)]

    scene.make_due()
    scene.portal.default = ok()
    scene.deliver(scene.portal)

    assert exposures(scene) == [(left_at, confirmed_at(scene, visible=False))]


@pytest.mark.parametrize(
    "fact",
    [
        "UPDATE mentors SET left_at = now() - interval '1 hour'",
        "INSERT INTO mentor_pauses (mentor_id, reason, actor, paused_at)"
        " SELECT id, 'ill', 'eva', now() - interval '1 hour' FROM mentors",
        "UPDATE certificates SET revoked_at = now() - interval '1 hour'",
    ],
    ids=["left", "paused", "revoked"],
)
def test_hide_in_the_next_run_is_an_exposure_since_the_fact(scene: Scene, shown: UUID, fact: str) -> None:
    """The mentor was visible until the run. A later renewal does not change it."""
    scene.run_sql(fact)
    scene.night(scene.portal)
    scene.facts.certificate(shown, NEXT_YEAR, issued_on=datetime.now(UTC).date())

    ((began_at, ended_at),) = exposures(scene)
    assert (datetime.now(UTC) - began_at > HOUR, ended_at) == (True, confirmed_at(scene, visible=False))


def test_held_hide_is_an_exposure(scene: Scene) -> None:
    """No push was queued, and the mentors are visible."""
    mentors = [scene.certified(NEXT_YEAR) for _ in range(21)]
    scene.run_sql("UPDATE mentors SET portal_visible = NULL")
    scene.night(scene.portal, allow=EVERYTHING)
    scene.run_sql("UPDATE portal_sync_events SET delivered_at = now() - interval '2 hours'")
    scene.run_sql("UPDATE certificates SET revoked_at = now() - interval '1 hour'")

    scene.night(scene.portal)

    assert scene.rows("SELECT DISTINCT reason FROM still_due") == [("revoked",)]
    assert [ended_at for _, ended_at in exposures(scene)] == [None] * len(mentors)


@pytest.mark.parametrize(
    ("zone", "paused_at", "began_at"),
    [
        ("Europe/Oslo", "2026-03-09 23:40", "2026-03-09 23:00"),
        ("America/New_York", "2026-03-10 01:00", "2026-03-10 01:00"),
        ("Pacific/Auckland", "2026-03-09 14:00", "2026-03-09 11:00"),
    ],
)
def test_earliest_fact_counts_also_if_a_pause_is_near_midnight(
    scene: Scene, zone: str, paused_at: str, began_at: str
) -> None:
    """The last day ends at midnight of the zone, not of UTC."""
    mentor = scene.certified(YESTERDAY)
    pause = "INSERT INTO mentor_pauses (mentor_id, reason, actor, paused_at) VALUES (%s, 'ill', 'eva', %s)"
    scene.run_sql(pause, mentor, f"{paused_at}Z")

    assert exposures(scene, zone=zone) == [(datetime.fromisoformat(f"{began_at}Z"), None)]


@pytest.mark.parametrize(
    "fact",
    [
        "DELETE FROM certificates",
        "UPDATE certificates SET issued_on = '2026-12-01'",
        "UPDATE organisations SET optional_kinds = '{likeperson}'",
    ],
    ids=["deleted", "moved into the future", "optional"],
)
def test_mentor_who_has_no_certificate_now_is_exposed_since_the_hide_was_queued(
    scene: Scene, shown: UUID, fact: str
) -> None:
    """No fact has a time, and the portal does not answer."""
    scene.run_sql(fact)
    scene.portal.default = DOWN
    scene.night(scene.portal)

    assert exposures(scene) == scene.rows(
        "SELECT wanted_at, NULL::timestamptz FROM portal_sync_events WHERE NOT visible"
    )
    overdue = "SELECT mentor_id FROM certjob_private.unhidden_mentors(%s)"
    assert scene.rows(overdue, TODAY) == [(shown,)]


def shown_until_yesterday(scene: Scene, *, since: datetime) -> UUID:
    """Show a mentor on a portal with a date column."""
    scene.portal.until = {}
    mentor = scene.certified(YESTERDAY, portal_visible=None)
    scene.night(scene.portal, today=YESTERDAY)
    scene.run_sql("UPDATE portal_sync_events SET delivered_at = %s", since)
    return mentor


def test_portal_that_hides_on_time_exposes_no_one(scene: Scene) -> None:
    """The confirmed day ends with the certificate. The hide that follows later does not count either."""
    shown_until_yesterday(scene, since=OSLO_MIDNIGHT - HOUR)

    for answer in (DOWN, ok()):
        scene.portal.default = answer
        scene.make_due()
        scene.night(scene.portal)
        assert exposures(scene) == []


def test_departure_before_the_confirmed_day_lasts_until_that_day_has_passed(scene: Scene) -> None:
    """The portal hides the mentor then, before certjob does."""
    mentor = shown_until_yesterday(scene, since=OSLO_MIDNIGHT - 12 * HOUR)
    left_at = OSLO_MIDNIGHT - 2 * HOUR
    scene.run_sql("UPDATE mentors SET left_at = %s WHERE id = %s", left_at, mentor)
    scene.night(scene.portal)

    assert exposures(scene, zone="Europe/Oslo") == [(left_at, OSLO_MIDNIGHT)]


def test_return_before_the_hide_leaves_no_exposure(scene: Scene, shown: UUID) -> None:
    """The open hide became a show. While it failed, it was an alert."""
    leave(scene, shown)
    scene.portal.default = DOWN
    scene.night(scene.portal)
    scene.run_sql("UPDATE mentors SET left_at = NULL")
    scene.night(scene.portal)

    assert exposures(scene) == []


def test_hide_of_another_contact_is_no_exposure(scene: Scene, shown: UUID) -> None:
    """No one knows whether the portal showed the new contact. The old one is an alert of its own."""
    leave(scene, shown)
    scene.run_sql("UPDATE mentors SET dynamics_contact_id = %s", uuid4())
    scene.night(scene.portal)

    assert exposures(scene) == []


def test_status_sums_up_the_exposures(scene: Scene, shown: UUID, here: Certjob) -> None:
    """The longest one has its mentor and the last failure."""
    leave(scene, shown)
    scene.portal.default = DOWN
    scene.night(scene.portal)

    page = here("status").stdout
    exposure = read_status(scene.connection, today=TODAY, max_age=HOUR).exposure

    assert "exposure: 1 mentor, 1 h" in page
    assert ", the longest 1 h" in page
    assert ": hlf M1001, portal down; 1 lasts (last 30 days)" in page
    assert (exposure.mentors, exposure.open, exposure.seconds // 3600) == (1, 1, 1)
