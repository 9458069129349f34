"""What needs attention, in full: the list that certjob/review/attention.py counts."""

import shlex
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime
from typing import Any, Literal
from uuid import UUID

from certjob import database
from certjob.database import Connection
from certjob.domain import holds
from certjob.domain.causes import NO_MAIL_AT_ALL, Advice, advise_on, advise_on_message, advise_on_push
from certjob.review.attention import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One thing that needs attention, as the function ``current_alerts`` returns it."""

    alert_id: str
    """Such as ``hlf:may_be_visible:M1042``."""
    kind: Kind
    organisation_id: UUID | None
    organisation: str | None
    """The slug."""
    mentor_id: UUID | None
    member_no: str | None
    full_name: str | None
    """The member number where there is no name; for a digest the coordinator's name or address."""
    row_id: int | None
    """The row of ``portal_sync_events``, ``cert_notification_log`` or ``coordinator_digests``."""
    since: datetime
    """When it became an alert."""
    sentence: str
    """What it is; the dashboard shows the same."""
    cause: str
    """What the reader can do something about; see `certjob.domain.causes`."""
    error: str | None
    """The technical reason."""
    state: str
    """``waiting`` (until ``next_attempt_at``), ``being_sent``, or ``stopped`` until someone acts."""
    next_attempt_at: datetime | None
    last_failed_at: datetime | None
    calls: int | None
    """Calls made to the portal for it."""
    number: int | None
    """The number that permits what a guard holds; how many certificates have ended since the last full run."""
    day: date | None
    """The certificate's last day, the digest's day, or the day of the last full run or reading of the portal."""
    acknowledged_until: date | None
    """The last day; None: it is not acknowledged, or until the cause changes."""
    acknowledged_because: str | None

    @property
    def advice(self) -> Advice:
        """Why it needs attention, and what to do."""
        match self.kind:
            case Kind.MAY_BE_VISIBLE | Kind.MAY_BE_HIDDEN:
                advice = advise_on_push(self.cause, error=self.error)
            case Kind.FAILED_REMINDERS | Kind.FAILED_DIGESTS:
                advice = advise_on_message(self.cause)
            case Kind.WAITING_REMINDERS | Kind.WAITING_DIGESTS:
                advice = NO_MAIL_AT_ALL
            case _:
                advice = advise_on(self.cause)
        return replace(advice, why=advice.why.format(error=self.error))

    def what_to_do(self, *, next_try: str, others: bool = False) -> str:
        """Return what to do about it, and with ``others`` about more of them.

        ``next_try`` is when certjob tries again.
        """
        message: Literal["reminder", "digest"] = "digest" if self.kind is Kind.FAILED_DIGESTS else "reminder"
        return self.advice.advise(
            resync=resync_command(self.member_no or "", self.organisation or "") + (" and so on" if others else ""),
            next_try=next_try,
            message=message,
            command=holds.command(self.cause, self.organisation or "", allow=self.number or 0),
            alert=shlex.quote(self.alert_id),
        )

    def to_document(self) -> dict[str, Any]:
        """Return its object in the JSON document."""
        at = self.next_attempt_at
        next_try = f"after {at.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if at else ""
        return asdict(self) | {"why": self.advice.why, "what_to_do": self.what_to_do(next_try=next_try)}


def read_alerts(
    connection: Connection, *, today: date, acknowledged: bool = False, mentor_id: UUID | None = None
) -> list[Alert]:
    """Return what needs attention, the most harmful first, then the oldest; or what is acknowledged."""
    parameters = {"today": today, "acknowledged": acknowledged, "mentor_id": mentor_id}
    rows = database.fetch(connection, "read_alerts", parameters, into=dict)
    alerts = [Alert(**row | {"kind": Kind(row["kind"])}) for row in rows]
    return sorted(alerts, key=lambda alert: list(Kind).index(alert.kind))


def count_acknowledged(connection: Connection, *, today: date) -> int:
    """Return how many alerts someone has acknowledged."""
    return int(database.fetch_value(connection, "count_acknowledged", {"today": today}))


def resync_command(member_no: str, organisation: str) -> str:
    """Return the command that pushes one mentor now, in backquotes; two organisations may have the same number."""
    return f"`certjob resync {shlex.quote(member_no)} --organisation {organisation}`"
