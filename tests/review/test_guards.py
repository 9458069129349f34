"""The guards: a bad clock or a bad import changes nothing much, and says so."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from certjob.database import Connection
from certjob.domain import rules
from certjob.review import certification
from certjob.review.days import looks_at_everybody
from tests.support.facts import TODAY, Facts
from tests.support.nights import night

YESTERDAY = TODAY - timedelta(days=1)
NEXT_YEAR = TODAY + timedelta(days=365)
HELD = "SELECT what, mentors, ended_by_calendar, facts_changed, may_be_shown FROM held_reviews"
DUE = "SELECT count(*) FROM mentors WHERE review_on <= %s"


def mentors(facts: Facts, organisation: UUID, *, expired: int, valid: int = 0) -> None:
    for number in range(expired + valid):
        facts.certified_mentor(organisation, YESTERDAY if number < expired else NEXT_YEAR)


def statuses(facts: Facts, organisation: UUID) -> set[object]:
    of_theirs = (
        "SELECT DISTINCT c.status FROM certificates c JOIN mentors m ON m.id = mentor_id WHERE organisation_id = %s"
    )
    return {status for (status,) in facts.rows(of_theirs, organisation)}


@pytest.mark.parametrize(
    ("expired", "valid", "held"), [(20, 0, False), (21, 0, True), (21, 189, False), (22, 189, True)]
)
def test_more_than_twenty_and_a_tenth_newly_paused_is_held(
    connection: Connection, facts: Facts, monkeypatch: pytest.MonkeyPatch, expired: int, valid: int, held: bool
) -> None:
    """The limit is max(20, 10 % of the active mentors), per organisation. For few, nobody is counted."""
    organisation = facts.organisation(portal=None)
    mentors(facts, organisation, expired=expired, valid=valid)
    for _ in range(20):
        facts.mentor(organisation, left_at=datetime(2026, 1, 1, tzinfo=UTC))  # who has left is not active
    if not valid and not held:
        monkeypatch.delattr("certjob.review.plan.due_decisions")
        monkeypatch.delattr(rules, "mass_change_limit")

    report = night(connection, deliver=False)

    assert report.review is not None
    assert (bool(report.held), report.review.paused) == (held, 0 if held else expired)
    assert statuses(facts, organisation) == ({"recorded"} if held else {"expired", "valid"} if valid else {"expired"})


def test_a_held_organisation_stops_no_other_until_the_flag_lets_it_through(
    connection: Connection, facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is named with the exact command and stays due. To bring too many back is held as well: nobody is shown unseen.

    An import that extends everybody does that, or a clock that went back.
    """
    monkeypatch.setattr(certification, "CHUNK_SIZE", 10)  # all are counted before the first of them
    bad, good = facts.organisation("bad", portal=None), facts.organisation("good", portal=None)
    mentors(facts, bad, expired=30)
    mentors(facts, good, expired=2, valid=1)

    report = night(connection, deliver=False)

    assert (statuses(facts, bad), statuses(facts, good)) == ({"recorded"}, {"expired", "valid"})
    assert "certjob run --organisation bad --allow-mass-change" in report.held[0]
    assert report.review is not None
    assert (report.outcome, report.review.skipped) == ("attention", [])
    assert facts.rows(DUE, TODAY) == [(30,)]
    assert facts.rows(HELD) == [("pauses", 30, 0, 30, 0)]
    connection.execute("UPDATE mentors SET review_on = %s WHERE organisation_id = %s", (TODAY, bad))
    night(connection, deliver=False)
    assert facts.rows(HELD) == [("pauses", 30, 30, 0, 0)], "their day has come, and no fact was changed"
    allowed = night(connection, deliver=False, allow_mass_change=True)
    assert (allowed.held, allowed.to_document()["mentors"]["paused"]) == ([], 30)
    connection.execute("UPDATE certificates SET expires_on = %s WHERE status = 'expired'", (NEXT_YEAR,))
    assert "30 mentors would be brought back" in night(connection, deliver=False).held[0]
    assert facts.rows("SELECT count(*) FROM mentor_pauses WHERE lifted_at IS NULL") == [(30,)]


def test_too_many_new_reminders_are_held_while_pauses_and_portal_go_on(
    connection: Connection, facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those mentors stay due, so that the flag sends their reminders later; the others' reminders are queued."""
    monkeypatch.setattr(rules, "MASS_REMINDER_LIMIT", 25)
    monkeypatch.setattr(certification, "CHUNK_SIZE", 10)
    many = facts.organisation("many")
    few = facts.organisation("few", portal=None)
    for number in range(55):
        facts.certified_mentor(many if number < 30 else few, TODAY + timedelta(days=5))
    expired = facts.certified_mentor(many, YESTERDAY)

    report = night(connection, deliver=False)

    assert report.review is not None
    assert (report.review.reminders_queued, report.review.reviewed) == (25, 56)
    assert "many: 31 new reminders, the limit is 25" in report.held[0]
    assert facts.rows(HELD) == [("reminders", 31, 0, 31, 0)]
    assert statuses(facts, many) == {"expiring", "expired"}
    assert facts.rows("SELECT mentor_id FROM mentor_pauses") == [(expired,)]
    assert facts.rows("SELECT mentor_id FROM portal_sync_events") == [(expired,)]

    connection.execute("UPDATE mentors SET review_on = %s WHERE review_on = '-infinity'", (TODAY,))
    again = night(connection, deliver=False)
    assert again.held == report.held
    assert facts.rows(HELD) == [("reminders", 31, 31, 0, 0)], "their day has come, and no fact was changed"
    assert facts.rows("SELECT count(*) FROM certificate_transitions") == [(56,)]

    allowed = night(connection, deliver=False, allow_mass_change=True)
    assert allowed.to_document()["reminders"]["queued"] == 31
    assert facts.rows(DUE, TODAY) == [(0,)]


def test_reminders_are_counted_chunk_after_chunk_too(facts: Facts, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the count before the first chunk could not know."""
    monkeypatch.setattr(rules, "MASS_REMINDER_LIMIT", 5)
    monkeypatch.setattr("certjob.review.guards.MassChangeGuard.examine", lambda _self, _organisation: None)
    monkeypatch.setattr(certification, "CHUNK_SIZE", 1)
    organisation = facts.organisation(portal=None)
    for _ in range(8):
        facts.certified_mentor(organisation, TODAY + timedelta(days=5))

    report = night(facts.connection, deliver=False)

    assert report.to_document()["reminders"]["queued"] == 5
    assert "at least 6 new reminders, the limit is 5" in report.held[0]
    assert facts.rows(HELD) == [("reminders", 3, 0, 3, 0)]


def test_the_limit_of_a_run_whose_changes_grow_is_that_of_the_whole_organisation(
    connection: Connection, facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunk after chunk more of them are counted, and those whom this run has paused still count as active."""
    monkeypatch.setattr(rules, "MASS_CHANGE_MINIMUM", 2)
    monkeypatch.setattr(certification, "CHUNK_SIZE", 1)
    monkeypatch.setattr("certjob.review.guards.MassChangeGuard.examine", lambda _self, _organisation: None)
    mentors(facts, facts.organisation(portal=None), expired=16, valid=104)

    report = night(connection, deliver=False)

    assert "13 mentors would be paused, the limit is 12 (of 120 active); nothing more after 12" in report.held[0]
    assert facts.rows("SELECT count(*) FROM mentor_pauses") == [(12,)]
    night(connection, deliver=False, allow_mass_change=True)
    connection.execute("UPDATE certificates SET expires_on = %s", (NEXT_YEAR,))
    report = night(connection, deliver=False)
    assert "11 mentors would be brought back, the limit is 10 (of 104 active); nothing more after 10" in report.held[0]


def test_whoever_would_be_hidden_is_counted_too(connection: Connection, facts: Facts) -> None:
    """Who has left, as well; the portal may show a contact that is new. Who was never reviewed stays written down."""
    hlf = facts.organisation()
    mentors(facts, hlf, expired=21)
    left = facts.certified_mentor(hlf, NEXT_YEAR, left_at=datetime(2026, 1, 1, tzinfo=UTC))
    connection.execute("UPDATE mentors SET dynamics_contact_id = gen_random_uuid()")
    facts.insert("review_problems", mentor_id=left, reason="a rule refused it", as_of=YESTERDAY)

    night(connection, deliver=False)

    assert facts.rows(HELD) == [("pauses", 22, 0, 22, 22)]
    assert facts.rows("SELECT mentor_id FROM review_problems") == [(left,)]


@pytest.mark.parametrize("wrong", ["a whole night", "one organisation", "killed"])
def test_a_night_on_a_wrong_later_date_is_made_good_for(connection: Connection, facts: Facts, wrong: str) -> None:
    """It noted when to look again by the wrong day; the first night on the right one looks at everybody.

    A night that is limited to one organisation, or killed, is seen by no guard of dates.
    """
    organisation = facts.organisation()
    for _ in range(30):
        facts.certified_mentor(organisation, NEXT_YEAR)
    certified = facts.certified_mentor(organisation, TODAY + timedelta(days=40))
    uncertified = facts.certified_mentor(organisation, YESTERDAY)
    facts.certificate(uncertified, NEXT_YEAR, issued_on=TODAY + timedelta(days=50))
    night(connection, TODAY, deliver=False)
    limit = "hlf" if wrong == "one organisation" else None
    night(connection, TODAY + timedelta(days=90), deliver=False, organisation=limit)
    if wrong == "killed":
        connection.execute("UPDATE job_runs SET started_at = started_at - interval '25 hours'")
        connection.execute("UPDATE job_runs SET finished_at = NULL, outcome = NULL WHERE as_of > %s", (TODAY,))
    paused = "SELECT mentor_id FROM mentor_pauses WHERE lifted_at IS NULL"
    assert facts.rows(paused) == [(certified,)]

    tomorrow, allowed = TODAY + timedelta(days=1), wrong == "a whole night"
    planned, done = (
        night(connection, tomorrow, dry_run=dry_run, deliver=False, allow_earlier_date=allowed)
        for dry_run in (True, False)
    )

    assert facts.rows(paused) == facts.rows("SELECT id FROM mentors WHERE NOT portal_visible") == [(uncertified,)]
    assert planned.to_document()["mentors"] == done.to_document()["mentors"]
    reviewed = (done, night(connection, TODAY + timedelta(days=2), deliver=False))
    assert [report.to_document()["mentors"]["reviewed"] for report in reviewed] == [32, 0]


def test_a_night_that_began_while_the_wrong_one_was_at_work_does_not_make_good_for_it(facts: Facts) -> None:
    """The wrong one, on another machine, went on deciding after the right one had looked at everybody."""
    insert = (
        "INSERT INTO job_runs (id, command, as_of, host, version, started_at, finished_at, outcome)"
        " VALUES (gen_random_uuid(), 'run', %s, 'host', '0', %s, %s, 'ok')"
    )
    facts.connection.execute(insert, (TODAY + timedelta(days=100), "2026-03-10 02:00Z", "2026-03-10 02:30Z"))
    facts.connection.execute(insert, (TODAY, "2026-03-10 02:05Z", "2026-03-10 02:10Z"))
    assert looks_at_everybody(facts.connection, TODAY)

    facts.connection.execute(insert, (TODAY, "2026-03-10 02:31Z", "2026-03-10 02:40Z"))

    assert not looks_at_everybody(facts.connection, TODAY)
