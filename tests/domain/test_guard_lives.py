"""The guards in three years of ordinary life, and with wrong inputs (`python -m tests.lives` prints more)."""

import pytest

from tests.lives.programme import START, Programme, live
from tests.lives.wrong_inputs import try_wrong_inputs

NOT_HELD = {
    60: {
        "day and month swapped",
        "clock 6 days ahead",
        "clock 1 day ahead before New Year",
        "clock 2 days ahead before New Year",
        "clock 6 days ahead before New Year",
        "file of another organisation",
        "60 paused, expired certificates moved to the future",
        "60 paused, old certificates added",
        "everyone who is paused renewed today",
        "thresholds of 600 days",
    },
    200: {
        "clock 1 day ahead before New Year",
        "file of another organisation",
        "60 paused, expired certificates moved to the future",
        "60 paused, old certificates added",
        "everyone who is paused renewed today",
        "thresholds of 600 days",
    },
}
"""At these sizes few mentors are paused, or end on New Year's Eve."""


@pytest.mark.parametrize(("mentors", "most_alarms"), [(30, 0), (60, 1), (200, 4)])
def test_ordinary_life_causes_few_false_alarms(mentors: int, most_alarms: int) -> None:
    """In six years; the organisation's first run does not count."""
    alarms = [
        nights
        for seed in (0, 1)
        for nights in live(Programme(mentors, seed), until=START.replace(year=START.year + 3))
        if nights[0].day != START
    ]

    assert len(alarms) <= most_alarms


@pytest.mark.parametrize("mentors", list(NOT_HELD))
def test_wrong_inputs_are_held_by_the_first_run(mentors: int) -> None:
    results = try_wrong_inputs(mentors)

    assert {name for name, is_held in results.items() if not is_held} == NOT_HELD[mentors]
    assert sum(results.values()) == {60: 10, 200: 12}[mentors]
