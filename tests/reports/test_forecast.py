"""`certjob forecast`: what the coming nights will do is what they do, and reads well at any width."""

import json
from collections import Counter
from collections.abc import Callable
from datetime import UTC, date, timedelta
from typing import Any
from unittest import mock

import pytest

from certjob.cli.pages.forecast import show_forecast, to_document
from certjob.database import Connection
from certjob.domain import rules
from certjob.domain.models import Decision, Mentor
from certjob.reports.explain.reader import read_story
from certjob.reports.forecast import MEASURES, Forecast, Week, make_forecast
from tests.conftest import Certjob
from tests.support.command_line import assert_one_line, today, without_escapes
from tests.support.facts import TODAY, Facts
from tests.support.nights import night
from tests.support.programmes import random_programme
from tests.support.terminals import terminal

DAY = timedelta(days=1)
OnTerminal = Callable[..., tuple[int, str]]


def forecast(connection: Connection, **asked: Any) -> Forecast:
    defaults: dict[str, Any] = {"today": TODAY, "days": 90, "organisation_id": None, "on_progress": lambda _done: None}
    return make_forecast(connection, **defaults | asked)


def counts(week: Week) -> tuple[int, ...]:
    """Expiries, reminders, pauses, hides."""
    return tuple(week.counts.values())


@pytest.mark.parametrize(("seed", "slug"), [(40, None), (44, "nhf")])
def test_every_week_counts_what_the_stories_tell(
    connection: Connection, read_only: Connection, facts: Facts, seed: int, slug: str | None
) -> None:
    """On random data, part of it not yet reviewed; on a connection that may only read."""
    random_programme(facts, seed=seed, mentors=60)
    people = connection.execute(
        "SELECT m.id, o.id FROM mentors m JOIN organisations o ON o.id = m.organisation_id WHERE o.slug = %s OR %s",
        (slug, slug is None),
    ).fetchall()

    made = forecast(read_only, days=45, organisation_id=people[0][1] if slug else None)

    assert made.broken == {}
    told = Counter[tuple[str, str]]()
    for mentor_id, _ in people:
        for step in read_story(connection, mentor_id, today=TODAY, zone=UTC).steps:
            if step.is_of_night and step.on <= made.until and (step.kind != "status" or step.text.endswith(" expired")):
                told[step.on.strftime("%G-W%V"), step.kind] += 1
    kinds = ("status", "reminder", "pause", "hide")
    assert {week.name: counts(week) for week in made.weeks} == {
        week.name: tuple(told[week.name, kind] for kind in kinds) for week in made.weeks
    }
    assert sum(told.values()) > 10


def test_those_who_are_looked_at_are_those_whom_the_nights_look_at(connection: Connection, facts: Facts) -> None:
    """Whose review lies within its days; after a night on a wrong, later date everybody, as a run does then."""
    organisation = facts.organisation(thresholds=[])
    for days in (3, 900, 900):
        facts.certified_mentor(organisation, TODAY + days * DAY)
    night(connection)
    looked_at: list[int] = []
    forecast(connection, on_progress=looked_at.append)
    assert looked_at == [1]

    night(connection, TODAY + 60 * DAY, deliver=False)
    assert [counts(week) for week in forecast(connection, days=10).weeks] == [(1, 0, 1, 1), (0, 0, 0, 0)]


def test_a_mentor_whose_data_break_a_rule_is_named_and_left_out(here: Certjob, facts: Facts) -> None:
    """The others are counted; exit 3 with a line."""
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
    assert (result.returncode, read["outcome"], read["total"]["pauses"]) == (3, "attention", 1)
    assert read["problems"][0]["mentor_id"] == str(broken)


def test_weeks_are_iso_weeks_and_cut_at_both_ends(connection: Connection) -> None:
    """From Monday to Sunday; every day of the time asked for lies in one of them."""
    for first, days, weeks in (
        (date(2026, 3, 10), 1, [("2026-W11", 10, 10)]),
        (date(2026, 3, 15), 2, [("2026-W11", 15, 15), ("2026-W12", 16, 16)]),
        (date(2026, 3, 9), 14, [("2026-W11", 9, 15), ("2026-W12", 16, 22)]),
        (date(2026, 12, 30), 9, [("2026-W53", 30, 3), ("2027-W01", 4, 7)]),
    ):
        made = forecast(connection, today=first, days=days)

        assert [(each.name, each.starts_on.day, each.ends_on.day) for each in made.weeks] == weeks


def week(name: str, starts_on: date, ends_on: date, *numbers: int) -> Week:
    return Week(name=name, starts_on=starts_on, ends_on=ends_on, counts=dict(zip(MEASURES, numbers, strict=True)))


def test_each_form_has_a_total(connection: Connection, capsys: pytest.CaptureFixture[str]) -> None:
    """docs/commands.md has the page of everybody, and the CSV; an organisation is named; nothing is a sentence."""
    weeks = (
        week("2026-W11", date(2026, 3, 9), date(2026, 3, 15), 4, 20, 4, 0),
        week("2026-W14", date(2026, 3, 30), date(2026, 4, 5), 1, 9, 0, 1),
    )
    made = Forecast(today=date(2026, 3, 9), until=date(2026, 4, 6), weeks=weeks, expired_already=3, broken={})
    output, shown = terminal(80)

    show_forecast(output, made, organisation="hlf")
    document: dict[str, Any] = to_document(made, organisation="hlf")
    show_forecast(output, forecast(connection), organisation=None)

    lines = [line.rstrip() for line in without_escapes(shown.getvalue()).splitlines()]
    assert lines[0] == "The next 29 nights for hlf, if nobody renews"
    assert lines[6:] == [
        "Whose certificates:",
        "`certjob list --status valid --status expiring --within 27 --organisation hlf`",
        "Expired already, recorded tonight: 3; see",
        "`certjob list --status expired --organisation hlf`",
    ]
    assert (document["outcome"], document["organisation"]) == ("ok", "hlf")
    assert document["total"] == {"expiries": 5, "reminders": 29, "pauses": 4, "hides": 1}
    assert [each["expiries"] for each in document["weeks"]] == [4, 1]
    assert capsys.readouterr().out == "Nothing in the next 90 nights.\n"


def test_the_command_off_a_terminal_and_on_one(facts: Facts, here: Certjob, on_terminal: OnTerminal) -> None:
    """CSV off a terminal, colour on one that wants it; its commands list those who expire, and those who have."""
    organisation = facts.organisation(portal=None)
    for days in (-100, 3, 88, 91, 200):
        facts.certified_mentor(organisation, today() + days * DAY)

    result = here("forecast")
    assert (result.returncode, result.stderr, result.stdout) == (0, "", here("forecast", "--csv").stdout)
    assert json.loads(here("forecast", "--json").stdout)["total"]["expiries"] == 3
    for listed, rows in (("--status valid --status expiring --within 88", 2), ("--status expired", 1)):
        assert len(here("list", *listed.split(), "--csv").stdout.splitlines()) - 1 == rows
    for settings, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        code, shown = on_terminal("forecast", **settings)
        assert (code, "The next 90 nights, if nobody renews" in shown, "\x1b[36m" in shown) == (0, True, coloured)
        assert "Expired already, recorded tonight: 1; see `certjob list --status expired`" in shown
    for arguments, phrase in (
        (["--days", "0"], "--days"),
        (["--days", "9999"], "--days"),
        (["--organisation", "x"], "no organisation 'x'"),
    ):
        assert_one_line(here("forecast", *arguments), phrase, code=2, command="certjob forecast")
