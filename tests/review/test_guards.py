"""The guards: a bad clock or a bad import changes nothing much, and says so."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from certjob import database
from certjob.database import Connection
from certjob.domain import rules
from certjob.errors import ConfigurationError
from certjob.night.nightly import NightOptions, run
from certjob.review.certification import CertificationManagementService
from certjob.review.days import looks_at_everybody
from certjob.stopping import StopFlag
from tests.support.facts import TODAY, Facts
from tests.support.nights import NoProgress, delivery, night

YESTERDAY = TODAY - timedelta(days=1)
NEXT_YEAR = TODAY + timedelta(days=365)


def mentors(facts: Facts, organisation: UUID, *, expired: int, valid: int = 0) -> None:
    for _ in range(expired):
        facts.certified_mentor(organisation, YESTERDAY)
    for _ in range(valid):
        facts.certified_mentor(organisation, NEXT_YEAR)


def statuses(facts: Facts, organisation: UUID) -> set[object]:
    rows = facts.rows(
        "SELECT DISTINCT c.status FROM certificates c JOIN mentors m ON m.id = c.mentor_id WHERE organisation_id = %s",
        organisation,
    )
    return {row[0] for row in rows}


@pytest.mark.parametrize(
    ("expired", "valid", "held"), [(20, 0, False), (21, 0, True), (21, 189, False), (22, 189, True)]
)
def test_more_than_twenty_and_a_tenth_newly_paused_is_held(
    connection: Connection, facts: Facts, expired: int, valid: int, held: bool
) -> None:
    """The limit is max(20, 10 % of the active mentors), per organisation."""
    organisation = facts.organisation(portal=None)
    mentors(facts, organisation, expired=expired, valid=valid)
    for _ in range(20):
        facts.mentor(organisation, left_at=datetime(2026, 1, 1, tzinfo=UTC))  # who has left is not active

    report = night(connection, deliver=False)

    assert report.review is not None
    assert bool(report.held) is held
    assert report.review.paused == (0 if held else expired)
    assert statuses(facts, organisation) == ({"recorded"} if held else {"expired", "valid"} if valid else {"expired"})


def test_a_held_organisation_does_not_stop_the_others(connection: Connection, facts: Facts) -> None:
    """Nothing is applied for it, it is named with the exact flag, the others are done, and it stays due."""
    bad = facts.organisation("bad", portal=None)
    good = facts.organisation("good", portal=None)
    mentors(facts, bad, expired=30)
    mentors(facts, good, expired=2, valid=1)

    report = night(connection, deliver=False)

    assert statuses(facts, bad) == {"recorded"}
    assert statuses(facts, good) == {"expired", "valid"}
    assert "certjob run --organisation bad --allow-mass-change" in report.held[0]
    assert report.outcome == "attention"
    assert report.review is not None
    assert report.review.skipped == []
    assert facts.rows("SELECT count(*) FROM mentors WHERE review_on <= %s", TODAY) == [(30,)]


def test_the_flag_lets_it_through_and_bringing_back_too_many_is_held_as_well(
    connection: Connection, facts: Facts
) -> None:
    """An import that extends everybody, or a clock that went back, shows nobody unseen."""
    mentors(facts, facts.organisation(portal=None), expired=30)
    night(connection, deliver=False)

    report = night(connection, deliver=False, allow_mass_change=True)

    assert report.held == []
    assert report.to_document()["mentors"]["paused"] == 30
    connection.execute("UPDATE certificates SET expires_on = %s", (NEXT_YEAR,))
    assert "30 mentors would be brought back" in night(connection, deliver=False).held[0]
    assert facts.rows("SELECT count(*) FROM mentor_pauses WHERE lifted_at IS NULL") == [(30,)]


def test_the_limit_holds_while_applying_too(
    connection: Connection, facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the first count could not know (facts that came after it) is stopped by the count while applying."""
    organisation = facts.organisation(portal=None)
    mentors(facts, organisation, expired=25)
    monkeypatch.setattr("certjob.review.guards.MassChangeGuard.examine", lambda _self, _organisation: None)

    report = night(connection, deliver=False)

    assert report.to_document()["mentors"]["paused"] == 0
    assert "25 mentors would be paused" in report.held[0]


def test_too_many_new_reminders_are_held_while_pauses_and_portal_go_on(
    connection: Connection, facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those mentors stay due, so that the flag sends their reminders later; the others' reminders are queued."""
    monkeypatch.setattr(rules, "MASS_REMINDER_LIMIT", 25)
    many = facts.organisation("many")
    few = facts.organisation("few", portal=None)
    for _ in range(30):
        facts.certified_mentor(many, TODAY + timedelta(days=5))
    expired = facts.certified_mentor(many, YESTERDAY)
    for _ in range(25):
        facts.certified_mentor(few, TODAY + timedelta(days=5))

    report = night(connection, deliver=False)

    assert report.review is not None
    assert report.review.reminders_queued == 25
    assert report.review.reviewed == 56
    assert "many: 31 new reminders, the limit is 25" in report.held[0]
    assert statuses(facts, many) == {"expiring", "expired"}
    assert facts.rows("SELECT mentor_id FROM mentor_pauses") == [(expired,)]
    assert facts.rows("SELECT mentor_id FROM portal_sync_events") == [(expired,)]

    again = night(connection, deliver=False)
    assert again.held == report.held
    assert facts.rows("SELECT count(*) FROM certificate_transitions") == [(56,)]

    allowed = night(connection, deliver=False, allow_mass_change=True)
    assert allowed.review is not None
    assert allowed.review.reminders_queued == 31
    assert facts.rows("SELECT count(*) FROM mentors WHERE review_on <= %s", TODAY) == [(0,)]


def test_a_normal_night_pays_one_look_at_an_index(
    connection: Connection, facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With few due mentors nobody is counted; with more, active mentors are counted once, chunk after chunk."""
    asked: list[str] = []

    def record(name: str) -> None:
        real = getattr(database, name)

        def recording(own: Connection, statement: str, *given: Any, **named: Any) -> Any:
            asked.append(statement)
            return real(own, statement, *given, **named)

        monkeypatch.setattr(database, name, recording)

    record("fetch")
    record("fetch_value")
    mentors(facts, facts.organisation(portal=None), expired=3)
    night(connection, deliver=False)
    assert asked.count("bound_mass_changes") == 1
    assert not {"read_due_mentors", "count_active_mentors"} & set(asked)

    monkeypatch.setattr(rules, "MASS_CHANGE_MINIMUM", 2)
    mentors(facts, facts.organisation("nhf", portal=None), expired=4, valid=100)
    assert night(connection, deliver=False).held == []
    assert asked.count("count_active_mentors") == 1


def test_the_limit_of_a_run_whose_changes_grow_is_that_of_the_whole_organisation(
    connection: Connection, facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunk after chunk more of them are counted, and those whom this run has paused still count as active."""
    monkeypatch.setattr(rules, "MASS_CHANGE_MINIMUM", 2)
    defaults = CertificationManagementService.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "chunk_size", 1)
    monkeypatch.setattr("certjob.review.guards.MassChangeGuard.examine", lambda _self, _organisation: None)
    mentors(facts, facts.organisation(portal=None), expired=16, valid=104)

    report = night(connection, deliver=False)

    assert "13 mentors would be paused, the limit is 12 (of 120 active); nothing more after 12" in report.held[0]
    assert facts.rows("SELECT count(*) FROM mentor_pauses") == [(12,)]


def test_a_day_before_the_last_night_is_refused(connection: Connection, facts: Facts) -> None:
    """A clock that went back would bring people back; the flag is for the night that was run on the wrong date."""
    night(connection, TODAY, deliver=False)
    earlier = NightOptions(today=YESTERDAY, deliver=False)

    with pytest.raises(ConfigurationError, match="--allow-earlier-date"):
        run(connection, options=earlier, delivery=delivery(), stop=StopFlag(), progress=NoProgress())

    allowed = NightOptions(today=YESTERDAY, deliver=False, allow_earlier_date=True)
    run(connection, options=allowed, delivery=delivery(), stop=StopFlag(), progress=NoProgress())
    assert facts.rows("SELECT as_of FROM job_runs ORDER BY started_at DESC LIMIT 1") == [(YESTERDAY,)]
    night(connection, YESTERDAY, deliver=False)


def test_a_night_on_a_wrong_later_date_is_made_good_for(connection: Connection, facts: Facts) -> None:
    """It noted when to look again by the wrong day; the first night on the right one looks at everybody."""
    organisation = facts.organisation()
    for _ in range(30):
        facts.certified_mentor(organisation, NEXT_YEAR)
    certified = facts.certified_mentor(organisation, TODAY + timedelta(days=40))
    uncertified = facts.certified_mentor(organisation, YESTERDAY)
    facts.certificate(uncertified, NEXT_YEAR, issued_on=TODAY + timedelta(days=50))
    night(connection, TODAY, deliver=False)
    night(connection, TODAY + timedelta(days=90), deliver=False)
    paused = "SELECT mentor_id FROM mentor_pauses WHERE lifted_at IS NULL"
    assert facts.rows(paused) == [(certified,)]
    tomorrow = NightOptions(today=TODAY + timedelta(days=1), deliver=False, allow_earlier_date=True)
    plan = NightOptions(today=tomorrow.today, dry_run=True, allow_earlier_date=True)

    planned = run(connection, options=plan, delivery=delivery(), stop=StopFlag(), progress=NoProgress())
    report = run(connection, options=tomorrow, delivery=delivery(), stop=StopFlag(), progress=NoProgress())

    assert facts.rows(paused) == [(uncertified,)]
    assert facts.rows("SELECT id FROM mentors WHERE NOT portal_visible") == [(uncertified,)]
    assert report.review is not None
    assert planned.to_document()["mentors"] == report.to_document()["mentors"]
    assert report.review.reviewed == 32
    later = night(connection, TODAY + timedelta(days=2), deliver=False)
    assert later.to_document()["mentors"]["reviewed"] == 0


@pytest.mark.parametrize("how", ["one organisation", "killed"])
def test_a_wrong_night_that_the_guard_of_dates_does_not_see_is_made_good_for_too(
    connection: Connection, facts: Facts, how: str
) -> None:
    """Limited to one organisation, or killed before its end."""
    facts.certified_mentor(facts.organisation("hlf", portal=None), TODAY + timedelta(days=40))
    night(
        connection, TODAY + timedelta(days=90), deliver=False, organisation="hlf" if how == "one organisation" else None
    )
    if how == "killed":
        connection.execute("UPDATE job_runs SET finished_at = NULL, outcome = NULL")
    assert facts.rows("SELECT count(*) FROM mentor_pauses WHERE lifted_at IS NULL") == [(1,)]

    night(connection, TODAY, deliver=False)

    assert facts.rows("SELECT count(*) FROM mentor_pauses WHERE lifted_at IS NULL") == [(0,)]


def test_a_night_that_began_while_the_wrong_one_was_at_work_does_not_make_good_for_it(
    connection: Connection, facts: Facts
) -> None:
    """The wrong one, on another machine, went on deciding after the right one had looked at everybody."""
    insert = (
        "INSERT INTO job_runs (id, command, as_of, host, version, started_at, finished_at, outcome)"
        " VALUES (gen_random_uuid(), 'run', %s, 'host', '0', %s, %s, 'ok')"
    )
    connection.execute(insert, (TODAY + timedelta(days=100), "2026-03-10 02:00Z", "2026-03-10 02:30Z"))
    connection.execute(insert, (TODAY, "2026-03-10 02:05Z", "2026-03-10 02:10Z"))
    assert looks_at_everybody(connection, TODAY)

    connection.execute(insert, (TODAY, "2026-03-10 02:31Z", "2026-03-10 02:40Z"))

    assert not looks_at_everybody(connection, TODAY)
