"""Hours of the day in one time zone."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

_FORM = re.compile(r"([0-9]{1,2}):([0-5][0-9])\s*-\s*([0-9]{1,2}):([0-5][0-9])")
_DAY_MINUTES = 24 * 60
_MINUTE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class DailyHours:
    """A time window of each day. It may end on the next day."""

    begin: int
    """Minutes after midnight."""
    end: int
    """Minutes after midnight, not included. If smaller than ``begin``, it is on the next day."""

    def include(self, moment: datetime) -> bool:
        """Return whether a moment with the time zone is in these hours."""
        minute = moment.hour * 60 + moment.minute
        if self.begin < self.end:
            return self.begin <= minute < self.end
        return minute >= self.begin or minute < self.end

    def next_begin(self, moment: datetime) -> datetime | None:
        """Return the next beginning after a moment with the time zone, or None during these hours.

        It tries each minute, because the start of summer time may skip the beginning.
        """
        if self.include(moment):
            return None
        later = moment.replace(second=0, microsecond=0).astimezone(UTC)
        while not self.include(local := later.astimezone(moment.tzinfo)):
            later += _MINUTE
        return local


def parse_daily_hours(text: str) -> DailyHours:
    """Return hours such as ``08:00-20:00`` or, past midnight, ``22:00-06:00``. Raises ValueError."""
    form = _FORM.fullmatch(text.strip())
    hour, minute, last_hour, last_minute = map(int, form.groups()) if form else (24, 0, 24, 0)
    begin, end = hour * 60 + minute, last_hour * 60 + last_minute
    if begin >= _DAY_MINUTES or end > _DAY_MINUTES:
        message = "must be two times of the day such as 08:00-20:00 (the second one may be 24:00)"
        raise ValueError(message)
    if begin == end:
        message = "is an empty window, since it ends when it begins (00:00-24:00 is the whole day)"
        raise ValueError(message)
    return DailyHours(begin=begin, end=end)
