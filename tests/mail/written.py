"""A message, a reminder, and the visible text of a page."""

import html
import re
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

from certjob.domain.models import Reminder
from certjob.mail.message import OutgoingMessage
from certjob.mail.messages.content import Recipient
from certjob.mail.messages.templates import OUR_TEMPLATES, Templates
from certjob.mail.reminder_mail import draft_reminder
from tests.support import people
from tests.support.facts import TODAY

MESSAGE = OutgoingMessage(
    to="kari.nordmann@example.org",
    subject="Sertifikatet går ut om 14 dager",
    text="Hei, Kari!\n\n.punktum\n.\nHilsen\n",
    html="<h1>Hei, Kari – blåbær!</h1>\n",
    idempotency_key="reminder-4711-0",
    locale="nb",
    kind="reminder",
    mentor_id=UUID("0b6c0000-0000-4000-8000-000000000001"),
    threshold_days=14,
    expires_on=TODAY,
    repeat=False,
)


def written_reminder(
    *,
    days_left: int = 14,
    kind: str = "likeperson",
    repeat: bool = False,
    member_no: str = "M1001",
    templates: Templates = OUR_TEMPLATES,
    **recipient: Any,
) -> OutgoingMessage:
    """Return a reminder of an organisation with every optional value; other arguments are fields of ``Recipient``."""
    last_day = TODAY + timedelta(days=days_left)
    held = people.certificate(last_day, kind=kind)
    home = people.organisation()
    mentor = replace(people.mentor(held, organisation=home), member_no=member_no)
    words: dict[str, Any] = {
        "full_name": "Kari Nordmann",
        "email": "kari.nordmann@example.org",
        "locale": "nb",
        "paused": False,
        "organisation_name": "HLF Øst",
        "contact_email": "kontakt@hlf.example",
        "contact_phone": "+47 22 00 00 00",
        "renewal_url": "https://hlf.example/forny?a=1&b=2",
        "sender": None,
    }
    return draft_reminder(
        Reminder(cert_id=held.id, threshold_days=days_left, expires_on=last_day),
        Recipient(mentor=mentor, **words | recipient),
        key="reminder-1-0",
        repeat=repeat,
        today=TODAY,
    ).write(templates)


def breakable(text: str) -> str:
    """Return a text with ordinary spaces and hyphens."""
    return text.replace("\N{NO-BREAK SPACE}", " ").replace("\N{NON-BREAKING HYPHEN}", "-")


def visible_text(page: str) -> str:
    """Return the words of the body, without the hidden preheader."""
    body = re.sub(r"<head>.*</head>|<div [^>]*display: none.*?</div>", "", page, flags=re.DOTALL)
    return breakable(" ".join(html.unescape(re.sub(r"<[^>]*>", "", body.replace("<br>", " "))).split()))


def links(page: str) -> list[str]:
    return [html.unescape(link) for link in re.findall(r'(?:href|src)="([^"]*)"', page)]
