"""A mail as bytes: headers and parts arrive unchanged."""

import email
import email.policy
import re
from dataclasses import replace
from email.header import decode_header
from email.message import EmailMessage
from email.utils import parseaddr

from hypothesis import given, settings
from hypothesis import strategies as st

from certjob.domain.addresses import parse_sender
from certjob.facts.organisations import set_organisation
from certjob.mail.message import OutgoingMessage, compose
from tests.mail.conftest import Mailing, day
from tests.mail.written import MESSAGE

BCC = "\r\nBcc: spy@example.org"


def composed(message: OutgoingMessage, sender: str = "post@hlf.example") -> bytes:
    return compose(message, sender=parse_sender(sender))[1]


def read(message: OutgoingMessage) -> EmailMessage:
    return email.message_from_bytes(composed(message), policy=email.policy.default)


def travelling(data: bytes, name: str) -> str:
    """Return a header as it is sent, with its name and line ends."""
    found = re.search(rf"^{name}:.*\n(?:[ \t].*\n)*", data.decode(), re.MULTILINE)
    assert found is not None, data
    return found[0]


def person_as_read(data: bytes, header: str) -> tuple[str, str]:
    """Return name and address as a mail program reads them (RFC 2047: no space between two encoded words)."""
    name, address = parseaddr(travelling(data, header).removeprefix(f"{header}:").replace("\n", ""))
    words = (
        part if isinstance(part, str) else part.decode(charset or "ascii") for part, charset in decode_header(name)
    )
    return "".join(words), address


LETTERS = st.sampled_from(
    [*" .(é😀Æ\\':;a", "Hørsel", "HLF", ", ", "=?", "=?utf-8?q?=0D=0ABcc:_x?=", "x" * 30],
)


@settings(deadline=None, max_examples=50)
@given(st.lists(LETTERS, max_size=14).map("".join))
def test_name_arrives_unchanged(name: str) -> None:
    """It cannot lose a space, decode anything or add a header."""
    sender = f"{name} <post@hlf.example>"

    data = composed(replace(MESSAGE, to_name=name), sender)

    assert person_as_read(data, "From") == (parse_sender(sender).display_name, "post@hlf.example")
    assert person_as_read(data, "To") == (" ".join(name.split()), MESSAGE.to)
    headers = "Auto-Submitted Content-Language Content-Type Date From MIME-Version Message-ID Subject To"
    assert sorted(email.message_from_bytes(data).keys()) == [*headers.split(), "X-Auto-Response-Suppress"]
    assert max(map(len, data.splitlines())) <= 78


PIECES = [*"å😀 \t\n=\x0b", "Hei", "\n.\n", "\n..", "=_", "--=_certjob", "--=_certjob--", "\nFrom "]
TEXTS = st.lists(st.sampled_from([*PIECES, "x" * 90]), min_size=1, max_size=20).map("".join).filter(str.strip)


@settings(deadline=None, max_examples=30)
@given(text=TEXTS, html=TEXTS, subject=st.lists(LETTERS, max_size=20).map("".join))
def test_subject_and_parts_arrive_unchanged(text: str, html: str, subject: str) -> None:
    """Nothing in them ends a part early. Every server accepts the lines, because they are short and ASCII."""
    message = replace(MESSAGE, text=f"{text}\n", html=f"{html}\n", subject=f"Går ut {subject}!")

    arrived, data = read(message), composed(message)

    assert [part.defects for part in arrived.walk()] == [[], [], []]
    decoded = {part.get_content_type(): part.get_payload(decode=True) for part in arrived.iter_parts()}
    assert decoded == {"text/plain": message.text.encode(), "text/html": message.html.encode()}
    assert arrived["Subject"] == message.subject
    assert (data.isascii(), max(map(len, data.splitlines())) <= 78) == (True, True)
    assert data.count(b"\n") == len(data.splitlines())


def test_headers_prevent_automatic_replies_and_allow_sorting() -> None:
    """The Message-ID is on one line, with the domain of the channel's sender. A search finds an ASCII subject."""
    key = "k" * 400
    message = replace(MESSAGE, sender="post@lhl.example", idempotency_key=key, list_name="digest.hlf", subject="3 days")
    data = composed(message, "Blå Kors <post@blåkors.example>")

    assert travelling(data, "Message-ID") == f"Message-ID: <certjob-{key}@xn--blkors-jua.example>\n"
    assert travelling(data, "Subject") == "Subject: 3 days\n"
    headers = email.message_from_bytes(data)
    assert (headers["Auto-Submitted"], headers["X-Auto-Response-Suppress"]) == ("auto-generated", "All")
    assert (headers["List-Id"], headers["Content-Language"]) == ("<digest.hlf.xn--blkors-jua.example>", "nb")


def test_invalid_sender_or_reply_address_is_left_out() -> None:
    """The message is sent as without it."""
    for contact, header in {
        "kontakt@blåbær.example": "kontakt@xn--blbr-roah.example",
        None: None,
        f"kontakt@hlf.example{BCC}": None,
        "kåre@hlf.example": None,
    }.items():
        message = read(replace(MESSAGE, reply_to=contact))
        assert (message["Reply-To"], message["Bcc"]) == (header, None)
    own = "LHL Likeperson <likeperson@lhl.example>"
    for sender in (own, None, "LHL", f"likeperson@lhl.example{BCC}"):
        message = read(replace(MESSAGE, sender=sender))
        assert (message["From"], message["Bcc"]) == (own if sender == own else "post@hlf.example", None)


def test_mails_name_the_organisation_as_sender_and_for_replies(mailing: Mailing) -> None:
    """Without its own sender, that of the channel. Digests have a list name."""
    mailing.ended("Kari")
    mailing.facts.certified_mentor(mailing.facts.organisation("lhl", portal=None), day(-1), full_name="Ola")
    for slug, sender in (("nhf", None), ("lhl", "LHL <likeperson@lhl.example>")):
        set_organisation(mailing.connection, slug, coordinators=[f"Åse Berg <ase@{slug}.example>"], sender=sender)

    sent = mailing.mails()

    named = ("kind", "sender", "reply_to", "to_name", "list_name")
    assert sorted(str([getattr(message, name) for name in named]) for message in sent) == [
        "['digest', 'LHL <likeperson@lhl.example>', 'kontakt@lhl.example', 'Åse Berg', 'digest.lhl']",
        "['digest', None, 'kontakt@nhf.example', 'Åse Berg', 'digest.nhf']",
        "['reminder', 'LHL <likeperson@lhl.example>', 'kontakt@lhl.example', 'Ola', None]",
        "['reminder', None, 'kontakt@nhf.example', 'Kari', None]",
    ]
