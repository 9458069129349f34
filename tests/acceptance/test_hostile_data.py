"""No text in the facts breaks a mail, a terminal or a document."""

import email
import email.policy
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Certjob
from tests.support.command_line import on_terminal, today
from tests.support.facts import Facts
from tests.support.portal_answers import error
from tests.support.portal_server import PortalServer
from tests.support.smtp_server import HOST, Mailbox, real_server

CONTROLS = "".join(map(chr, [*range(1, 32), *range(127, 160)]))
"""Without NUL, which PostgreSQL does not store."""
HTML = (
    """<script>alert(1)</script>--></title></style></p>"'><img src=x onerror=alert(1)><a href='//evil.example'>&lt;"""
)
TEXTS = {
    "plain": "Kari",
    "headers": "Kari\r\nBcc: spy@example.org\nTo: spy@example.org\u2028X-A: 1",
    "smtp": "Kari\r\n\r\nHi.\r\n.\r\nMAIL FROM:<spy@example.org>\r\nDATA",
    "controls": f"K{CONTROLS}K",
    "terminal": "K\x1b[2J\x1b[5mK\x1b]0;owned\x07K\x9b5mK",
    "bidi": "K \u202egpj.exe\u202c K\u2067a\u2069\u200fr\u200e\u061ci",
    # Python's e-mail package decodes such words when a header is set, and writes the result.
    "encoded": "=?utf-8?q?=0D=0ABcc:_spy@example.org?=",
    "scripts": "محمد علي קארי 👩‍🏫 𝕶𝖆𝖗𝖎 Z" + "\u0335\u0327\u0301" * 20,
    "long": "Ø" * 199,  # the tables store 200 characters, and the member number has one more
    "html": HTML,
    "template": "{{ 7*7 }}{% raw %}{# K #}{{ organisation }}",
    "rich": "[red]x[/red] [/][/red]K[bold [link=https://evil.example]K[/link] :smile:",
    "format": "%s %(name)s {0} ${HOME} $(id) `id` \\n K'); DROP TABLE mentors; --",
}
"""By the slug of the organisation that has this text everywhere."""
ORDERS_TO_A_TERMINAL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
ORDERS_OF_RICH = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]|\x1b\[2K|\x1b\[1A|\r")


@pytest.fixture
def mailbox(environment: dict[str, str]) -> Iterator[Mailbox]:
    """The messages of the mail server."""
    mailbox = Mailbox()
    with real_server(mailbox, enable_SMTPUTF8=True) as server:
        environment["CERTJOB_NOTIFY_URL"] = f"smtp://{HOST}:{server.port}"
        environment["CERTJOB_MAIL_FROM"] = "certjob@hlf.example"
        yield mailbox


@pytest.fixture(autouse=True)
def hostile(facts: Facts, portal: PortalServer) -> None:
    """Each organisation has a mentor to hide, who is also mailed, and one without an address; the portal rejects."""
    portal.default = error(422, "dynamics_rejected", message=TEXTS["terminal"] + HTML)
    for slug, text in TEXTS.items():
        organisation = facts.organisation(slug)
        facts.connection.execute(
            "UPDATE organisations SET name = %s, contact_email = %s, contact_phone = %s, renewal_url = %s"
            " WHERE id = %s",
            (text, text, f"+47 {text}", f"https://hlf.example/?{text}", organisation),
        )
        who = {"full_name": text, "locale": "en"}
        facts.insert("coordinators", organisation_id=organisation, email=f"coordinator@{slug}.example", **who)
        yesterday, soon = today() - timedelta(days=1), today() + timedelta(days=5)
        facts.certified_mentor(organisation, yesterday, member_no=f"{text}1", email=f"mentor@{slug}.example", **who)
        facts.certified_mentor(organisation, soon, member_no=f"{text}2", email=None, **who)
        facts.connection.execute("UPDATE certificates SET kind = %s WHERE kind = 'likeperson'", (text,))


class Page(HTMLParser):
    """The form of a page (every tag with the names of its attributes, every comment), its links and its words."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.shape: list[str] = []
        self.links: list[str] = []
        self.words = ""
        self.feed(document)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.shape.append(" ".join([tag, *dict(attrs)]))
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_endtag(self, tag: str) -> None:
        self.shape.append(f"/{tag}")

    def handle_comment(self, data: str) -> None:
        self.shape.append(f"comment {data}")

    def handle_data(self, data: str) -> None:
        self.words += data


def parse(mail: bytes) -> tuple[Any, str, Page]:
    """Return a message with its text and its page, and check its line ends, its longest line and its parts."""
    lines = mail.split(b"\r\n")
    assert not any(control in line for line in lines for control in (b"\r", b"\n", b"\x00"))
    assert max(map(len, lines)) <= 998, "RFC 5322, 2.1.1"
    message: Any = email.message_from_string(mail.decode(), policy=email.policy.default)
    parts = list(message.walk())
    assert [part.get_content_type() for part in parts] == ["multipart/alternative", "text/plain", "text/html"]
    assert [part.defects for part in parts] == [[], [], []]
    return message, parts[1].get_content(), Page(parts[2].get_content())


def test_no_text_breaks_a_mail_a_terminal_or_a_document(
    here: Certjob, environment: dict[str, str], tmp_path: Path, mailbox: Mailbox
) -> None:
    """Without a terminal, each mentor is one printable line. A terminal gets no order but Rich's own."""
    changes = json.loads(here("run", "--dry-run", "--json").stdout)["changes"]
    results = plan, run, alerts = here("run", "--dry-run"), here("run"), here("alerts")
    document = json.loads(here("alerts", "--json").stdout)
    _, shown = on_terminal(["alerts"], environment=environment, folder=tmp_path, columns=4_000)

    assert run.returncode == 3
    for text in (result.stdout + result.stderr for result in results):
        assert all(character.isprintable() or character == "\n" for character in text), text
    planned, _, totals = plan.stdout.partition("Plan of certjob run on ")
    _, _, *rows = planned.splitlines()
    assert Counter(row.partition(",")[0] for row in rows) == Counter([*TEXTS] * 2)
    parts = ["mentors", "certificates", "reminders", "portal", "digests"]
    assert [line.partition(":")[0] for line in totals.splitlines()[1:]] == parts
    assert len(alerts.stdout.splitlines()) == 2 * len(TEXTS)
    assert ORDERS_TO_A_TERMINAL.findall(ORDERS_OF_RICH.sub("", shown)) == []
    assert "\x1b[5m" not in shown, "something blinks"
    assert Counter(change["member_no"][:-1] for change in changes) == Counter([*TEXTS.values()] * 2)
    assert Counter(alert["full_name"] for alert in document["alerts"]) == Counter([*TEXTS.values()] * 2)
    assert_mails_have_the_form_of_plain_ones(mailbox)


def assert_mails_have_the_form_of_plain_ones(mailbox: Mailbox) -> None:
    """Check that each reminder and digest has the headers, lines, tags and kinds of links of one about Kari."""
    mails = {each.rcpt_tos[0]: each for each in mailbox.envelopes}
    assert len(mails) == len(mailbox.envelopes) == 2 * len(TEXTS)
    for who, (slug, text) in itertools.product(("mentor", "coordinator"), TEXTS.items()):
        plain, plain_text, plain_page = parse(mails[f"{who}@plain.example"].content)
        envelope = mails[f"{who}@{slug}.example"]
        message, written, page = parse(envelope.content)
        assert envelope.rcpt_tos == [each.addr_spec for each in message["To"].addresses] == [f"{who}@{slug}.example"]
        assert sorted(message.keys()) == sorted(plain.keys())
        assert len(written.splitlines()) == len(plain_text.splitlines()), slug
        assert page.shape == plain_page.shape, slug
        assert {link.partition(":")[0] for link in page.links} <= {"https", "mailto", "tel"}, slug
        assert text in written or not text.isprintable()
        assert text in page.words or not text.isprintable()
