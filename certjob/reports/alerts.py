"""The alerts in full. certjob/review/attention.py counts them."""

import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID

from certjob import database
from certjob.database import Connection
from certjob.domain import holds
from certjob.domain.alert_kinds import Kind
from certjob.domain.causes import NO_MAIL_AT_ALL, Advice, advise_on, advise_on_message, advise_on_push
from certjob.sorting import SortedRows


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """A row of the database function ``current_alerts``. docs/json.md describes the fields."""

    alert_id: str
    kind: Kind
    organisation_id: UUID | None
    organisation: str | None
    mentor_id: UUID | None
    member_no: str | None
    full_name: str | None
    """For a digest, the name or address of the coordinator."""
    row_id: int | None
    since: datetime
    sentence: str
    cause: str
    """See `certjob.domain.causes`."""
    error: str | None
    state: str
    """``waiting`` (until ``next_attempt_at``), ``due`` (now), ``being_sent``, or ``stopped`` until someone acts."""
    next_attempt_at: datetime | None
    last_failed_at: datetime | None
    calls: int | None
    number: int | None
    """The number that ``--allow`` permits, or the number of mentors who must not be visible and may still be."""
    day: date | None
    fingerprint: str
    """What a person sees in the alert. An acknowledgement ends when it changes."""
    acknowledged_until: date | None
    acknowledged_because: str | None

    @property
    def advice(self) -> Advice:
        """The reason and the action."""
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
        """Return the action. ``next_try`` is the time of the next attempt; with ``others``, there are more alerts."""
        return self.advice.advise(
            resync=resync_command(self.member_no or "", self.organisation or "") + (" and so on" if others else ""),
            next_try=next_try,
            message="digest" if self.kind is Kind.FAILED_DIGESTS else "reminder",
            command=holds.command(self.cause, self.organisation or "", allow=self.number or 0),
            alert=shlex.quote(self.alert_id),
        )

    def to_document(self) -> dict[str, Any]:
        """Return the alert for a JSON document."""
        at = self.next_attempt_at
        next_try = f"after {at.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if at else ""
        return asdict(self) | {"why": self.advice.why, "what_to_do": self.what_to_do(next_try=next_try)}


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldMentor:
    """A mentor with a held change, and the alert of that hold."""

    alert_id: str
    mentor_id: UUID
    member_no: str
    organisation: str
    full_name: str
    reason: str
    """See `certjob.domain.causes.HELD_REASONS`."""
    since: datetime


def held_mentors(
    connection: Connection, *, today: date, acknowledged: bool = False, most: int | None = None
) -> Iterator[HeldMentor]:
    """Yield the mentors of the open or the acknowledged holds, at most ``most`` of each, the most harmful first."""
    parameters = {"today": today, "acknowledged": acknowledged, "most": most}
    return database.stream(connection, "list_held_mentors", parameters, into=HeldMentor)


def collect_alerts(
    connection: Connection, *, today: date, acknowledged: bool = False, mentor_id: UUID | None = None
) -> SortedRows[Alert]:
    """Return the open or the acknowledged alerts, the most harmful kind first, then the oldest."""
    parameters = {"today": today, "acknowledged": acknowledged, "mentor_id": mentor_id}
    order = {kind: place for place, kind in enumerate(Kind)}
    alerts = SortedRows[Alert](lambda alert: order[alert.kind])
    for row in database.stream(connection, "read_alerts", parameters, into=dict):
        alerts.append(Alert(**row | {"kind": Kind(row["kind"])}))
    return alerts


def read_alerts(
    connection: Connection, *, today: date, acknowledged: bool = False, mentor_id: UUID | None = None
) -> list[Alert]:
    """Return the same as a list."""
    return list(collect_alerts(connection, today=today, acknowledged=acknowledged, mentor_id=mentor_id))


def count_acknowledged(connection: Connection, *, today: date) -> int:
    """Return the number of acknowledged alerts."""
    return int(database.fetch_value(connection, "count_acknowledged", {"today": today}))


def resync_command(member_no: str, organisation: str) -> str:
    """Return the command that pushes one mentor now, in backquotes.

    It names the organisation, because member numbers are unique only within one.
    """
    return f"`certjob resync {shlex.quote(member_no)} --organisation {organisation}`"
