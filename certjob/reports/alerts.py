"""The alerts in full. certjob/review/attention.py counts them."""

import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime
from itertools import groupby
from operator import attrgetter
from typing import Any, Final
from uuid import UUID

from certjob import database
from certjob.database import Connection
from certjob.domain import holds
from certjob.domain.alert_kinds import WORDS, Kind, count_in_words
from certjob.domain.causes import NO_MAIL_AT_ALL, Advice, advise_on, advise_on_message, advise_on_push, held_words
from certjob.domain.explanations import day_words, moment_words, number, whole_date
from certjob.errors import Cause
from certjob.page import GAP, Line, Table, heading
from certjob.redaction import harmless
from certjob.sorting import SortedRows

MOST_ROWS: Final = 20
"""Alerts of one cause on a terminal."""
_COLUMNS = {"alert_id": "Alert", "who": "Mentor", "day": "Day", "since": "Since"}
_COLUMNS |= {"acknowledged_until": "Muted until", "acknowledged_because": "Because"}
_HELD: Final = {"alert_id": "Held back by", "member_no": "No.", "full_name": "Name", "reason": "Reason"}

_BY_HAND: Final = " --hidden-by-hand --because TEXT"


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
        more = " and so on" if others else ""
        return self.advice.advise(
            resync=resync_command(self.member_no or "", self.organisation or "") + more,
            by_hand=resync_command(self.member_no or "", self.organisation or "", more=_BY_HAND) + more,
            next_try=next_try,
            message="digest" if self.kind is Kind.FAILED_DIGESTS else "reminder",
            command=holds.command(self.cause, self.organisation or "", allow=self.number or 0),
            acknowledge=f"`certjob acknowledge {shlex.quote(self.alert_id)} --because TEXT --until DATE`",
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
    old_last_day: date | None
    """The last certified day; None: not certified."""
    new_last_day: date | None

    @property
    def words(self) -> str:
        """The reason and the last days."""
        return held_words(self.reason, old_last_day=self.old_last_day, new_last_day=self.new_last_day)


def held_mentors(connection: Connection, *, today: date) -> Iterator[HeldMentor]:
    """Yield the mentors of the holds, the most harmful first."""
    return database.stream(connection, "list_held_mentors", {"today": today}, into=HeldMentor)


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


def resync_command(member_no: str, organisation: str, *, more: str = "") -> str:
    """Return the command that pushes one mentor now, in backquotes.

    It names the organisation, because member numbers are unique only within one.
    """
    return f"`certjob resync {shlex.quote(member_no)} --organisation {organisation}{more}`"


def alerts_page(
    alerts: Iterable[Alert], *, now: datetime, held: Iterable[HeldMentor] = (), acknowledged: int = 0
) -> Iterator[Line | Table]:
    """Yield each kind with its causes, for each cause the next step and its alerts, and the mentors of the holds.

    ``now`` has the time zone of the times. The last line has the number of ``acknowledged`` alerts.
    """
    for place, (kind, same) in enumerate(groupby(alerts, key=attrgetter("kind"))):
        section = list(same)
        if place:
            yield GAP
        yield heading(_heading(kind, section))
        if count := sum(alert.cause != Cause.LATER_DAY_ON_PORTAL for alert in section):  # these may be visible for now
            yield Line(WORDS[kind].meaning.format(mentors=number(count, "mentor")))
        for group in _groups(section):
            yield from _group_parts(group, now=now)
        if kind is Kind.HELD:
            rows = [asdict(each) | {"reason": each.words} for each in held]
            yield Table(rows, _HELD)
    if acknowledged:
        yield from (GAP, Line(_acknowledged_words(acknowledged)))


def alert_lines(
    alerts: Iterable[Alert], *, now: datetime, held: Iterable[HeldMentor] = (), acknowledged: int = 0
) -> Iterator[str]:
    """Yield a line for each alert with its name, id and next step, then one for each mentor of a hold, for a pipe."""
    for alert in alerts:
        since = f"since {alert.since.astimezone(now.tzinfo):%Y-%m-%d %H:%M}"
        who = (alert.alert_id, _who(alert), _about(alert), since, _acknowledged(alert))
        why = alert.advice.why if alert.advice.says_all or not alert.error else alert.error
        next_try = _next_try_words(alert.next_attempt_at or now, now=now)
        steps = f"{why.removesuffix('.')}; what to do: {alert.what_to_do(next_try=next_try)}"
        yield harmless(f"{alert.sentence}: {', '.join(filter(None, who))}: {steps}")
    for each in held:
        yield harmless(f"Held back: {each.alert_id}, {each.member_no}, {each.full_name}: {each.words}")
    if acknowledged:
        yield _acknowledged_words(acknowledged)


def _about(alert: Alert) -> str:
    """Return the certificate or the digest, or the day until which the portal shows the mentor."""
    day = whole_date(alert.day) if alert.day else ""
    match alert.kind:
        case Kind.FAILED_REMINDERS | Kind.WAITING_REMINDERS:
            return f"certificate until {day}"
        case Kind.FAILED_DIGESTS | Kind.WAITING_DIGESTS:
            return f"of {day}"
        case Kind.UNKNOWN_CONTACTS if alert.mentor_id:
            return f"{alert.member_no} of {alert.organisation}, which has no portal"
        case Kind.MAY_BE_VISIBLE if alert.day:
            return f"on the portal until {day}"
    return ""


def _acknowledged(alert: Alert) -> str:
    if alert.acknowledged_until is None:
        return ""
    return f"acknowledged until {alert.acknowledged_until}: {alert.acknowledged_because}"


def _acknowledged_words(count: int) -> str:
    return f"{count:,} acknowledged; see `certjob alerts --acknowledged`"


def _heading(kind: Kind, section: Sequence[Alert]) -> str:
    """Return the sentence of the dashboard for open pushes, otherwise the number of alerts of this kind."""
    is_push = kind in (Kind.MAY_BE_VISIBLE, Kind.MAY_BE_HIDDEN)
    return section[0].sentence if is_push else count_in_words(kind, len(section))


def _groups(section: Sequence[Alert]) -> list[list[Alert]]:
    """Return the alerts of each cause, in the order in which the causes first appear."""
    groups: dict[tuple[str, str | None], list[Alert]] = {}
    for alert in section:
        groups.setdefault((alert.advice.why, alert.error if alert.advice.is_for_all else None), []).append(alert)
    return list(groups.values())


def _group_parts(group: Sequence[Alert], *, now: datetime) -> Iterator[Line | Table]:
    """Yield the cause, the next step with the command for the first alert, the technical reason and the alerts."""
    advice, reasons = group[0].advice, {alert.error for alert in group}
    next_try = min((alert.next_attempt_at for alert in group if alert.next_attempt_at), default=now)
    to_do = group[0].what_to_do(next_try=_next_try_words(next_try, now=now), others=len(group) > 1)
    count = f" ({len(group):,})" if len(group) > 1 else ""
    yield from (GAP, Line(f"{advice.why}{count}", indent="  ", style="bold"))
    yield Line(to_do, head="What to do: ", indent="  ")
    if len(reasons) == 1 and group[0].error and not advice.says_all:
        failed_at = max((alert.last_failed_at for alert in group if alert.last_failed_at), default=None)
        when = moment_words(failed_at.astimezone(now.tzinfo), now.date()) if failed_at else ""
        yield Line(f"{group[0].error}", head=f"Last failure {when}: " if when else "Reason: ", indent="  ")
    has_day = group[0].kind is Kind.UNKNOWN_CONTACTS  # in its long id
    rows = ({**asdict(alert), "who": _who(alert), "since": None if has_day else alert.since} for alert in group)
    yield Table(rows, _COLUMNS | ({"error": "Reason"} if len(reasons) > 1 else {}), most=MOST_ROWS, count=len(group))


def _who(alert: Alert) -> str | None:
    return alert.full_name or (None if alert.kind is Kind.UNKNOWN_CONTACTS else alert.organisation)


def _next_try_words(at: datetime, *, now: datetime) -> str:
    """Return the time of the automatic retry, as the end of a sentence."""
    if at <= now:
        return "when `certjob deliver` runs next, normally every 15 minutes"
    local = at.astimezone(now.tzinfo)
    day = "" if local.date() == now.date() else f"on {day_words(local.date(), now.date())} "
    return f"{day}at {local:%H:%M}, or soon after"
