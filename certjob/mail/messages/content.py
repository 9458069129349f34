"""The variables of the templates: everything that a reminder or a digest says, by name."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, tzinfo
from typing import Any
from urllib.parse import quote, urlsplit

import babel.dates

from certjob.domain.addresses import parse_own_sender
from certjob.domain.models import Mentor, Reminder
from certjob.errors import Cause
from certjob.redaction import one_line

LANGUAGES = {"nb": "nb", "nn": "nn", "en": "en_GB"}
"""The languages of the templates, each with the locale for its dates. Mentors and coordinators have no other locale."""

NO_ACTION = frozenset({"by_hand", "paused", "reinstated", "corrected", "dated", "expiring"})
"""The sections of a digest that require no action of the coordinator."""
LONGEST_LIST = 25
"""Lines of one list; the digest then says how many more there are. Gmail shows nine lists of this length."""

_URGENT = ("not_run", "held", "unreviewed", "visible")
_BY_HARM = (
    Cause.HIDE_BY_HAND,
    Cause.NO_CONTACT_ID,
    Cause.CONTACT_NOT_FOUND,
    Cause.CHANGE_REFUSED,
    Cause.PORTAL_STOPPED,
    Cause.PORTAL_DOWN,
    Cause.LATER_DAY_ON_PORTAL,
    Cause.NO_ADDRESS,
    Cause.WRONG_ADDRESS,
    Cause.MAIL_STOPPED,
    Cause.MAIL_DELAYED,
)
"""The causes in the order of a section: first those that last until a person acts. Any other cause comes last."""
_NOT_FOR_TEMPLATES = frozenset({"id", "key", "keys", "alert_kind", "day", "is_acknowledged", "acknowledged_until"})

Words = dict[str, Any]
"""Variables of a template by name. No value can break a line or change the direction of the text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipient:
    """A mentor with the current facts, and the organisation's texts for a reminder."""

    mentor: Mentor
    full_name: str | None
    """None: the greeting has no name."""
    email: str | None
    locale: str
    """``nb``, ``nn`` or ``en``."""
    paused: bool
    """Whether certjob's own pause is open."""
    organisation_name: str
    contact_email: str | None
    contact_phone: str | None
    renewal_url: str | None
    sender: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedMessage:
    """A message ready for a channel: its subject in one line, and a text and a page that are complete without it."""

    subject: str
    text: str
    html: str


def reminder_words(due: Reminder, recipient: Recipient, *, today: date, repeat: bool) -> Words:
    """Return the variables of a reminder.

    ``repeat``: an earlier copy may have arrived. The texts use the days left, because a late reminder has fewer than
    its threshold.
    """
    language, mentor = recipient.locale, recipient.mentor
    kind = next((certificate.kind for certificate in mentor.certificates if certificate.id == due.cert_id), "")
    phone, url = one_line(recipient.contact_phone), one_line(recipient.renewal_url)
    reply_to = parse_own_sender(recipient.contact_email)
    return {
        "language": language,
        "name": one_line(recipient.full_name),
        "member_no": one_line(mentor.member_no),
        "kind": one_line(kind),
        "expires_on": write_date(due.expires_on, locale=language),
        "expires_day": write_day(due.expires_on, locale=language),
        "days_left": (due.expires_on - today).days,
        "threshold_days": due.threshold_days,
        "pauses": kind not in mentor.organisation.optional_kinds,
        "paused": recipient.paused,
        "organisation": one_line(recipient.organisation_name),
        "contact_email": one_line(recipient.contact_email),
        "contact_email_link": quote(reply_to.specification, safe="@") if reply_to else "",
        "contact_phone": phone,
        "contact_phone_link": "".join(re.findall(r"[+0-9]", phone)),
        "renewal_url": url,
        "renewal_host": _web_host(url),
        "repeat": repeat,
    }


def digest_words(
    sections: Mapping[str, Sequence[Words]],
    *,
    news: Mapping[str, Sequence[Words]],
    language: str,
    name: str | None,
    organisation: str,
    has_portal: bool,
    acknowledged: tuple[int, date | None],
    zone: tzinfo,
    is_first: bool,
    repeat: bool,
    app_url: str = "",
    operator_address: str = "",
) -> Words:
    """Return the variables of a digest.

    ``sections`` has rows of the database by section, and ``news`` those of them that no digest has reported; the
    subject is about the first section with news. ``acknowledged`` is the number of acknowledged alerts and the day
    on which the first returns. ``is_first``: no digest was sent before. Times are shown in ``zone``.
    """

    def in_words(rows: Sequence[Words]) -> list[Words]:
        return [_in_words(row, locale=language, zone=zone) for row in sorted(rows, key=_harm)]

    number, returns_on = acknowledged
    # Someone without a valid certificate may still be visible. A hold of returns or reminders shows no one.
    dangers = {**sections, "held": [row for row in sections["held"] if row["is_danger"]]}
    return {
        "language": language,
        "most": LONGEST_LIST,
        "name": one_line(name),
        "organisation": one_line(organisation),
        "has_portal": has_portal,
        "is_first": is_first,
        "repeat": repeat,
        "app_url": app_url,
        "operator_address": operator_address,
        "operator_address_link": quote(operator_address, safe="@"),
        "urgent": [section for section in _URGENT if dangers[section] and (has_portal or section == "visible")],
        "to_do": any(sections[section] for section in sections.keys() - NO_ACTION),
        "acknowledged": {"number": number, "until": write_day(returns_on, locale=language) if returns_on else ""},
        "news": {section: in_words(rows) for section, rows in news.items() if rows},
        **{section: in_words(rows) for section, rows in sections.items()},
    }


def _harm(row: Words) -> int:
    cause = row.get("cause")
    return _BY_HARM.index(cause) if cause in _BY_HARM else len(_BY_HARM)


def _in_words(value: Any, *, locale: str, zone: tzinfo, with_year: bool = False) -> Any:
    """Return a row, or a value in it, as templates use it. A day has its year if its name ends in ``_on``."""
    match value:
        case str():
            return one_line(value)
        case datetime():
            return write_moment(value.astimezone(zone), locale=locale)
        case date():
            return (write_date if with_year else write_day)(value, locale=locale)
        case list():
            return [_in_words(each, locale=locale, zone=zone) for each in value]
        case dict():
            return {
                name: _in_words(each, locale=locale, zone=zone, with_year=name.endswith("_on"))
                for name, each in value.items()
                if name not in _NOT_FOR_TEMPLATES
            }
    return value


def write_date(day: date, *, locale: str) -> str:
    return _unbroken(babel.dates.format_date(day, format="long", locale=LANGUAGES[locale]))


def write_day(day: date, *, locale: str) -> str:
    return _unbroken(babel.dates.format_skeleton("MMMMd", day, locale=LANGUAGES[locale]))


def write_moment(moment: datetime, *, locale: str) -> str:
    day = write_day(moment, locale=locale)
    return f"{day} at {moment:%H:%M}" if locale == "en" else f"{day} kl.\N{NO-BREAK SPACE}{moment:%H.%M}"


def _unbroken(day: str) -> str:
    """Keep the day and its month on one line."""
    return day.replace(" ", "\N{NO-BREAK SPACE}", 1)


def _web_host(url: str) -> str:
    """Return the host of a web address, or "" for any other URL, such as ``javascript:``, which must not be a link.

    The messages show the host, because readers must see where a link leads.
    """
    try:
        parts = urlsplit(url)
        return (parts.hostname or "") if parts.scheme in ("https", "http") else ""
    except ValueError:
        return ""
