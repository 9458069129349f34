"""Whether this machine's clock and the database server's agree: a wrong one pauses, hides and mails."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo

from certjob.database.connections import Connection
from certjob.database.statements import clock
from certjob.errors import ClocksDisagreeError

TOLERATED_DIFFERENCE = timedelta(minutes=10)
"""Around midnight a small difference gives two dates, and does no harm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocks:
    """The two clocks at one moment."""

    machine_at: datetime
    server_at: datetime

    @property
    def server_is_ahead_by(self) -> timedelta:
        """How far the server's clock is ahead of this machine's; negative: behind."""
        return self.server_at - self.machine_at

    def require_same_day(self, zone: tzinfo) -> None:
        """Raise ClocksDisagreeError when the clocks are on different days of the zone, not only a little apart."""
        machine, server = self.machine_at.astimezone(zone), self.server_at.astimezone(zone)
        if machine.date() == server.date() or abs(self.server_is_ahead_by) <= TOLERATED_DIFFERENCE:
            return
        message = f"this machine's clock shows {machine:%Y-%m-%d %H:%M}, the database server's {server:%Y-%m-%d %H:%M}"
        raise ClocksDisagreeError(
            message,
            next_step=f"correct the wrong one, or if this machine's is right, add --accept-date {machine:%Y-%m-%d}",
        )


def read_clocks(connection: Connection) -> Clocks:
    """Ask the server for its time; how long the answer takes counts as no difference."""
    asked_at = datetime.now(UTC)
    server_at = clock(connection)
    answered_at = datetime.now(UTC)
    return Clocks(machine_at=min(max(server_at, asked_at), answered_at), server_at=server_at)
