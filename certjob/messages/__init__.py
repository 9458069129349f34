"""The texts that mentors read: Jinja2 templates in this folder, one text and one HTML file per message and language."""

import re
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from urllib.parse import quote

import babel.dates
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

LANGUAGES = {"nb": "nb", "en": "en_GB"}
"""Languages that have templates, and how each writes a date; any other locale reads the first one."""

_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]+")
"""Control characters, line separators and marks that turn the direction of what follows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReminderContent:
    """What a reminder says, and to whom."""

    full_name: str | None
    """None: the member number is the name."""
    member_no: str
    kind: str
    """What the certificate is for, in the organisation's words."""
    expires_on: date
    """The last day in force."""
    days_left: int
    """From today to ``expires_on``; 0 on the day, negative after it."""
    threshold_days: int
    """Why the reminder is sent now; the texts go by ``days_left``, since a late one has less time left."""
    pauses: bool
    """Whether the expiry of this kind pauses the mentor."""
    paused: bool
    """Whether certjob's own pause is open now."""
    organisation_name: str
    contact_email: str | None
    contact_phone: str | None
    renewal_url: str | None
    locale: str
    """``nb``, ``nn`` or ``en``."""
    repeat: bool
    """Whether an earlier copy may have arrived."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedMessage:
    """A message ready for a channel."""

    subject: str
    """One line."""
    text: str
    """Complete in itself."""
    html: str
    """A whole document without images or anything from elsewhere."""


def render_reminder(content: ReminderContent) -> RenderedMessage:
    """Write the reminder in the mentor's language; the first line of the text template is the subject."""
    language = content.locale if content.locale in LANGUAGES else next(iter(LANGUAGES))
    context = _context(content, language=language)
    subject, _, text = _environment().get_template(f"reminder.{language}.txt").render(context).partition("\n")
    subject = " ".join(subject.split())
    html = _environment().get_template(f"reminder.{language}.html").render(context, subject=subject)
    return RenderedMessage(subject=subject, text=text.strip("\n") + "\n", html=html)


def _context(content: ReminderContent, *, language: str) -> dict[str, object]:
    email = _clean(content.contact_email)
    phone = _clean(content.contact_phone)
    url = _clean(content.renewal_url)
    return {
        "language": language,
        "name": _clean(content.full_name) or _clean(content.member_no),
        "member_no": _clean(content.member_no),
        "kind": _clean(content.kind),
        "expires_on": babel.dates.format_date(content.expires_on, format="long", locale=LANGUAGES[language]),
        "days_left": content.days_left,
        "threshold_days": content.threshold_days,
        "pauses": content.pauses,
        "paused": content.paused,
        "organisation": _clean(content.organisation_name),
        "contact_email": email,
        "contact_email_link": quote(email, safe="@"),
        "contact_phone": phone,
        "contact_phone_link": "".join(re.findall(r"[+0-9]", phone)),
        "renewal_url": url,
        # Only such an address becomes something to press; a javascript: one stays a text.
        "renewal_link": url if url.lower().startswith(("https://", "http://")) else "",
        "repeat": content.repeat,
    }


def _clean(text: str | None) -> str:
    """Return the text in one line without characters that could break a header or turn the text around."""
    return " ".join(_UNPRINTABLE.sub(" ", text or "").split())


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(enabled_extensions=("html",), default=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
