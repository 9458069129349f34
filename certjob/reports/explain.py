"""`certjob explain`: one mentor's facts, the result of the rules today, and the next change.

All values come from one snapshot, without locks. docs/json.md describes the fields.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime, tzinfo
from functools import partial
from typing import Any
from uuid import UUID

from certjob import database
from certjob.database import Connection
from certjob.domain import explanations, rules
from certjob.domain.explanations import (
    day_words,
    moment_words,
    number,
    reason_words,
    threshold_words,
    whole_date,
)
from certjob.domain.models import OWN_PAUSE_REASON, Mentor, Status
from certjob.errors import BrokenMentorError, UnknownMentorError
from certjob.facts import reading
from certjob.page import GAP, Line, Table, heading
from certjob.reports.alerts import Alert, alert_lines, alerts_page, read_alerts
from certjob.reports.logged_reminders import LoggedReminder, read_logged_reminders
from certjob.reports.next_change import HELD_BACK, Next, OpenPush, find_next
from certjob.review.days import last_run_date


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedMentor:
    """The mentor."""

    id: UUID
    member_no: str
    full_name: str | None
    email: str | None
    left_at: datetime | None
    dynamics_contact_id: UUID | None
    organisation: str
    organisation_name: str
    review_is_due: bool
    review_on: date | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedCertificate:
    """A certificate with its status today."""

    id: UUID
    kind: str
    optional: bool
    issued_on: date
    expires_on: date
    revoked_at: datetime | None
    status: Status
    because: str
    stored_status: str
    stored_on: date | None
    no_reminder_because: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """An open or lifted pause."""

    reason: str
    actor: str
    paused_at: datetime
    lifted_at: datetime | None
    lifted_by: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedRow:
    """A change of the mentor or of a certificate by `certjob load`."""

    what: str
    changes: str
    loaded_at: datetime
    loaded_by: str
    undone_at: datetime | None
    undone_by: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Portal:
    """The desired visibility, the last confirmed one, and the last one that ``reconcile`` read."""

    has_portal: bool
    wanted: bool | None
    visible_until: date | None
    confirmed: bool | None
    confirmed_at: datetime | None
    hidden_by: str | None
    """Who has hidden the contact by hand, if that is the last confirmation, and why."""
    hidden_because: str | None
    not_read_since: bool
    """Whether no later reading has confirmed it."""
    read_at: datetime | None
    was_shown: bool | None
    resolved_failures: int
    push: OpenPush | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The facts about one mentor, and their meaning."""

    today: date
    now: datetime
    """The time of the database server."""
    mentor: ExplainedMentor
    certified: bool
    without_certificate: bool
    certified_because: Sequence[str]
    last_run_on: date | None
    held: Sequence[str]
    """The changes of the organisation that the guards hold."""
    next: Next | None
    alerts: Sequence[Alert]
    certificates: Sequence[ExplainedCertificate]
    pauses: Sequence[Pause]
    loads: Sequence[LoadedRow]
    """The latest ones of the last 90 days."""
    reminders: Sequence[LoggedReminder]
    portal: Portal | None
    """None if the organisation has never had a portal."""

    def to_document(self) -> dict[str, Any]:
        """Return the JSON document, which is also the copy of their data that a mentor may request."""
        return {"outcome": "ok"} | asdict(self) | {"alerts": [alert.to_document() for alert in self.alerts]}


def explain(connection: Connection, mentor_id: UUID, *, today: date, zone: tzinfo) -> Explanation:
    """Return the explanation of one mentor. Its sentences contain times in ``zone``.

    Raises UnknownMentorError, and BrokenMentorError if the mentor's rows exceed a limit of the schema.
    """
    parameters = {"mentor_id": mentor_id, "today": today}
    with database.read_only_snapshot(connection):
        read = reading.read(connection, [mentor_id], lock=False)
        if mentor_id in read.broken:
            message = f"mentor {mentor_id} could not be processed: {read.broken[mentor_id]}"
            raise BrokenMentorError(message)
        if not read.mentors:
            message = f"mentor {mentor_id} has been deleted"
            raise UnknownMentorError(message)
        (mentor,) = read.mentors
        (person,) = database.fetch(connection, "read_explained_mentor", parameters, into=ExplainedMentor)
        portal = Portal(
            push=next(iter(database.fetch(connection, "read_open_push", parameters, into=OpenPush)), None),
            **database.fetch(connection, "read_portal_history", parameters, into=dict)[0],
        )
        now, reminders = database.clock(connection), read_logged_reminders(connection, mentor_id)
        coming, held = find_next(
            connection,
            mentor,
            today=today,
            now=now.astimezone(zone),
            review_on=today if person.review_is_due else person.review_on,
            has_portal=portal.has_portal,
            push=portal.push,
            reminders=reminders,
        )
        without_certificate = rules.has_had_no_kind(mentor, today)
        return Explanation(
            today=today,
            now=now,
            mentor=person,
            certified=not (rules.lapsed_certificates(mentor, today) or without_certificate),
            without_certificate=without_certificate,
            certified_because=list(explanations.why_certified(mentor, today)),
            last_run_on=last_run_date(connection),
            held=held,
            next=coming,
            alerts=read_alerts(connection, today=today, mentor_id=mentor_id),
            certificates=list(_explain_certificates(connection, mentor, today=today, zone=zone)),
            pauses=database.fetch(connection, "read_pause_history", parameters, into=Pause),
            loads=database.fetch(connection, "read_loads_of_mentor", parameters, into=LoadedRow),
            reminders=reminders,
            portal=portal if portal.has_portal or portal.confirmed is not None or portal.push else None,
        )


def _explain_certificates(
    connection: Connection, mentor: Mentor, *, today: date, zone: tzinfo
) -> Iterator[ExplainedCertificate]:
    certificates = {certificate.id: certificate for certificate in mentor.certificates}
    for row in database.fetch(connection, "read_explained_certificates", {"mentor_id": mentor.id}, into=dict):
        certificate = certificates[row["id"]]
        revoked_on = row["revoked_at"].astimezone(zone).date() if row["revoked_at"] else None
        yield ExplainedCertificate(
            **row,
            optional=certificate.kind in mentor.organisation.optional_kinds,
            status=rules.status_of(certificate, mentor, today),
            because=explanations.why_status(certificate, mentor, today, revoked_on=revoked_on),
            no_reminder_because=explanations.why_no_reminder(certificate, mentor, today),
        )


_Moment = Callable[[datetime], str]
_item, _detail = partial(Line, indent="  - "), partial(Line, indent="    ")


def explain_page(explained: Explanation, *, zone: tzinfo, in_pipe: bool) -> Iterator[Line | Table | str]:
    """Yield the lines of the page, with times in ``zone``. In a pipe, each alert is one line."""
    person, today, coming = explained.mentor, explained.today, explained.next

    def moment(at: datetime) -> str:
        return moment_words(at.astimezone(zone), today)

    name = person.member_no if person.full_name is None else f"{person.full_name} ({person.member_no})"
    yield heading(f"{name}, {person.organisation_name}")
    yield Line(f"{_activity(explained, zone=zone)} {_certification(explained)}")
    for warning in _warnings(explained):
        yield Line(warning, head="warning: ")
    yield from (GAP, Line(_next_words(coming) if coming else "no change, unless the data changes.", head="Next: "))
    if explained.alerts:
        yield GAP
        yield from (alert_lines if in_pipe else alerts_page)(explained.alerts, now=explained.now.astimezone(zone))
    for topic, lines in (
        ("Certificates", _certificate_lines(explained)),
        ("Pauses", _pause_lines(explained, moment)),
        ("Reminders", _reminder_lines(explained, moment)),
        ("Portal", _portal_lines(explained, moment)),
        ("Loads", _load_lines(explained, moment)),
    ):
        for place, line in enumerate(lines):
            if not place:
                yield from (GAP, heading(topic))
            yield line


def _next_words(coming: Next) -> str:
    """Return a sentence about the changes, and one about those that a guard holds back."""
    made = [text for text in coming.what if not text.startswith(HELD_BACK)]
    held = [text.removeprefix(HELD_BACK) for text in coming.what if text.startswith(HELD_BACK)]
    words = [f"{coming.when}: {'; '.join(made)}."] if made else []
    if held:
        words.append(f"{'Held back' if made else f'{coming.when}, held back'} by a guard: {'; '.join(held)}.")
    return " ".join(words)


def _activity(explained: Explanation, *, zone: tzinfo) -> str:
    if explained.mentor.left_at is not None:
        return f"Left on {day_words(explained.mentor.left_at.astimezone(zone).date(), explained.today)}."
    reasons = sorted(reason_words(pause.reason) for pause in explained.pauses if pause.lifted_at is None)
    return f"Paused: {', '.join(reasons)}." if reasons else "Active: not paused."


def _certification(explained: Explanation) -> str:
    why = "; ".join(explained.certified_because)
    if not explained.without_certificate:
        return f"{'Certified' if explained.certified else 'Not certified'}: {why}."
    hidden = " They are hidden on the portal." if explained.portal and explained.portal.has_portal else ""
    kinds = f" ({why})" if why else ""
    return f"Has never had a certificate that counts{kinds}, so certjob does not pause or remind them.{hidden}"


def _warnings(explained: Explanation) -> Iterator[str]:
    """Yield the reasons why the date of the next change is doubtful, and the held changes."""
    last, today = explained.last_run_on, explained.today
    if last is None:
        yield "There has been no nightly run yet; the date below assumes `certjob run` every night."
    elif last > today:
        yield (
            f"certjob rejects a run today, because an earlier run had the date {day_words(last, today)}. Correct the "
            "clock or use --accept-date; then the date below is right."
        )
    elif (today - last).days > 1:
        yield f"The last run was on {day_words(last, today)}; the date below assumes `certjob run` every night."
    for held in explained.held:
        yield f"A guard holds changes back: {held}"


def _certificate_lines(explained: Explanation) -> Iterator[Line]:
    if not explained.certificates:
        yield _item("none")
    for each in explained.certificates:
        optional = ", optional" if each.optional else ""
        span = f"{whole_date(each.issued_on)} to {whole_date(each.expires_on)}"
        yield _item("", head=f"{each.kind}{optional}, {span}: {each.status}")
        yield _detail(each.because + _stored(each, today=explained.today))


def _stored(each: ExplainedCertificate, *, today: date) -> str:
    if each.stored_status == Status.RECORDED:
        return "; not stored yet, a run today stores it"
    if each.stored_status != each.status:
        return f"; stored as {each.stored_status} so far, a run today stores it"
    return f"; stored on {day_words(each.stored_on, today)}" if each.stored_on else ""


def _pause_lines(explained: Explanation, moment: _Moment) -> Iterator[Line]:
    if all(pause.lifted_at for pause in explained.pauses):
        yield _item("no open pauses")
    for pause in explained.pauses:
        reason, since = reason_words(pause.reason), f"by {pause.actor} since {moment(pause.paused_at)}"
        if pause.lifted_at is None:
            yield _item(f", {since}", head=reason)
            yield _detail(_lifted_when(pause, has_left=explained.mentor.left_at is not None))
        else:
            by = f" by {pause.lifted_by}" if pause.lifted_by else ""
            yield _item(f"earlier: {reason}, {since}, lifted {moment(pause.lifted_at)}{by}")


def _lifted_when(pause: Pause, *, has_left: bool) -> str:
    if pause.reason != OWN_PAUSE_REASON:
        return "certjob never lifts it; a coordinator does, in the app, or `certjob unpause`"
    if has_left:
        return "it stays as it is while the mentor has left"
    return "certjob lifts it once the mentor is certified; if a person lifts it before that, certjob opens it again"


def _load_lines(explained: Explanation, moment: _Moment) -> Iterator[Line]:
    for each in explained.loads:
        undone = f"; undone {moment(each.undone_at)} by {each.undone_by}" if each.undone_at else ""
        yield _item(f"{moment(each.loaded_at)} by {each.loaded_by}: {each.what}: {each.changes}{undone}")


def _reminder_lines(explained: Explanation, moment: _Moment) -> Iterator[Line]:
    kinds, today = {each.id: each.kind for each in explained.certificates}, explained.today
    for row in explained.reminders:
        kind = kinds.get(row.certificate_id, "a deleted certificate")
        which = f"{kind} until {day_words(row.expires_on, today)}, {threshold_words(row.threshold_days)}"
        yield _item(f"{which}: {_outcome(row, moment)}")
        for former in row.earlier:
            until = day_words(date.fromisoformat(former["expires_on"]), today)
            sent = f", {moment(datetime.fromisoformat(former['sent_at']))}" if former["sent_at"] else ""
            yield _detail(f"earlier, for {kind} until {until}: {former['status']}{sent}")
    for each in explained.certificates:
        if each.no_reminder_because is not None:
            until = day_words(each.expires_on, today)
            yield _item(f"{each.kind} until {until}: no reminder, because {each.no_reminder_because}")
    if explained.mentor.email is None:
        where = "in the app or with `certjob load`"
        yield _item(f"the mentor has no e-mail address, so certjob sends no mail; enter one {where}")


def _outcome(row: LoggedReminder, moment: _Moment) -> str:
    match row.status:
        case "sent":
            when = f" {moment(row.sent_at)}" if row.sent_at else ""
            return f"sent{when}{', perhaps twice' if row.maybe_sent else ''}"
        case "failed":
            return f"not delivered ({row.error})"
        case "pending" if row.is_claimed:
            return "being sent"
        case "pending":
            tried = f", tried {number(row.attempts, 'time')} so far" if row.attempts else ""
            error = f" ({row.error})" if row.error and row.attempts else ""  # without attempts, it was corrected
            return f"queued {moment(row.queued_at)}{tried}{error}"
        case "superseded":
            return "never sent: a more urgent one took its place"
        case "held":
            return "held back by a guard; `certjob alerts` says why"
    return f"cancelled: {row.error or 'it no longer applied'}"


def _portal_lines(explained: Explanation, moment: _Moment) -> Iterator[Line]:
    portal, shown = explained.portal, {True: "shown", False: "hidden"}
    if portal is None:
        return
    if not portal.has_portal:
        yield _item(f"{explained.mentor.organisation} has lost its portal, so certjob makes no pushes")
    elif portal.wanted is None:
        yield _item("wanted: unknown (the contact ID or the portal has changed); the next run pushes it")
    elif portal.visible_until is not None:
        yield _item(f"wanted: visible until {day_words(portal.visible_until, explained.today)}")
    else:
        yield _item(f"wanted: {shown[portal.wanted]}")
    if portal.confirmed is None or portal.confirmed_at is None:
        yield _item("the portal has not confirmed a push yet")
    else:
        at, by = moment(portal.confirmed_at), portal.hidden_by
        if by is None:
            yield _item(f"the portal last confirmed: {shown[portal.confirmed]}, {at}")
        else:
            unread = ", not read since" if portal.not_read_since else ""
            yield _item(f"hidden by hand, confirmed by {by} {at}{unread}: {portal.hidden_because}")
    if portal.has_portal and portal.read_at is not None and portal.was_shown is not None:
        saw = "visible" if portal.was_shown else "not visible"
        yield _item(f"the portal was last read {moment(portal.read_at)}: the mentor was {saw}")
    if portal.has_portal and explained.mentor.dynamics_contact_id is None:
        yield _item(
            "the mentor has no contact ID, so certjob makes no pushes; add it in the app or with `certjob load`"
        )
    if portal.resolved_failures:
        yield _item(f"{number(portal.resolved_failures, 'earlier failure')}, resolved")
