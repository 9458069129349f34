"""Hours of the day: whether a moment is in them, and when they begin, whatever the clocks do."""

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from certjob.hours import DailyHours, parse_daily_hours


def at(text: str) -> datetime:
    """A moment by the clocks of Oslo."""
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo("Europe/Oslo"))


def test_a_moment_is_in_them_or_not() -> None:
    """The end itself is not."""
    for hours, inside, outside in (
        ("08:00-20:00", ["08:00", "12:30", "19:59:59.9"], ["07:59:59.9", "20:00", "00:00"]),
        ("22:00-06:30", ["22:00", "23:59:59", "00:00", "06:29:59"], ["06:30", "21:59:59", "12:00"]),
        ("16:00-24:00", ["16:00", "23:59:59"], ["00:00", "15:59"]),
        ("8:00 - 8:01", ["08:00:59"], ["08:01"]),
    ):
        found = parse_daily_hours(hours)

        assert [time for time in [*inside, *outside] if found.include(at(f"2026-03-10 {time}"))] == inside


def test_they_begin_again() -> None:
    """The next time, to the minute; while they last there is nothing to wait for."""
    for hours, now, begin in (
        ("08:00-20:00", "2026-03-10 03:10", "2026-03-10 08:00"),
        ("08:00-20:00", "2026-03-10 20:00:00.5", "2026-03-11 08:00"),
        ("08:00-20:00", "2026-03-10 08:00", None),
        ("22:00-06:00", "2026-03-10 12:00", "2026-03-10 22:00"),
        ("16:00-24:00", "2026-12-31 00:00", "2026-12-31 16:00"),
        # in spring 02:00 is 03:00 at once; a window inside the missing hour is left out
        ("02:15-05:00", "2026-03-29 01:59", "2026-03-29 03:00"),
        ("02:15-02:45", "2026-03-29 01:59", "2026-03-30 02:15"),
        ("08:00-20:00", "2026-10-24 22:00", "2026-10-25 08:00"),
    ):
        assert parse_daily_hours(hours).next_begin(at(now)) == (at(begin) if begin else None), (hours, now)


def test_what_is_not_two_times_is_refused() -> None:
    """With an example; so is an empty window, in which mail would wait for ever. What is read is minutes."""
    for text in ("", "08:00", "8-20", "08:00-25:00", "08:60-20:00", "24:00-08:00", "08:00-24:01", "08:00–20:00"):
        with pytest.raises(ValueError, match="such as 08:00-20:00"):
            parse_daily_hours(text)
    with pytest.raises(ValueError, match=r"empty window.*00:00-24:00"):
        parse_daily_hours("08:00-08:00")
    assert parse_daily_hours("08:05-24:00") == DailyHours(begin=485, end=1440)
