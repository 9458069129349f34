"""What is surprising: contact IDs that were replaced, deleted certificates, earlier last days, and gaps."""

from collections import Counter
from uuid import uuid4

import pytest

from certjob.domain import holds
from certjob.review import certification
from tests.review.guarding import DAY, HELD_MENTORS, LAST_DAY, PAUSED, change, held, hidden, join, run
from tests.support.facts import TODAY
from tests.support.scene import NEXT_YEAR, YESTERDAY, Scene

REVIEWED = ("mentors", "certificates", "mentor_pauses", "portal_sync_events", "cert_notification_log")

pytestmark = pytest.mark.usefixtures("low_limits")

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

    assert [held(report) for report in reports] == [["hlf: 9 mentors are held back (9 new contact)"]] * 2
    assert sorted(scene.rows(pushes)) == sorted(before)
    assert [row[1:] for row in scene.rows(HELD_MENTORS)] == [("new_contact",)] * len(mentors)
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
    held_at = scene.rows("SELECT max(since) FROM still_due")
    change(scene, [revoked], "revoked_at = now()")
    scene.run_sql("UPDATE mentors SET left_at = now() WHERE id = %s", left)

    run(scene)

    reasons = dict(scene.rows(HELD_MENTORS))
    assert reasons == dict.fromkeys([expired, *others], "new_contact") | {revoked: "revoked", left: "left"}
    assert scene.rows("SELECT max(since) FROM still_due") > held_at


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

    assert held(report) == (["nhf: 4 mentors are held back (4 new contact)"] if seen else [])
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
    scene.run_sql("DELETE FROM certificates WHERE kind = 'likeperson'; DELETE FROM guard_counts")
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

    assert held(report) == (["nhf: 3 mentors are held back (3 returns)"] if is_held else [])
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

    words = "ends soon" if days <= 60 else "ends earlier"
    assert held(reports[0]) == [f"nhf: 3 mentors are held back (3 {words})"]
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
    ("issued_days_ago", "is_held"),
    [pytest.param(45, False, id="course"), pytest.param(46, True, id="old certificate")],
)
def test_return_by_a_recent_certificate_counts_only_as_a_change_of_visibility(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, issued_days_ago: int, is_held: bool
) -> None:
    monkeypatch.setattr(holds, "LEAST", 3)
    mentors = join(scene, scene.hlf, expired=3)
    run(scene, allow=3)
    for mentor in mentors:
        scene.facts.certificate(mentor, NEXT_YEAR, issued_on=TODAY - issued_days_ago * DAY)

    assert bool(run(scene).held) is is_held


@pytest.mark.parametrize(
    "event",
    [
        pytest.param("UPDATE mentors SET left_at = NULL", id="taken back"),
        pytest.param(
            "UPDATE mentors SET dynamics_contact_id = NULL;"
            "UPDATE mentors SET dynamics_contact_id = gen_random_uuid(), left_at = NULL",
            id="another contact",
        ),
        pytest.param(
            "UPDATE mentors SET organisation_id = (SELECT id FROM organisations WHERE slug = 'nhf'), left_at = NULL",
            id="moved",
        ),
        pytest.param(
            "UPDATE organisations SET portal = NULL; UPDATE organisations SET portal = 'dynamics';"
            "UPDATE mentors SET left_at = NULL",
            id="another portal",
        ),
    ],
)
def test_departed_mentors_do_not_come_back_unasked(scene: Scene, event: str) -> None:
    """The last review has decided that they must not be visible. Their visibility on the portal may be unknown."""
    nhf = scene.facts.organisation("nhf")
    join(scene, nhf, valid=1)
    join(scene, scene.hlf, valid=3)
    run(scene)
    scene.run_sql("UPDATE mentors SET left_at = now() WHERE organisation_id = %s", scene.hlf)
    run(scene, allow=3)
    for statement in event.split(";"):
        scene.run_sql(
            f"{statement} WHERE id IN (SELECT id FROM mentors WHERE left_at IS NOT NULL)"
            if statement.startswith("UPDATE mentors")
            else statement
        )

    report = run(scene)

    assert [line.partition(": ")[2] for line in held(report)] == ["3 mentors are held back (3 returns)"]


def test_mentor_who_was_never_reviewed_does_not_return(scene: Scene) -> None:
    """A takeover, or an intake in autumn."""
    join(scene, scene.hlf, valid=1)
    run(scene)
    join(scene, scene.hlf, valid=4)

    assert (run(scene).held, hidden(scene)) == ([], set())


@pytest.mark.parametrize(("days", "is_held"), [(0, False), (2, False), (3, True)])
def test_new_mentors_without_a_certificate_count_after_a_gap(scene: Scene, days: int, is_held: bool) -> None:
    """Otherwise they are hidden."""
    join(scene, scene.hlf, valid=1)
    run(scene)
    new = [scene.mentor() for _ in range(3)]

    report = run(scene, today=TODAY + days * DAY)

    assert (bool(report.held), hidden(scene)) == (is_held, set() if is_held else set(new))


# A gap.


def test_what_was_held_after_a_gap_stays_held_until_it_is_permitted(scene: Scene) -> None:
    """Later runs are not after a gap. What these foresee happens, and so do reminders about known certificates."""
    nhf = scene.facts.organisation("nhf", portal=None)
    mentors = join(scene, nhf, valid=9)
    change(scene, mentors[:3], f"expires_on = '{LAST_DAY}'")
    change(scene, mentors[3:4], f"expires_on = '{LAST_DAY + 4 * DAY}'")
    change(scene, mentors[4:6], f"expires_on = '{LAST_DAY + 17 * DAY}'")
    scene.night(today=LAST_DAY, deliver=False, allow=Counter(nhf=6))

    reports = [run(scene, today=LAST_DAY + days * DAY) for days in (3, 4, 5)]

    assert [held(report) for report in reports] == [["nhf: 3 mentors are held back (3 ended)"]] * 3
    assert scene.rows(PAUSED) == [(mentors[3],)]
    assert scene.rows("SELECT count(*) FROM cert_notification_log WHERE threshold_days = 14") == [(2,)]
    permitted = scene.night(today=LAST_DAY + 5 * DAY, deliver=False, allow=Counter(nhf=3))
    assert (permitted.held, len(scene.rows(PAUSED))) == ([], 4)


# Held mentors.


def test_revoked_mentor_among_wrong_pauses_is_stored_with_the_reason(scene: Scene) -> None:
    mentors = join(scene, scene.hlf, valid=6)
    run(scene)
    change(scene, mentors[:3], f"expires_on = '{YESTERDAY}'")
    change(scene, mentors[3:4], "revoked_at = now()")
    scene.run_sql("UPDATE mentors SET left_at = now() WHERE id = ANY (%s)", mentors[4:])
    planned = run(scene, dry_run=True)

    run(scene)

    reasons = dict.fromkeys(mentors[:3], "ended") | {mentors[3]: "revoked"} | dict.fromkeys(mentors[4:], "left")
    assert scene.rows(HELD_MENTORS) == sorted(reasons.items())
    assert [change.held_because for change in planned.changes if change.is_held] == [
        "revoked",
        "left",
        "left",
        *["ended"] * 3,
    ]
    assert hidden(scene) == set()


def test_run_about_a_held_mentor_stores_nothing(scene: Scene) -> None:
    mentors = join(scene, scene.facts.organisation("nhf"), valid=6)
    run(scene)
    change(scene, mentors[:3], f"expires_on = '{YESTERDAY}'")
    before = [scene.rows(f"SELECT to_jsonb(t) FROM {table} AS t ORDER BY 1") for table in REVIEWED]

    assert run(scene).held != []

    assert [scene.rows(f"SELECT to_jsonb(t) FROM {table} AS t ORDER BY 1") for table in REVIEWED] == before


def test_open_hide_of_a_held_mentor_is_sent_and_shows_and_mails_wait(scene: Scene) -> None:
    nhf = scene.facts.organisation("nhf")
    hides, shows, others = join(scene, nhf, valid=2), join(scene, nhf, expired=2), join(scene, nhf, valid=2)
    scene.night(deliver=False, allow=Counter(nhf=9))
    pushes = "SELECT mentor_id, visible FROM portal_sync_events WHERE status = 'delivered' ORDER BY id"
    scene.deliver(scene.portal)
    scene.run_sql("UPDATE mentors SET left_at = now() WHERE id = ANY (%s)", hides)
    change(scene, shows, f"issued_on = '{TODAY}', expires_on = '{TODAY + 13 * DAY}'")
    scene.night(deliver=False, allow=Counter(nhf=9))
    before = len(scene.rows(pushes))
    scene.run_sql("UPDATE mentors SET left_at = NULL; DELETE FROM guard_counts")
    change(scene, others + shows, "revoked_at = now()")

    report = run(scene)
    scene.deliver(scene.portal)

    assert held(report) == ["nhf: 6 mentors are held back (4 revoked, 2 returns)"]
    assert sorted(scene.rows(pushes)[before:]) == sorted((mentor, False) for mentor in hides)
    assert scene.rows("SELECT DISTINCT mentor_id FROM cert_notification_log WHERE status <> 'pending'") == []
    assert scene.channel.sent == []


def test_renewed_mentors_are_shown_while_their_reminders_are_held(scene: Scene) -> None:
    """And so are all others; only the mail waits."""
    nhf = scene.facts.organisation("nhf")
    join(scene, nhf, valid=2)
    run(scene)
    new = [scene.facts.certified_mentor(nhf, TODAY + 5 * DAY, portal_visible=None) for _ in range(3)]

    report = run(scene)

    assert held(report) == ["nhf: 3 mentors are held back (3 reminder)"]
    shown = scene.rows("SELECT mentor_id FROM portal_sync_events WHERE visible AND mentor_id = ANY (%s)", new)
    assert len(shown) == 3


@pytest.mark.parametrize("event", ["its certificate ends", "a person pauses it"])
def test_foreseen_removal_of_a_held_mentor_is_made(scene: Scene, event: str) -> None:
    """The mentors have earlier last days, of which a person must decide."""
    mentors = join(scene, scene.hlf, valid=6)
    change(scene, mentors[:3], f"expires_on = '{TODAY + 2 * DAY}'")
    run(scene, allow=9)
    change(scene, mentors[:3], f"expires_on = '{TODAY + DAY}'")
    assert held(run(scene)) == ["hlf: 3 mentors are held back (3 ends soon)"]
    if event == "a person pauses it":
        scene.facts.pause(mentors[0])
        run(scene)
        assert hidden(scene) == {mentors[0]}

        return
    for days in (1, 2, 3):
        run(scene, today=TODAY + days * DAY)

    assert hidden(scene) == set(mentors[:3])


def test_other_reviews_keep_a_hold(scene: Scene) -> None:
    """Of another organisation, of open pushes, of one mentor, and of mentors whom another session has locked."""
    mentors = join(scene, scene.hlf, valid=6)
    nhf = scene.facts.organisation("nhf", portal=None)
    other = scene.facts.certified_mentor(nhf, NEXT_YEAR)
    run(scene)
    change(scene, mentors[:3], "revoked_at = now()")
    run(scene)
    rows = scene.rows("SELECT to_jsonb(s) FROM still_due AS s ORDER BY mentor_id")

    run(scene, organisation="nhf")
    scene.deliver(scene.portal)
    scene.resync(other)
    scene.app.execute("SELECT FROM mentors FOR UPDATE")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certification, "WAIT_FOR_LOCKS_SECONDS", 0.1)
        run(scene)

    assert scene.rows("SELECT to_jsonb(s) FROM still_due AS s ORDER BY mentor_id") == rows
