"""`certjob forecast`: what the coming nights will do is what they do, and reads well at any width."""

import json
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock
from uuid import UUID

import psycopg
import pytest

from certjob import database
from certjob.cli.pages.forecast import print_forecast_csv, show_forecast, to_document
from certjob.database import Connection
from certjob.domain import rules
from certjob.domain.models import Decision, Mentor
from certjob.views.forecast import MEASURES, Forecast, Week, make_forecast
from tests.conftest import Certjob
from tests.support.command_line import assert_one_line, on_terminal, run_in_process, without_escapes
from tests.support.facts import TODAY, Facts
from tests.support.nights import CollectingChannel, night
from tests.support.programmes import everything, random_programme
from tests.support.terminals import terminal


def forecast(
    connection: Connection, *, today: date = TODAY, days: int = 90, organisation_id: UUID | None = None
) -> Forecast:
    return make_forecast(connection, today=today, days=days, organisation_id=organisation_id)


def week(**values: Any) -> Week:
    """A week with defaults for everything a test does not care about."""
    defaults: dict[str, Any] = {
        "name": "2026-W11",
        "starts_on": date(2026, 3, 9),
        "ends_on": date(2026, 3, 15),
    }
    counts = {measure: values.pop(measure, 0) for measure in MEASURES}
    return Week(**defaults | values, counts=counts)


def counts(week: Week) -> tuple[int, ...]:
    return tuple(week.counts.values())


# It agrees with the nights.


def written(facts: Facts, *, slug: str | None) -> Callable[[], tuple[int, ...]]:
    """Return what tells how many expiries, reminders, pauses and hides nights have written since now."""
    of = " AND mentor_id IN (SELECT m.id FROM mentors m JOIN organisations o ON o.id = m.organisation_id"
    of += " WHERE %s IN ('', o.slug))"
    statements = [
        "SELECT id::text FROM certificate_transitions WHERE to_status = 'expired'" + of,
        "SELECT id || ' ' || jsonb_array_length(history) FROM cert_notification_log WHERE true" + of,
        "SELECT id::text FROM mentor_pauses WHERE actor = 'certjob'" + of,
        "SELECT id || ' ' || version FROM portal_sync_events WHERE NOT visible AND status <> 'withdrawn'" + of,
    ]

    def read() -> list[set[object]]:
        return [{row[0] for row in facts.rows(statement, slug or "")} for statement in statements]

    before = read()
    return lambda: tuple(len(now - then) for now, then in zip(read(), before, strict=True))


@pytest.mark.parametrize(("seed", "slug"), [(0, None), (3, "nhf")])
def test_every_week_does_what_was_forecast(connection: Connection, facts: Facts, seed: int, slug: str | None) -> None:
    """On random data, part of it not yet reviewed: 45 real nights, counted week by week in the tables."""
    random_programme(facts, seed=40 + seed, mentors=60)
    organisations = {str(name): UUID(str(row_id)) for row_id, name in facts.rows("SELECT id, slug FROM organisations")}

    made = forecast(connection, days=45, organisation_id=organisations[slug] if slug else None)

    assert made.problems == ()
    for each in made.weeks:
        done = written(facts, slug=slug)
        for number in range((each.ends_on - each.starts_on).days + 1):
            night(connection, each.starts_on + timedelta(days=number), deliver=False, allow_mass_change=True)
        assert counts(each) == done(), each.name
    assert any(counts(each) != (0, 0, 0, 0) for each in made.weeks)


def test_a_reminder_that_the_log_has_is_not_forecast_again(connection: Connection, facts: Facts) -> None:
    """Sent or queued for that very date; a certificate extended in place is reminded about anew."""
    facts.certified_mentor(facts.organisation(portal=None, thresholds=[30, 20]), TODAY + timedelta(days=30))
    assert sum(each.counts["reminders"] for each in forecast(connection).weeks) == 2
    night(connection, channel=CollectingChannel())

    assert sum(each.counts["reminders"] for each in forecast(connection).weeks) == 1
    facts.connection.execute("UPDATE certificates SET expires_on = expires_on + 5")
    assert sum(each.counts["reminders"] for each in forecast(connection).weeks) == 2


def test_a_night_on_a_wrong_later_date_does_not_mislead_it(connection: Connection, facts: Facts) -> None:
    """Then a run looks at everybody, and so does the forecast."""
    facts.certified_mentor(facts.organisation(thresholds=[]), TODAY + timedelta(days=3))
    night(connection, TODAY + timedelta(days=60), deliver=False)

    made = forecast(connection, days=10)

    assert [counts(each) for each in made.weeks] == [(1, 0, 1, 1), (0, 0, 0, 0)]


def test_whoever_has_nothing_to_come_is_not_read(connection: Connection, facts: Facts) -> None:
    """A forecast costs those whose review lies within its days."""
    organisation = facts.organisation()
    facts.certified_mentor(organisation, TODAY + timedelta(days=10))
    for _ in range(5):
        facts.certified_mentor(organisation, TODAY + timedelta(days=900))
    night(connection)
    looked_at: list[int] = []

    make_forecast(connection, today=TODAY, days=90, organisation_id=None, on_progress=looked_at.append)

    assert looked_at == [1]


def test_it_works_on_a_read_only_connection_and_touches_nothing(
    connection: Connection, facts: Facts, database_url: str
) -> None:
    random_programme(facts, seed=50, mentors=30)
    before = everything(facts)
    read_only = psycopg.conninfo.make_conninfo(database_url, options="-c default_transaction_read_only=on")

    with database.connect(read_only) as own:
        assert forecast(own).weeks

    assert everything(facts) == before


def test_a_mentor_whose_data_break_a_rule_is_named_and_left_out(
    database_url: str, bare_environment: dict[str, str], facts: Facts, tmp_path: Path
) -> None:
    """The others are counted; exit 3 with a line."""
    organisation = facts.organisation(portal=None)
    broken, _ = (facts.certified_mentor(organisation, date(2025, 1, 1)) for _ in range(2))

    def decide(mentor: Mentor, today: date, *, rightly: Callable[[Mentor, date], Decision] = rules.decide) -> Decision:
        if mentor.id == broken:
            raise ZeroDivisionError
        return rightly(mentor, today)

    with mock.patch("certjob.domain.rules.decide", decide):
        environment = bare_environment | {"CERTJOB_DATABASE_URL": database_url}
        result = run_in_process("forecast", "--json", environment=environment, folder=tmp_path)

    read = json.loads(result.stdout)
    assert result.returncode == 3
    assert f"mentor {broken} is left out: no decision: ZeroDivisionError" in result.stderr
    assert (read["outcome"], read["total"]["pauses"]) == ("attention", 1)
    assert read["problems"][0]["mentor_id"] == str(broken)


# The weeks.


def test_weeks_are_iso_weeks_and_cut_at_both_ends(connection: Connection) -> None:
    """From Monday to Sunday; every day of the time asked for lies in one of them."""
    cases: list[tuple[date, int, list[tuple[str, int, int]]]] = [
        (date(2026, 3, 10), 1, [("2026-W11", 10, 10)]),
        (date(2026, 3, 15), 2, [("2026-W11", 15, 15), ("2026-W12", 16, 16)]),
        (date(2026, 3, 9), 14, [("2026-W11", 9, 15), ("2026-W12", 16, 22)]),
        (date(2026, 12, 30), 9, [("2026-W53", 30, 3), ("2027-W01", 4, 7)]),
        (date(9999, 12, 30), 90, [("9999-W52", 30, 31)]),
    ]
    for today, days, weeks in cases:
        made = forecast(connection, today=today, days=days)

        assert [(each.name, each.starts_on.day, each.ends_on.day) for each in made.weeks] == weeks
        assert (made.weeks[0].starts_on, made.weeks[-1].ends_on) == (today, made.until)


# How it looks.


def test_a_page_reads_as_it_was_found_good() -> None:
    """Word for word, on 80 columns: numbers under headings, one bar, the totals, the command for the names."""
    weeks = (
        week(expiries=4, reminders=20, pauses=4),
        week(name="2026-W14", starts_on=date(2026, 3, 30), ends_on=date(2026, 4, 5), expiries=1, reminders=9),
        week(name="2026-W15", starts_on=date(2026, 4, 6), ends_on=date(2026, 4, 6)),
    )
    output, shown = terminal(80)

    show_forecast(
        output, Forecast(today=date(2026, 3, 9), until=date(2026, 4, 6), weeks=weeks, problems=()), organisation="hlf"
    )

    lines = [line.rstrip() for line in without_escapes(shown.getvalue()).splitlines()]
    assert lines == [
        "The next 29 nights for hlf, if nobody renews",
        "Week   Days            Expiries  Reminders  Pauses  Hides",
        lines[2],
        "W11    9–15 Mar               4         20       4      0  ━━━━━━━━━━━━━━━━",
        "W14    30 Mar – 5 Apr         1          9       0      0  ━━━━",
        "W15    6 Apr                  0          0       0      0",
        "Total                         5         29       4      0",
        "Whose certificates: `certjob list --status valid --status expiring --within 27 --organisation hlf`",
    ]


def test_nothing_to_come_is_a_sentence(connection: Connection, capsys: pytest.CaptureFixture[str]) -> None:
    """And no table of zeros."""
    output, shown = terminal(80)

    show_forecast(output, forecast(connection), organisation=None)

    assert (shown.getvalue(), capsys.readouterr().out) == ("", "Nothing in the next 90 nights.\n")


def test_the_command_that_it_names_lists_those_who_expire(certjob: Certjob, facts: Facts) -> None:
    """As many as it counted, beyond the largest threshold too."""
    today = datetime.now(UTC).date()
    organisation = facts.organisation(portal=None)
    for days in (3, 88, 91, 200):
        facts.certified_mentor(organisation, today + timedelta(days=days))

    document = json.loads(certjob("forecast", "--json").stdout)
    listed = certjob("list", "--status", "valid", "--status", "expiring", "--within", "88", "--csv").stdout

    assert len(listed.splitlines()) - 1 == document["total"]["expiries"] == 2


def test_colour_only_on_a_terminal_that_wants_it_and_csv_off_it(
    database_url: str, bare_environment: dict[str, str], tmp_path: Path, facts: Facts, certjob: Certjob
) -> None:
    """NO_COLOR is obeyed; off a terminal it is the same as with --csv, nothing on stderr, exit 0."""
    facts.certified_mentor(facts.organisation(portal=None), date(2025, 1, 1))
    environment = bare_environment | {"CERTJOB_DATABASE_URL": database_url}
    for settings, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        code, shown = on_terminal(["forecast"], environment=environment | settings, folder=tmp_path, only=["stdout"])
        assert code == 0
        assert "The next 90 nights, if nobody renews" in shown
        assert ("\x1b[36m" in shown) is coloured

    result = certjob("forecast", "--days", "30")

    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == certjob("forecast", "--days", "30", "--csv").stdout
    assert result.stdout.splitlines()[1].endswith(",1,0,1,0")


def test_csv_and_the_document_have_a_row_per_week(capsys: pytest.CaptureFixture[str]) -> None:
    """With its days, so that a short week is seen as one; the document has totals, too."""
    weeks = (week(expiries=3, reminders=15), week(expiries=4, hides=1))
    made = Forecast(today=TODAY, until=TODAY, weeks=weeks, problems=())

    print_forecast_csv(made)
    document = to_document(made, organisation="hlf")

    assert capsys.readouterr().out == (
        "week,starts_on,ends_on,expiries,reminders,pauses,hides\r\n"
        "2026-W11,2026-03-09,2026-03-15,3,15,0,0\r\n2026-W11,2026-03-09,2026-03-15,4,0,0,1\r\n"
    )
    assert (document["outcome"], document["organisation"], document["problems"]) == ("ok", "hlf", [])
    assert document["total"] == {"expiries": 7, "reminders": 15, "pauses": 0, "hides": 1}
    assert [each["expiries"] for each in document["weeks"]] == [3, 4]  # type: ignore[attr-defined]


def test_what_cannot_be_asked_for_exits_2_and_says_why(certjob: Certjob) -> None:
    """In one line."""
    for arguments, phrase in (
        (["--days", "0"], "--days"),
        (["--days", "9999"], "--days"),
        (["--organisation", "gone"], "no organisation 'gone'"),
        (["--csv", "--json"], "--csv and --json"),
    ):
        assert_one_line(certjob("forecast", *arguments), phrase, code=2, command="certjob forecast")
