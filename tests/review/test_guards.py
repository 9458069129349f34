"""The guards: a wrong clock or a wrong import changes little and is reported; what was foreseen passes."""

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
from tests.support.nights import EVERYTHING
from tests.support.scene import NEXT_YEAR, YESTERDAY, Scene

DAY = timedelta(days=1)
IN_5_DAYS = TODAY + 5 * DAY
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)
COHORT_ENDS_ON = TODAY + 20 * DAY
HELD = "SELECT what, mentors, allow FROM held_reviews ORDER BY what"
PAUSED = "SELECT mentor_id FROM mentor_pauses WHERE lifted_at IS NULL"
Limits = Callable[..., None]


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Limits:
    """Set limits of the rules, and a chunk's size; ``foreseen``: everybody is counted before the first chunk."""

    def arrange(*, chunk: int, foreseen: bool = True, **numbers: int) -> None:
        monkeypatch.setattr(certification, "CHUNK_SIZE", chunk)
        for name, limit in numbers.items():
            monkeypatch.setattr(rules, name, limit)
        if not foreseen:
            monkeypatch.setattr("certjob.review.guards.MassChangeGuard.examine", lambda *_: None)

    return arrange


def join(scene: Scene, organisation: UUID, *, expired: int = 0, valid: int = 0) -> list[UUID]:
    """So many new mentors."""
    last_days = [YESTERDAY] * expired + [NEXT_YEAR] * valid
    return [scene.facts.certified_mentor(organisation, last_day) for last_day in last_days]


def run(scene: Scene, today: date = TODAY, *, allow: int = 0, **options: Any) -> RunReport:
    """A run of this day without deliveries; what earlier days have counted is more than 20 hours old."""
    scene.run_sql(
        "UPDATE guard_counts SET at = at - interval '1 day' WHERE NOT EXISTS (SELECT FROM job_runs WHERE as_of >= %s)",
        today,
    )
    return scene.night(today=today, deliver=False, allow=Counter(hlf=allow) if allow else Counter(), **options)


def reviewed_daily(scene: Scene, until: date) -> None:
    """Three runs up to this day."""
    for days in (2, 1, 0):
        run(scene, until - days * DAY)


def change(scene: Scene, mentors: Sequence[UUID], statement: str) -> None:
    """Change the certificates of these mentors, as an import or a person does."""
    scene.run_sql(f"UPDATE certificates SET {statement} WHERE mentor_id = ANY (%s)", list(mentors))


def hidden(scene: Scene) -> set[object]:
    return {mentor for (mentor,) in scene.rows("SELECT id FROM mentors WHERE NOT portal_visible")}


def statuses(scene: Scene, organisation: UUID) -> set[object]:
    theirs = "SELECT c.status FROM certificates c JOIN mentors m ON m.id = mentor_id WHERE organisation_id = %s"
    return {status for (status,) in scene.rows(theirs, organisation)}


def due(scene: Scene) -> int:
    return len(scene.rows("SELECT FROM mentors WHERE review_on <= %s", TODAY))


# What was foreseen passes.


@pytest.fixture
def cohort(scene: Scene) -> list[UUID]:
    """36 of 60 mentors, whose certificates end on one day, as planned for years; reviewed daily up to that day."""
    mentors = join(scene, scene.hlf, valid=60)
    change(scene, mentors[:36], f"expires_on = '{COHORT_ENDS_ON}'")
    reviewed_daily(scene, COHORT_ENDS_ON)
    return mentors[:36]


def test_cohort_that_ends_on_one_day_is_hidden(scene: Scene, cohort: list[UUID]) -> None:
    """On New Year's Day no one has to be at work."""
    report = run(scene, COHORT_ENDS_ON + DAY)

    assert (report.held, hidden(scene)) == ([], set(cohort))


def test_cohort_whose_rows_are_entered_again_is_hidden(scene: Scene, cohort: list[UUID]) -> None:
    """An app that rewrites its certificates every day changes nothing about what was foreseen."""
    rows = scene.rows("DELETE FROM certificates RETURNING mentor_id, kind, issued_on, expires_on")
    for row in rows:
        scene.run_sql("INSERT INTO certificates (mentor_id, kind, issued_on, expires_on) VALUES (%s, %s, %s, %s)", *row)

    report = run(scene, COHORT_ENDS_ON + DAY)

    assert (report.held, hidden(scene)) == ([], set(cohort))


def test_cohort_is_hidden_after_a_crash_half_way(
    scene: Scene, cohort: list[UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second run of the night does the rest."""
    monkeypatch.setattr(certification, "WAIT_FOR_LOCKS_SECONDS", 0)
    with scene.app.transaction():
        scene.app.execute("SELECT FROM mentors WHERE id = ANY (%s) FOR UPDATE", (cohort[10:],))
        run(scene, COHORT_ENDS_ON + DAY)
    scene.run_sql("UPDATE job_runs SET finished_at = NULL, outcome = NULL WHERE as_of > %s", COHORT_ENDS_ON)
    assert hidden(scene) == set(cohort[:10])

    report = run(scene, COHORT_ENDS_ON + DAY)

    assert (report.held, hidden(scene)) == ([], set(cohort))


def test_cohort_is_hidden_by_runs_of_its_organisation_alone(scene: Scene) -> None:
    """A run limited to the organisation has reviewed it as well."""
    mentors = join(scene, scene.hlf, valid=60)
    change(scene, mentors[:36], f"expires_on = '{COHORT_ENDS_ON}'")
    run(scene, COHORT_ENDS_ON, organisation="hlf")

    report = run(scene, COHORT_ENDS_ON + DAY, organisation="hlf")

    assert (report.held, len(hidden(scene))) == ([], 36)


def test_cohort_is_hidden_while_a_wrong_import_is_held(scene: Scene) -> None:
    """Only the surprising changes are held, for as long as it takes."""
    mentors = join(scene, scene.hlf, valid=90)
    cohort, imported = mentors[:27], mentors[45:]
    change(scene, cohort, f"expires_on = '{COHORT_ENDS_ON}'")
    reviewed_daily(scene, COHORT_ENDS_ON - 3 * DAY)
    change(scene, imported, "issued_on = issued_on - 730, expires_on = expires_on - 730")

    held = [bool(run(scene, COHORT_ENDS_ON + days * DAY).held) for days in range(-2, 2)]

    assert held == [True] * 4
    assert hidden(scene) == set(cohort)
    change(scene, imported, "issued_on = issued_on + 730, expires_on = expires_on + 730")
    report = run(scene, COHORT_ENDS_ON + 2 * DAY)
    assert (report.held, hidden(scene), scene.rows(HELD)) == ([], set(cohort), [])


def test_certificate_that_begins_as_foreseen_brings_everyone_back(scene: Scene) -> None:
    """A course whose certificates begin next week, entered today."""
    mentors = join(scene, scene.hlf, expired=30)
    run(scene, allow=30)
    for mentor in mentors:
        scene.facts.certificate(mentor, NEXT_YEAR, issued_on=IN_5_DAYS)
    run(scene, TODAY + DAY)

    report = run(scene, IN_5_DAYS)

    assert (report.held, hidden(scene)) == ([], set())


def test_pauses_of_people_are_never_held(scene: Scene) -> None:
    """Thirty coordinators' pauses hide thirty mentors, and count for nothing."""
    mentors = join(scene, scene.hlf, valid=60)
    run(scene)
    for mentor in mentors[:30]:
        scene.facts.pause(mentor)

    report = run(scene)

    assert (report.held, hidden(scene)) == ([], set(mentors[:30]))
    assert scene.rows("SELECT count(*) FROM guard_counts") == [(0,)]


def test_pause_of_a_person_hides_while_a_wrong_import_is_held(scene: Scene) -> None:
    """A coordinator's pause hides the mentor at once, also one whom certjob would pause after the import."""
    mentors = join(scene, scene.hlf, valid=60)
    reviewed_daily(scene, TODAY)
    change(scene, mentors[:30], "expires_on = issued_on")
    scene.facts.pause(mentors[0])

    report = run(scene)

    assert (len(report.held), hidden(scene)) == (1, {mentors[0]})
    assert scene.rows(HELD) == [("pauses", 29, 29)]


def test_new_portal_hides_those_who_were_not_certified_before(scene: Scene) -> None:
    """No one knows what it shows; the last review knew who is certified."""
    nhf = scene.facts.organisation("nhf", portal=None, thresholds=())
    expired, _ = join(scene, nhf, expired=30), join(scene, nhf, valid=10)
    scene.night(deliver=False, allow=EVERYTHING)
    scene.run_sql("UPDATE organisations SET portal = 'dynamics' WHERE id = %s", nhf)

    report = scene.night(deliver=False)

    assert (report.held, hidden(scene)) == ([], set(expired))


# What is surprising is held.


@pytest.mark.parametrize(
    ("mentors", "import_"),
    [
        (60, "issued_on = issued_on - 730, expires_on = expires_on - 730"),
        (60, "expires_on = issued_on"),  # the issue date taken for the last day
        (60, "expires_on = greatest(issued_on, '2026-03-09')"),  # =TODAY() of yesterday's export
        (210, "revoked_at = now()"),
    ],
    ids=["two years back", "issue date", "day of the export", "revoked"],
)
def test_import_that_would_hide_many_is_held(scene: Scene, mentors: int, import_: str) -> None:
    """More than 20 and a tenth of the certified mentors; the facts have changed since the last review."""
    joined = join(scene, scene.hlf, valid=mentors)
    reviewed_daily(scene, TODAY - DAY)
    change(scene, joined[: mentors // 2], import_)

    report = run(scene)

    number = mentors // 2
    assert report.held == [
        f"hlf: {number} mentors would be paused or hidden, the limit is {max(20, mentors // 10)} (of {mentors} "
        "certified); everything else went on. Check the clock and the last import (`certjob run --dry-run` lists the "
        f"mentors), then `certjob run --allow hlf={number}`"
    ]
    assert (hidden(scene), report.outcome) == (set(), "attention")
    assert scene.rows(HELD) == [("pauses", number, number)]
    assert report.review is not None
    assert report.review.skipped == []


@pytest.mark.parametrize(
    ("expired", "valid", "held"), [(20, 0, False), (21, 0, True), (21, 219, False), (22, 219, True)]
)
def test_limit_is_twenty_and_a_tenth_of_the_certified_mentors(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, expired: int, valid: int, held: bool
) -> None:
    """Mentors who have left are not counted. For few changes, no one is counted."""
    join(scene, scene.hlf, expired=expired, valid=valid)
    for _ in range(20):
        scene.facts.certified_mentor(scene.hlf, NEXT_YEAR, left_at=LONG_AGO, contact_id=None)
    scene.run_sql("UPDATE mentors SET portal_visible = false WHERE left_at IS NOT NULL")
    if not valid and not held:
        monkeypatch.delattr("certjob.review.plan.due_decisions")
        monkeypatch.delattr(rules, "mass_change_limit")

    report = run(scene)

    assert report.review is not None
    assert (bool(report.held), report.review.paused) == (held, 0 if held else expired)
    assert report.review.reviewed == 20 + valid + (0 if held else expired)


def test_first_import_with_a_third_expired_is_held(scene: Scene) -> None:
    """No review has foreseen anything; those who stay certified are reviewed."""
    join(scene, scene.hlf, expired=30, valid=60)

    report = run(scene)

    assert report.review is not None
    assert (report.review.paused, report.review.reviewed, due(scene)) == (0, 60, 30)
    assert statuses(scene, scene.hlf) == {"recorded", "valid"}


def test_first_run_holds_to_hide_many_without_a_certificate(scene: Scene) -> None:
    """They were visible until today; ``--allow`` hides them."""
    bare = [scene.mentor() for _ in range(30)]
    assert run(scene).held
    assert hidden(scene) == set()

    report = run(scene, allow=30)

    assert (report.held, hidden(scene)) == ([], set(bare))


def test_clock_a_year_ahead_is_held_each_night(scene: Scene) -> None:
    """Certificates that end within that year have not ended. A held run does not make the next one believe it."""
    mentors = join(scene, scene.hlf, valid=60)
    change(scene, mentors[:50], f"expires_on = '{TODAY + 200 * DAY}'")
    reviewed_daily(scene, TODAY)

    reports = [run(scene, TODAY + days * DAY) for days in (365, 365, 366)]

    assert [bool(report.held) for report in reports] == [True] * 3
    assert hidden(scene) == set()


def test_cohort_after_ten_days_without_a_run_is_held_until_permitted(scene: Scene, cohort: list[UUID]) -> None:
    """The clock may be wrong; the next day's run does not pass it either."""
    for days in (10, 11):
        (line,) = run(scene, COHORT_ENDS_ON + days * DAY).held
        assert "36 mentors would be paused or hidden" in line
    assert hidden(scene) == set()

    report = run(scene, COHORT_ENDS_ON + 11 * DAY, allow=36)

    assert (report.held, hidden(scene), scene.rows(HELD)) == ([], set(cohort), [])


def test_cohort_after_seven_days_without_a_run_is_hidden(scene: Scene, cohort: list[UUID]) -> None:
    """A week without a run is still believed."""
    report = run(scene, COHORT_ENDS_ON + 7 * DAY)

    assert (report.held, hidden(scene)) == ([], set(cohort))


def test_hourly_slices_of_a_wrong_import_are_stopped_after_twenty(scene: Scene) -> None:
    """Changes are counted across the runs of 20 hours, by whichever process they were made."""
    mentors = join(scene, scene.hlf, valid=100)
    reviewed_daily(scene, TODAY)

    held = []
    for start in range(0, 100, 20):
        change(scene, mentors[start : start + 20], "expires_on = issued_on")
        held.append([line.partition(",")[0] for line in run(scene).held])

    assert hidden(scene) == set(mentors[:20])
    assert held[:3] == [
        [],
        ["hlf: 20 mentors would be paused or hidden after 20 in the last 20 hours"],
        ["hlf: 40 mentors would be paused or hidden after 20 in the last 20 hours"],
    ]
    scene.run_sql("UPDATE guard_counts SET at = at - interval '20 hours'")
    change(scene, mentors[40:], "expires_on = '2027-12-31'")
    assert (run(scene).held, hidden(scene)) == ([], set(mentors[:40]))


def test_count_from_a_wrong_clock_holds_nothing(scene: Scene) -> None:
    """A run on a wrong, later date has counted in the future; a revocation of today is hidden all the same."""
    mentors = join(scene, scene.hlf, valid=60)
    reviewed_daily(scene, TODAY)
    scene.run_sql(
        "INSERT INTO guard_counts (organisation_id, what, at, number)"
        " VALUES (%s, 'pauses', now() + interval '1 year', 20)",
        scene.hlf,
    )
    change(scene, mentors[:1], "revoked_at = now()")

    report = run(scene)

    assert (report.held, hidden(scene)) == ([], set(mentors[:1]))
    assert scene.rows("SELECT number FROM guard_counts") == [(1,)]


def test_revocations_are_hidden_while_returns_are_held(scene: Scene) -> None:
    """An import that brings back too many keeps no one visible who must not be."""
    mentors = join(scene, scene.hlf, expired=40, valid=60)
    run(scene, allow=40)
    change(scene, mentors[:40], f"expires_on = '{NEXT_YEAR}'")
    change(scene, mentors[-3:], "revoked_at = now()")

    report = run(scene)

    assert [line.partition(",")[0] for line in report.held] == ["hlf: 40 mentors would be shown or brought back"]
    assert hidden(scene) == {*mentors[:40], *mentors[-3:]}


def test_leaving_all_at_once_is_held(scene: Scene) -> None:
    """An import that takes everyone for gone hides people wrongly, without any pause."""
    mentors = join(scene, scene.hlf, valid=60)
    reviewed_daily(scene, TODAY)
    scene.run_sql("UPDATE mentors SET left_at = now() WHERE id = ANY (%s)", mentors[:30])

    assert run(scene).held
    assert hidden(scene) == set()


def test_held_organisation_stops_no_other(scene: Scene, limits: Limits) -> None:
    """It is named with the exact command."""
    limits(chunk=10)
    bad, good = scene.facts.organisation("bad", portal=None), scene.facts.organisation("good", portal=None)
    join(scene, bad, expired=30)
    join(scene, good, expired=2, valid=1)

    report = scene.night(deliver=False)

    assert (statuses(scene, bad), statuses(scene, good)) == ({"recorded"}, {"expired", "valid"})
    assert report.held[0].endswith("then `certjob run --allow bad=30`")
    assert report.review is not None
    assert (report.outcome, report.review.skipped, due(scene)) == ("attention", [], 30)


def test_what_changes_during_the_run_is_counted_chunk_after_chunk(scene: Scene, limits: Limits) -> None:
    """The limit is that of the whole organisation, not of a chunk."""
    limits(chunk=1, foreseen=False, MASS_CHANGE_MINIMUM=2)
    join(scene, scene.hlf, expired=16, valid=124)

    report = run(scene)

    assert len(scene.rows(PAUSED)) == 12
    assert [line.partition(";")[0] for line in report.held] == [
        "hlf: 4 mentors would be paused or hidden after 12 in the last 20 hours, the limit is 12 (of 124 certified)"
    ]


# Consent.


@pytest.mark.parametrize(("allow", "held"), [(59, True), (60, False)])
def test_permission_is_for_a_number_of_both_kinds_together(scene: Scene, allow: int, held: bool) -> None:
    """With one more, all of them stay held: not the change that was seen."""
    mentors = join(scene, scene.hlf, expired=30, valid=70)
    run(scene, allow=30)
    change(scene, mentors[:30], f"expires_on = '{NEXT_YEAR}'")
    change(scene, mentors[-30:], "revoked_at = now()")
    assert {line.rpartition("`certjob run ")[2] for line in run(scene, dry_run=True).held} == {"--allow hlf=60`"}

    report = run(scene, allow=allow)

    assert len(report.held) == (2 if held else 0)
    assert hidden(scene) == set(mentors[:30] if held else mentors[-30:])


def test_permission_is_for_one_organisation_and_one_run(scene: Scene) -> None:
    """Another organisation stays held, and so does the next change."""
    nhf = scene.facts.organisation("nhf", portal=None)
    mentors = join(scene, scene.hlf, expired=30)
    join(scene, nhf, expired=30)

    report = run(scene, allow=30)
    change(scene, mentors, f"expires_on = '{NEXT_YEAR}'")

    assert [line.partition(":")[0] for line in report.held] == ["nhf"]
    assert sorted(line.partition(",")[0] for line in run(scene).held) == [
        "hlf: 30 mentors would be shown or brought back",
        "nhf: 30 mentors would be paused or hidden",
    ]


def test_permitted_changes_are_not_counted_for_later_runs(scene: Scene) -> None:
    """After forty permitted returns one more returns on the same day."""
    mentors = join(scene, scene.hlf, expired=41, valid=60)
    run(scene, allow=41)
    change(scene, mentors[:40], f"expires_on = '{NEXT_YEAR}'")
    run(scene, allow=40)
    change(scene, mentors[40:41], f"expires_on = '{NEXT_YEAR}'")

    report = run(scene)

    assert (report.held, hidden(scene)) == ([], set())


def test_more_than_was_permitted_while_the_run_goes_on_is_held(scene: Scene, limits: Limits) -> None:
    """Facts that change during the run are not the change that was seen."""
    limits(chunk=1, foreseen=False, MASS_CHANGE_MINIMUM=2)
    join(scene, scene.hlf, expired=10)

    report = run(scene, allow=7)

    assert len(scene.rows(PAUSED)) == 7
    assert report.held[0].startswith("hlf: 3 mentors would be paused or hidden after 7 in the last 20 hours")


def test_permission_for_an_unknown_organisation_is_refused(scene: Scene) -> None:
    """A typo must not be read as permission for no one."""
    with pytest.raises(ConfigurationError, match="hfl"):
        scene.night(allow=Counter(hfl=60))


def test_dry_run_lists_held_changes_and_marks_them(scene: Scene) -> None:
    """So that a person sees what they would permit; the totals are those of a run."""
    join(scene, scene.hlf, expired=30)
    others = scene.facts.organisation("nhf", portal=None)
    join(scene, others, expired=1)

    report = run(scene, dry_run=True)

    changes = Counter((each["organisation"], each["held"]) for each in report.to_document()["changes"])
    assert changes == {("hlf", True): 30, ("nhf", False): 1}
    assert report.review is not None
    assert (report.review.paused, len(report.held)) == (1, 1)


# Reminders.


def test_too_many_new_reminders_are_held_while_pauses_and_portal_go_on(scene: Scene, limits: Limits) -> None:
    """Those mentors stay due, so that a permitted run sends their reminders; the others' reminders are queued."""
    limits(chunk=10, MASS_REMINDER_LIMIT=25)
    many, few = scene.facts.organisation("many"), scene.facts.organisation("few", portal=None)
    for number in range(55):
        scene.facts.certified_mentor(many if number < 30 else few, IN_5_DAYS)
    expired = scene.facts.certified_mentor(many, YESTERDAY)
    planned = scene.night(dry_run=True, deliver=False).to_document()

    report = scene.night(deliver=False)

    assert report.review is not None
    assert (report.review.reminders_queued, report.review.reviewed) == (25, 56)
    assert report.held[0].startswith("many: 31 new reminders, the limit is 25; everything else went on.")
    assert planned["held"] == report.held
    held = Counter(each["held"] for change in planned["changes"] for each in change["reminders"])
    assert held == {True: 31, False: 25}
    assert scene.rows(HELD) == [("reminders", 31, 31)]
    assert statuses(scene, many) == {"expiring", "expired"}
    assert scene.rows(PAUSED) == scene.rows("SELECT mentor_id FROM portal_sync_events") == [(expired,)]
    assert scene.night(deliver=False).held == report.held
    assert scene.rows("SELECT count(*) FROM certificate_transitions") == [(56,)]

    assert scene.night(deliver=False, allow=Counter(many=30)).held
    allowed = scene.night(deliver=False, allow=Counter(many=31))
    assert (allowed.to_document()["reminders"]["queued"], due(scene)) == (31, 0)


def test_reminders_are_counted_chunk_after_chunk(scene: Scene, limits: Limits) -> None:
    """Those who were due during the run, too."""
    limits(chunk=1, foreseen=False, MASS_REMINDER_LIMIT=5)
    reminded = scene.facts.organisation("nhf", portal=None)
    for _ in range(8):
        scene.facts.certified_mentor(reminded, IN_5_DAYS)

    report = scene.night(deliver=False)

    assert report.to_document()["reminders"]["queued"] == 5
    assert "nhf: 8 new reminders, the limit is 5" in report.held[0]
    assert scene.rows(HELD) == [("reminders", 3, 3)]


# A run on a wrong, later date.


@pytest.mark.parametrize("wrong", ["a whole night", "one organisation", "killed"])
def test_run_on_a_wrong_later_date_is_made_good_for(scene: Scene, wrong: str) -> None:
    """It noted when to look again by the wrong day; the first run on the right one looks at everybody.

    A run that was limited to one organisation is not seen by the check of dates.
    """
    join(scene, scene.hlf, valid=30)
    certified, uncertified = scene.certified(TODAY + 40 * DAY), scene.expired()
    scene.facts.certificate(uncertified, NEXT_YEAR, issued_on=TODAY + 50 * DAY)
    run(scene)
    run(scene, TODAY + 90 * DAY, organisation="hlf" if wrong == "one organisation" else None)
    if wrong == "killed":
        scene.run_sql("UPDATE job_runs SET started_at = started_at - interval '25 hours'")
        scene.run_sql("UPDATE job_runs SET finished_at = NULL, outcome = NULL WHERE as_of > %s", TODAY)
    assert scene.rows(PAUSED) == [(certified,)]

    tomorrow = TODAY + DAY
    planned, done = (scene.night(today=tomorrow, dry_run=dry_run, deliver=False) for dry_run in (True, False))

    assert scene.rows(PAUSED) == scene.rows("SELECT id FROM mentors WHERE NOT portal_visible") == [(uncertified,)]
    assert planned.to_document()["mentors"] == done.to_document()["mentors"]
    reviewed = (done, scene.night(today=TODAY + 2 * DAY, deliver=False))
    assert [report.to_document()["mentors"]["reviewed"] for report in reviewed] == [32, 0]


def test_run_that_began_during_a_wrong_one_does_not_make_good_for_it(scene: Scene) -> None:
    """The wrong one, on another machine, went on deciding after the right one had looked at everybody."""

    def ran(as_of: object, started: str, finished: str) -> None:
        times = {"started_at": f"2026-03-10 {started}Z", "finished_at": f"2026-03-10 {finished}Z"}
        scene.facts.insert(
            "job_runs", id=uuid4(), command="run", as_of=as_of, host="h", version="0", outcome="ok", **times
        )

    ran(TODAY + 100 * DAY, "02:00", "02:30")
    ran(TODAY, "02:05", "02:10")
    assert looks_at_everybody(scene.connection, TODAY)

    ran(TODAY, "02:31", "02:40")
    assert not looks_at_everybody(scene.connection, TODAY)
