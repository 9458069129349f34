"""Texts that do not mean well, and a strict reader of the mail and of the terminal output that came of them."""

import email
import email.policy
import re
from email.errors import NonASCIILocalPartDefect
from email.message import EmailMessage
from typing import NamedTuple

from tests.support.mails import Page

SPY = "spy@example.org"
"""Whom a smuggled header would send a copy to."""

HEADERS = (
    "Auto-Submitted Content-Language Content-Type Date From MIME-Version Message-ID Subject To X-Auto-Response-Suppress"
)
"""What a message has, each once; and where the organisation's contact address is one, in a digest:"""
OPTIONAL_HEADERS = ["Reply-To", "List-Id"]

LONGEST_LINE = 998
"""RFC 5322, 2.1.1: octets in a line, without its end."""

CONTROLS = "".join(map(chr, [*range(1, 32), *range(127, 160)]))
"""All there are but NUL, which no text in PostgreSQL can hold."""


class Hostile(NamedTuple):
    text: str
    read: str = ""
    """What a person is to read where it stands; empty: the text as it is."""

    @property
    def in_message(self) -> str:
        return self.read or self.text


HOSTILE = {
    "headers": Hostile(
        f"Kari\r\nBcc: {SPY}\nTo: {SPY}\rCc: {SPY}\x85X-A: 1\u2028X-B: 2\u2029X-C: 3",
        f"Kari Bcc: {SPY} To: {SPY} Cc: {SPY} X-A: 1 X-B: 2 X-C: 3",
    ),
    "an end of the message": Hostile(
        f"Kari\r\n\r\nHi.\r\n.\r\nMAIL FROM:<{SPY}>\r\nDATA", f"Kari Hi. . MAIL FROM:<{SPY}> DATA"
    ),
    "a lone dot": Hostile("."),
    "a boundary": Hostile("--===============0==--"),
    "the first line of a mailbox": Hostile(f"From {SPY} Thu Jan  1", f"From {SPY} Thu Jan 1"),
    # Python's e-mail package decodes such words when a header is set, and writes what was in them.
    "an encoded header": Hostile(f"=?utf-8?q?=0D=0ABcc:_{SPY}?="),
    "an encoded header in Base64": Hostile("=?utf-8?b?DQpCY2M6IHNweUBleGFtcGxlLm9yZw==?="),
    "encoded words": Hostile("=?utf-8?q?Kari?= =?utf-8?q?Nordmann?= a=3Db=0D=0Ac="),
    "every control character": Hostile(f"K{CONTROLS}K", "K K"),
    "orders to a terminal": Hostile("K\x1b[2J\x1b[5mK\x1b]0;owned\x07K\x9b5mK", "K [2J [5mK ]0;owned K 5mK"),
    "right to left": Hostile("محمد علي קארי (1) Nordmann"),
    "overrides and isolates": Hostile("K \u202egpj.exe\u202c K\u2067a\u2069\u200fr\u200e\u061ci", "K gpj.exe K a r i"),
    # The tables take 200 characters where the fewest are allowed.
    "as many letters as fit": Hostile("K" * 199),
    "as many letters beyond ASCII as fit": Hostile("Ø" * 199),
    "as many words as fit": Hostile(" ".join(["Kari"] * 39)),
    "quotes": Hostile("""Kari "Ea" O'Nordmann, «K»; <k> (K)\\"""),
    "emoji and combining characters": Hostile("Kari 👩‍🏫🇳🇴👍🏽 Z" + "\u0335\u0327\u0301\u0489" * 40 + "algo"),
    "astral and private letters": Hostile("𝕶𝖆𝖗𝖎 𠜎 \U0010ffff K\ue000\uf8ffK"),
    "HTML": Hostile(
        """<script>alert(1)</script>--></title></style></p>"'><img src=x onerror=alert(1)><a href='//evil.example'>"""
        "&lt;b&gt;&amp;&#10;&nbsp;"
    ),
    "Jinja": Hostile("{{ 7*7 }}{% raw %}{# K #}{{ organisation }}"),
    "Rich": Hostile("[red]x[/red] [/][/red]K[bold [link=https://evil.example]K[/link] :smile:"),
    "placeholders": Hostile("%s %(name)s {0} {name} ${HOME} $(id) `id` \\n K'); DROP TABLE mentors; --"),
}


class ReceivedMail(NamedTuple):
    """A message that is in order, as its reader's program understands it."""

    to: str
    subject: str
    text: str
    page: Page


def read_mail(data: bytes, *, utf8: bool = False) -> ReceivedMail:
    """Read a message as it came, after making sure that it has nothing but what a message of certjob's has.

    ``utf8`` allows letters beyond ASCII in the headers, for an address that has some.
    """
    lines = data.split(b"\r\n")
    assert not any(control in line for line in lines for control in (b"\r", b"\n", b"\x00"))
    assert max(map(len, lines)) <= LONGEST_LINE
    head = lines[: lines.index(b"")]
    names = [line.partition(b":")[0].decode() for line in head if line[:1] not in (b" ", b"\t")]
    assert sorted(name for name in names if name not in OPTIONAL_HEADERS) == HEADERS.split()
    assert all(names.count(name) <= 1 for name in OPTIONAL_HEADERS)
    assert utf8 or data.isascii()
    message = email.message_from_string(data.decode(), policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    parts = list(message.walk())
    assert [part.get_content_type() for part in parts] == ["multipart/alternative", "text/plain", "text/html"]
    assert [part.defects for part in parts] == [[], [], []]
    defects = [*message["To"].defects, *message["Subject"].defects]
    assert [defect for defect in defects if not (utf8 and isinstance(defect, NonASCIILocalPartDefect))] == []
    assert message["Auto-Submitted"] == "auto-generated"
    (recipient,) = message["To"].addresses
    text, html = (str(part.get_content()).replace("\r\n", "\n") for part in parts[1:])
    return ReceivedMail(recipient.addr_spec, str(message["Subject"]), text, Page(html))


_ORDERS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
"""What a terminal obeys, but for the line end: control characters, and what turns the text around."""
_RICHS_ORDERS = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]|\x1b\[2K|\x1b\[1A|\r")
"""Colours, and what a progress bar needs."""


def assert_harmless(output: str, *, on_terminal: bool = False, is_document: bool = False) -> None:
    """Nothing in what a command printed is an order to a terminal; nor is anything unseen, but in JSON and HTML."""
    if on_terminal:
        assert "\x1b[5m" not in output, "something blinks"
        output = _RICHS_ORDERS.sub("", output)
    unfit = set(_ORDERS.findall(output))
    if not is_document:
        unfit |= {character for character in output if not character.isprintable() and character != "\n"}
    assert not unfit, sorted(map(ascii, unfit))
    assert "Traceback" not in output
