"""Hours of the day: whether they include a moment, and when they begin, also when the clocks change."""

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from certjob.hours import DailyHours, parse_daily_hours


def at(text: str) -> datetime:
    """Return a moment in Oslo."""
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo("Europe/Oslo"))


@pytest.mark.parametrize(
    ("hours", "inside", "outside"),
    [
        ("08:00-20:00", ["08:00", "12:30", "19:59:59.9"], ["07:59:59.9", "20:00", "00:00"]),
        ("22:00-06:30", ["22:00", "23:59:59", "00:00", "06:29:59"], ["06:30", "21:59:59", "12:00"]),
        ("16:00-24:00", ["16:00", "23:59:59"], ["00:00", "15:59"]),
        ("8:00 - 8:01", ["08:00:59"], ["08:01"]),
    ],
)
def test_hours_include_their_beginning_and_not_their_end(hours: str, inside: list[str], outside: list[str]) -> None:
    """Hours may end on the next day."""
    found = parse_daily_hours(hours)

    assert [time for time in [*inside, *outside] if found.include(at(f"2026-03-10 {time}"))] == inside


@pytest.mark.parametrize(
    ("hours", "now", "begin"),
    [
        ("08:00-20:00", "2026-03-10 03:10", "2026-03-10 08:00"),
        ("08:00-20:00", "2026-03-10 20:00:00.5", "2026-03-11 08:00"),
        ("08:00-20:00", "2026-03-10 08:00", None),
        ("22:00-06:00", "2026-03-10 12:00", "2026-03-10 22:00"),
        ("16:00-24:00", "2026-12-31 00:00", "2026-12-31 16:00"),
        pytest.param("02:15-05:00", "2026-03-29 01:59", "2026-03-29 03:00", id="summer time skips the beginning"),
        pytest.param("02:15-02:45", "2026-03-29 01:59", "2026-03-30 02:15", id="summer time skips the hours"),
        ("08:00-20:00", "2026-10-24 22:00", "2026-10-25 08:00"),
    ],
)
def test_next_begin_is_the_next_time_in_the_hours(hours: str, now: str, begin: str | None) -> None:
    """There is none during the hours."""
    assert parse_daily_hours(hours).next_begin(at(now)) == (at(begin) if begin else None)


def test_text_that_is_not_two_times_is_refused() -> None:
    """The error has an example."""
    for text in ("", "08:00", "8-20", "08:00-25:00", "08:60-20:00", "24:00-08:00", "08:00-24:01", "08:00–20:00"):
        with pytest.raises(ValueError, match="such as 08:00-20:00"):
            parse_daily_hours(text)


def test_empty_hours_are_refused() -> None:
    """Mails would wait for ever."""
    with pytest.raises(ValueError, match=r"empty window.*00:00-24:00"):
        parse_daily_hours("08:00-08:00")

    assert parse_daily_hours("08:05-24:00") == DailyHours(begin=485, end=1440)
