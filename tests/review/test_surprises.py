"""What is surprising: contact IDs that were replaced, deleted certificates, earlier last days, and gaps."""

from collections import Counter
from uuid import uuid4

import pytest

from tests.review.guarding import DAY, HOLDS, LAST_DAY, PAUSED, change, held, hidden, join, run
from tests.support.facts import TODAY
from tests.support.nights import FlakyPortal
from tests.support.scene import NEXT_YEAR, YESTERDAY, Scene

pytestmark = pytest.mark.usefixtures("low_limits")

HELD_MENTORS = "SELECT mentor_id, kind, reason FROM held_mentors ORDER BY mentor_id, kind"


# Contact IDs.

SHIFT = """
    UPDATE mentors AS m SET dynamics_contact_id = n.contact_id
    FROM (
        SELECT id, coalesce(lead(dynamics_contact_id) OVER (ORDER BY id), first_value(dynamics_contact_id)
            OVER (ORDER BY id)) AS contact_id
        FROM mentors
    ) AS n
    WHERE n.id = m.id
"""
"""As in a file with a column that was shifted by one row."""


def test_shifted_contact_ids_show_and_hide_no_one(scene: Scene) -> None:
    """In both directions, until someone corrects them."""
    mentors = join(scene, scene.hlf, valid=6, expired=3)
    contacts = "SELECT id, dynamics_contact_id FROM mentors ORDER BY id"
    right = scene.rows(contacts)
    run(scene, allow=3)
    with scene.connection.transaction():
        scene.connection.execute("SET CONSTRAINTS ALL DEFERRED")
        scene.run_sql(SHIFT)
    pushes = "SELECT mentor_id FROM portal_sync_events WHERE wanted_at >= statement_timestamp() - interval '1 hour'"
    before = scene.rows(pushes)

    reports = [run(scene), run(scene)]

    assert [held(report) for report in reports] == [
        ["hlf: 9 mentors would be shown or hidden with another contact ID"]
    ] * 2
    assert sorted(scene.rows(pushes)) == sorted(before)
    assert [row[1:] for row in scene.rows(HELD_MENTORS)] == [("contacts", "new_contact")] * len(mentors)
    with scene.connection.transaction():
        scene.connection.execute("SET CONSTRAINTS ALL DEFERRED")
        for mentor, contact in right:
            scene.run_sql("UPDATE mentors SET dynamics_contact_id = %s WHERE id = %s", contact, mentor)
    assert (run(scene).held, scene.rows(HELD_MENTORS)) == ([], [])


def test_revocation_and_departure_are_named_in_a_hold_of_contact_ids(scene: Scene) -> None:
    """They count as news of the hold. The end of the expired mentor was known before."""
    expired, revoked, left, *others = join(scene, scene.hlf, valid=4, expired=1)
    run(scene, allow=9)
    scene.run_sql("UPDATE mentors SET dynamics_contact_id = gen_random_uuid()")
    run(scene)
    held_at = scene.rows("SELECT max(since) FROM held_mentors")
    change(scene, [revoked], "revoked_at = now()")
    scene.run_sql("UPDATE mentors SET left_at = now() WHERE id = %s", left)

    run(scene)

    reasons = dict(scene.rows("SELECT mentor_id, reason FROM held_mentors WHERE kind = 'contacts'"))
    assert reasons == dict.fromkeys([expired, *others], "new_contact") | {revoked: "revoked", left: "left"}
    assert scene.rows("SELECT max(since) FROM held_mentors") > held_at


@pytest.mark.parametrize("seen", [pytest.param(True, id="a later one"), pytest.param(False, id="the first one")])
def test_contact_id_counts_only_if_it_replaces_another(scene: Scene, seen: bool) -> None:
    """Also if a review has seen none in between. A portal for an organisation that had none replaces none either."""
    nhf = scene.facts.organisation("nhf", portal=None)
    mentors = [scene.facts.certified_mentor(nhf, NEXT_YEAR, contact_id=uuid4() if seen else None) for _ in range(4)]
    run(scene)
    scene.run_sql("UPDATE organisations SET portal = 'dynamics'")
    scene.run_sql("UPDATE mentors SET dynamics_contact_id = NULL")
    assert run(scene).held == []
    scene.run_sql("UPDATE mentors SET dynamics_contact_id = gen_random_uuid()")

    report = run(scene)

    assert held(report) == (["nhf: 4 mentors would be shown or hidden with another contact ID"] if seen else [])
    assert len(scene.rows(HELD_MENTORS)) == (len(mentors) if seen else 0)


def test_hide_because_of_a_persons_pause_is_not_held_with_another_contact_id(scene: Scene) -> None:
    mentors = join(scene, scene.hlf, valid=6)
    run(scene)
    scene.run_sql("UPDATE mentors SET dynamics_contact_id = gen_random_uuid()")
    for mentor in mentors:
        scene.facts.pause(mentor)

    report = run(scene)

    assert (report.held, hidden(scene)) == ([], set(mentors))


# certjob's pause.


@pytest.mark.parametrize("portal", [None, "dynamics"])
@pytest.mark.parametrize(
    "edit",
    [
        "DELETE FROM certificates WHERE kind = 'likeperson'",
        f"UPDATE certificates SET issued_on = '{TODAY + 20 * DAY}', expires_on = '{NEXT_YEAR}'"
        " WHERE kind = 'likeperson'",
    ],
    ids=["deleted", "moved to next month"],
)
@pytest.mark.parametrize("is_revoked", [False, True])
def test_pause_stays_without_the_certificate_that_caused_it(
    scene: Scene, portal: str | None, edit: str, is_revoked: bool
) -> None:
    """Also if another kind is in force."""
    mentors = join(scene, scene.facts.organisation("nhf", portal=portal), expired=2)
    scene.facts.certificate(mentors[0], NEXT_YEAR, kind="first_aid")
    if is_revoked:
        change(scene, mentors, f"expires_on = '{NEXT_YEAR}', revoked_at = now()")
    run(scene)
    scene.run_sql(edit)

    run(scene)

    assert {mentor for (mentor,) in scene.rows(PAUSED)} == set(mentors)
    assert hidden(scene) == (set(mentors) if portal else set())


@pytest.mark.parametrize(
    "statement",
    [
        f"INSERT INTO certificates (mentor_id, kind, issued_on, expires_on) SELECT id, 'likeperson', '{TODAY}',"
        f" '{NEXT_YEAR}' FROM mentors",
        "UPDATE organisations SET optional_kinds = '{likeperson}'",
    ],
    ids=["entered again", "now optional"],
)
def test_pause_ends_when_each_lapsed_kind_is_in_force_or_optional(scene: Scene, statement: str) -> None:
    mentors = join(scene, scene.hlf, expired=2)
    for mentor in mentors:
        scene.facts.certificate(mentor, NEXT_YEAR, kind="first_aid")
    run(scene)
    scene.run_sql("DELETE FROM certificates WHERE kind = 'likeperson'")
    run(scene)
    scene.run_sql(statement)

    run(scene)

    assert (scene.rows(PAUSED), hidden(scene)) == ([], set())


def test_pause_keeps_a_kind_that_lapses_later(scene: Scene) -> None:
    """A renewal of the first kind alone does not end it, although the row of the second one is gone."""
    (mentor,) = join(scene, scene.hlf, expired=1)
    scene.facts.certificate(mentor, TODAY + 5 * DAY, kind="first_aid")
    run(scene)
    run(scene, today=TODAY + 6 * DAY)
    scene.run_sql("DELETE FROM certificates WHERE kind = 'first_aid'")
    scene.facts.certificate(mentor, NEXT_YEAR, issued_on=TODAY + 5 * DAY)

    run(scene, today=TODAY + 6 * DAY)

    assert scene.rows("SELECT lapsed_kinds FROM mentor_pauses") == [(["first_aid", "likeperson"],)]
    assert scene.rows(PAUSED) == [(mentor,)]


@pytest.mark.parametrize(
    ("portal", "is_ill", "is_held"), [(None, False, True), (None, True, False), ("dynamics", False, True)]
)
def test_lifts_by_edited_certificates_are_held(scene: Scene, portal: str | None, is_ill: bool, is_held: bool) -> None:
    """With and without a portal. A mentor with another open pause does not return."""
    nhf = scene.facts.organisation("nhf", portal=portal)
    mentors = join(scene, nhf, expired=3, valid=3)
    if is_ill:
        scene.facts.pause(mentors[0])
    permitted = Counter(nhf=3)
    scene.night(deliver=False, allow=permitted)
    change(scene, mentors[:3], f"expires_on = '{NEXT_YEAR}'")

    report = run(scene)

    assert held(report) == (["nhf: 3 mentors would be shown or reinstated"] if is_held else [])
    own = "SELECT count(*) FROM mentor_pauses WHERE lifted_at IS NULL AND actor = 'certjob'"
    assert scene.rows(own) == [(3 if is_held else 0,)]


# Last days that move earlier.


@pytest.mark.parametrize("days", [0, 60, 61])
def test_last_days_that_move_earlier_are_held_at_once(scene: Scene, days: int) -> None:
    """And on later days, because no review has stored them. They send no reminder either."""
    mentors = join(scene, scene.facts.organisation("nhf"), valid=6)
    run(scene)
    change(scene, mentors[:3], f"expires_on = '{TODAY + days * DAY}'")

    reports = [run(scene, today=TODAY + later * DAY) for later in (0, 1, 2)]

    words = "would end within 60 days" if days <= 60 else "would end earlier"
    assert held(reports[0]) == [f"nhf: 3 mentors {words}"]
    assert all(report.held for report in reports)
    assert scene.rows("SELECT FROM cert_notification_log") == scene.rows(PAUSED) == []


@pytest.mark.parametrize(("days", "is_held"), [(60, True), (61, False)])
def test_new_kind_that_ends_earlier_is_held_only_within_60_days(scene: Scene, days: int, is_held: bool) -> None:
    """Beyond, the last day is not earlier without the certificates that no review has seen."""
    mentors = join(scene, scene.hlf, valid=6)
    run(scene)
    for mentor in mentors[:3]:
        scene.facts.certificate(mentor, TODAY + days * DAY, kind="first_aid")

    assert bool(run(scene).held) is is_held


def test_permitted_last_days_are_foreseen_then(scene: Scene) -> None:
    mentors = join(scene, scene.hlf, valid=6)
    run(scene)
    change(scene, mentors[:3], f"expires_on = '{TODAY + DAY}'")
    assert run(scene).held
    run(scene, allow=3)

    report = run(scene, today=TODAY + 2 * DAY)

    assert (report.held, hidden(scene)) == ([], set(mentors[:3]))


# Returns, departures, new mentors.


@pytest.mark.parametrize(
    ("issued_days_ago", "kind"),
    [pytest.param(45, "courses", id="course"), pytest.param(46, "returns", id="old certificate")],
)
def test_return_by_a_recent_certificate_is_a_course(scene: Scene, issued_days_ago: int, kind: str) -> None:
    mentors = join(scene, scene.hlf, expired=3)
    run(scene, allow=3)
    for mentor in mentors:
        scene.facts.certificate(mentor, NEXT_YEAR, issued_on=TODAY - issued_days_ago * DAY)

    run(scene)

    assert scene.rows(HOLDS) == [(kind, 3, 3)]


def test_return_of_certified_mentors_is_a_kind_of_its_own(scene: Scene) -> None:
    mentors = join(scene, scene.hlf, valid=3)
    pauses = [scene.facts.pause(mentor) for mentor in mentors]
    run(scene)
    scene.run_sql("UPDATE mentor_pauses SET lifted_at = now() WHERE id = ANY (%s)", pauses)

    assert (len(run(scene).held), scene.rows(HOLDS)) == (1, [("reinstatements", 3, 3)])


def test_departures_are_a_kind_of_their_own(scene: Scene) -> None:
    mentors = join(scene, scene.hlf, valid=8)
    run(scene)
    scene.run_sql("UPDATE mentors SET left_at = now() WHERE id = ANY (%s)", mentors[:2])
    change(scene, mentors[2:4], "revoked_at = now()")

    assert (run(scene).held, hidden(scene)) == ([], set(mentors[:4]))


def test_new_mentors_without_a_certificate_are_hidden_after_the_first_run(scene: Scene) -> None:
    join(scene, scene.hlf, valid=1)
    run(scene)
    new = [scene.mentor() for _ in range(3)]

    assert (run(scene).held, hidden(scene)) == ([], set(new))


@pytest.mark.parametrize(("days", "is_held"), [(2, False), (3, True)])
def test_new_mentors_without_a_certificate_count_after_a_gap(scene: Scene, days: int, is_held: bool) -> None:
    join(scene, scene.hlf, valid=1)
    run(scene)
    for _ in range(3):
        scene.mentor()

    assert bool(run(scene, today=TODAY + days * DAY).held) is is_held


# A gap.


def test_reminders_wait_while_changes_after_a_gap_are_held(scene: Scene) -> None:
    """The machine and the database may be some days ahead."""
    nhf = scene.facts.organisation("nhf", portal=None)
    mentors = join(scene, nhf, valid=8)
    change(scene, mentors[:3], f"expires_on = '{LAST_DAY}'")
    change(scene, mentors[3:5], f"expires_on = '{LAST_DAY + 17 * DAY}'")
    scene.night(today=LAST_DAY, deliver=False, allow=Counter(nhf=5))
    sent = scene.rows("SELECT count(*) FROM cert_notification_log")

    report = run(scene, today=LAST_DAY + 3 * DAY)

    assert held(report) == [
        "nhf: 3 mentors would change after more than two days without a run",
        "nhf: 2 mentors would get a reminder while changes after a gap are held back; all other changes proceed. Check "
        "the last import (`certjob run --dry-run` lists the mentors)",
    ]
    assert scene.rows("SELECT count(*) FROM cert_notification_log") == sent
    permitted = scene.night(today=LAST_DAY + 3 * DAY, deliver=False, allow=Counter(nhf=3))
    assert (permitted.held, len(scene.rows(PAUSED))) == ([], 3)
    assert scene.rows("SELECT count(*) FROM cert_notification_log WHERE threshold_days = 14") == [(2,)]


# Held mentors.


def test_revoked_mentor_among_wrong_pauses_is_stored_with_the_reason(scene: Scene) -> None:
    mentors = join(scene, scene.hlf, valid=6)
    run(scene)
    change(scene, mentors[:3], f"expires_on = '{YESTERDAY}'")
    change(scene, mentors[3:4], "revoked_at = now()")
    scene.run_sql("UPDATE mentors SET left_at = now() WHERE id = ANY (%s)", mentors[4:])
    planned = run(scene, dry_run=True)

    run(scene)

    reasons = dict.fromkeys(mentors[:3], "ended") | {mentors[3]: "revoked"}
    assert scene.rows(HELD_MENTORS) == sorted((mentor, "pauses", reason) for mentor, reason in reasons.items())
    assert [change.held_because for change in planned.changes if change.is_held] == ["revoked", *["ended"] * 3]
    assert hidden(scene) == set(mentors[4:])


def test_resync_permits_one_held_mentor(scene: Scene) -> None:
    mentors = join(scene, scene.hlf, valid=6)
    run(scene)
    change(scene, mentors[:3], "revoked_at = now()")
    run(scene)

    scene.resync(mentors[0], FlakyPortal())

    assert hidden(scene) == {mentors[0]}
    assert {row[0] for row in scene.rows(HELD_MENTORS)} == set(mentors[1:3])


def test_held_mentor_keeps_the_time_of_the_first_hold(scene: Scene) -> None:
    mentors = join(scene, scene.hlf, valid=6)
    run(scene)
    change(scene, mentors[:3], "revoked_at = now()")
    run(scene)
    since = scene.rows("SELECT DISTINCT since FROM held_mentors")
    change(scene, mentors[3:4], "revoked_at = now()")

    run(scene)

    assert scene.rows("SELECT DISTINCT since FROM held_mentors WHERE mentor_id <> %s", mentors[3]) == since
    assert scene.rows("SELECT since > %s FROM held_mentors WHERE mentor_id = %s", since[0][0], mentors[3]) == [(True,)]
