"""The guards hold a wrong clock and a wrong import. They let through changes that the last review foresaw.

In these tests a guard allows 2 changes instead of 20, and a chunk has 2 mentors, so that few mentors are enough.
"""

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from certjob.domain import rules
from certjob.errors import ConfigurationError
from certjob.jobs.report import RunReport
from certjob.review import certification
from certjob.review.guards import MassChangeGuard
from tests.support.facts import TODAY
from tests.support.nights import in_background
from tests.support.scene import NEXT_YEAR, YESTERDAY, Scene
from tests.support.waiting import until, waits_for_a_lock

DAY = timedelta(days=1)
LAST_DAY = TODAY + 20 * DAY
HOLDS = "SELECT what, mentors, allow FROM held_reviews ORDER BY what"
PAUSED = "SELECT mentor_id FROM mentor_pauses WHERE lifted_at IS NULL"
HIDDEN = "SELECT id FROM mentors WHERE NOT portal_visible"
TWO_YEARS_BACK = "issued_on = issued_on - 730, expires_on = expires_on - 730"


@pytest.fixture(autouse=True)
def small_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "MASS_CHANGE_MINIMUM", 2)
    monkeypatch.setattr(certification, "CHUNK_SIZE", 2)


def count_only_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count nothing before the first chunk, as if all facts changed after it. Each mentor is a chunk."""
    monkeypatch.setattr(certification, "CHUNK_SIZE", 1)
    monkeypatch.setattr(MassChangeGuard, "examine", lambda *_: None)


def join(scene: Scene, organisation: UUID, *, expired: int = 0, valid: int = 0) -> list[UUID]:
    """Add mentors."""
    last_days = [YESTERDAY] * expired + [NEXT_YEAR] * valid
    return [scene.facts.certified_mentor(organisation, last_day) for last_day in last_days]


def run(scene: Scene, *, allow: int = 0, **options: Any) -> RunReport:
    """Run without deliveries."""
    permitted = Counter(hlf=allow) if allow else Counter[str]()
    return scene.night(deliver=False, allow=permitted, **options)


def change(scene: Scene, mentors: list[UUID], statement: str) -> None:
    """Change the certificates of these mentors, as an import or a person does."""
    scene.run_sql(f"UPDATE certificates SET {statement} WHERE mentor_id = ANY (%s)", mentors)


def hidden(scene: Scene) -> set[UUID]:
    return {mentor for (mentor,) in scene.rows(HIDDEN)}


def held(report: RunReport) -> list[str]:
    """Return the beginnings of the lines about holds."""
    return [line.partition(",")[0] for line in report.held]


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
        pytest.param("SELECT", 7, id="after a week without a run"),
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
    assert [held(report) for report in reports] == [["hlf: 5 mentors would be paused or hidden"]] * 2
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
    run(scene, today=TODAY + DAY)

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

    assert (hidden(scene), scene.rows(HOLDS)) == (set(mentors[:2]), [("pauses", 3, 3)])


# Other changes are held.


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param(TWO_YEARS_BACK, id="two years back"),
        pytest.param("expires_on = '2026-03-09'", id="day of the export"),
        pytest.param("revoked_at = now()", id="revoked"),
    ],
)
def test_import_that_would_hide_many_is_held(scene: Scene, statement: str) -> None:
    """The line has the limit and the command that permits the changes. The mentors stay due."""
    mentors = join(scene, scene.hlf, valid=6)
    run(scene, today=YESTERDAY)
    change(scene, mentors[:3], statement)

    report = run(scene)

    assert report.held == [
        "hlf: 3 mentors would be paused or hidden, the limit is 2 (of 6 certified); everything else goes on. Check the "
        "clock and the last import (`certjob run --dry-run` lists the mentors), then `certjob run --allow hlf=3`"
    ]
    assert (hidden(scene), scene.rows(HOLDS)) == (set(), [("pauses", 3, 3)])
    assert (report.outcome, report.to_document()["mentors"]["skipped"]) == ("attention", 0)
    assert scene.rows("SELECT count(*) FROM mentors WHERE review_on <= %s", TODAY) == [(3,)]


@pytest.mark.parametrize(("expired", "is_held"), [(3, False), (4, True)])
def test_limit_is_a_tenth_of_the_certified(scene: Scene, expired: int, is_held: bool) -> None:
    """A mentor who has left is not counted."""
    left = scene.certified(left_at=datetime(2026, 1, 1, tzinfo=UTC), contact_id=None)
    scene.run_sql("UPDATE mentors SET portal_visible = false WHERE id = %s", left)
    join(scene, scene.hlf, expired=expired, valid=39)

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


def test_cohort_after_ten_days_without_a_run_is_held(scene: Scene, cohort: list[UUID]) -> None:
    """The clock may be wrong. The next day's run holds it as well, until someone permits it."""
    for days in (10, 11):
        assert held(run(scene, today=LAST_DAY + days * DAY)) == ["hlf: 3 mentors would be paused or hidden"]
    assert hidden(scene) == set()

    report = run(scene, today=LAST_DAY + 11 * DAY, allow=3)

    assert (report.held, hidden(scene), scene.rows(HOLDS)) == ([], set(cohort), [])


def test_hourly_slices_of_a_wrong_import_stop_at_the_limit(scene: Scene) -> None:
    """Changes count for 20 hours."""
    mentors = join(scene, scene.hlf, valid=10)
    run(scene)

    change(scene, mentors[:2], "expires_on = issued_on")
    first = run(scene)
    change(scene, mentors[2:4], "expires_on = issued_on")
    second = run(scene)

    assert (held(first), hidden(scene)) == ([], set(mentors[:2]))
    assert held(second) == ["hlf: 2 mentors would be paused or hidden after 2 in the last 20 hours"]
    scene.run_sql("UPDATE guard_counts SET at = at - interval '20 hours'")
    assert (run(scene).held, hidden(scene)) == ([], set(mentors[:4]))


def test_parallel_runs_share_one_limit(scene: Scene) -> None:
    """The second run waits until the first has committed its number."""
    mentors = join(scene, scene.hlf, valid=6)
    run(scene)
    change(scene, mentors[:2], "revoked_at = now()")
    scene.app.execute("SELECT FROM organisations FOR NO KEY UPDATE")
    scene.app.execute("INSERT INTO guard_counts (organisation_id, what, number) VALUES (%s, 'pauses', 1)", (scene.hlf,))

    def commit() -> None:
        until(lambda: waits_for_a_lock(scene.other, scene.connection))
        scene.app.commit()

    with in_background(commit):
        report = run(scene)

    assert held(report) == ["hlf: 2 mentors would be paused or hidden after 1 in the last 20 hours"]
    assert hidden(scene) == set()


def test_revoked_mentors_are_hidden_while_returns_are_held(scene: Scene) -> None:
    mentors = join(scene, scene.hlf, expired=3, valid=3)
    run(scene, allow=3)
    change(scene, mentors[:3], f"expires_on = '{NEXT_YEAR}'")
    change(scene, mentors[3:5], "revoked_at = now()")

    report = run(scene)

    assert held(report) == ["hlf: 3 mentors would be shown or brought back"]
    assert hidden(scene) == set(mentors[:5])


def test_changes_during_a_run_are_counted_in_each_chunk(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is that of the organisation, not of a chunk."""
    join(scene, scene.hlf, valid=70)
    run(scene)
    join(scene, scene.hlf, expired=9)
    count_only_in_chunks(monkeypatch)

    report = run(scene)

    assert len(scene.rows(PAUSED)) == 7
    assert [line.partition(";")[0] for line in report.held] == [
        "hlf: 2 mentors would be paused or hidden after 7 in the last 20 hours, the limit is 7 (of 70 certified)"
    ]


def test_changes_that_bypass_the_triggers_stop_at_the_limit(scene: Scene) -> None:
    """As after a restore of one table: the mentors are due by the calendar, but no review foresaw the changes."""
    mentors = join(scene, scene.hlf, valid=6)
    run(scene)
    scene.run_sql("ALTER TABLE certificates DISABLE TRIGGER USER")
    change(scene, mentors[:5], TWO_YEARS_BACK)
    scene.run_sql("UPDATE mentors SET review_on = %s WHERE id = ANY (%s)", TODAY, mentors[:5])

    report = run(scene)

    assert held(report) == ["hlf: 3 mentors would be paused or hidden after 2 in the last 20 hours"]
    assert len(hidden(scene)) == 2


# A person permits changes.


@pytest.mark.parametrize(("allow", "is_held"), [(5, True), (6, False)])
def test_permission_is_for_both_kinds_together(scene: Scene, allow: int, is_held: bool) -> None:
    """With one change more than permitted, all of them stay held."""
    mentors = join(scene, scene.hlf, expired=3, valid=7)
    run(scene, allow=3)
    change(scene, mentors[:3], f"expires_on = '{NEXT_YEAR}'")
    change(scene, mentors[-3:], "revoked_at = now()")
    assert {line.rpartition("`certjob run ")[2] for line in run(scene, dry_run=True).held} == {"--allow hlf=6`"}

    report = run(scene, allow=allow)

    assert len(report.held) == (2 if is_held else 0)
    assert hidden(scene) == set(mentors[:3] if is_held else mentors[-3:])


def test_permission_is_for_one_organisation_and_one_run(scene: Scene) -> None:
    mentors = join(scene, scene.hlf, expired=3)
    join(scene, scene.facts.organisation("nhf", portal=None), expired=3)

    assert held(run(scene, allow=3)) == ["nhf: 3 mentors would be paused or hidden"]
    change(scene, mentors, f"expires_on = '{NEXT_YEAR}'")
    assert sorted(held(run(scene))) == [
        "hlf: 3 mentors would be shown or brought back",
        "nhf: 3 mentors would be paused or hidden",
    ]


def test_permitted_changes_are_not_counted_for_later_runs(scene: Scene) -> None:
    mentors = join(scene, scene.hlf, expired=4, valid=6)
    run(scene, allow=4)
    change(scene, mentors[:3], f"expires_on = '{NEXT_YEAR}'")
    run(scene, allow=3)
    change(scene, mentors[3:4], f"expires_on = '{NEXT_YEAR}'")

    report = run(scene)

    assert (report.held, hidden(scene)) == ([], set())


def test_more_changes_than_permitted_are_held_during_the_run(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    count_only_in_chunks(monkeypatch)
    join(scene, scene.hlf, expired=5)

    report = run(scene, allow=3)

    assert len(scene.rows(PAUSED)) == 3
    assert held(report) == ["hlf: 2 mentors would be paused or hidden after 3 in the last 20 hours"]


def test_permission_for_an_unknown_organisation_is_refused(scene: Scene) -> None:
    with pytest.raises(ConfigurationError, match="hfl"):
        scene.night(allow=Counter(hfl=60))


# Reminders.


def test_too_many_reminders_are_held_and_pauses_are_not(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dry run says the same."""
    monkeypatch.setattr(rules, "MASS_REMINDER_LIMIT", 5)
    many, few = scene.facts.organisation("many"), scene.facts.organisation("few", portal=None)
    for organisation in (*[many] * 6, *[few] * 5):
        scene.facts.certified_mentor(organisation, TODAY + 5 * DAY)
    expired = scene.facts.certified_mentor(many, YESTERDAY)
    planned = run(scene, dry_run=True).to_document()

    report = run(scene)

    document = report.to_document()
    assert (document["reminders"]["queued"], document["mentors"]["reviewed"]) == (5, 12)
    assert report.held[0].startswith("many: 7 new reminders, the limit is 5; everything else goes on.")
    assert scene.rows(HOLDS) == [("reminders", 7, 7)]
    assert scene.rows(PAUSED) == scene.rows("SELECT mentor_id FROM portal_sync_events") == [(expired,)]
    assert planned["held"] == report.held
    reminders = Counter(each["held"] for change in planned["changes"] for each in change["reminders"])
    assert reminders == {True: 7, False: 5}


def test_held_reminders_are_queued_by_a_permitted_run(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mentors stay due until then. A second review of them writes no status again."""
    monkeypatch.setattr(rules, "MASS_REMINDER_LIMIT", 2)
    nhf = scene.facts.organisation("nhf", portal=None)
    for _ in range(4):
        scene.facts.certified_mentor(nhf, TODAY + 5 * DAY)
    assert [len(scene.night(deliver=False, allow=Counter(nhf=allow)).held) for allow in (0, 3)] == [1, 1]
    assert scene.rows("SELECT count(*) FROM certificate_transitions") == [(4,)]

    permitted = scene.night(deliver=False, allow=Counter(nhf=4))

    assert (permitted.held, permitted.to_document()["reminders"]["queued"]) == ([], 4)
    assert scene.rows("SELECT count(*) FROM mentors WHERE review_on <= %s", TODAY) == [(0,)]


def test_reminders_are_counted_in_each_chunk(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mentors can become due during the run."""
    count_only_in_chunks(monkeypatch)
    monkeypatch.setattr(rules, "MASS_REMINDER_LIMIT", 2)
    nhf = scene.facts.organisation("nhf", portal=None)
    for _ in range(4):
        scene.facts.certified_mentor(nhf, TODAY + 5 * DAY)

    report = run(scene)

    assert report.to_document()["reminders"]["queued"] == 2
    assert held(report) == ["nhf: 4 new reminders"]
    assert scene.rows(HOLDS) == [("reminders", 2, 2)]


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

    assert held(report) == ["hlf: 1 mentor would be paused or hidden after 2 in the last 20 hours"]
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
    assert held(report) == ["hlf: 3 mentors would be shown or brought back"]


# Mentors whom the run cannot review.


def test_locked_mentor_is_named_although_others_are_held(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The alert of the night before stays. The held mentors are not tried again in the same run."""
    monkeypatch.setattr(certification, "WAIT_FOR_LOCKS_SECONDS", 0.1)
    locked, *imported = join(scene, scene.hlf, valid=6)
    run(scene)
    scene.facts.pause(locked)
    scene.app.execute("SELECT FROM certificates WHERE mentor_id = %s FOR UPDATE", (locked,))
    problems = "SELECT mentor_id FROM review_problems"
    first = run(scene).to_document()
    assert (first["mentors"]["skipped"], scene.rows(problems)) == (1, [(locked,)])
    change(scene, imported[:3], TWO_YEARS_BACK)

    report = run(scene, today=TODAY + DAY)

    assert held(report) == ["hlf: 3 mentors would be paused or hidden"]
    assert (report.to_document()["mentors"]["skipped"], scene.rows(problems)) == (1, [(locked,)])
    scene.app.rollback()
    run(scene, today=TODAY + DAY)
    assert (hidden(scene), scene.rows(problems)) == ({locked}, [])


# After a run on a wrong, later date.


@pytest.mark.parametrize("organisation", [pytest.param(None, id="a full run"), pytest.param("hlf", id="one")])
def test_run_on_the_right_date_reviews_every_mentor(scene: Scene, organisation: str | None) -> None:
    """The wrong run stored wrong days of the next review."""
    join(scene, scene.hlf, valid=3)
    certified, uncertified = scene.certified(TODAY + 40 * DAY), scene.expired()
    scene.facts.certificate(uncertified, NEXT_YEAR, issued_on=TODAY + 50 * DAY)
    run(scene, allow=1)
    run(scene, today=TODAY + 90 * DAY, organisation=organisation)
    assert scene.rows(PAUSED) == [(certified,)]

    planned = run(scene, today=TODAY + DAY, dry_run=True).to_document()["mentors"]
    done = run(scene, today=TODAY + DAY).to_document()["mentors"]

    assert scene.rows(PAUSED) == scene.rows(HIDDEN) == [(uncertified,)]
    assert (done["reviewed"], planned) == (5, done)
    assert run(scene, today=TODAY + 2 * DAY).to_document()["mentors"]["reviewed"] == 0
