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
from certjob.domain.causes import advise_on_message
from certjob.facts import reading
from certjob.mail.messages.content import NOTHING_TO_DO, write_date, write_day, write_moment
from certjob.redaction import one_line

EXPIRING_WITHIN_DAYS = 30
REPORTED_AGAIN_AFTER_DAYS = 7
"""After this number of days without a page, anything that is open is a reason for one."""
FIRST_PAGE_DAYS = 30
"""How far a coordinator's first page looks back."""
OVERLAP_DAYS = 2
"""How long before the last page the next one begins: a pause is committed later than it is dated."""
MOST_LINES = 25
"""Lines of a section; it says how many more there are. Nine such sections are what Gmail shows of a page."""

_NOT_FOR_TEMPLATES = frozenset({"id", "key", "code", "visible"})

_Row = dict[str, Any]

Words = dict[str, Any]
"""What a template finds for one line, by name; nothing in it can break a line or turn the text around."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coordinator:
    """The recipient of a digest, and what the last sent page had."""

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
    has_portal: bool
    digest_on: date
    """The day for which this page was queued."""
    last_page_on: date | None
    """The day of the last sent page."""
    reported: Sequence[str]
    """The keys of everything on the last sent page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """Everything one page says."""

    coordinator: Coordinator
    acknowledged: Words
    """How many alerts someone has acknowledged, and the day on which the first returns."""
    sections: Mapping[str, list[Words]]
    """``paused`` and ``returned`` since the last page, and everything that is open now."""
    keys: frozenset[str]
    """The keys of everything on the page, and of the pauses that earlier pages had."""
    has_news: bool
    """Whether the page is to be sent: it has a new key, or something has been open for a week since the last page."""

    @property
    def urgent(self) -> list[str]:
        """The sections in which someone without a valid certificate may still be visible on the portal."""
        holds_pauses = any(item["what"] == "pauses" for item in self.sections["held"])
        about_a_portal = {"not_run": bool(self.sections["not_run"]), "held": holds_pauses}
        about_a_portal["unreviewed"] = bool(self.sections["unreviewed"])
        urgent = [name for name, is_urgent in about_a_portal.items() if is_urgent and self.coordinator.has_portal]
        return urgent + ["visible"] * bool(self.sections["visible"])

    def words(self, *, repeat: bool, app_url: str = "", operator_address: str = "") -> Words:
        """Return what the templates can use, by name."""
        return {
            "language": self.coordinator.locale,
            "most": MOST_LINES,
            "name": one_line(self.coordinator.full_name),
            "organisation": one_line(self.coordinator.organisation_name),
            "has_portal": self.coordinator.has_portal,
            "repeat": repeat,
            "app_url": app_url,
            "operator_address": operator_address,
            "urgent": self.urgent,
            "to_do": any(self.sections[name] for name in self.sections.keys() - NOTHING_TO_DO),
            "acknowledged": self.acknowledged,
            **self.sections,
        }


def read_digest(connection: Connection, digest_id: int, *, today: date, zone: tzinfo) -> Digest | None:
    """Read what there is to say, with times in ``zone``; None if the coordinator is gone, and with them the row."""
    found = database.fetch(
        connection, "read_digest_coordinator", {"digest_id": digest_id, "today": today}, into=Coordinator
    )
    if not found:
        return None
    (coordinator,) = found
    last = coordinator.last_page_on
    since = today - timedelta(days=FIRST_PAGE_DAYS) if last is None else last - timedelta(days=OVERLAP_DAYS)
    window = {"organisation_id": coordinator.organisation_id, "since": since, "today": today}

    def read(name: str) -> list[_Row]:
        return database.fetch(connection, name, window | {"within_days": EXPIRING_WITHIN_DAYS}, into=dict)

    def new(rows: Sequence[_Row]) -> list[_Row]:
        return [row for row in rows if row["key"] not in coordinator.reported]

    paused, returned = read("read_paused_mentors"), read("read_returned_mentors")
    not_run, held, unreviewed = read("read_missing_run"), read("read_held_back"), read("read_unreviewed_mentors")
    pushes, undelivered = read("read_pending_pushes"), read("read_undelivered_reminders")
    uncertified = read("read_uncertified_mentors")
    names = {row["id"]: row["name"] for row in read("read_expiring_mentors")}
    ids = [row["id"] for row in paused] + list(names)
    mentors = {mentor.id: mentor for mentor in reading.read(connection, ids, lock=False).mentors}
    expiring = sorted(
        (certificate.expires_on, names[mentor.id], mentor.member_no, certificate.kind)
        for mentor in mentors.values()
        if mentor.id in names
        for certificate in rules.ending_certificates(mentor, today, within_days=EXPIRING_WITHIN_DAYS)
    )
    still_open = [row["key"] for row in (*not_run, *held, *unreviewed, *pushes, *undelivered)]
    keys = frozenset(
        [row["key"] for row in (*paused, *returned, *uncertified)]
        + still_open
        + [f"ends:{expires_on}:{_hash(member_no, kind)}" for expires_on, _, member_no, kind in expiring]
    )
    is_week_over = last is None or (today - last).days >= REPORTED_AGAIN_AFTER_DAYS
    for row in not_run:
        row["since"] = write_day(row["since"], locale=coordinator.locale)
    ((acknowledged, returns_on),) = database.fetch(connection, "count_acknowledged_of", window)
    for row in paused:
        mentor = mentors.get(row["id"])
        lapsed = rules.lapsed_certificates(mentor, today) if mentor is not None else ()
        row["lapses"] = [{"kind": each.kind, "ended_on": "" if each.revoked else each.expires_on} for each in lapsed]
    for row in undelivered:
        row |= {"days_left": (row["expires_on"] - today).days, "cause": advise_on_message(row["code"]).cause}
    sections = {
        "not_run": not_run,
        "held": held,
        "unreviewed": unreviewed,
        "visible": [row for row in pushes if not row["visible"]],
        "hidden": [row for row in pushes if row["visible"]],
        "paused": new(paused),
        "returned": new(returned),
        "undelivered": undelivered,
        "uncertified": uncertified,
        "expiring": [
            {
                "name": name,
                "member_no": member_no,
                "kind": kind,
                "expires_on": expires_on,
                "days_left": (expires_on - today).days,
            }
            for expires_on, name, member_no, kind in expiring
        ],
    }
    return Digest(
        coordinator=coordinator,
        acknowledged={
            "number": acknowledged,
            "until": write_day(returns_on, locale=coordinator.locale) if returns_on else "",
        },
        sections={
            name: [_in_words(row, locale=coordinator.locale, zone=zone) for row in rows]
            for name, rows in sections.items()
        },
        keys=keys,
        has_news=not keys <= set(coordinator.reported) or (bool(still_open) and is_week_over),
    )


def _hash(*words: str) -> str:
    """Return what a key has instead of a member number, because a sent page outlives an erased mentor."""
    return sha256(":".join(words).encode()).hexdigest()[:16]


def _in_words(value: Any, *, locale: str, zone: tzinfo) -> Any:
    """Return a row or a value of it as templates find it: one line of text, days and times in words."""
    match value:
        case str():
            return one_line(value)
        case datetime():
            return write_moment(value.astimezone(zone), locale=locale)
        case date():
            return write_date(value, locale=locale)
        case list():
            return [_in_words(each, locale=locale, zone=zone) for each in value]
        case dict():
            return {
                name: _in_words(each, locale=locale, zone=zone)
                for name, each in value.items()
                if name not in _NOT_FOR_TEMPLATES
            }
    return value
