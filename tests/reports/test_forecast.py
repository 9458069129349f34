"""`certjob forecast`: the changes of the coming runs, by week."""

import json
from collections import Counter
from collections.abc import Callable
from datetime import date, timedelta
from typing import Any
from unittest import mock

from certjob.database import Connection
from certjob.domain import rules
from certjob.domain.models import Decision, Mentor
from certjob.reports.forecast import Forecast, make_forecast
from tests.conftest import Certjob
from tests.support.command_line import today
from tests.support.facts import TODAY, Facts
from tests.support.nights import EVERYTHING, night
from tests.support.programmes import changes_by_mentor, random_programme

DAY = timedelta(days=1)


def forecast(connection: Connection, **asked: Any) -> Forecast:
    defaults: dict[str, Any] = {"today": TODAY, "days": 90, "organisation_id": None, "on_progress": lambda _done: None}
    return make_forecast(connection, **defaults | asked)


def test_forecast_counts_what_the_runs_then_do(connection: Connection, read_only: Connection, facts: Facts) -> None:
    """On random data, 20 runs make the changes of each week. A read-only connection is enough."""
    random_programme(facts, seed=40, mentors=40)
    made = forecast(read_only, days=20)

    done, before = Counter[tuple[str, str]](), changes_by_mentor(facts)
    for day in (TODAY + number * DAY for number in range(20)):
        night(connection, day, deliver=False, allow=EVERYTHING)
        after = changes_by_mentor(facts)
        for mentor_id, changes in after.items():
            for what, status, _ in changes - before[mentor_id]:
                if what != "status" or status == "expired":
                    done[f"{day:%G-W%V}", what] += 1
        before = after

    for week in made.weeks:
        counts = {
            "status": week["expiries"],
            "reminder": week["reminders"],
            "pause": week["pauses"],
            "hide": week["hides"],
        }
        assert counts == {what: done[week["week"], what] for what in counts}
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

    first, second = forecast(connection, days=10).weeks
    assert tuple(first[what] for what in ("expiries", "reminders", "pauses", "hides")) == (1, 0, 1, 1)
    assert tuple(second[what] for what in ("expiries", "reminders", "pauses", "hides")) == (0, 0, 0, 0)


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


def test_forecast_is_for_90_days_and_all_organisations_by_default(facts: Facts, here: Certjob) -> None:
    for slug in ("hlf", "nhf"):
        organisation = facts.organisation(slug, portal=None)
        for days in (-100, 3, 88, 91, 200):
            facts.certified_mentor(organisation, today() + days * DAY)

    both, one = here("forecast", "--json"), here("forecast", "--json", "--organisation", "nhf")

    assert sum(week["expiries"] for week in json.loads(both.stdout)["weeks"]) == 6
    assert sum(week["expiries"] for week in json.loads(one.stdout)["weeks"]) == 3
