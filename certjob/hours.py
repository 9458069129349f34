"""Hours of the day in which something may be done, by the clocks of one time zone."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

_FORM = re.compile(r"([0-9]{1,2}):([0-5][0-9])\s*-\s*([0-9]{1,2}):([0-5][0-9])")
_DAY_MINUTES = 24 * 60
_MINUTE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class DailyHours:
    """From one minute of each day to another, which may be on the next day."""

    begin: int
    """Minutes after midnight."""
    end: int
    """Minutes after midnight, itself not included; smaller than ``begin``: on the next day."""

    def include(self, moment: datetime) -> bool:
        """Whether ``moment``, which is in the zone, is in these hours."""
        minute = moment.hour * 60 + moment.minute
        if self.begin < self.end:
            return self.begin <= minute < self.end
        return minute >= self.begin or minute < self.end

    def next_begin(self, moment: datetime) -> datetime | None:
        """Return when these hours begin, looked at from ``moment``, which is in the zone; None while they last.

        It goes from minute to minute: a clock that is put forward may jump over the beginning.
        """
        if self.include(moment):
            return None
        later = moment.replace(second=0, microsecond=0).astimezone(UTC)
        while not self.include(local := later.astimezone(moment.tzinfo)):
            later += _MINUTE
        return local


def parse_daily_hours(text: str) -> DailyHours:
    """Read hours such as ``08:00-20:00``; ``22:00-06:00`` goes past midnight. Raises ValueError."""
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
