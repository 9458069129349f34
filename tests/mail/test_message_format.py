"""A message as it travels: headers and parts arrive letter by letter, whatever stands in them."""

import email
import email.policy
import re
from dataclasses import replace
from datetime import timedelta
from email.header import decode_header
from email.message import EmailMessage
from email.utils import parseaddr

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from certjob.database import Connection
from certjob.domain.addresses import parse_sender
from certjob.facts.organisations import set_organisation
from certjob.mail.message import OutgoingMessage, compose
from tests.support.facts import TODAY, Facts
from tests.support.mails import MESSAGE
from tests.support.nights import CollectingChannel, night

SENDER = parse_sender("post@hlf.example")
BCC = "\r\nBcc: spy@example.org"


def travelling(data: bytes, name: str) -> str:
    """One header with its name as it is in the message, line ends included."""
    found = re.search(rf"^{name}:.*\n(?:[ \t].*\n)*", data.decode(), re.MULTILINE)
    assert found is not None, data
    return found[0]


def person_as_read(data: bytes, header: str = "From") -> tuple[str, str]:
    """Name and address as a mail program reads them (RFC 2047: no space between two encoded words)."""
    unfolded = travelling(data, header).removeprefix(f"{header}:").replace("\n", "")
    name, address = parseaddr(unfolded)
    words = [
        part.decode(charset or "ascii") if isinstance(part, bytes) else part for part, charset in decode_header(name)
    ]
    return "".join(words), address


def read(message: OutgoingMessage, *, sender: str = "post@hlf.example") -> EmailMessage:
    _, data = compose(message, sender=parse_sender(sender))
    read = email.message_from_bytes(data, policy=email.policy.default)
    assert isinstance(read, EmailMessage)
    return read


@pytest.mark.parametrize(
    "name",
    [
        "HLF",
        "Hørselshemmedes Landsforbund, likepersonstjenesten på Østlandet (Oslo)",
        "A" * 300,
        "HLF =?utf-8?q?=0D=0ABcc:_x?=",
        "O'Hara \\ Sønner: post",
        "HLF  Oslo",
    ],
)
def test_the_senders_name_arrives_as_it_was_written(name: str) -> None:
    """No space lost or doubled, nothing decoded that was not encoded, no line longer than 78 characters."""
    _, data = compose(MESSAGE, sender=parse_sender(f"{name} <post@hlf.example>"))

    assert person_as_read(data) == (name, "post@hlf.example")
    assert max(map(len, travelling(data, "From").splitlines())) <= 78


LETTERS = st.sampled_from(
    ["a", "Hørsel", "HLF", " ", ", ", ".", "(", "é", "😀", "=?", "Æ", "\\", "'", ":", ";", "x" * 30]
)


@settings(deadline=None, max_examples=50)
@given(st.lists(LETTERS, max_size=14).map("".join))
def test_no_name_is_read_as_another_one(name: str) -> None:
    """Neither does one reach into the other headers, the recipient's no more than the sender's."""
    sender = parse_sender(f"{name} <post@hlf.example>")

    _, data = compose(replace(MESSAGE, to_name=name), sender=sender)

    assert person_as_read(data) == (sender.display_name, "post@hlf.example")
    assert person_as_read(data, "To") == (" ".join(name.split()), MESSAGE.to)
    headers = "Auto-Submitted Content-Language Content-Type Date From MIME-Version Message-ID Subject To"
    assert sorted(email.message_from_bytes(data).keys()) == [*headers.split(), "X-Auto-Response-Suppress"]


def test_a_message_id_stays_in_one_line() -> None:
    """It is how a mail program knows a repeat; some find none that begins on the second line."""
    for length in (20, 400):
        _, data = compose(replace(MESSAGE, to="pål@example.org", idempotency_key="k" * length), sender=SENDER)

        assert travelling(data, "Message-ID") == f"Message-ID: <certjob-{'k' * length}@hlf.example>\n"


def test_the_message_id_has_the_senders_domain_as_dns_knows_it() -> None:
    """Not that of an organisation's own sender: the reports about it come to one mailbox."""
    message = read(replace(MESSAGE, sender="post@lhl.example"), sender="Blå Kors <post@blåkors.example>")

    assert message["Message-ID"] == "<certjob-reminder-4711-0@xn--blkors-jua.example>"


@pytest.mark.parametrize(
    ("contact", "header"),
    [
        ("kontakt@hlf.example", "kontakt@hlf.example"),
        ("kontakt@blåbær.example", "kontakt@xn--blbr-roah.example"),
        (None, None),
        ("HLF <kontakt@hlf.example>", None),
        (f"kontakt@hlf.example{BCC}", None),
        ("=?utf-8?q?x=0D=0ABcc:_spy@example.org?=@hlf.example", None),
        ("kåre@hlf.example", None),
    ],
)
def test_an_answer_goes_to_the_organisation(contact: str | None, header: str | None) -> None:
    """To its contact address if that is one; if not, the message goes out all the same, without the header."""
    message = read(replace(MESSAGE, reply_to=contact))

    assert (message["Reply-To"], message["Bcc"]) == (header, None)


@pytest.mark.parametrize(
    ("sender", "header"),
    [
        ("LHL Likeperson <likeperson@lhl.example>", "LHL Likeperson <likeperson@lhl.example>"),
        (None, "post@hlf.example"),
        ("LHL", "post@hlf.example"),
        (f"likeperson@lhl.example{BCC}", "post@hlf.example"),
    ],
)
def test_an_organisation_may_have_a_sender_of_its_own(sender: str | None, header: str) -> None:
    """If the app has stored one that is not an address, the message goes out all the same, from the usual one."""
    message = read(replace(MESSAGE, sender=sender))

    assert (message["From"], message["Bcc"]) == (header, None)


def test_reminders_and_digests_are_from_their_organisation_and_answered_to_it(
    connection: Connection, facts: Facts
) -> None:
    """Each from its own sender, or the channel's; a daily message has a list by which it can be sorted."""
    for slug in ("lhl", "hlf"):
        organisation = facts.organisation(slug, portal=None)
        facts.certified_mentor(organisation, TODAY - timedelta(days=1))
        set_organisation(connection, slug, coordinators=[f"Åse Berg <ase@{slug}.example>"])
    set_organisation(connection, "lhl", sender="LHL <likeperson@lhl.example>")
    channel = CollectingChannel()

    night(connection, channel=channel)

    assert sorted((message.kind, message.sender or "", message.reply_to) for message in channel.sent) == [
        ("digest", "", "kontakt@hlf.example"),
        ("digest", "LHL <likeperson@lhl.example>", "kontakt@lhl.example"),
        ("reminder", "", "kontakt@hlf.example"),
        ("reminder", "LHL <likeperson@lhl.example>", "kontakt@lhl.example"),
    ]
    page = read(next(message for message in channel.sent if message.kind == "digest" and message.sender is None))
    assert page["To"] == "Åse Berg <ase@hlf.example>"
    assert page["List-Id"] == "<digest.hlf.hlf.example>"
    assert page["Content-Language"] == "nb"


PIECES = st.sampled_from(
    [
        *("Hei", "å", "😀", " ", "\t", "\n", "\n.\n", "\n..", "=", "=_", "--=_certjob", "--=_certjob--"),
        *("\nFrom ", "\x0b", "x" * 90),
    ]
)
TEXTS = st.lists(PIECES, min_size=1, max_size=20).map("".join).filter(str.strip)


def parts(message: OutgoingMessage) -> dict[str, str]:
    """The decoded parts by their types, their lines ended as certjob's texts end them."""
    arrived = read(message)
    assert [part.defects for part in arrived.walk()] == [[], [], []]
    decoded = {part.get_content_type(): part.get_payload(decode=True) for part in arrived.iter_parts()}
    return {kind: data.decode() for kind, data in decoded.items() if isinstance(data, bytes)}


@settings(deadline=None, max_examples=50)
@given(text=TEXTS, html=TEXTS)
def test_both_parts_arrive_as_they_were_written(text: str, html: str) -> None:
    """No line looks like the end of a part, and no space at a line's end is lost on the way."""
    message = replace(MESSAGE, text=f"{text}\n", html=f"{html}\n")

    assert parts(message) == {"text/plain": message.text, "text/html": message.html}


@pytest.mark.parametrize("ending", ["\r\n", "\r"])
def test_a_programmes_own_line_ends_become_those_of_the_wire(ending: str) -> None:
    """A template may have been saved by any editor."""
    assert parts(replace(MESSAGE, text=f"Hei{ending}Kari{ending}"))["text/plain"] == "Hei\nKari\n"


def test_a_message_travels_in_short_lines_of_ascii() -> None:
    """Every server on the way can take it (RFC 5321, 4.5.3.1.6)."""
    message = replace(MESSAGE, subject="Går ut snart, " * 20, text="blåbær " * 300, html="😀" * 300)

    _, data = compose(message, sender=SENDER)

    assert data.isascii()
    assert max(map(len, data.splitlines())) <= 78
    assert data.count(b"\n") == len(data.splitlines())
