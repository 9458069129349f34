"""How long someone was, or may have been, visible who must not be."""

from contextlib import suppress
from dataclasses import dataclass
from datetime import date, tzinfo
from typing import Any

from certjob import database
from certjob.database import Connection

DAYS = 30
"""The days that a summary covers."""
_LOCK_TIMEOUT_MS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """The exposures of the last DAYS days."""

    mentors: int
    open: int
    """Exposures that last."""
    seconds: int
    """In all, in these days."""
    proven_seconds: int
    """The part in which the portal showed the contact for certain."""
    longest_seconds: int | None
    longest: str | None
    """The mentor of the longest one, such as ``hlf M1003``."""
    cause: str | None
    """The last failure of that mentor's push, or None."""

    def numbers(self) -> dict[str, Any]:
        """Return the numbers of a ping, without data about people."""
        return {name: getattr(self, name) for name in ("mentors", "open", "seconds", "proven_seconds")}


def note_exposures(connection: Connection, *, today: date, zone: tzinfo, after_reading: bool = False) -> None:
    """End and open exposures. ``after_reading`` says that a new reading of the portal was stored.

    Leaves them to the next command if another session has locked one of the mentors.
    """
    now = {"today": today, "zone": str(zone)}
    with suppress(*database.CONTENTION), database.transaction(connection, lock_timeout_ms=_LOCK_TIMEOUT_MS):
        if database.fetch_value(connection, "has_open_exposures"):
            database.execute(connection, "end_exposures", now)
        opened = database.execute(connection, "open_exposures", now)
        opened += database.execute(connection, "open_edited_exposures", {"after_reading": after_reading})
        opened += database.execute(connection, "prove_exposures")
        if opened:
            database.execute(connection, "end_exposures", now)


def read_exposure(connection: Connection) -> Exposure:
    """Return the exposures of the last DAYS days."""
    (exposure,) = database.fetch(connection, "read_exposure", {"days": DAYS}, into=Exposure)
    return exposure
