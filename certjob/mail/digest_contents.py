"""What a coordinator's daily page says: read as of one moment, in the words that its templates use."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta, tzinfo
from hashlib import sha256
from typing import Any
from uuid import UUID

from certjob import database
from certjob.database import Connection
from certjob.domain import rules
from certjob.domain.alert_reasons import AlertReason, PushState, why_message_waits, why_push_waits
from certjob.domain.models import Mentor
from certjob.facts import reading
from certjob.mail.messages import language_of, write_date, write_moment
from certjob.redaction import one_line

EXPIRING_WITHIN_DAYS = 30
REPORTED_AGAIN_AFTER_DAYS = 7
"""What still needs attention is a reason for another page after so many days; with other news it comes along."""
MOST_LINES = 25
"""A section names so many, and says how many more there are."""
FEWER_LINES = (MOST_LINES, 12, 6, 3, 1)
MAX_PAGE_BYTES = 100_000
"""Gmail cuts a page at about 102 KB: with long names a section has fewer lines, and at last one."""

Words = dict[str, Any]
"""What a template finds for one line, by name; nothing in it can break a line or turn the text around."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coordinator:
    """Whom a digest is for, and what it is to cover."""

    id: UUID
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
class _Push(PushState):
    """A row of ``portal_alerts``."""

    name: str
    member_no: str
    visible: bool
    """The desired value: False = may still be visible."""
    sentence: str
    wanted_at: datetime
    error: str | None
    line: str


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

    def words(self, *, repeat: bool, app_url: str = "", most: int = MOST_LINES) -> Words:
        """Return what the templates can use, by name; a section is to have at most so many lines."""
        return {
            "language": language_of(self.coordinator.locale),
            "most": most,
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
    known = frozenset(coordinator.reported)
    window = {"organisation_id": coordinator.organisation_id, "since": coordinator.since, "today": today}
    soon = {
        "organisation_id": coordinator.organisation_id,
        "today": today,
        "within_days": EXPIRING_WITHIN_DAYS,
    }
    paused = database.fetch(connection, "read_paused_mentors", window)
    returned = database.fetch(connection, "read_returned_mentors", window)
    corrected = database.fetch(connection, "read_corrected_mentors", window)
    held = database.fetch(connection, "read_held_back", window)
    unreviewed = database.fetch(connection, "read_unreviewed_mentors", window)
    pushes = database.fetch(connection, "read_pending_pushes", window, into=_Push)
    undelivered = database.fetch(connection, "read_undelivered_reminders", window)
    names = dict(database.fetch(connection, "read_expiring_mentors", soon))
    ids = [row[0] for row in (*paused, *returned)] + list(names)
    mentors = {mentor.id: mentor for mentor in reading.read(connection, ids, lock=False).mentors}

    new_paused = [row for row in paused if row[-1] not in known]
    new_returned = [row for row in returned if row[-1] not in known]
    expiring = _expiring([mentors[mentor_id] for mentor_id in names if mentor_id in mentors], names, today=today)
    new_corrected = [row for row in corrected if row[-1] not in known]
    standing = [push.line for push in pushes] + [row[-1] for row in (*held, *unreviewed, *undelivered)]
    newly_expiring = coordinator.reported_on + timedelta(days=EXPIRING_WITHIN_DAYS)
    write = _Writer(locale=coordinator.locale, zone=zone, today=today)
    return Digest(
        coordinator=coordinator,
        today=today,
        sections={
            "held": [write.held(row) for row in held],
            "unreviewed": [write.unreviewed(row) for row in unreviewed],
            "visible": [write.push(push) for push in pushes if not push.visible],
            "hidden": [write.push(push) for push in pushes if push.visible],
            "paused": [write.paused(row, mentors.get(row[0])) for row in new_paused],
            "returned": [write.returned(row, mentors.get(row[0])) for row in new_returned],
            "corrected": [{**_who(name, member_no), "shown": shown} for name, member_no, shown, _ in new_corrected],
            "undelivered": [write.undelivered(row) for row in undelivered],
            "expiring": [write.expiring(*row) for row in expiring],
        },
        reported=(*(row[-1] for row in (*paused, *returned, *corrected)), *standing),
        has_news=bool(new_paused or new_returned or new_corrected)
        or any(expires_on > newly_expiring for expires_on, *_ in expiring)
        or any(line not in known for line in standing)
        or (bool(standing) and (today - coordinator.reported_on).days >= REPORTED_AGAIN_AFTER_DAYS),
    )


def _expiring(mentors: Sequence[Mentor], names: Mapping[UUID, str], *, today: date) -> list[tuple[date, str, str, str]]:
    """Return last day, name, member number and kind of what ends soon and nothing continues, in that order."""
    return sorted(
        (certificate.expires_on, names[mentor.id], mentor.member_no, certificate.kind)
        for mentor in mentors
        for certificate in rules.ending_certificates(mentor, today, within_days=EXPIRING_WITHIN_DAYS)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Writer:
    """Turns rows into words."""

    locale: str
    zone: tzinfo
    today: date

    def held(self, row: tuple[Any, ...]) -> Words:
        what, since, mentors, ended, changed, shown, names, _ = row
        return {
            "what": what,
            "since": write_moment(since.astimezone(self.zone), locale=self.locale),
            "mentors": mentors,
            "ended": ended if what != "reminders" else 0,
            "changed": changed,
            "shown": shown,
            "names": [one_line(name) for name in names],
        }

    def unreviewed(self, row: tuple[Any, ...]) -> Words:
        name, member_no, since, _ = row
        return {**_who(name, member_no), "since": write_moment(since.astimezone(self.zone), locale=self.locale)}

    def push(self, push: _Push) -> Words:
        return {
            **_who(push.name, push.member_no),
            "since": write_moment(push.wanted_at.astimezone(self.zone), locale=self.locale),
            "sentence": push.sentence,
            **self._why(why_push_waits(push), push.error),
        }

    def paused(self, row: tuple[Any, ...], mentor: Mentor | None) -> Words:
        _, name, member_no, reopened, _ = row
        lapsed = rules.lapsed_certificates(mentor, self.today) if mentor is not None else ()
        lapses = [
            {
                "kind": one_line(certificate.kind),
                "ended_on": "" if certificate.revoked else write_date(certificate.expires_on, locale=self.locale),
            }
            for certificate in lapsed
        ]
        return {**_who(name, member_no), "reopened": reopened, "lapses": lapses}

    def returned(self, row: tuple[Any, ...], mentor: Mentor | None) -> Words:
        _, name, member_no, still_paused, _ = row
        watched_by_nobody = mentor is not None and rules.holds_nothing(mentor, self.today)
        return {**_who(name, member_no), "still_paused": still_paused, "without_certificate": watched_by_nobody}

    def undelivered(self, row: tuple[Any, ...]) -> Words:
        name, member_no, expires_on, error, code, _ = row
        return {
            **_who(name, member_no),
            "expires_on": write_date(expires_on, locale=self.locale),
            "days_left": (expires_on - self.today).days,
            **self._why(why_message_waits(code), error),
        }

    def expiring(self, expires_on: date, name: str, member_no: str, kind: str) -> Words:
        return {
            **_who(name, member_no),
            "kind": one_line(kind),
            "expires_on": write_date(expires_on, locale=self.locale),
            "days_left": (expires_on - self.today).days,
        }

    def _why(self, reason: AlertReason, error: str | None) -> Words:
        said = one_line(reason.technical(error))
        return {"error": one_line(error), "reason": reason.for_mail(language_of(self.locale)), "technical": said}


def _who(name: str, member_no: str) -> Words:
    return {"name": one_line(name), "member_no": one_line(member_no)}
