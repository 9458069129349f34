"""The guards hold a wrong clock and a wrong import. They let through changes that the last review foresaw."""

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from certjob.domain import rules
from certjob.errors import ConfigurationError
from certjob.jobs.report import RunReport
from certjob.review import certification
from certjob.review.days import looks_at_everybody
from tests.support.facts import TODAY
from tests.support.nights import EVERYTHING, in_background
from tests.support.scene import NEXT_YEAR, YESTERDAY, Scene
from tests.support.waiting import until, waits_for_a_lock

DAY = timedelta(days=1)
COHORT_ENDS_ON = TODAY + 20 * DAY
HOLDS = "SELECT what, mentors, allow FROM held_reviews ORDER BY what"
PAUSED = "SELECT mentor_id FROM mentor_pauses WHERE lifted_at IS NULL"
HIDDEN = "SELECT id FROM mentors WHERE NOT portal_visible"
TWO_YEARS_BACK = "issued_on = issued_on - 730, expires_on = expires_on - 730"
Limits = Callable[..., None]


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Limits:
    """Set limits of the rules and the size of a chunk. Without ``examine``, only chunks are counted."""

    def arrange(*, chunk: int, examine: bool = True, **numbers: int) -> None:
        monkeypatch.setattr(certification, "CHUNK_SIZE", chunk)
        for name, limit in numbers.items():
            monkeypatch.setattr(rules, name, limit)
        if not examine:
            monkeypatch.setattr("certjob.review.guards.MassChangeGuard.examine", lambda *_: None)

    return arrange


def join(scene: Scene, organisation: UUID, *, expired: int = 0, valid: int = 0) -> list[UUID]:
    """Add mentors."""
    last_days = [YESTERDAY] * expired + [NEXT_YEAR] * valid
    return [scene.facts.certified_mentor(organisation, last_day) for last_day in last_days]


def run(scene: Scene, today: date = TODAY, *, allow: int = 0, **options: Any) -> RunReport:
    """Run without deliveries, more than 20 hours after the runs of earlier days."""
    scene.run_sql(
        "UPDATE guard_counts SET at = at - interval '1 day' WHERE NOT EXISTS (SELECT FROM job_runs WHERE as_of >= %s)",
        today,
    )
    return scene.night(today=today, deliver=False, allow=Counter(hlf=allow) if allow else Counter(), **options)


def run_daily(scene: Scene, until: date) -> None:
    """Run on the three days up to this one."""
    for days in (2, 1, 0):
        run(scene, until - days * DAY)


def change(scene: Scene, mentors: Sequence[UUID], statement: str) -> None:
    """Change the certificates of these mentors, as an import or a person does."""
    scene.run_sql(f"UPDATE certificates SET {statement} WHERE mentor_id = ANY (%s)", list(mentors))


def hidden(scene: Scene) -> set[UUID]:
    return {mentor for (mentor,) in scene.rows(HIDDEN)}


def held(report: RunReport) -> list[str]:
    """The beginnings of the lines about holds."""
    return [line.partition(",")[0] for line in report.held]


def statuses(scene: Scene, organisation: UUID) -> set[str]:
    theirs = "SELECT c.status FROM certificates c JOIN mentors m ON m.id = mentor_id WHERE organisation_id = %s"
    return {status for (status,) in scene.rows(theirs, organisation)}


def due(scene: Scene) -> int:
    return len(scene.rows("SELECT FROM mentors WHERE review_on <= %s", TODAY))


# Foreseen changes pass.


@pytest.fixture
def cohort(scene: Scene) -> list[UUID]:
    """36 of 60 mentors, whose certificates end on one day as planned. They were reviewed daily up to that day."""
    mentors = join(scene, scene.hlf, valid=60)
    change(scene, mentors[:36], f"expires_on = '{COHORT_ENDS_ON}'")
    run_daily(scene, COHORT_ENDS_ON)
    return mentors[:36]


ENTER_AGAIN = """
    WITH old AS (DELETE FROM certificates RETURNING mentor_id, kind, issued_on, expires_on)
    INSERT INTO certificates (mentor_id, kind, issued_on, expires_on) SELECT * FROM old
"""
"""Some apps rewrite all certificates every day."""


@pytest.mark.parametrize(
    ("event", "days_later"),
    [
        pytest.param("SELECT", 1, id="on the next day"),
        pytest.param("SELECT", 7, id="after a week without a run"),
        pytest.param(ENTER_AGAIN, 1, id="entered again"),
        pytest.param("UPDATE job_runs SET organisation = 'hlf'", 1, id="runs of the organisation only"),
    ],
)
def test_cohort_that_ends_on_one_day_is_hidden(scene: Scene, cohort: list[UUID], event: str, days_later: int) -> None:
    scene.run_sql(event)

    report = run(scene, COHORT_ENDS_ON + days_later * DAY)

    assert (report.held, hidden(scene)) == ([], set(cohort))


def test_cohort_is_hidden_after_a_crash_half_way(
    scene: Scene, cohort: list[UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certification, "WAIT_FOR_LOCKS_SECONDS", 0)
    with scene.app.transaction():
        scene.app.execute("SELECT FROM mentors WHERE id = ANY (%s) FOR UPDATE", (cohort[10:],))
        run(scene, COHORT_ENDS_ON + DAY)
    scene.run_sql("UPDATE job_runs SET finished_at = NULL, outcome = NULL WHERE as_of > %s", COHORT_ENDS_ON)
    assert hidden(scene) == set(cohort[:10])

    report = run(scene, COHORT_ENDS_ON + DAY)

    assert (report.held, hidden(scene)) == ([], set(cohort))


def test_cohort_is_hidden_while_a_wrong_import_is_held(scene: Scene) -> None:
    """The import stays held each day until someone corrects it."""
    mentors = join(scene, scene.hlf, valid=90)
    cohort, imported = mentors[:27], mentors[45:]
    change(scene, cohort, f"expires_on = '{COHORT_ENDS_ON}'")
    run_daily(scene, COHORT_ENDS_ON - 3 * DAY)
    change(scene, imported, TWO_YEARS_BACK)

    reports = [run(scene, COHORT_ENDS_ON + days * DAY) for days in range(-2, 2)]
    assert [bool(report.held) for report in reports] == [True] * 4
    assert hidden(scene) == set(cohort)

    change(scene, imported, "issued_on = issued_on + 730, expires_on = expires_on + 730")
    report = run(scene, COHORT_ENDS_ON + 2 * DAY)
    assert (report.held, hidden(scene), scene.rows(HOLDS)) == ([], set(cohort), [])


def test_upcoming_certificates_bring_many_back(scene: Scene) -> None:
    """The certificates of a course begin next week, and are entered today."""
    mentors = join(scene, scene.hlf, expired=30)
    run(scene, allow=30)
    for mentor in mentors:
        scene.facts.certificate(mentor, NEXT_YEAR, issued_on=TODAY + 5 * DAY)
    run(scene, TODAY + DAY)

    report = run(scene, TODAY + 5 * DAY)

    assert (report.held, hidden(scene)) == ([], set())


def test_pauses_of_people_are_never_held(scene: Scene) -> None:
    """They are not counted, even if certjob would pause the same mentors because of a wrong import."""
    mentors = join(scene, scene.hlf, valid=60)
    run_daily(scene, TODAY)
    change(scene, mentors[:50], "expires_on = issued_on")
    for mentor in mentors[:25]:
        scene.facts.pause(mentor)

    report = run(scene)

    assert (len(report.held), hidden(scene)) == (1, set(mentors[:25]))
    assert scene.rows(HOLDS) == [("pauses", 25, 25)]


def test_new_portal_hides_everyone_who_was_not_certified(scene: Scene) -> None:
    """The last review stored who is certified."""
    nhf = scene.facts.organisation("nhf", portal=None, thresholds=())
    expired, _ = join(scene, nhf, expired=30), join(scene, nhf, valid=10)
    scene.night(deliver=False, allow=EVERYTHING)
    scene.run_sql("UPDATE organisations SET portal = 'dynamics' WHERE id = %s", nhf)

    report = scene.night(deliver=False)

    assert (report.held, hidden(scene)) == ([], set(expired))


# Surprising changes are held.


@pytest.mark.parametrize(
    ("mentors", "statement"),
    [
        pytest.param(60, TWO_YEARS_BACK, id="two years back"),
        pytest.param(60, "expires_on = issued_on", id="first day taken for the last day"),
        pytest.param(60, "expires_on = greatest(issued_on, '2026-03-09')", id="day of the export"),
        pytest.param(210, "revoked_at = now()", id="revoked"),
    ],
)
def test_import_that_would_hide_many_is_held(scene: Scene, mentors: int, statement: str) -> None:
    """The line has the limit and the command that permits the changes."""
    joined = join(scene, scene.hlf, valid=mentors)
    run_daily(scene, TODAY - DAY)
    change(scene, joined[: mentors // 2], statement)

    report = run(scene)

    number = mentors // 2
    assert report.held == [
        f"hlf: {number} mentors would be paused or hidden, the limit is {max(20, mentors // 10)} (of {mentors} "
        "certified); everything else went on. Check the clock and the last import (`certjob run --dry-run` lists the "
        f"mentors), then `certjob run --allow hlf={number}`"
    ]
    assert (hidden(scene), report.outcome) == (set(), "attention")
    assert scene.rows(HOLDS) == [("pauses", number, number)]
    assert report.to_document()["mentors"]["skipped"] == 0


@pytest.mark.parametrize(
    ("expired", "valid", "is_held"),
    [
        pytest.param(20, 0, False, id="20 of 20"),
        pytest.param(21, 0, True, id="21 of 21"),
        pytest.param(21, 219, False, id="21, and 219 certified"),
        pytest.param(22, 219, True, id="22, and 219 certified"),
        pytest.param(30, 60, True, id="a third of a first import"),
    ],
)
def test_limit_is_twenty_or_a_tenth_of_the_certified(scene: Scene, expired: int, valid: int, is_held: bool) -> None:
    """Mentors who have left are not counted."""
    join(scene, scene.hlf, expired=expired, valid=valid)
    for _ in range(20):
        left_at = datetime(2026, 1, 1, tzinfo=UTC)
        scene.facts.certified_mentor(scene.hlf, NEXT_YEAR, left_at=left_at, contact_id=None)
    scene.run_sql("UPDATE mentors SET portal_visible = false WHERE left_at IS NOT NULL")

    report = run(scene)

    mentors = report.to_document()["mentors"]
    assert (bool(report.held), mentors["paused"]) == (is_held, 0 if is_held else expired)
    assert mentors["reviewed"] == 20 + valid + (0 if is_held else expired)


def test_first_run_hides_mentors_without_a_certificate_if_permitted(scene: Scene) -> None:
    mentors = [scene.mentor() for _ in range(30)]
    assert (len(run(scene).held), hidden(scene)) == (1, set())

    report = run(scene, allow=30)

    assert (report.held, hidden(scene)) == ([], set(mentors))


def test_clock_a_year_ahead_is_held_each_night(scene: Scene) -> None:
    """A run that held something does not make the next one trust the date."""
    mentors = join(scene, scene.hlf, valid=60)
    change(scene, mentors[:50], f"expires_on = '{TODAY + 200 * DAY}'")
    run_daily(scene, TODAY)

    reports = [run(scene, TODAY + days * DAY) for days in (365, 365, 366)]

    assert [bool(report.held) for report in reports] == [True] * 3
    assert hidden(scene) == set()


def test_cohort_after_ten_days_without_a_run_is_held(scene: Scene, cohort: list[UUID]) -> None:
    """The clock may be wrong. The next day's run holds it as well, until someone permits it."""
    for days in (10, 11):
        assert held(run(scene, COHORT_ENDS_ON + days * DAY)) == ["hlf: 36 mentors would be paused or hidden"]
    assert hidden(scene) == set()

    report = run(scene, COHORT_ENDS_ON + 11 * DAY, allow=36)

    assert (report.held, hidden(scene), scene.rows(HOLDS)) == ([], set(cohort), [])


def test_hourly_slices_of_a_wrong_import_stop_after_twenty(scene: Scene) -> None:
    """Changes count for 20 hours."""
    mentors = join(scene, scene.hlf, valid=100)
    run_daily(scene, TODAY)

    lines = []
    for start in range(0, 60, 20):
        change(scene, mentors[start : start + 20], "expires_on = issued_on")
        lines.append(held(run(scene)))

    assert hidden(scene) == set(mentors[:20])
    assert lines == [
        [],
        ["hlf: 20 mentors would be paused or hidden after 20 in the last 20 hours"],
        ["hlf: 40 mentors would be paused or hidden after 20 in the last 20 hours"],
    ]
    scene.run_sql("UPDATE guard_counts SET at = at - interval '20 hours'")
    change(scene, mentors[40:], "expires_on = '2027-12-31'")
    assert (run(scene).held, hidden(scene)) == ([], set(mentors[:40]))


def test_parallel_runs_share_one_limit(scene: Scene) -> None:
    """The second run waits until the first has committed its number."""
    mentors = join(scene, scene.hlf, valid=60)
    run_daily(scene, TODAY)
    change(scene, mentors[:20], "revoked_at = now()")
    scene.app.execute("SELECT FROM organisations FOR NO KEY UPDATE")
    scene.app.execute("INSERT INTO guard_counts (organisation_id, what, number) VALUES (%s, 'pauses', 1)", (scene.hlf,))

    def commit() -> None:
        until(lambda: waits_for_a_lock(scene.other, scene.connection))
        scene.app.commit()

    with in_background(commit):
        report = run(scene)

    assert held(report) == ["hlf: 20 mentors would be paused or hidden after 1 in the last 20 hours"]
    assert hidden(scene) == set()


def test_number_from_a_wrong_clock_holds_nothing(scene: Scene) -> None:
    """A run on a wrong, later date has stored a number in the future."""
    mentors = join(scene, scene.hlf, valid=60)
    run_daily(scene, TODAY)
    scene.run_sql(
        "INSERT INTO guard_counts (organisation_id, what, at, number)"
        " VALUES (%s, 'pauses', now() + interval '1 year', 20)",
        scene.hlf,
    )
    change(scene, mentors[:1], "revoked_at = now()")

    report = run(scene)

    assert (report.held, hidden(scene)) == ([], set(mentors[:1]))
    assert scene.rows("SELECT number FROM guard_counts") == [(1,)]


def test_revoked_mentors_are_hidden_while_returns_are_held(scene: Scene) -> None:
    mentors = join(scene, scene.hlf, expired=40, valid=60)
    run(scene, allow=40)
    change(scene, mentors[:40], f"expires_on = '{NEXT_YEAR}'")
    change(scene, mentors[-3:], "revoked_at = now()")

    report = run(scene)

    assert held(report) == ["hlf: 40 mentors would be shown or brought back"]
    assert hidden(scene) == {*mentors[:40], *mentors[-3:]}


def test_many_departures_at_once_are_held(scene: Scene) -> None:
    """They would hide mentors without a pause."""
    mentors = join(scene, scene.hlf, valid=60)
    run_daily(scene, TODAY)
    scene.run_sql("UPDATE mentors SET left_at = now() WHERE id = ANY (%s)", mentors[:30])

    assert (len(run(scene).held), hidden(scene)) == (1, set())


def test_held_organisation_stops_no_other(scene: Scene, limits: Limits) -> None:
    limits(chunk=10)
    bad, good = scene.facts.organisation("bad", portal=None), scene.facts.organisation("good", portal=None)
    join(scene, bad, expired=30)
    join(scene, good, expired=2, valid=1)

    report = scene.night(deliver=False)

    assert (statuses(scene, bad), statuses(scene, good)) == ({"recorded"}, {"expired", "valid"})
    assert report.held[0].endswith("then `certjob run --allow bad=30`")
    assert (report.outcome, report.to_document()["mentors"]["skipped"], due(scene)) == ("attention", 0, 30)


def test_changes_during_a_run_are_counted_in_each_chunk(scene: Scene, limits: Limits) -> None:
    """The limit is that of the organisation, not of a chunk."""
    limits(chunk=1, examine=False, MASS_CHANGE_MINIMUM=2)
    join(scene, scene.hlf, expired=16, valid=124)

    report = run(scene)

    assert len(scene.rows(PAUSED)) == 12
    assert [line.partition(";")[0] for line in report.held] == [
        "hlf: 4 mentors would be paused or hidden after 12 in the last 20 hours, the limit is 12 (of 124 certified)"
    ]


# A person permits changes.


@pytest.mark.parametrize(("allow", "is_held"), [(59, True), (60, False)])
def test_permission_is_for_both_kinds_together(scene: Scene, allow: int, is_held: bool) -> None:
    """With one change more than permitted, all of them stay held."""
    mentors = join(scene, scene.hlf, expired=30, valid=70)
    run(scene, allow=30)
    change(scene, mentors[:30], f"expires_on = '{NEXT_YEAR}'")
    change(scene, mentors[-30:], "revoked_at = now()")
    assert {line.rpartition("`certjob run ")[2] for line in run(scene, dry_run=True).held} == {"--allow hlf=60`"}

    report = run(scene, allow=allow)

    assert len(report.held) == (2 if is_held else 0)
    assert hidden(scene) == set(mentors[:30] if is_held else mentors[-30:])


def test_permission_is_for_one_organisation_and_one_run(scene: Scene) -> None:
    nhf = scene.facts.organisation("nhf", portal=None)
    mentors = join(scene, scene.hlf, expired=30)
    join(scene, nhf, expired=30)

    assert held(run(scene, allow=30)) == ["nhf: 30 mentors would be paused or hidden"]
    change(scene, mentors, f"expires_on = '{NEXT_YEAR}'")
    assert sorted(held(run(scene))) == [
        "hlf: 30 mentors would be shown or brought back",
        "nhf: 30 mentors would be paused or hidden",
    ]


def test_permitted_changes_are_not_counted_for_later_runs(scene: Scene) -> None:
    mentors = join(scene, scene.hlf, expired=41, valid=60)
    run(scene, allow=41)
    change(scene, mentors[:40], f"expires_on = '{NEXT_YEAR}'")
    run(scene, allow=40)
    change(scene, mentors[40:41], f"expires_on = '{NEXT_YEAR}'")

    report = run(scene)

    assert (report.held, hidden(scene)) == ([], set())


def test_more_changes_than_permitted_are_held_during_the_run(scene: Scene, limits: Limits) -> None:
    """Facts can change after the first count."""
    limits(chunk=1, examine=False, MASS_CHANGE_MINIMUM=2)
    join(scene, scene.hlf, expired=10)

    report = run(scene, allow=7)

    assert len(scene.rows(PAUSED)) == 7
    assert held(report) == ["hlf: 3 mentors would be paused or hidden after 7 in the last 20 hours"]


def test_permission_for_an_unknown_organisation_is_refused(scene: Scene) -> None:
    with pytest.raises(ConfigurationError, match="hfl"):
        scene.night(allow=Counter(hfl=60))


def test_dry_run_marks_held_changes(scene: Scene) -> None:
    """Its totals are those of a run."""
    join(scene, scene.hlf, expired=30)
    join(scene, scene.facts.organisation("nhf", portal=None), expired=1)

    report = run(scene, dry_run=True)

    document = report.to_document()
    changes = Counter((each["organisation"], each["held"]) for each in document["changes"])
    assert changes == {("hlf", True): 30, ("nhf", False): 1}
    assert (document["mentors"]["paused"], len(report.held)) == (1, 1)


# Reminders.


def test_too_many_reminders_are_held_and_pauses_are_not(scene: Scene, limits: Limits) -> None:
    """The mentors stay due until a run is permitted to send. The dry run says the same."""
    limits(chunk=10, MASS_REMINDER_LIMIT=25)
    many, few = scene.facts.organisation("many"), scene.facts.organisation("few", portal=None)
    for number in range(55):
        scene.facts.certified_mentor(many if number < 30 else few, TODAY + 5 * DAY)
    expired = scene.facts.certified_mentor(many, YESTERDAY)
    planned = scene.night(dry_run=True, deliver=False).to_document()

    report = scene.night(deliver=False)

    document = report.to_document()
    assert (document["reminders"]["queued"], document["mentors"]["reviewed"]) == (25, 56)
    assert report.held[0].startswith("many: 31 new reminders, the limit is 25; everything else went on.")
    assert scene.rows(HOLDS) == [("reminders", 31, 31)]
    assert scene.rows(PAUSED) == scene.rows("SELECT mentor_id FROM portal_sync_events") == [(expired,)]
    assert planned["held"] == report.held
    reminders = Counter(each["held"] for change in planned["changes"] for each in change["reminders"])
    assert reminders == {True: 31, False: 25}


def test_held_reminders_are_queued_by_a_permitted_run(scene: Scene, limits: Limits) -> None:
    """A second review of the same mentors writes no status again."""
    limits(chunk=10, MASS_REMINDER_LIMIT=5)
    nhf = scene.facts.organisation("nhf", portal=None)
    for _ in range(8):
        scene.facts.certified_mentor(nhf, TODAY + 5 * DAY)
    assert [bool(scene.night(deliver=False, allow=Counter(nhf=allow)).held) for allow in (0, 0, 7)] == [True] * 3
    assert scene.rows("SELECT count(*) FROM certificate_transitions") == [(8,)]

    permitted = scene.night(deliver=False, allow=Counter(nhf=8))

    assert (permitted.to_document()["reminders"]["queued"], due(scene)) == (8, 0)


def test_reminders_are_counted_in_each_chunk(scene: Scene, limits: Limits) -> None:
    """Mentors can become due during the run."""
    limits(chunk=1, examine=False, MASS_REMINDER_LIMIT=5)
    nhf = scene.facts.organisation("nhf", portal=None)
    for _ in range(8):
        scene.facts.certified_mentor(nhf, TODAY + 5 * DAY)

    report = scene.night(deliver=False)

    assert report.to_document()["reminders"]["queued"] == 5
    assert held(report) == ["nhf: 8 new reminders"]
    assert scene.rows(HOLDS) == [("reminders", 3, 3)]


# After a run on a wrong, later date.


@pytest.mark.parametrize("wrong", ["a full run", "one organisation", "killed"])
def test_run_on_the_right_date_reviews_every_mentor(scene: Scene, wrong: str) -> None:
    """The wrong run stored wrong days of the next review."""
    join(scene, scene.hlf, valid=30)
    certified, uncertified = scene.certified(TODAY + 40 * DAY), scene.expired()
    scene.facts.certificate(uncertified, NEXT_YEAR, issued_on=TODAY + 50 * DAY)
    run(scene)
    run(scene, TODAY + 90 * DAY, organisation="hlf" if wrong == "one organisation" else None)
    if wrong == "killed":
        scene.run_sql("UPDATE job_runs SET started_at = started_at - interval '25 hours'")
        scene.run_sql("UPDATE job_runs SET finished_at = NULL, outcome = NULL WHERE as_of > %s", TODAY)
    assert scene.rows(PAUSED) == [(certified,)]

    planned, done, next_day = (
        scene.night(today=TODAY + days * DAY, dry_run=dry_run, deliver=False).to_document()["mentors"]
        for days, dry_run in ((1, True), (1, False), (2, False))
    )

    assert scene.rows(PAUSED) == scene.rows(HIDDEN) == [(uncertified,)]
    assert planned == done
    assert (done["reviewed"], next_day["reviewed"]) == (32, 0)


def test_run_that_began_during_a_wrong_one_corrects_nothing(scene: Scene) -> None:
    """The wrong run, on another machine, decided until later."""

    def ran(as_of: date, started: str, finished: str) -> None:
        times = {"started_at": f"2026-03-10 {started}Z", "finished_at": f"2026-03-10 {finished}Z"}
        scene.facts.insert(
            "job_runs", id=uuid4(), command="run", as_of=as_of, host="h", version="0", outcome="ok", **times
        )

    ran(TODAY + 100 * DAY, "02:00", "02:30")
    ran(TODAY, "02:05", "02:10")
    assert looks_at_everybody(scene.connection, TODAY)

    ran(TODAY, "02:31", "02:40")
    assert not looks_at_everybody(scene.connection, TODAY)
