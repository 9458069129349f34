"""What messages say, and the words that a template finds for it."""

import re
from dataclasses import dataclass
from datetime import date, datetime
from urllib.parse import quote, urlsplit

import babel.dates

from certjob.domain.addresses import parse_own_sender
from certjob.domain.models import Mentor, Reminder
from certjob.redaction import one_line

LANGUAGES = {"nb": "nb", "nn": "nn", "en": "en_GB"}
"""Languages that have templates, and how each writes a date. People have no other locale."""

NOTHING_TO_DO = frozenset({"paused", "returned", "expiring"})
"""The sections of a digest that ask the coordinator to do nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipient:
    """The mentor as the facts are now, with what a message says about the organisation."""

    mentor: Mentor
    full_name: str | None
    """None: the greeting names nobody."""
    email: str | None
    locale: str
    """``nb``, ``nn`` or ``en``."""
    paused: bool
    """certjob's own pause is open."""
    organisation_name: str
    contact_email: str | None
    contact_phone: str | None
    renewal_url: str | None
    sender: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedMessage:
    """A message ready for a channel."""

    subject: str
    """One line."""
    text: str
    """Complete in itself."""
    html: str
    """A whole document; ours are without images or anything from elsewhere."""


def write_date(day: date, *, locale: str) -> str:
    """Return the date as people with this locale write it, in words."""
    return _unbroken(babel.dates.format_date(day, format="long", locale=LANGUAGES[locale]))


def write_day(day: date, *, locale: str) -> str:
    """Return the date without its year, as people with this locale write it."""
    return _unbroken(babel.dates.format_skeleton("MMMMd", day, locale=LANGUAGES[locale]))


def write_moment(moment: datetime, *, locale: str) -> str:
    """Return day and time, without the year, as people with this locale write them; ``moment`` is in their zone."""
    day = write_day(moment, locale=locale)
    return f"{day} at {moment:%H:%M}" if locale == "en" else f"{day} kl.\N{NO-BREAK SPACE}{moment:%H.%M}"


def reminder_words(due: Reminder, recipient: Recipient, *, today: date, repeat: bool) -> dict[str, object]:
    """Return what a reminder's templates can use, by name; nothing in it can break a line or turn the text around.

    ``repeat``: an earlier copy may have arrived. The texts go by the days left: a late reminder has fewer than its
    threshold.
    """
    language = recipient.locale
    mentor = recipient.mentor
    kind = next((certificate.kind for certificate in mentor.certificates if certificate.id == due.cert_id), "")
    days_left = (due.expires_on - today).days
    phone = one_line(recipient.contact_phone)
    url = one_line(recipient.renewal_url)
    reply_to = parse_own_sender(recipient.contact_email)
    return {
        "language": language,
        "name": one_line(recipient.full_name),
        "member_no": one_line(mentor.member_no),
        "kind": one_line(kind),
        "expires_on": write_date(due.expires_on, locale=language),
        "expires_day": write_day(due.expires_on, locale=language),
        "days_left": days_left,
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


def _unbroken(day: str) -> str:
    """Keep the day and its month on one line."""
    return day.replace(" ", "\N{NO-BREAK SPACE}", 1)


def _web_host(url: str) -> str:
    """Return where a web address leads; nothing for any other, such as ``javascript:``, which must not become a link.

    Readers are shown this name, so that they see where a link leads before they follow it.
    """
    try:
        parts = urlsplit(url)
        return (parts.hostname or "") if parts.scheme in ("https", "http") else ""
    except ValueError:
        return ""
