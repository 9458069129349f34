"""The guards hold a wrong clock and a wrong import. They let through changes that the last review foresaw.

In these tests a guard allows 2 changes instead of 20, and a chunk has 2 mentors, so that few mentors are enough.
"""

from collections import Counter
from datetime import UTC, datetime
from uuid import UUID

import pytest

from certjob.errors import ConfigurationError
from certjob.review import certification
from tests.review.guarding import (
    DAY,
    HIDDEN,
    HOLDS,
    LAST_DAY,
    PAUSED,
    TWO_YEARS_BACK,
    change,
    count_only_in_chunks,
    held,
    hidden,
    join,
    run,
)
from tests.support.facts import TODAY
from tests.support.nights import in_background
from tests.support.scene import NEXT_YEAR, YESTERDAY, Scene
from tests.support.waiting import until, waits_for_a_lock

pytestmark = pytest.mark.usefixtures("low_limits")


# Foreseen changes pass.


@pytest.fixture
def cohort(scene: Scene) -> list[UUID]:
    """3 of 8 mentors, whose certificates end on LAST_DAY, as a run on that day knows."""
    mentors = join(scene, scene.hlf, valid=8)
    change(scene, mentors[:3], f"expires_on = '{LAST_DAY}'")
    run(scene, today=LAST_DAY)
    return mentors[:3]


ENTER_AGAIN = """
    WITH old AS (DELETE FROM certificates RETURNING mentor_id, kind, issued_on, expires_on)
    INSERT INTO certificates (mentor_id, kind, issued_on, expires_on) SELECT * FROM old
"""
"""Some apps rewrite all certificates every day."""


@pytest.mark.parametrize(
    ("event", "days_later"),
    [
        pytest.param("SELECT", 2, id="two days after the last run"),
        pytest.param(ENTER_AGAIN, 1, id="entered again"),
        pytest.param("UPDATE job_runs SET organisation = 'hlf'", 1, id="runs of the organisation only"),
    ],
)
def test_cohort_that_ends_on_one_day_is_hidden(scene: Scene, cohort: list[UUID], event: str, days_later: int) -> None:
    scene.run_sql(event)

    report = run(scene, today=LAST_DAY + days_later * DAY)

    assert (report.held, hidden(scene)) == ([], set(cohort))


def test_cohort_is_hidden_while_a_wrong_import_is_held(scene: Scene) -> None:
    """The import stays held each day until someone corrects it."""
    mentors = join(scene, scene.hlf, valid=10)
    cohort, imported = mentors[:3], mentors[5:]
    change(scene, cohort, f"expires_on = '{LAST_DAY}'")
    run(scene, today=LAST_DAY - DAY)
    change(scene, imported, TWO_YEARS_BACK)

    reports = [run(scene, today=LAST_DAY), run(scene, today=LAST_DAY + DAY)]
    assert [held(report) for report in reports] == [["hlf: 5 mentors are held back (5 ended)"]] * 2
    assert hidden(scene) == set(cohort)

    change(scene, imported, "issued_on = issued_on + 730, expires_on = expires_on + 730")
    report = run(scene, today=LAST_DAY + 2 * DAY)
    assert (report.held, hidden(scene), scene.rows(HOLDS)) == ([], set(cohort), [])


def test_upcoming_certificates_bring_many_back(scene: Scene) -> None:
    """The certificates of a course begin next week, and are entered today."""
    mentors = join(scene, scene.hlf, expired=3)
    run(scene, allow=3)
    for mentor in mentors:
        scene.facts.certificate(mentor, NEXT_YEAR, issued_on=TODAY + 5 * DAY)
    run(scene, today=TODAY + 3 * DAY)

    report = run(scene, today=TODAY + 5 * DAY)

    assert (report.held, hidden(scene)) == ([], set())


def test_pauses_of_people_are_never_held(scene: Scene) -> None:
    """They are not counted, even if certjob would pause the same mentors because of a wrong import."""
    mentors = join(scene, scene.hlf, valid=8)
    run(scene)
    change(scene, mentors[:5], "expires_on = issued_on")
    for mentor in mentors[:2]:
        scene.facts.pause(mentor)

    run(scene)

    assert (hidden(scene), scene.rows(HOLDS)) == (set(mentors[:2]), [("ended", 3)])


# Other changes are held.


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        pytest.param(TWO_YEARS_BACK, "ended", id="two years back"),
        pytest.param("expires_on = '2026-03-09'", "ended", id="day of the export"),
        pytest.param("revoked_at = now()", "revoked", id="revoked"),
    ],
)
def test_import_that_would_hide_many_is_held(scene: Scene, statement: str, reason: str) -> None:
    """The line has the number of mentors and the command that permits the changes. The mentors stay due."""
    mentors = join(scene, scene.hlf, valid=6)
    run(scene, today=YESTERDAY)
    change(scene, mentors[:3], statement)

    report = run(scene)

    assert report.held == [
        f"hlf: 3 mentors are held back (3 {reason}); all others proceed. Check "
        "the clock and the last import (`certjob run --dry-run` lists the mentors), then `certjob run --allow hlf=3`"
    ]
    assert (hidden(scene), scene.rows(HOLDS)) == (set(), [(reason, 3)])
    assert (report.outcome, report.to_document()["mentors"]["skipped"]) == ("attention", 0)
    assert scene.rows("SELECT count(*) FROM mentors WHERE review_on <= %s", TODAY) == [(3,)]


@pytest.mark.parametrize(("expired", "is_held"), [(3, False), (4, True)])
def test_limit_is_a_seventh_of_the_certified(scene: Scene, expired: int, is_held: bool) -> None:
    """A mentor who has left is not counted."""
    left = scene.certified(left_at=datetime(2026, 1, 1, tzinfo=UTC), contact_id=None)
    scene.run_sql("UPDATE mentors SET portal_visible = false WHERE id = %s", left)
    join(scene, scene.hlf, expired=expired, valid=27)

    report = run(scene)

    assert (bool(report.held), len(scene.rows(PAUSED))) == (is_held, 0 if is_held else expired)


def test_first_run_hides_mentors_without_a_certificate_if_permitted(scene: Scene) -> None:
    mentors = [scene.mentor() for _ in range(3)]
    assert (len(run(scene).held), hidden(scene)) == (1, set())

    report = run(scene, allow=3)

    assert (report.held, hidden(scene)) == ([], set(mentors))


def test_many_departures_at_once_are_held(scene: Scene) -> None:
    """They would hide mentors without a pause."""
    mentors = join(scene, scene.hlf, valid=6)
    run(scene)
    scene.run_sql("UPDATE mentors SET left_at = now() WHERE id = ANY (%s)", mentors[:3])

    assert (len(run(scene).held), hidden(scene)) == (1, set())


def test_cohort_three_days_after_the_last_run_is_held(scene: Scene, cohort: list[UUID]) -> None:
    """The clock may be wrong. The next day's run holds it as well, until someone permits it."""
    for days in (3, 4):
        assert held(run(scene, today=LAST_DAY + days * DAY)) == ["hlf: 3 mentors are held back (3 ended)"]
    assert hidden(scene) == set()

    report = run(scene, today=LAST_DAY + 4 * DAY, allow=3)

    assert (report.held, hidden(scene), scene.rows(HOLDS)) == ([], set(cohort), [])


@pytest.mark.parametrize("direction", ["-", "+"], ids=["earlier", "clock set back"])
def test_hourly_slices_of_a_wrong_import_stop_at_the_limit(scene: Scene, direction: str) -> None:
    """Changes count for 20 hours, and are then forgotten."""
    mentors = join(scene, scene.hlf, valid=10)
    run(scene)

    change(scene, mentors[:2], "expires_on = issued_on")
    first = run(scene)
    change(scene, mentors[2:4], "expires_on = issued_on")
    second = run(scene)

    assert (held(first), hidden(scene)) == ([], set(mentors[:2]))
    assert held(second) == ["hlf: 2 mentors are held back (2 ended)"]
    scene.run_sql(f"UPDATE guard_counts SET at = at {direction} interval '19 hours 59 minutes'")
    for _ in range(2):
        assert (held(run(scene)), hidden(scene)) == (held(second), set(mentors[:2]))
    scene.run_sql(f"UPDATE guard_counts SET at = at {direction} interval '2 minutes'")
    assert (run(scene).held, hidden(scene)) == ([], set(mentors[:4]))
    assert scene.rows("SELECT number FROM guard_counts WHERE what = 'removals'") == [(2,)]


def test_parallel_runs_share_one_limit(scene: Scene) -> None:
    """The second run waits until the first has committed its number."""
    mentors = join(scene, scene.hlf, valid=6)
    run(scene)
    change(scene, mentors[:2], "revoked_at = now()")
    scene.app.execute("SELECT FROM organisations FOR NO KEY UPDATE")
    scene.app.execute(
        "INSERT INTO guard_counts (organisation_id, what, number) VALUES (%s, 'removals', 1)", (scene.hlf,)
    )

    def commit() -> None:
        until(lambda: waits_for_a_lock(scene.other, scene.connection))
        scene.app.commit()

    with in_background(commit):
        report = run(scene)

    assert held(report) == ["hlf: 2 mentors are held back (2 revoked)"]
    assert hidden(scene) == set()


def test_revoked_mentors_are_hidden_while_returns_are_held(scene: Scene) -> None:
    mentors = join(scene, scene.hlf, expired=3, valid=3)
    run(scene, allow=3)
    change(scene, mentors[:3], f"expires_on = '{NEXT_YEAR}'")
    change(scene, mentors[3:5], "revoked_at = now()")

    report = run(scene)

    assert held(report) == ["hlf: 3 mentors are held back (3 returns)"]
    assert hidden(scene) == set(mentors[:5])


@pytest.mark.parametrize(
    ("certified", "expired", "allow", "paused"),
    [pytest.param(49, 9, 0, 7, id="limit"), pytest.param(0, 5, 3, 3, id="permission")],
)
def test_changes_during_a_run_are_counted_in_each_chunk(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, certified: int, expired: int, allow: int, paused: int
) -> None:
    """The limit and the permission are those of the organisation, not of a chunk."""
    join(scene, scene.hlf, valid=certified)
    run(scene)
    join(scene, scene.hlf, expired=expired)
    count_only_in_chunks(monkeypatch)

    report = run(scene, allow=allow)

    assert len(scene.rows(PAUSED)) == paused
    assert held(report) == ["hlf: 2 mentors are held back (2 ended)"]


def test_changes_that_bypass_the_triggers_stop_at_the_limit(scene: Scene) -> None:
    """As after a restore of one table: the mentors are due by the calendar, but no review foresaw the changes."""
    mentors = join(scene, scene.hlf, valid=6)
    run(scene)
    scene.run_sql("ALTER TABLE certificates DISABLE TRIGGER USER")
    change(scene, mentors[:5], TWO_YEARS_BACK)
    scene.run_sql("UPDATE mentors SET review_on = %s WHERE id = ANY (%s)", TODAY, mentors[:5])

    report = run(scene)

    assert held(report) == ["hlf: 3 mentors are held back (3 ended)"]
    assert len(hidden(scene)) == 2


# A person permits changes.


@pytest.mark.parametrize(("allow", "is_held"), [(5, True), (6, False)])
def test_permission_is_for_all_held_mentors_together(scene: Scene, allow: int, is_held: bool) -> None:
    """With one change more than permitted, all of them stay held."""
    mentors = join(scene, scene.hlf, expired=3, valid=7)
    run(scene, allow=3)
    change(scene, mentors[:3], f"expires_on = '{NEXT_YEAR}'")
    change(scene, mentors[-3:], "revoked_at = now()")
    assert {line.rpartition("`certjob run ")[2] for line in run(scene, dry_run=True).held} == {"--allow hlf=6`"}

    report = run(scene, allow=allow)

    assert len(report.held) == is_held
    assert hidden(scene) == set(mentors[:3] if is_held else mentors[-3:])


def test_permission_is_for_one_organisation_and_one_run(scene: Scene) -> None:
    mentors = join(scene, scene.hlf, expired=3)
    join(scene, scene.facts.organisation("nhf", portal=None), expired=3)

    assert held(run(scene, allow=3)) == ["nhf: 3 mentors are held back (3 ended)"]
    change(scene, mentors, f"expires_on = '{NEXT_YEAR}'")
    assert sorted(held(run(scene))) == [
        "hlf: 3 mentors are held back (3 returns)",
        "nhf: 3 mentors are held back (3 ended)",
    ]


def test_permitted_changes_are_not_counted_for_later_runs(scene: Scene) -> None:
    mentors = join(scene, scene.hlf, expired=4, valid=6)
    run(scene, allow=4)
    change(scene, mentors[:3], f"expires_on = '{NEXT_YEAR}'")
    run(scene, allow=3)
    change(scene, mentors[3:4], f"expires_on = '{NEXT_YEAR}'")

    report = run(scene)

    assert (report.held, hidden(scene)) == ([], set())


def test_permission_for_an_unknown_organisation_is_rejected(scene: Scene) -> None:
    with pytest.raises(ConfigurationError, match="hfl"):
        scene.night(allow=Counter(hfl=60))


# Reminders.

LOG = "SELECT status FROM cert_notification_log ORDER BY status"


def join_with_reminders(scene: Scene, numbers: dict[UUID, int]) -> None:
    """Add mentors with a reminder each, to organisations that a run has reviewed."""
    for organisation in numbers:
        join(scene, organisation, valid=1)
    run(scene, today=YESTERDAY)
    for organisation, number in numbers.items():
        for _ in range(number):
            scene.facts.certified_mentor(organisation, TODAY + 5 * DAY)


def test_too_many_reminders_about_new_certificates_are_held_and_pauses_are_not(scene: Scene) -> None:
    """The dry run says the same."""
    few, many = scene.facts.organisation("few", portal=None), scene.facts.organisation("many")
    join_with_reminders(scene, {few: 2, many: 3})
    expired = scene.facts.certified_mentor(many, YESTERDAY)
    planned = run(scene, dry_run=True).to_document()

    report = run(scene)

    assert held(report) == ["many: 3 mentors are held back (3 reminder)"]
    assert scene.rows(HOLDS) == [("reminder", 3)]
    assert scene.rows(PAUSED) == [(expired,)]
    assert scene.rows("SELECT count(*) FROM mentors WHERE review_on <= %s", TODAY) == [(0,)]
    assert (planned["held"], report.to_document()["reminders"]["queued"]) == (report.held, 3)
    reminders = Counter(each["held"] for change in planned["changes"] for each in change["reminders"])
    assert reminders == {True: 3, False: 3}


def test_revoked_certificates_do_not_count_as_certified(scene: Scene) -> None:
    """Thirty mentors more would allow four reminders."""
    organisation = scene.facts.organisation("nhf", portal=None)
    join_with_reminders(scene, {organisation: 3})
    revoked = join(scene, organisation, valid=30)
    change(scene, revoked, "revoked_at = now()")

    report = run(scene)

    assert held(report) == ["nhf: 33 mentors are held back (30 revoked, 3 reminder)"]


def test_held_reminders_are_sent_after_a_permitted_run(scene: Scene) -> None:
    """The mentors are reviewed and not due. A permission for fewer mentors changes nothing."""
    nhf = scene.facts.organisation("nhf", portal=None)
    join_with_reminders(scene, {nhf: 4})
    lines = [scene.night(deliver=False, allow=Counter(nhf=allow)).held for allow in (0, 3)]
    assert [line.rpartition("certjob ")[2] for each in lines for line in each] == ["run --allow nhf=4`"] * 2
    assert scene.rows(LOG) == [("held",)] * 4

    permitted = scene.night(deliver=False, allow=Counter(nhf=4))

    assert (permitted.held, scene.rows(LOG)) == ([], [("pending",)] * 4)


def test_permission_counts_each_mentor_of_held_changes_and_reminders_once(scene: Scene) -> None:
    """A held mentor may also have a reminder that was held before."""
    nhf = scene.facts.organisation("nhf", portal=None)
    join_with_reminders(scene, {nhf: 4})
    run(scene)
    mentors = [row[0] for row in scene.rows("SELECT mentor_id FROM cert_notification_log ORDER BY mentor_id")]
    change(scene, mentors[:3], "revoked_at = now()")
    assert run(scene, dry_run=True).held_before == 1
    assert held(run(scene)) == ["nhf: 4 mentors are held back (3 revoked, 1 reminder)"]
    assert held(scene.night(deliver=False, allow=Counter(nhf=3))) != []

    permitted = scene.night(deliver=False, allow=Counter(nhf=4))

    assert (permitted.held, len(scene.rows(PAUSED)), scene.rows(LOG)) == ([], 3, [("pending",)] * 4)


def test_resync_permits_the_change_of_one_mentor(scene: Scene) -> None:
    """The changes of the day have used up the limit."""
    mentors = join(scene, scene.hlf, valid=3)
    run(scene)
    change(scene, mentors[:2], "revoked_at = now()")
    run(scene)
    change(scene, mentors[2:], "revoked_at = now()")

    scene.resync(mentors[2], scene.portal)

    assert hidden(scene) == set(mentors)


def test_resync_permits_the_held_reminders_of_a_mentor(scene: Scene) -> None:
    join_with_reminders(scene, {scene.facts.organisation("nhf"): 3})
    run(scene)
    ((mentor,), *_) = scene.rows("SELECT mentor_id FROM cert_notification_log")

    scene.resync(mentor, scene.portal)

    assert scene.rows(LOG) == [("held",), ("held",), ("pending",)]


def test_outdated_held_reminder_is_cancelled(scene: Scene) -> None:
    """The import is corrected."""
    join_with_reminders(scene, {scene.facts.organisation("nhf", portal=None): 3})
    run(scene)
    scene.run_sql("UPDATE certificates SET expires_on = %s WHERE expires_on < %s", TODAY + 90 * DAY, NEXT_YEAR)

    report = run(scene)

    assert (report.held, scene.rows(LOG)) == ([], [("cancelled",)] * 3)


def test_wrong_last_days_of_an_optional_kind_send_no_mail_on_any_night(scene: Scene) -> None:
    """They pause no one. A reminder of the next threshold is held like the one before."""
    organisation = scene.facts.organisation("nhf", portal=None, optional_kinds=["course"])
    mentors = join(scene, organisation, valid=6)
    for mentor in mentors:
        scene.facts.certificate(mentor, NEXT_YEAR + 300 * DAY, kind="course")
    run(scene)
    course = "UPDATE certificates SET expires_on = {} WHERE kind = 'course'"
    scene.run_sql(course.format(f"'{TODAY + 50 * DAY}'"))

    lines = [held(run(scene, today=TODAY + days * DAY)) for days in (0, 1, 25)]

    assert lines == [["nhf: 6 mentors are held back (6 reminder)"]] * 3
    assert scene.rows("SELECT DISTINCT threshold_days, status FROM cert_notification_log ORDER BY 1") == [
        (30, "held"),
        (60, "superseded"),
    ]
    scene.run_sql(course.format(f"'{NEXT_YEAR}'"))
    assert (run(scene, today=TODAY + 26 * DAY).held, set(scene.rows(LOG))) == ([], {("cancelled",), ("superseded",)})


def test_cohort_whose_certificates_are_entered_again_is_reminded(scene: Scene) -> None:
    """A review has seen this kind with this last day."""
    mentors = join(scene, scene.facts.organisation("nhf"), valid=8)
    change(scene, mentors[:3], f"expires_on = '{TODAY + 31 * DAY}'")
    run(scene, today=YESTERDAY - 30 * DAY)
    scene.run_sql(ENTER_AGAIN)
    run(scene)
    scene.run_sql(ENTER_AGAIN)

    report = run(scene, today=TODAY + DAY)

    assert (report.held, report.to_document()["reminders"]["queued"]) == ([], 3)


# The dry run.


def test_dry_run_counts_the_changes_of_the_last_20_hours(scene: Scene) -> None:
    """They count before the first chunk, although each import alone is too small."""
    mentors = join(scene, scene.hlf, valid=10)
    run(scene)
    for imported in (mentors[:2], mentors[2:3]):
        change(scene, imported, "expires_on = issued_on")
        planned = run(scene, dry_run=True)
        report = run(scene)
        assert planned.held == report.held

    assert held(report) == ["hlf: 1 mentor is held back (1 ended)"]
    assert [change["held"] for change in planned.to_document()["changes"]] == [True]


def test_dry_run_and_run_agree_after_a_run_on_a_wrong_date(scene: Scene) -> None:
    """The run reviews everybody, so no return is due by the calendar."""
    mentors = join(scene, scene.hlf, valid=3)
    for mentor in mentors:
        scene.facts.certificate(mentor, NEXT_YEAR + 60 * DAY, issued_on=NEXT_YEAR + 40 * DAY)
    run(scene)
    run(scene, today=NEXT_YEAR + 20 * DAY, allow=3)
    assert hidden(scene) == set(mentors)

    planned, report = (run(scene, today=TODAY + DAY, dry_run=dry_run) for dry_run in (True, False))

    assert planned.held == report.held
    assert held(report) == ["hlf: 3 mentors are held back (3 returns)"]


# Mentors whom the run cannot review.


def test_locked_mentor_is_named_although_others_are_held(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The alert of the night before stays. The held mentors are not tried again in the same run."""
    monkeypatch.setattr(certification, "WAIT_FOR_LOCKS_SECONDS", 0.1)
    locked, *imported = join(scene, scene.hlf, valid=6)
    run(scene)
    scene.facts.pause(locked)
    scene.app.execute("SELECT FROM certificates WHERE mentor_id = %s FOR UPDATE", (locked,))
    problems = "SELECT mentor_id FROM still_due WHERE what = 'not_reviewed'"
    first = run(scene).to_document()
    assert (first["mentors"]["skipped"], scene.rows(problems)) == (1, [(locked,)])
    change(scene, imported[:3], TWO_YEARS_BACK)

    report = run(scene, today=TODAY + DAY)

    assert held(report) == ["hlf: 3 mentors are held back (3 ended)"]
    assert (report.to_document()["mentors"]["skipped"], scene.rows(problems)) == (1, [(locked,)])
    scene.app.rollback()
    run(scene, today=TODAY + DAY)
    assert (hidden(scene), scene.rows(problems)) == ({locked}, [])


def test_locked_mentor_of_a_hold_does_not_stop_the_run(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The app is about to delete the mentor. The alert of the hold names the others."""
    monkeypatch.setattr(certification, "WAIT_FOR_LOCKS_SECONDS", 0.1)
    locked, *others = mentors = join(scene, scene.hlf, valid=6)
    run(scene)
    change(scene, mentors, TWO_YEARS_BACK)
    scene.app.execute("SELECT FROM mentors WHERE id = %s FOR UPDATE", (locked,))

    report = run(scene)

    assert (report.crashed, held(report)) == (False, ["hlf: 5 mentors are held back (5 ended)"])
    assert {mentor for (mentor,) in scene.rows("SELECT mentor_id FROM still_due WHERE what = 'held'")} == set(others)


# After a run on a wrong, later date.


@pytest.mark.parametrize("organisation", [pytest.param(None, id="a full run"), pytest.param("hlf", id="one")])
def test_run_on_the_right_date_reviews_every_mentor(scene: Scene, organisation: str | None) -> None:
    """The wrong run stored wrong days of the next review."""
    join(scene, scene.hlf, valid=3)
    certified, uncertified = scene.certified(TODAY + 40 * DAY), scene.expired()
    scene.facts.certificate(uncertified, NEXT_YEAR, issued_on=TODAY + 50 * DAY)
    run(scene, allow=1)
    run(scene, today=TODAY + 90 * DAY, organisation=organisation, allow=2)
    assert scene.rows(PAUSED) == [(certified,)]

    planned = run(scene, today=TODAY + DAY, dry_run=True).to_document()["mentors"]
    done = run(scene, today=TODAY + DAY).to_document()["mentors"]

    assert scene.rows(PAUSED) == scene.rows(HIDDEN) == [(uncertified,)]
    assert (done["reviewed"], planned) == (5, done)
    assert run(scene, today=TODAY + 2 * DAY).to_document()["mentors"]["reviewed"] == 0
