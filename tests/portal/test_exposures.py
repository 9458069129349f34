"""How long someone was visible who must not be: from the fact to the confirmed hide."""

import random
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest

from certjob.portal.exposures import note_exposures, read_exposure
from tests.conftest import Certjob
from tests.support.facts import TODAY
from tests.support.nights import EVERYTHING
from tests.support.portal_answers import error, ok
from tests.support.scene import NEXT_YEAR, YESTERDAY, Scene

DOWN = error(503, "dynamics_unavailable")
ROWS = "SELECT began_at, ended_at, is_proven FROM exposures ORDER BY began_at, id"
CLOSED = "SELECT ended_at IS NOT NULL, is_proven FROM exposures ORDER BY began_at, id"
HOUR = timedelta(hours=1)
MIDNIGHT = datetime(2026, 3, 10, tzinfo=UTC)
OSLO, OSLO_MIDNIGHT = ZoneInfo("Europe/Oslo"), MIDNIGHT - HOUR
FACTS = {
    "leave": "UPDATE mentors SET left_at = now() WHERE id = %s AND left_at IS NULL",
    "return": "UPDATE mentors SET left_at = NULL WHERE id = %s",
    "pause": "INSERT INTO mentor_pauses (mentor_id, reason, actor) VALUES (%s, 'ill', 'eva') ON CONFLICT DO NOTHING",
    "lift": "UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'eva' WHERE mentor_id = %s AND lifted_at IS NULL",
    "delete": "DELETE FROM certificates WHERE mentor_id = %s",
    "enter": "INSERT INTO certificates (mentor_id, kind, issued_on, expires_on) VALUES (%s, 'likeperson', '2024-01-01',"
    " '2027-01-01') ON CONFLICT (mentor_id, kind, issued_on) DO UPDATE SET expires_on = excluded.expires_on",
    "replace": "UPDATE mentors SET dynamics_contact_id = gen_random_uuid() WHERE id = %s",
}
MUST_HIDE = """
    SELECT id FROM mentors AS m WHERE left_at IS NOT NULL
        OR EXISTS (SELECT FROM mentor_pauses WHERE mentor_id = m.id AND lifted_at IS NULL)
        OR NOT EXISTS (SELECT FROM certificates WHERE mentor_id = m.id AND expires_on >= %s)
"""


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


def let_the_day_pass(scene: Scene, mentor: UUID) -> None:
    """Let the day before pass, which the portal had confirmed and the certificate had as its last day."""
    scene.run_sql(
        "UPDATE portal_sync_events SET dates = true, visible_until = %s, delivered_at = '2026-03-01'"
        " WHERE mentor_id = %s AND visible AND status = 'delivered'",
        YESTERDAY,
        mentor,
    )
    scene.run_sql("UPDATE certificates SET expires_on = %s WHERE mentor_id = %s", YESTERDAY, mentor)


def test_a_failed_measurement_is_reported_and_prevents_no_hide(scene: Scene, shown: UUID) -> None:
    """The run has failed, but only at its end."""
    leave(scene, shown)
    scene.run_sql("ALTER TABLE exposures ADD CONSTRAINT broken CHECK (began_at IS NULL) NOT VALID")

    report = scene.night(scene.portal)

    assert (report.crashed, [str(stop) for stop in report.stopped]) == (True, ["exposures: unforeseen CheckViolation"])
    assert list(scene.portal.visible.values()) == [False]


def test_exposure_lasts_from_the_fact_to_the_confirmed_hide(scene: Scene, shown: UUID) -> None:
    """It is proven, because the portal had confirmed the show before."""
    left_at = leave(scene, shown)
    scene.portal.default = DOWN
    scene.night(scene.portal)
    assert scene.rows(ROWS) == [(left_at, None, True)]

    scene.make_due()
    scene.portal.default = ok()
    scene.deliver(scene.portal)

    ((delivered_at,),) = scene.rows("SELECT delivered_at FROM portal_sync_events WHERE NOT visible")
    assert scene.rows(ROWS) == [(left_at, delivered_at, True)]


def test_hide_in_the_same_run_is_an_exposure(scene: Scene, shown: UUID) -> None:
    """The mentor was visible until the run."""
    leave(scene, shown)

    scene.night(scene.portal)

    assert scene.rows(CLOSED) == [(True, True)]


def test_held_hide_is_an_exposure(scene: Scene) -> None:
    """No push was queued, and the mentors are visible."""
    mentors = [scene.certified(NEXT_YEAR) for _ in range(12)]
    scene.run_sql("UPDATE mentors SET portal_visible = NULL")
    scene.night(scene.portal, allow=EVERYTHING)
    scene.run_sql("UPDATE portal_sync_events SET delivered_at = now() - interval '2 hours'")
    scene.run_sql("UPDATE certificates SET revoked_at = now() - interval '1 hour'")

    scene.night(scene.portal)

    assert scene.rows("SELECT DISTINCT kind FROM held_mentors") != []
    assert scene.rows(CLOSED) == [(False, True)] * len(mentors)


def test_expiry_counts_from_the_end_of_the_last_day_in_the_zone_of_the_organisation(scene: Scene) -> None:
    """Unknown before: the portal has confirmed nothing, so it is possible and not proven."""
    scene.certified(TODAY - timedelta(days=1))

    note_exposures(scene.connection, today=TODAY, zone=OSLO)

    assert scene.rows(ROWS) == [(OSLO_MIDNIGHT, None, False)]


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
    mentor = scene.certified(TODAY - timedelta(days=1))
    pause = "INSERT INTO mentor_pauses (mentor_id, reason, actor, paused_at) VALUES (%s, 'ill', 'eva', %s)"
    scene.run_sql(pause, mentor, f"{paused_at}Z")

    note_exposures(scene.connection, today=TODAY, zone=ZoneInfo(zone))

    assert scene.rows(ROWS) == [(datetime.fromisoformat(f"{began_at}Z"), None, False)]


@pytest.mark.parametrize(
    "fact",
    [
        "DELETE FROM certificates",
        "UPDATE certificates SET issued_on = '2026-12-01'",
        "UPDATE organisations SET optional_kinds = '{likeperson}'",
    ],
    ids=["deleted", "moved into the future", "optional"],
)
def test_mentor_who_has_no_certificate_now_is_exposed_since_the_run_that_found_it(
    scene: Scene, shown: UUID, fact: str
) -> None:
    """No fact has a time, and the portal does not answer."""
    scene.run_sql(fact)
    scene.portal.default = DOWN
    ((before,),) = scene.rows("SELECT clock_timestamp()")

    scene.night(scene.portal)

    ((began_at, ended_at, is_proven),) = scene.rows(ROWS)
    assert (began_at >= before, ended_at, is_proven) == (True, None, True)
    overdue = "SELECT mentor_id, since FROM certjob_private.unhidden_mentors(%s)"
    assert scene.rows(overdue, TODAY) == [(shown, None)]


def test_portal_that_hides_on_time_exposes_no_one(scene: Scene) -> None:
    """The confirmed day ends with the certificate."""
    scene.portal.until = {}
    scene.certified(TODAY)
    scene.run_sql("UPDATE mentors SET portal_visible = NULL")
    scene.night(scene.portal)
    scene.portal.default = DOWN

    scene.night(scene.portal, today=TODAY + timedelta(days=1))

    assert scene.rows(ROWS) == []


def test_reading_after_the_confirmed_day_proves_that_the_contact_is_visible(scene: Scene, shown: UUID) -> None:
    """Someone has moved the last day on the portal. Before the reading, the exposure is possible."""
    let_the_day_pass(scene, shown)
    scene.portal.decide = lambda request: DOWN if request.method == "POST" else ok()

    scene.reconcile()
    scene.night(scene.portal)

    ((read_at,),) = scene.rows("SELECT read_at FROM portal_last_reading")
    assert scene.rows(ROWS) == [(MIDNIGHT, read_at, False), (read_at, None, True)]


def test_reinstatement_ends_the_exposure(scene: Scene, shown: UUID) -> None:
    """The mentor may be visible again."""
    leave(scene, shown)
    scene.portal.default = DOWN
    scene.night(scene.portal)

    scene.run_sql("UPDATE mentors SET left_at = NULL")
    scene.night(scene.portal)

    assert scene.rows(CLOSED) == [(True, True)]


def test_reading_without_the_contact_ends_the_exposure(scene: Scene, shown: UUID) -> None:
    """Someone has hidden it by hand."""
    leave(scene, shown)
    scene.portal.default = DOWN
    scene.night(scene.portal)
    scene.portal.decide = lambda request: DOWN if request.method == "POST" else ok()
    scene.portal.visible.clear()

    scene.reconcile()

    ((read_at,),) = scene.rows("SELECT read_at FROM portal_last_reading")
    assert [row[1] for row in scene.rows(ROWS)] == [read_at]


def test_manual_show_is_possible_since_the_last_reading_and_proven_from_this_one(scene: Scene, shown: UUID) -> None:
    """`reconcile` hides the contact again."""
    leave(scene, shown)
    scene.night(scene.portal)
    scene.run_sql("DELETE FROM exposures; UPDATE portal_sync_events SET delivered_at = now() - interval '1 min'")
    scene.reconcile()
    scene.portal.visible |= dict.fromkeys(scene.portal.visible, True)
    ((before,),) = scene.rows("SELECT read_at FROM portal_last_reading")

    scene.reconcile()

    ((read_at,),) = scene.rows("SELECT read_at FROM portal_last_reading")
    (possible, proven) = scene.rows(ROWS)
    assert possible == (before, read_at, False)
    assert (proven[0], proven[1] is not None, proven[2]) == (read_at, True, True)


def test_contact_that_is_hidden_and_shown_by_hand_is_visible_again(scene: Scene, shown: UUID) -> None:
    """certjob cannot hide it. The second time begins with the reading that lists the contact."""
    leave(scene, shown)
    (contact,) = scene.portal.visible
    scene.portal.decide = lambda request: DOWN if request.method == "POST" else ok()
    scene.night(scene.portal)
    for is_visible in (False, True):
        scene.portal.visible[contact] = is_visible
        scene.reconcile()

    ((hidden_at, shown_at),) = scene.rows("SELECT previous_at, read_at FROM portal_last_reading")
    first, possible, proven = scene.rows(ROWS)
    assert first[1:] == (hidden_at, True)
    assert (possible[0], proven[0] >= shown_at, proven[1:]) == (hidden_at, True, (None, True))


def test_new_contact_of_a_hidden_mentor_is_possible_since_the_run_that_found_it(scene: Scene, shown: UUID) -> None:
    """The confirmed hide is one of the old contact. A reading that lists the new one proves it."""
    leave(scene, shown)
    scene.night(scene.portal)
    scene.run_sql("DELETE FROM exposures")
    scene.run_sql("UPDATE mentors SET dynamics_contact_id = %s", contact := uuid4())
    scene.portal.visible[contact] = True
    scene.portal.decide = lambda request: DOWN if request.method == "POST" else ok()
    ((before,),) = scene.rows("SELECT clock_timestamp()")

    scene.night(scene.portal)
    scene.reconcile()

    ((read_at,),) = scene.rows("SELECT read_at FROM portal_last_reading")
    (possible, proven) = scene.rows(ROWS)
    assert (possible[0] >= before, possible[1:], proven) == (True, (read_at, False), (read_at, None, True))


def test_status_sums_up_the_exposures(scene: Scene, shown: UUID, here: Certjob) -> None:
    """The longest one has its mentor and the last failure."""
    leave(scene, shown)
    scene.portal.default = DOWN
    scene.night(scene.portal)

    page, exposure = here("status").stdout, read_exposure(scene.connection)

    assert "exposure: 1 mentor, 1 h" in page
    assert ", the longest 1 h" in page
    assert ": hlf M1001, portal down (last 30 days); 1 lasts" in page
    assert (exposure.mentors, exposure.open, exposure.proven_seconds) == (1, 1, exposure.seconds)


def test_status_says_how_much_is_only_possible(scene: Scene, here: Certjob) -> None:
    """The first run knows nothing about the portal, and the certificate ended months ago."""
    scene.expired()

    scene.night(scene.portal)

    assert " of it only possible, the longest " in here("status").stdout


def test_prune_deletes_old_exposures(scene: Scene, shown: UUID) -> None:
    """Open ones stay."""
    row = "INSERT INTO exposures (mentor_id, contact_id, began_at, ended_at, is_proven)"
    old = "now() - interval '100 days'"
    scene.run_sql(f"{row} SELECT id, dynamics_contact_id, {old}, {old}, true FROM mentors")
    scene.run_sql(f"{row} SELECT id, dynamics_contact_id, {old}, NULL, true FROM mentors")

    scene.run_sql("SELECT prune(now() - interval '91 days', 100)")

    assert scene.rows("SELECT ended_at FROM exposures") == [(None,)]


def end_the_certificate(scene: Scene, mentor: UUID, *, moved: bool) -> None:
    """Let the last day pass before the first command, with a pause after midnight in Oslo and before midnight in UTC.

    With ``moved``, the portal had confirmed this day, and someone has moved it there.
    """
    scene.run_sql("UPDATE certificates SET expires_on = %s WHERE mentor_id = %s", YESTERDAY, mentor)
    if moved:
        let_the_day_pass(scene, mentor)
    else:
        late = "INSERT INTO mentor_pauses (mentor_id, reason, actor, paused_at) VALUES (%s, 'ill', 'eva', %s)"
        scene.run_sql(late, mentor, OSLO_MIDNIGHT + timedelta(minutes=40))


@pytest.mark.parametrize("seed", range(6))
def test_record_of_the_portal_lies_inside_the_exposures(scene: Scene, seed: int) -> None:
    """Random facts, runs, outages, manual shows and new contacts. The record also contains every proven exposure."""
    chance, portal = random.Random(seed), scene.portal
    mentors = [scene.certified(NEXT_YEAR) for _ in range(4)]
    scene.run_sql("UPDATE mentors SET portal_visible = NULL")
    scene.night(portal, allow=EVERYTHING)
    contacts = {who: [contact] for who, contact in scene.rows("SELECT id, dynamics_contact_id FROM mentors")}
    seen: list[tuple[datetime, set[UUID], set[UUID]]] = []
    """The time, the mentors who are visible and must not be, and those of them or of their old contacts."""

    end_the_certificate(scene, mentors[0], moved=seed % 2 == 1)
    portal.decide = lambda request: DOWN if request.method == "POST" else ok()
    if seed % 2 == 1:
        scene.reconcile()
    note_exposures(scene.connection, today=TODAY, zone=OSLO)
    scene.night(portal, allow=EVERYTHING)
    portal.decide = None
    soon_after = OSLO_MIDNIGHT + timedelta(hours=2 if seed % 2 else 0, minutes=1)
    seen.append((soon_after, {mentors[0]}, {mentors[0]}))

    for step in range(14):
        mentor = chance.choice(mentors)
        portal.default = ok() if chance.random() < 0.6 or step == 13 else DOWN
        fact = chance.choice([*FACTS, "edit"])
        scene.make_due()
        if fact == "edit":
            portal.default, portal.visible[contacts[mentor][-1]] = ok(), True
            scene.reconcile()
        else:
            scene.run_sql(FACTS[fact], mentor)
            if fact == "replace":
                contacts[mentor] += scene.rows("SELECT dynamics_contact_id FROM mentors WHERE id = %s", mentor)[0]
                portal.visible[contacts[mentor][-1]] = True
            if step == 13 or chance.random() < 0.6:
                scene.night(portal, allow=EVERYTHING)
            else:
                scene.deliver(portal)
        must_hide = {row[0] for row in scene.rows(MUST_HIDE, TODAY)}
        now = scene.rows("SELECT clock_timestamp()")[0][0]
        visible = {who: [portal.visible.get(each, False) for each in contacts[who]] for who in must_hide}
        wrong, any_contact = ({who for who in visible if test(visible[who])} for test in (lambda each: each[-1], any))
        seen.append((now, wrong, any_contact))

    exposures = scene.rows(
        "SELECT mentor_id, began_at, coalesce(ended_at, now() + interval '1 day'), is_proven FROM exposures"
    )
    for at, wrong, wrong_or_old in seen:
        during = {row[0] for row in exposures if row[1] <= at <= row[2]}
        proven = {row[0] for row in exposures if row[1] < at < row[2] and row[3]}
        assert wrong <= during, (at, exposures)
        assert proven <= wrong_or_old, (at, exposures)
