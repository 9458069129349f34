"""Compare the clocks of this machine and of the database server. A wrong clock pauses, hides and mails."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo

from certjob.database.connections import Connection
from certjob.database.statements import clock
from certjob.errors import ClocksDisagreeError

TOLERATED_DIFFERENCE = timedelta(minutes=10)
"""A smaller difference is harmless, although the dates differ around midnight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocks:
    """The two clocks at one moment."""

    machine_at: datetime
    server_at: datetime

    @property
    def server_is_ahead_by(self) -> timedelta:
        """Return by how much the server's clock is ahead; negative if it is behind."""
        return self.server_at - self.machine_at

    def require_same_day(self, zone: tzinfo) -> None:
        """Raise ClocksDisagreeError if the clocks show different days in this zone and differ by over 10 minutes."""
        machine, server = self.machine_at.astimezone(zone), self.server_at.astimezone(zone)
        if machine.date() == server.date() or abs(self.server_is_ahead_by) <= TOLERATED_DIFFERENCE:
            return
        message = f"this machine's clock shows {machine:%Y-%m-%d %H:%M}, the database server's {server:%Y-%m-%d %H:%M}"
        raise ClocksDisagreeError(
            message,
            next_step=f"correct the wrong one, or if this machine's is right, add --accept-date {machine:%Y-%m-%d}",
        )


def read_clocks(connection: Connection) -> Clocks:
    """Return the time of both clocks. The duration of the query does not count as a difference."""
    asked_at = datetime.now(UTC)
    server_at = clock(connection)
    answered_at = datetime.now(UTC)
    return Clocks(machine_at=min(max(server_at, asked_at), answered_at), server_at=server_at)
