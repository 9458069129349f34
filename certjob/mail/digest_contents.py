"""The contents of a coordinator's digest, read at one moment."""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import date, timedelta
from hashlib import sha256
from typing import Any
from uuid import UUID

from certjob import database
from certjob.database import Connection
from certjob.domain import rules
from certjob.domain.alert_kinds import WORDS, Kind
from certjob.domain.holds import CHANGES
from certjob.domain.models import Mentor
from certjob.facts import reading
from certjob.mail.messages.content import Words, digest_words

EXPIRING_WITHIN_DAYS = 30
REPORTED_AGAIN_AFTER_DAYS = 7
"""After this number of days without a digest, open items are sent again. A contact of no mentor is listed as often."""
FIRST_DIGEST_DAYS = 30
"""How far a coordinator's first digest looks back."""
OVERLAP_DAYS = 2
"""A digest covers these days before the last one again, because a pause is committed later than it is dated."""
_ONLY_NEWS = ("paused", "reinstated", "corrected", "dated")
_DANGERS = ("revoked", "left", "ended", "new_contact")
"""The reasons of a hold because of which someone may be visible who must not be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DigestRecipient:
    """The recipient of a digest, and the keys of the last sent digest."""

    id: UUID
    organisation_id: UUID
    organisation_slug: str
    organisation_name: str
    sender: str | None
    """The organisation's own sender."""
    full_name: str | None
    email: str
    locale: str
    contact_email: str | None
    """The organisation's address for replies."""
    has_portal: bool
    last_digest_on: date | None
    """The day of the last sent digest."""
    reported: Sequence[str]
    """The keys of the last sent digest."""

    def may_get_one(self, today: date) -> bool:
        """Return whether no digest of today or of a later run has been sent."""
        return self.last_digest_on is None or self.last_digest_on < today


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """The contents of one digest."""

    coordinator: DigestRecipient
    acknowledged: tuple[int, date | None]
    """The number of acknowledged alerts, and the day on which the first returns."""
    sections: Mapping[str, Sequence[Words]]
    """Mentors paused or reinstated since the last digest, and everything that is open now."""
    news: Mapping[str, Sequence[Words]]
    """Those rows of the sections that have a key that the last digest has not reported."""
    keys: Set[str]
    """The keys of everything in the digest, and of the pauses that earlier digests reported."""
    has_news: bool
    """Whether to send the digest: it has a new key, or an item is still open a week after the last digest."""

    def words(self, **options: Any) -> Words:
        """Return the variables of the templates. The options are those of ``digest_words``."""
        return digest_words(
            self.sections,
            news=self.news,
            language=self.coordinator.locale,
            name=self.coordinator.full_name,
            organisation=self.coordinator.organisation_name,
            has_portal=self.coordinator.has_portal,
            acknowledged=self.acknowledged,
            is_first=self.coordinator.last_digest_on is None,
            **options,
        )


def read_recipients(
    connection: Connection,
    *,
    today: date,
    coordinator_id: UUID | None = None,
    email: str | None = None,
    slug: str | None = None,
) -> list[DigestRecipient]:
    """Return the coordinators with this address, of one organisation or of all."""
    about = {"id": coordinator_id, "email": email, "slug": slug, "today": today}
    return database.fetch(connection, "read_digest_coordinators", about, into=DigestRecipient)


def read_digest(connection: Connection, coordinator: DigestRecipient, *, today: date) -> Digest:
    """Return the present contents of a coordinator's digest."""
    last = coordinator.last_digest_on
    window = {
        "organisation_id": coordinator.organisation_id,
        "since": today - timedelta(days=FIRST_DIGEST_DAYS) if last is None else last - timedelta(days=OVERLAP_DAYS),
        "today": today,
        "within_days": EXPIRING_WITHIN_DAYS,
    }

    def read(name: str) -> list[Words]:
        return database.fetch(connection, name, window, into=dict)

    reported = frozenset(coordinator.reported)

    def new(rows: Sequence[Words]) -> list[Words]:
        return [row for row in rows if not reported.issuperset(_keys(row))]

    is_open, acknowledged = _read_problems(connection, coordinator, window)
    paused, expiring = read("read_paused_mentors"), read("read_expiring_mentors")
    ids = [row["id"] for row in (*paused, *expiring)]
    mentors = {mentor.id: mentor for mentor in reading.read(connection, ids, lock=False).mentors}
    corrected = read("read_corrected_mentors")
    sections = {
        **is_open,
        "paused": [row | {"lapses": _lapses(mentors.get(row["id"]), today=today)} for row in paused],
        "reinstated": read("read_reinstated_mentors"),
        "corrected": [row for row in corrected if row["what"] != "first_day"],
        "dated": [row for row in corrected if row["what"] == "first_day"],
        "by_hand": read("read_hidden_by_hand"),
        "uncertified": read("read_uncertified_mentors"),
        "expiring": sorted(_expiring(expiring, mentors, today=today), key=lambda row: tuple(row.values())),
    }
    keys = {key for rows in sections.values() for row in rows for key in _keys(row)}
    is_week_over = last is None or (today - last).days >= REPORTED_AGAIN_AFTER_DAYS
    news = {name: new(rows) for name, rows in sections.items()}
    unknown = [
        row
        for row in sections["unknown"]
        if row in news["unknown"] or is_week_over or (today - row["since"].date()).days % REPORTED_AGAIN_AFTER_DAYS == 0
    ]
    return Digest(
        coordinator=coordinator,
        acknowledged=acknowledged,
        sections=sections | {name: news[name] for name in _ONLY_NEWS} | {"unknown": unknown},
        news=news,
        keys=keys,
        has_news=any(news.values()) or (is_week_over and any(is_open.values())),
    )


def _read_problems(
    connection: Connection, coordinator: DigestRecipient, about: Mapping[str, Any]
) -> tuple[dict[str, list[Words]], tuple[int, date | None]]:
    """Return the open alerts by section, the number of acknowledged ones, and the day on which the first returns."""
    today, acknowledged = about["today"], list[date]()
    is_open: dict[str, list[Words]] = {words.section: [] for words in WORDS.values() if words.section}
    for alert in database.fetch(connection, "read_digest_alerts", about, into=dict):
        section = WORDS[Kind(alert["alert_kind"])].section
        if section is None or (section == "unknown" and not coordinator.has_portal):
            continue
        if alert["is_acknowledged"]:
            acknowledged.append(alert["acknowledged_until"])
        else:
            is_open[section].append(alert)
    is_open["not_run"] = [
        alert | {"since": alert["day"], "visible": visible}
        for alert in is_open["not_run"]
        if alert["day"] and (visible := database.fetch_value(connection, "count_unhidden_mentors", about)) is not None
    ]
    named = database.fetch(connection, "read_held_names", about, into=dict) if is_open["held"] else []
    for alert in is_open["held"]:
        of_mentors = named if alert["cause"] == CHANGES else []
        is_danger = bool(of_mentors) and of_mentors[0]["reason"] in _DANGERS
        alert.update(what=alert["cause"], named=of_mentors, is_danger=is_danger)
    for alert in is_open["undelivered"]:
        alert.update(expires_on=alert["day"], days_left=(alert["day"] - today).days)
    return is_open, (len(acknowledged), min(acknowledged) + timedelta(days=1) if acknowledged else None)


def _keys(row: Words) -> Sequence[str]:
    """Return the keys of a row: of a problem those of its alert. Rows that are no news have none."""
    keys: Sequence[str] = row.get("keys") or list(filter(None, [row.get("key")]))
    return keys


def _lapses(mentor: Mentor | None, *, today: date) -> list[Words]:
    """Return the certificates because of which a mentor is paused; none if the mentor could not be read."""
    lapsed = rules.lapsed_certificates(mentor, today) if mentor is not None else ()
    return [{"kind": each.kind, "ended_on": "" if each.revoked else each.expires_on} for each in lapsed]


def _expiring(rows: Sequence[Words], mentors: Mapping[UUID, Mentor], *, today: date) -> Iterator[Words]:
    """Yield the certificates that end soon, with a key that does not contain the member number.

    A sent digest is kept after a mentor was erased.
    """
    for row in rows:
        mentor = mentors.get(row["id"])
        ending = rules.ending_certificates(mentor, today, within_days=EXPIRING_WITHIN_DAYS) if mentor else ()
        for certificate in ending:
            about = f"{row['member_no']}:{certificate.kind}"
            yield {
                "expires_on": certificate.expires_on,
                "name": row["name"],
                "member_no": row["member_no"],
                "kind": certificate.kind,
                "days_left": (certificate.expires_on - today).days,
                "key": f"ends:{certificate.expires_on}:{sha256(about.encode()).hexdigest()[:16]}",
            }
