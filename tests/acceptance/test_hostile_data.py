"""No text in the facts breaks a mail, a terminal or a document."""

import email
import email.policy
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import pytest

from certjob.errors import PermanentPortalError
from certjob.portal.hlf_dynamics import HLFDynamicsSyncService
from tests.conftest import Certjob
from tests.support.command_line import on_terminal, today, without_escapes
from tests.support.facts import Facts
from tests.support.mails import Page
from tests.support.smtp_server import HOST, Mailbox, real_server

SPY = "spy@example.org"
PLAIN = "PLAINTEXT"
CONTROLS = "".join(map(chr, [*range(1, 32), *range(127, 160)]))
"""Without NUL, which PostgreSQL does not store."""
MARKUP = (
    """<script>alert(1)</script>--></title></style></p>"'><img src=x onerror=alert(1)><a href='//evil.example'>"""
    "&lt;b&gt;&amp;&#10;&nbsp;"
)
TEXTS = {  # as stored, and as a person reads them
    f"Kari\r\nBcc: {SPY}\nTo: {SPY}\rCc: {SPY}\x85X-A: 1\u2028X-B: 2\u2029X-C: 3": (
        f"Kari Bcc: {SPY} To: {SPY} Cc: {SPY} X-A: 1 X-B: 2 X-C: 3"
    ),
    f"Kari\r\n\r\nHi.\r\n.\r\nMAIL FROM:<{SPY}>\r\nDATA": f"Kari Hi. . MAIL FROM:<{SPY}> DATA",
    f"From {SPY} Thu Jan  1": f"From {SPY} Thu Jan 1",  # the first line of a mailbox
    f"K{CONTROLS}K": "K K",
    "K\x1b[2J\x1b[5mK\x1b]0;owned\x07K\x9b5mK": "K [2J [5mK ]0;owned K 5mK",
    "K \u202egpj.exe\u202c K\u2067a\u2069\u200fr\u200e\u061ci": "K gpj.exe K a r i",
} | {
    text: text
    for text in (
        PLAIN,
        ".",
        "--===============0==--",  # a MIME boundary
        # Python's e-mail package decodes such words when a header is set, and writes the result.
        f"=?utf-8?q?=0D=0ABcc:_{SPY}?=",
        "=?utf-8?b?DQpCY2M6IHNweUBleGFtcGxlLm9yZw==?=",
        "=?utf-8?q?Kari?= =?utf-8?q?Nordmann?= a=3Db=0D=0Ac=",
        "محمد علي קארי (1) Nordmann",
        "K" * 199,  # the tables store 200 characters, and the member number has one more
        "Ø" * 199,
        " ".join(["Kari"] * 39),
        """Kari "Ea" O'Nordmann, «K»; <k> (K)\\""",
        "Kari 👩‍🏫🇳🇴👍🏽 Z" + "\u0335\u0327\u0301\u0489" * 40 + "algo",
        "𝕶𝖆𝖗𝖎 𠜎 \U0010ffff K\ue000\uf8ffK",
        MARKUP,
        "{{ 7*7 }}{% raw %}{# K #}{{ organisation }}",
        "[red]x[/red] [/][/red]K[bold [link=https://evil.example]K[/link] :smile:",
        "%s %(name)s {0} {name} ${HOME} $(id) `id` \\n K'); DROP TABLE mentors; --",
    )
}
SLUGS = {text: f"h{number}" for number, text in enumerate(TEXTS)}
ORDERS_TO_A_TERMINAL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
ORDERS_OF_RICH = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]|\x1b\[2K|\x1b\[1A|\r")

Run = Callable[..., str]


class ReceivedMail(NamedTuple):
    """A message as a mail program shows it."""

    headers: list[str]
    to: str
    subject: str
    text: str
    page: Page


def read_mail(data: bytes) -> ReceivedMail:
    """Parse a message, and check its line ends, its longest line (RFC 5322, 2.1.1) and its parts."""
    lines = data.split(b"\r\n")
    assert not any(control in line for line in lines for control in (b"\r", b"\n", b"\x00"))
    assert max(map(len, lines)) <= 998
    message: Any = email.message_from_string(data.decode(), policy=email.policy.default)
    parts = list(message.walk())
    assert [part.get_content_type() for part in parts] == ["multipart/alternative", "text/plain", "text/html"]
    assert [part.defects for part in parts] == [[], [], []]
    (recipient,) = message["To"].addresses
    text, html = (str(part.get_content()).replace("\r\n", "\n") for part in parts[1:])
    return ReceivedMail(sorted(message.keys()), recipient.addr_spec, str(message["Subject"]), text, Page(html))


@pytest.fixture
def mailbox(environment: dict[str, str]) -> Iterator[Mailbox]:
    """The messages of the mail server."""
    mailbox = Mailbox()
    with real_server(mailbox, enable_SMTPUTF8=True) as server:
        environment["CERTJOB_NOTIFY_URL"] = f"smtp://{HOST}:{server.port}"
        environment["CERTJOB_MAIL_FROM"] = "certjob@hlf.example"
        yield mailbox


@pytest.fixture
def run(here: Certjob, environment: dict[str, str], tmp_path: Path) -> Run:
    """Run a command, also on a wide terminal; its output contains no order to a terminal but Rich's own."""

    def run(*arguments: str, code: int = 0, shown: bool = False) -> str:
        if shown:
            returned, text = on_terminal(arguments, environment=environment, folder=tmp_path, columns=4_000)
            assert "\x1b[5m" not in text, "something blinks"
            unfit = set(ORDERS_TO_A_TERMINAL.findall(ORDERS_OF_RICH.sub("", text)))
        else:
            result = here(*arguments)
            returned, text = result.returncode, result.stdout
            unfit = set(ORDERS_TO_A_TERMINAL.findall(text + result.stderr))
            if not {"--json", "--html"} & {*arguments}:
                unfit |= {each for each in text + result.stderr if not each.isprintable() and each != "\n"}
        assert (returned, sorted(unfit)) == (code, []), text
        return without_escapes(text) if shown else text

    return run


def add_organisation(facts: Facts, text: str) -> tuple[UUID, UUID]:
    """Add an organisation with this text everywhere, a coordinator, and mentors, one of them without an address.

    Return the mentor and the contact whose certificate has expired.
    """
    slug, contact_id = SLUGS[text], uuid4()
    organisation = facts.organisation(slug)
    facts.connection.execute(
        "UPDATE organisations SET name = %s, contact_email = %s, contact_phone = %s, renewal_url = %s WHERE id = %s",
        (text, text, f"+47 {text}", f"https://hlf.example/?{text}", organisation),
    )
    coordinator = {"full_name": text, "email": f"coordinator@{slug}.example", "locale": "en"}
    facts.insert("coordinators", organisation_id=organisation, **coordinator)
    who = {"full_name": text, "email": f"mentor@{slug}.example", "locale": "en", "contact_id": contact_id}
    expired = facts.certified_mentor(organisation, today() - timedelta(days=1), member_no=f"{text}1", **who)
    unreachable = {"member_no": f"{text}2", "full_name": text, "email": None}
    facts.certified_mentor(organisation, today() + timedelta(days=5), **unreachable)
    facts.connection.execute("UPDATE certificates SET kind = %s WHERE kind = 'likeperson'", (text,))
    return expired, contact_id


def test_no_text_breaks_a_mail_a_terminal_or_a_document(
    facts: Facts, run: Run, mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In names, kinds, contact fields and portal errors: the output is that of a plain text with another word."""
    mentors, words = {}, {}
    for text in TEXTS:
        mentors[text], contact_id = add_organisation(facts, text)
        words[contact_id] = text

    async def refuse(_portal: object, contact_id: UUID, **_wish: object) -> None:
        raise PermanentPortalError(words[contact_id])

    monkeypatch.setattr(HLFDynamicsSyncService, "update_portal_visibility", refuse)

    plans = run("run", "--dry-run"), run("run", "--dry-run", shown=True)
    changes = json.loads(run("run", "--dry-run", "--json"))["changes"]
    previews = {text: run("preview", str(mentor)) for text, mentor in mentors.items()}
    page, plain_page = (Page(run("preview", str(mentors[text]), "--html")) for text in (MARKUP, PLAIN))
    run("run", code=3)
    alerts = run("alerts", code=3), run("alerts", code=3, shown=True)
    document = json.loads(run("alerts", "--json", code=3))

    both = [f"{text}{number}" for text in TEXTS for number in (1, 2)]
    assert Counter(change["member_no"] for change in changes) == Counter(both)
    assert Counter(alert["full_name"] for alert in document["alerts"]) == Counter([*TEXTS] * 2)
    assert len(plans[0].splitlines()) == len(both) + 1  # and a line with the figures
    assert len(alerts[0].splitlines()) == len(both)
    for text, read in TEXTS.items():
        assert len(previews[text].splitlines()) == len(previews[PLAIN].splitlines()), text
        assert read in previews[text] or not read.isprintable()
        assert not text.isprintable() or all(text in printed for printed in (plans[0], alerts[0])), text
    short = [text for text in TEXTS if text.isprintable() and len(text) < 100]
    for shown in (plans[1], alerts[1]):  # lines may be wrapped within a text
        assert sum(" ".join(text.split()) in " ".join(shown.split()) for text in short) > 10
    assert page.shape == plain_page.shape

    messages = {message.to: message for message in (read_mail(each.content) for each in mailbox.envelopes)}
    assert [each.rcpt_tos for each in mailbox.envelopes] == [[to] for to in messages]
    assert len(messages) == 2 * len(TEXTS)
    for who, (text, read) in itertools.product(("mentor", "coordinator"), TEXTS.items()):
        plain, message = messages[f"{who}@{SLUGS[PLAIN]}.example"], messages[f"{who}@{SLUGS[text]}.example"]
        assert (message.headers, message.subject) == (plain.headers, plain.subject.replace(PLAIN, read))
        assert message.text == plain.text.replace(PLAIN, read).replace(f"{SLUGS[PLAIN]}.ex", f"{SLUGS[text]}.ex")
        assert message.page.shape == plain.page.shape, text
        assert message.page.all_words == plain.page.all_words.replace(PLAIN, read)
        assert {link.partition(":")[0] for link in message.page.links} <= {"https", "mailto", "tel"}, text
