"""What a coordinator's daily page says: read as of one moment, in the words that its templates use."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date, datetime, timedelta, tzinfo
from hashlib import sha256
from typing import Any
from uuid import UUID

from certjob import database
from certjob.database import Connection
from certjob.domain import rules
from certjob.domain.causes import PushState, advise_on_message, advise_on_push
from certjob.domain.models import Mentor
from certjob.facts import reading
from certjob.mail.messages.content import write_date, write_moment
from certjob.redaction import one_line

EXPIRING_WITHIN_DAYS = 30
REPORTED_AGAIN_AFTER_DAYS = 7
"""After this number of days what still needs attention is a reason for another page. It is on each page anyway."""
MOST_LINES = 25
"""Lines of a section; it says how many more there are. Nine such sections are what Gmail shows of a page."""

_NOT_FOR_TEMPLATES = frozenset({"id", "line", "code"})

_Row = dict[str, Any]

Words = dict[str, Any]
"""What a template finds for one line, by name; nothing in it can break a line or turn the text around."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coordinator:
    """Whom a digest is for, and what it is to cover."""

    organisation_id: UUID
    organisation_slug: str
    organisation_name: str
    sender: str | None
    """The organisation's own."""
    full_name: str | None
    email: str
    locale: str
    contact_email: str | None
    """The organisation's, for answers."""
    since: datetime
    """From when on to look for what happened; surely before the last sent digest was written."""
    reported_on: date
    """The day as of which the last sent digest was written; without one, a week ago."""
    reported: Sequence[str]
    """The lines of the last sent digest, or of earlier ones where they could be found again."""
    read_at: datetime
    """When this was read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """Everything one page says."""

    coordinator: Coordinator
    today: date
    sections: Mapping[str, list[Words]]
    """``paused``, ``returned`` and ``corrected``: not reported before. The others: all that still is so."""
    reported: tuple[str, ...]
    """The lines that need not be reported again once this page was sent."""
    has_news: bool
    """Whether anything was not reported yet, or still needs attention a week after it was."""

    def words(self, *, repeat: bool, app_url: str = "") -> Words:
        """Return what the templates can use, by name."""
        return {
            "language": self.coordinator.locale,
            "most": MOST_LINES,
            "name": one_line(self.coordinator.full_name),
            "organisation": one_line(self.coordinator.organisation_name),
            "repeat": repeat,
            "app_url": app_url,
            **self.sections,
        }

    @property
    def fingerprint(self) -> str:
        """Return what is the same for two pages that say the same, so that nobody takes one for a copy of another."""
        ends = [f"{item['member_no']}:{item['kind']}:{item['expires_on']}" for item in self.sections["expiring"]]
        lines = [*sorted(self.reported), *sorted(self.coordinator.reported), *ends]
        return sha256("\n".join([self.today.isoformat(), *lines]).encode()).hexdigest()[:8]


def read_digest(connection: Connection, digest_id: int, *, today: date, zone: tzinfo) -> Digest | None:
    """Read what there is to say, with times in ``zone``; None if the coordinator is gone, and with them the row."""
    found = database.fetch(
        connection, "read_digest_coordinator", {"digest_id": digest_id, "today": today}, into=Coordinator
    )
    if not found:
        return None
    (coordinator,) = found

    def read(name: str) -> list[_Row]:
        window = {"organisation_id": coordinator.organisation_id, "since": coordinator.since, "today": today}
        return database.fetch(connection, name, window | {"within_days": EXPIRING_WITHIN_DAYS}, into=dict)

    def new(rows: Sequence[_Row]) -> list[_Row]:
        return [row for row in rows if row["line"] not in coordinator.reported]

    paused, returned = read("read_paused_mentors"), read("read_returned_mentors")
    corrected = read("read_corrected_mentors")
    held, unreviewed = read("read_held_back"), read("read_unreviewed_mentors")
    pushes, undelivered = read("read_pending_pushes"), read("read_undelivered_reminders")
    names = {row["id"]: row["name"] for row in read("read_expiring_mentors")}
    ids = [row["id"] for row in (*paused, *returned)] + list(names)
    mentors = {mentor.id: mentor for mentor in reading.read(connection, ids, lock=False).mentors}
    expiring = sorted(
        (certificate.expires_on, names[mentor.id], mentor.member_no, certificate.kind)
        for mentor in mentors.values()
        if mentor.id in names
        for certificate in rules.ending_certificates(mentor, today, within_days=EXPIRING_WITHIN_DAYS)
    )
    standing = (*pushes, *held, *unreviewed, *undelivered)
    newly_expiring = coordinator.reported_on + timedelta(days=EXPIRING_WITHIN_DAYS)
    write = _Writer(locale=coordinator.locale, zone=zone, today=today)
    return Digest(
        coordinator=coordinator,
        today=today,
        sections={
            "held": [write.words(row) for row in held],
            "unreviewed": [write.words(row) for row in unreviewed],
            "visible": [write.push(row) for row in pushes if not row["visible"]],
            "hidden": [write.push(row) for row in pushes if row["visible"]],
            "paused": [write.paused(row, mentors.get(row["id"])) for row in new(paused)],
            "returned": [write.returned(row, mentors.get(row["id"])) for row in new(returned)],
            "corrected": [write.words(row) for row in new(corrected)],
            "undelivered": [write.undelivered(row) for row in undelivered],
            "expiring": [write.expiring(*each) for each in expiring],
        },
        reported=tuple(row["line"] for row in (*paused, *returned, *corrected, *standing)),
        has_news=bool(new((*paused, *returned, *corrected, *standing)))
        or any(expires_on > newly_expiring for expires_on, *_ in expiring)
        or (bool(standing) and (today - coordinator.reported_on).days >= REPORTED_AGAIN_AFTER_DAYS),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Writer:
    """Turns rows, whose columns have the names that templates use, into words."""

    locale: str
    zone: tzinfo
    today: date

    def words(self, row: _Row) -> Words:
        """Return what a template finds; without the columns that are certjob's own business."""
        return {name: self._word(value) for name, value in row.items() if name not in _NOT_FOR_TEMPLATES}

    def push(self, row: _Row) -> Words:
        state = PushState(**{each.name: row[each.name] for each in fields(PushState)})
        told = {name: row[name] for name in ("name", "member_no", "since", "sentence")}
        return self.words(told | {"cause": advise_on_push(state).cause})

    def paused(self, row: _Row, mentor: Mentor | None) -> Words:
        lapsed = rules.lapsed_certificates(mentor, self.today) if mentor is not None else ()
        lapses = [{"kind": each.kind, "ended_on": "" if each.revoked else each.expires_on} for each in lapsed]
        return self.words(row | {"lapses": [self.words(each) for each in lapses]})

    def returned(self, row: _Row, mentor: Mentor | None) -> Words:
        watched_by_nobody = mentor is not None and rules.holds_nothing(mentor, self.today)
        return self.words(row | {"without_certificate": watched_by_nobody})

    def undelivered(self, row: _Row) -> Words:
        days_left = (row["expires_on"] - self.today).days
        return self.words(row | {"days_left": days_left, "cause": advise_on_message(row["code"]).cause})

    def expiring(self, expires_on: date, name: str, member_no: str, kind: str) -> Words:
        days_left = (expires_on - self.today).days
        who = {"name": name, "member_no": member_no}
        return self.words(who | {"kind": kind, "expires_on": expires_on, "days_left": days_left})

    def _word(self, value: object) -> object:
        match value:
            case str():
                return one_line(value)
            case datetime():
                return write_moment(value.astimezone(self.zone), locale=self.locale)
            case date():
                return write_date(value, locale=self.locale)
            case list():
                return [self._word(each) for each in value]
        return value
