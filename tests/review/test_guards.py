"""The guards: a bad clock or a bad import changes nothing much, and says so."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from certjob.domain import rules
from certjob.review import certification
from certjob.review.days import looks_at_everybody
from tests.support.facts import TODAY
from tests.support.scene import NEXT_YEAR, YESTERDAY, Scene

IN_5_DAYS = TODAY + timedelta(days=5)
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)
HELD = "SELECT what, mentors, ended_by_calendar, facts_changed, may_be_shown FROM held_reviews"
PAUSED = "SELECT mentor_id FROM mentor_pauses WHERE lifted_at IS NULL"
Limits = Callable[..., None]


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Limits:
    """Set limits of the rules, and a chunk's size; ``foreseen``: everybody is counted before the first chunk."""

    def arrange(*, chunk: int, foreseen: bool = True, **numbers: int) -> None:
        monkeypatch.setattr(certification, "CHUNK_SIZE", chunk)
        for name, number in numbers.items():
            monkeypatch.setattr(rules, name, number)
        if not foreseen:
            monkeypatch.setattr("certjob.review.guards.MassChangeGuard.examine", lambda *_: None)

    return arrange


def join(scene: Scene, organisation: UUID, *, expired: int, valid: int = 0) -> None:
    """So many new mentors."""
    for number in range(expired + valid):
        scene.facts.certified_mentor(organisation, YESTERDAY if number < expired else NEXT_YEAR)


def statuses(scene: Scene, organisation: UUID) -> set[object]:
    theirs = "SELECT c.status FROM certificates c JOIN mentors m ON m.id = mentor_id WHERE organisation_id = %s"
    return {status for (status,) in scene.rows(theirs, organisation)}


def due(scene: Scene) -> int:
    return len(scene.rows("SELECT FROM mentors WHERE review_on <= %s", TODAY))


@pytest.mark.parametrize(
    ("expired", "valid", "held"), [(20, 0, False), (21, 0, True), (21, 189, False), (22, 189, True)]
)
def test_more_than_twenty_and_a_tenth_newly_paused_is_held(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, expired: int, valid: int, held: bool
) -> None:
    """The limit is max(20, 10 % of the active mentors), per organisation. For few, nobody is counted."""
    join(scene, scene.hlf, expired=expired, valid=valid)
    for _ in range(20):
        scene.mentor(left_at=LONG_AGO)  # who has left is not active
    if not valid and not held:
        monkeypatch.delattr("certjob.review.plan.due_decisions")
        monkeypatch.delattr(rules, "mass_change_limit")

    report = scene.night(deliver=False)

    assert report.review is not None
    assert (bool(report.held), report.review.paused) == (held, 0 if held else expired)
    assert statuses(scene, scene.hlf) == ({"recorded"} if held else {"expired", "valid"} if valid else {"expired"})


def test_a_held_organisation_stops_no_other_until_the_flag_lets_it_through(scene: Scene, limits: Limits) -> None:
    """It is named with the exact command and stays due. To bring too many back is held as well: nobody is shown unseen.

    An import that extends everybody does that, or a clock that went back.
    """
    limits(chunk=10)  # all are counted before the first of them
    bad, good = scene.facts.organisation("bad", portal=None), scene.facts.organisation("good", portal=None)
    join(scene, bad, expired=30)
    join(scene, good, expired=2, valid=1)

    report = scene.night(deliver=False)

    assert (statuses(scene, bad), statuses(scene, good)) == ({"recorded"}, {"expired", "valid"})
    assert "certjob run --organisation bad --allow-mass-change" in report.held[0]
    assert report.review is not None
    assert (report.outcome, report.review.skipped, due(scene)) == ("attention", [], 30)
    assert scene.rows(HELD) == [("pauses", 30, 0, 30, 0)]
    scene.run_sql("UPDATE mentors SET review_on = %s WHERE organisation_id = %s", TODAY, bad)
    scene.night(deliver=False)
    assert scene.rows(HELD) == [("pauses", 30, 30, 0, 0)], "their day has come, and no fact was changed"
    allowed = scene.night(deliver=False, allow_mass_change=True)
    assert (allowed.held, allowed.to_document()["mentors"]["paused"]) == ([], 30)
    scene.run_sql("UPDATE certificates SET expires_on = %s WHERE status = 'expired'", NEXT_YEAR)
    assert "30 mentors would be brought back" in scene.night(deliver=False).held[0]
    assert len(scene.rows(PAUSED)) == 30


def test_too_many_new_reminders_are_held_while_pauses_and_portal_go_on(scene: Scene, limits: Limits) -> None:
    """Those mentors stay due, so that the flag sends their reminders later; the others' reminders are queued."""
    limits(chunk=10, MASS_REMINDER_LIMIT=25)
    many, few = scene.facts.organisation("many"), scene.facts.organisation("few", portal=None)
    for number in range(55):
        scene.facts.certified_mentor(many if number < 30 else few, IN_5_DAYS)
    expired = scene.facts.certified_mentor(many, YESTERDAY)

    report = scene.night(deliver=False)

    assert report.review is not None
    assert (report.review.reminders_queued, report.review.reviewed) == (25, 56)
    assert "many: 31 new reminders, the limit is 25" in report.held[0]
    assert scene.rows(HELD) == [("reminders", 31, 0, 31, 0)]
    assert statuses(scene, many) == {"expiring", "expired"}
    assert scene.rows(PAUSED) == scene.rows("SELECT mentor_id FROM portal_sync_events") == [(expired,)]

    scene.run_sql("UPDATE mentors SET review_on = %s WHERE review_on = '-infinity'", TODAY)
    assert scene.night(deliver=False).held == report.held
    assert scene.rows(HELD) == [("reminders", 31, 31, 0, 0)], "their day has come, and no fact was changed"
    assert scene.rows("SELECT count(*) FROM certificate_transitions") == [(56,)]

    allowed = scene.night(deliver=False, allow_mass_change=True)
    assert (allowed.to_document()["reminders"]["queued"], due(scene)) == (31, 0)


def test_what_the_count_before_the_first_chunk_could_not_know_is_counted_chunk_after_chunk(
    scene: Scene, limits: Limits
) -> None:
    """The limit is that of the whole organisation, and those whom this run has paused still count as active."""
    limits(chunk=1, foreseen=False, MASS_REMINDER_LIMIT=5, MASS_CHANGE_MINIMUM=2)
    reminded = scene.facts.organisation("nhf", portal=None)
    for _ in range(8):
        scene.facts.certified_mentor(reminded, IN_5_DAYS)
    report = scene.night(deliver=False)
    assert report.to_document()["reminders"]["queued"] == 5
    assert "at least 6 new reminders, the limit is 5" in report.held[0]
    assert scene.rows(HELD) == [("reminders", 3, 0, 3, 0)]

    join(scene, scene.hlf, expired=16, valid=104)
    (line,) = scene.night(deliver=False, organisation="hlf").held
    assert "13 mentors would be paused, the limit is 12 (of 120 active); nothing more after 12" in line
    assert len(scene.rows(PAUSED)) == 12
    scene.night(deliver=False, allow_mass_change=True)
    scene.run_sql("UPDATE certificates SET expires_on = %s", NEXT_YEAR)
    (line,) = scene.night(deliver=False, organisation="hlf").held
    assert "11 mentors would be brought back, the limit is 10 (of 104 active); nothing more after 10" in line


def test_whoever_would_be_hidden_is_counted_too(scene: Scene) -> None:
    """Who has left, as well; the portal may show a contact that is new. Who was never reviewed stays written down."""
    join(scene, scene.hlf, expired=21)
    left = scene.certified(left_at=LONG_AGO)
    scene.run_sql("UPDATE mentors SET dynamics_contact_id = gen_random_uuid()")
    scene.facts.insert("review_problems", mentor_id=left, reason="a rule refused it", as_of=YESTERDAY)

    scene.night(deliver=False)

    assert scene.rows(HELD) == [("pauses", 22, 0, 22, 22)]
    assert scene.rows("SELECT mentor_id FROM review_problems") == [(left,)]


@pytest.mark.parametrize("wrong", ["a whole night", "one organisation", "killed"])
def test_a_night_on_a_wrong_later_date_is_made_good_for(scene: Scene, wrong: str) -> None:
    """It noted when to look again by the wrong day; the first night on the right one looks at everybody.

    A run that was limited to one organisation is not seen by the check of dates.
    """
    join(scene, scene.hlf, expired=0, valid=30)
    certified, uncertified = scene.certified(TODAY + timedelta(days=40)), scene.expired()
    scene.facts.certificate(uncertified, NEXT_YEAR, issued_on=TODAY + timedelta(days=50))
    scene.night(deliver=False)
    limit = "hlf" if wrong == "one organisation" else None
    scene.night(today=TODAY + timedelta(days=90), deliver=False, organisation=limit)
    if wrong == "killed":
        scene.run_sql("UPDATE job_runs SET started_at = started_at - interval '25 hours'")
        scene.run_sql("UPDATE job_runs SET finished_at = NULL, outcome = NULL WHERE as_of > %s", TODAY)
    assert scene.rows(PAUSED) == [(certified,)]

    tomorrow = TODAY + timedelta(days=1)
    planned, done = (scene.night(today=tomorrow, dry_run=dry_run, deliver=False) for dry_run in (True, False))

    assert scene.rows(PAUSED) == scene.rows("SELECT id FROM mentors WHERE NOT portal_visible") == [(uncertified,)]
    assert planned.to_document()["mentors"] == done.to_document()["mentors"]
    reviewed = (done, scene.night(today=TODAY + timedelta(days=2), deliver=False))
    assert [report.to_document()["mentors"]["reviewed"] for report in reviewed] == [32, 0]


def test_a_night_that_began_while_the_wrong_one_was_at_work_does_not_make_good_for_it(scene: Scene) -> None:
    """The wrong one, on another machine, went on deciding after the right one had looked at everybody."""

    def ran(as_of: object, started: str, finished: str) -> None:
        times = {"started_at": f"2026-03-10 {started}Z", "finished_at": f"2026-03-10 {finished}Z"}
        scene.facts.insert(
            "job_runs", id=uuid4(), command="run", as_of=as_of, host="h", version="0", outcome="ok", **times
        )

    ran(TODAY + timedelta(days=100), "02:00", "02:30")
    ran(TODAY, "02:05", "02:10")
    assert looks_at_everybody(scene.connection, TODAY)

    ran(TODAY, "02:31", "02:40")
    assert not looks_at_everybody(scene.connection, TODAY)
