"""A message, a reminder, and the HTML page of a mail as its reader sees it."""

from dataclasses import replace
from datetime import date, timedelta
from html.parser import HTMLParser
from typing import Any
from uuid import UUID

from certjob.domain.models import Reminder
from certjob.mail.message import OutgoingMessage
from certjob.mail.messages.content import Recipient
from certjob.mail.messages.templates import OUR_TEMPLATES, Templates
from certjob.mail.reminder_mail import reminder_message
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
    pauses: bool = True,
    repeat: bool = False,
    member_no: str = "M1001",
    slug: str = "hlf",
    expires_on: date | None = None,
    templates: Templates = OUR_TEMPLATES,
    **recipient: Any,
) -> OutgoingMessage:
    """Return a reminder of an organisation with every optional value; other arguments are fields of ``Recipient``."""
    last_day = expires_on or TODAY + timedelta(days=days_left)
    held = people.certificate(last_day, kind=kind)
    home = people.organisation(slug=slug, optional_kinds=[] if pauses else [kind])
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
    return reminder_message(
        Reminder(cert_id=held.id, threshold_days=days_left, expires_on=last_day),
        Recipient(mentor=mentor, **words | recipient),
        key="reminder-1-0",
        repeat=repeat,
        today=last_day - timedelta(days=days_left),
        templates=templates,
    )


def breakable(text: str) -> str:
    """Return a text with ordinary spaces and hyphens."""
    return text.replace("\N{NO-BREAK SPACE}", " ").replace("\N{NON-BREAKING HYPHEN}", "-")


class Page(HTMLParser):
    """An HTML page: its visible ``text``, and its tags."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.shape: list[str] = []
        """Every tag with the names of its attributes, every end tag and every comment."""
        self.links: list[str] = []
        self.all_words = ""
        """Also the hidden words."""
        self.language: str | None = None
        self._words = {"body": "", "head": "", "preheader": ""}
        self._where = "body"
        self.feed(document)
        self.close()
        self.text = breakable(" ".join(self._words["body"].split()))
        self.preheader = self._words["preheader"]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append(tag)
        self.shape.append(" ".join([tag, *attributes]))
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]
        if tag in ("head", "body"):
            self._where = tag
        elif tag == "div" and "display: none" in (attributes.get("style") or ""):
            self._where = "preheader"
        elif tag == "br":
            self._words["body"] += " "
        elif tag == "html":
            self.language = attributes["lang"]

    def handle_endtag(self, tag: str) -> None:
        self.shape.append(f"/{tag}")
        if tag == "div" and self._where == "preheader":
            self._where = "body"

    def handle_comment(self, data: str) -> None:
        self.shape.append(f"comment {data}")

    def handle_data(self, data: str) -> None:
        self._words[self._where] += data
        self.all_words += data
