"""Hours of the day: whether they include a moment, and when they begin, also when the clocks change."""

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from certjob.hours import parse_daily_hours


def at(text: str) -> datetime:
    """Return a moment in Oslo."""
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo("Europe/Oslo"))


@pytest.mark.parametrize(
    ("hours", "inside", "outside"),
    [
        ("08:00-20:00", ["08:00", "19:59:59.9"], ["07:59:59.9", "20:00", "00:00"]),
        ("22:00-06:30", ["22:00", "00:00", "06:29:59"], ["06:30", "21:59:59", "12:00"]),
        ("16:00-24:00", ["16:00", "23:59:59"], ["00:00", "15:59"]),
    ],
)
def test_hours_include_their_beginning_and_not_their_end(hours: str, inside: list[str], outside: list[str]) -> None:
    """Hours may end on the next day."""
    found = parse_daily_hours(hours)

    assert all(found.include(at(f"2026-03-10 {time}")) for time in inside)
    assert not any(found.include(at(f"2026-03-10 {time}")) for time in outside)


@pytest.mark.parametrize(
    ("hours", "now", "begin"),
    [
        pytest.param("08:00-20:00", "2026-03-10 03:10", "2026-03-10 08:00", id="today"),
        pytest.param("08:00-20:00", "2026-03-10 20:00:00.5", "2026-03-11 08:00", id="tomorrow"),
        pytest.param("08:00-20:00", "2026-03-10 08:00", None, id="during the hours"),
        pytest.param("22:00-06:00", "2026-03-10 12:00", "2026-03-10 22:00", id="hours over midnight"),
        pytest.param("02:15-05:00", "2026-03-29 01:59", "2026-03-29 03:00", id="summer time skips the beginning"),
        pytest.param("02:15-02:45", "2026-03-29 01:59", "2026-03-30 02:15", id="summer time skips the hours"),
    ],
)
def test_next_begin_is_the_next_time_in_the_hours(hours: str, now: str, begin: str | None) -> None:
    assert parse_daily_hours(hours).next_begin(at(now)) == (at(begin) if begin else None)


@pytest.mark.parametrize("text", ["", "08:00", "8-20", "08:60-20:00", "24:00-08:00", "08:00-24:01"])
def test_text_that_is_not_two_times_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="such as 08:00-20:00"):
        parse_daily_hours(text)


def test_empty_hours_are_rejected() -> None:
    """Mails would wait for ever."""
    with pytest.raises(ValueError, match=r"empty window.*00:00-24:00"):
        parse_daily_hours("08:00-08:00")
