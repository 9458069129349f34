"""`certjob forecast`: the changes of the coming runs, by week."""

import json
from collections import Counter
from collections.abc import Callable
from datetime import date, timedelta
from typing import Any
from unittest import mock

import pytest

from certjob.cli.pages.forecast import show_forecast
from certjob.cli.terminal.output import Output
from certjob.database import Connection
from certjob.domain import rules
from certjob.domain.models import Decision, Mentor
from certjob.reports.forecast import Forecast, Week, make_forecast
from tests.conftest import Certjob
from tests.support.command_line import assert_one_line, terminal, today, without_escapes
from tests.support.facts import TODAY, Facts
from tests.support.nights import EVERYTHING, night
from tests.support.programmes import changes_by_mentor, random_programme

DAY = timedelta(days=1)


def forecast(connection: Connection, **asked: Any) -> Forecast:
    defaults: dict[str, Any] = {"today": TODAY, "days": 90, "organisation_id": None, "on_progress": lambda _done: None}
    return make_forecast(connection, **defaults | asked)


def counts(week: Week) -> tuple[int, ...]:
    """Expiries, reminders, pauses, hides."""
    return week.expiries, week.reminders, week.pauses, week.hides


@pytest.mark.parametrize(("seed", "slug"), [(40, None), (44, "nhf")])
def test_forecast_counts_what_the_runs_then_do(
    connection: Connection, read_only: Connection, facts: Facts, seed: int, slug: str | None
) -> None:
    """On random data, 45 runs make the changes of each week. A read-only connection is enough."""
    random_programme(facts, seed=seed, mentors=60)
    people = facts.rows(
        "SELECT m.id::text, o.id FROM mentors m JOIN organisations o ON o.id = m.organisation_id"
        " WHERE o.slug = %s OR %s",
        slug,
        slug is None,
    )
    made = forecast(read_only, days=45, organisation_id=people[0][1] if slug else None)
    assert made.broken == {}

    done, before = Counter[tuple[str, str]](), changes_by_mentor(facts)
    for day in (TODAY + number * DAY for number in range(45)):
        night(connection, day, deliver=False, allow=EVERYTHING)
        after = changes_by_mentor(facts)
        for mentor_id, _ in people:
            for what, status, _ in after[str(mentor_id)] - before[str(mentor_id)]:
                if what != "status" or status == "expired":
                    done[f"{day:%G-W%V}", what] += 1
        before = after

    kinds = ("status", "reminder", "pause", "hide")
    assert {week.week: counts(week) for week in made.weeks} == {
        week.week: tuple(done[week.week, kind] for kind in kinds) for week in made.weeks
    }
    assert done.total() > 10


def test_forecast_reads_only_mentors_with_a_review(connection: Connection, facts: Facts) -> None:
    """After a run with a wrong, later date it reads everyone, as the next run does."""
    organisation = facts.organisation(thresholds=[])
    for days in (3, 900, 900):
        facts.certified_mentor(organisation, TODAY + days * DAY)
    night(connection)
    looked_at: list[int] = []
    forecast(connection, on_progress=looked_at.append)
    assert looked_at == [1]

    night(connection, TODAY + 60 * DAY, deliver=False)
    assert [counts(week) for week in forecast(connection, days=10).weeks] == [(1, 0, 1, 1), (0, 0, 0, 0)]


def test_forecast_names_and_leaves_out_a_broken_mentor(here: Certjob, facts: Facts) -> None:
    """The others are counted, and the exit code is 3."""
    organisation = facts.organisation(portal=None)
    broken, _ = (facts.certified_mentor(organisation, date(2025, 1, 1)) for _ in range(2))

    def decide(mentor: Mentor, today: date, *, rightly: Callable[[Mentor, date], Decision] = rules.decide) -> Decision:
        if mentor.id == broken:
            raise ZeroDivisionError
        return rightly(mentor, today)

    with mock.patch("certjob.domain.rules.decide", decide):
        result = here("forecast", "--json")

    read = json.loads(result.stdout)
    assert f"mentor {broken} is left out: no decision: ZeroDivisionError" in result.stderr
    assert (result.returncode, read["outcome"], sum(week["pauses"] for week in read["weeks"])) == (3, "attention", 1)
    assert read["problems"][0]["mentor_id"] == str(broken)


def test_forecast_has_iso_weeks_cut_at_both_ends(connection: Connection) -> None:
    """Every day of the forecast belongs to one of them."""
    for first, days, weeks in (
        (date(2026, 3, 10), 1, [("2026-W11", 10, 10)]),
        (date(2026, 3, 15), 2, [("2026-W11", 15, 15), ("2026-W12", 16, 16)]),
        (date(2026, 3, 9), 14, [("2026-W11", 9, 15), ("2026-W12", 16, 22)]),
        (date(2026, 12, 30), 9, [("2026-W53", 30, 3), ("2027-W01", 4, 7)]),
    ):
        made = forecast(connection, today=first, days=days)

        assert [(each.week, each.starts_on.day, each.ends_on.day) for each in made.weeks] == weeks


def test_forecast_page_has_a_line_and_a_bar_for_each_week(capsys: pytest.CaptureFixture[str]) -> None:
    """The longest bar has 10 cells, a small number one cell, and zero none; the table fits on 80 columns."""
    weeks = [
        Week(week=name, starts_on=first, ends_on=first + 6 * DAY, expiries=expiries, reminders=99, pauses=0, hides=1)
        for name, first, expiries in (
            ("2026-W11", date(2026, 3, 9), 3_200),
            ("2026-W12", date(2026, 3, 16), 1),
            ("2026-W13", date(2026, 3, 23), 0),
        )
    ]
    made = Forecast(today=date(2026, 3, 9), until=date(2026, 3, 29), weeks=tuple(weeks), broken={})
    output, shown = terminal(80)

    show_forecast(output, made)
    show_forecast(Output(quiet=False), made)

    lines = [line.rstrip() for line in without_escapes(shown.getvalue()).splitlines()]
    assert [line.count("━") for line in lines[2:]] == [9, 1, 0]
    assert lines[2].split() == ["2026-W11", "2026-03-09", "2026-03-15", "3200", "99", "0", "1", "━" * 9]
    assert capsys.readouterr().out.splitlines()[2] == "2026-W13\t2026-03-23\t2026-03-29\t0\t99\t0\t1\t"


def test_forecast_command_counts_and_rejects_wrong_options(facts: Facts, here: Certjob) -> None:
    """JSON has the numbers of the page; a wrong number of days and an unknown organisation exit with 2."""
    organisation = facts.organisation(portal=None)
    for days in (-100, 3, 88, 91, 200):
        facts.certified_mentor(organisation, today() + days * DAY)

    page, document = here("forecast"), json.loads(here("forecast", "--json").stdout)

    assert (page.returncode, page.stderr) == (0, "")
    assert sum(week["expiries"] for week in document["weeks"]) == 3
    assert [[str(each) for each in week.values()] for week in document["weeks"]] == [
        line.split("\t")[:-1] for line in page.stdout.splitlines()
    ]
    for arguments, phrase in (
        (["--days", "0"], "--days"),
        (["--days", "9999"], "--days"),
        (["--organisation", "x"], "no organisation 'x'"),
    ):
        assert_one_line(here("forecast", *arguments), phrase, code=2, command="certjob forecast")
