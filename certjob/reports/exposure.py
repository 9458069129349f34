"""Exposures: how long mentors were visible who must not be. `certjob status` and `certjob changes` sum them up."""

from dataclasses import dataclass
from datetime import date, datetime
from uuid import UUID

from certjob import database
from certjob.database import Connection
from certjob.domain.explanations import duration_words, number


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """How long someone was, or may have been, visible who must not be, since a moment."""

    mentors: int
    open: int
    """Exposures that last."""
    seconds: int
    """In all, since that moment."""
    longest_seconds: int | None
    longest: str | None
    """The mentor of the longest one, such as ``hlf M1003``."""
    cause: str | None
    """The last failure of that mentor's push, or None."""

    @property
    def words(self) -> str:
        """The mentors, the time in all, and the longest exposure."""
        if not self.mentors:
            return "none"
        words = [f"{number(self.mentors, 'mentor')}, {duration_words(self.seconds)} in all"]
        if self.longest is not None and self.longest_seconds is not None:
            words.append(f"the longest {duration_words(self.longest_seconds)}: {self.longest}")
        if self.cause:
            words.append(self.cause.replace("_", " "))
        still = f"; {self.open:,} {'lasts' if self.open == 1 else 'last'}" if self.open else ""
        return ", ".join(words) + still


def read_exposure(
    connection: Connection, *, since: datetime, today: date, zone: str, organisation_id: UUID | None = None
) -> Exposure:
    """Return the sum of the exposures since a moment: the part of each that lies in this time."""
    asked = {"since": since, "today": today, "zone": zone, "organisation_id": organisation_id}
    (exposure,) = database.fetch(connection, "read_exposure", asked, into=Exposure)
    return exposure
