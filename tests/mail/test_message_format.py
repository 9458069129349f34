"""A message as it travels: headers and parts arrive letter by letter, whatever stands in them."""

import email
import email.policy
import re
import time
from dataclasses import replace
from email.header import decode_header
from email.message import EmailMessage
from email.utils import parseaddr, parsedate_to_datetime

from hypothesis import given, settings
from hypothesis import strategies as st

from certjob.domain.addresses import parse_sender
from certjob.facts.organisations import set_organisation
from certjob.mail.message import OutgoingMessage, compose
from tests.mail.conftest import Scene, day
from tests.support.mails import MESSAGE

BCC = "\r\nBcc: spy@example.org"


def composed(message: OutgoingMessage, sender: str = "post@hlf.example") -> bytes:
    return compose(message, sender=parse_sender(sender))[1]


def read(message: OutgoingMessage) -> EmailMessage:
    return email.message_from_bytes(composed(message), policy=email.policy.default)


def travelling(data: bytes, name: str) -> str:
    """One header with its name as it is in the message, line ends included."""
    found = re.search(rf"^{name}:.*\n(?:[ \t].*\n)*", data.decode(), re.MULTILINE)
    assert found is not None, data
    return found[0]


def person_as_read(data: bytes, header: str) -> tuple[str, str]:
    """Name and address as a mail program reads them (RFC 2047: no space between two encoded words)."""
    name, address = parseaddr(travelling(data, header).removeprefix(f"{header}:").replace("\n", ""))
    words = (
        part if isinstance(part, str) else part.decode(charset or "ascii") for part, charset in decode_header(name)
    )
    return "".join(words), address


LETTERS = st.sampled_from(
    [*" .(é😀Æ\\':;a", "Hørsel", "HLF", ", ", "=?", "=?utf-8?q?=0D=0ABcc:_x?=", "x" * 30],
)


@settings(deadline=None, max_examples=80)
@given(st.lists(LETTERS, max_size=14).map("".join))
def test_a_name_arrives_as_it_was_written(name: str) -> None:
    """No space lost or doubled, nothing decoded that was not encoded; it reaches into no other header."""
    sender = f"{name} <post@hlf.example>"

    data = composed(replace(MESSAGE, to_name=name), sender)

    assert person_as_read(data, "From") == (parse_sender(sender).display_name, "post@hlf.example")
    assert person_as_read(data, "To") == (" ".join(name.split()), MESSAGE.to)
    headers = "Auto-Submitted Content-Language Content-Type Date From MIME-Version Message-ID Subject To"
    assert sorted(email.message_from_bytes(data).keys()) == [*headers.split(), "X-Auto-Response-Suppress"]
    assert max(map(len, data.splitlines())) <= 78


PIECES = [*"å😀 \t\n=\x0b", "Hei", "\n.\n", "\n..", "=_", "--=_certjob", "--=_certjob--", "\nFrom "]
TEXTS = st.lists(st.sampled_from([*PIECES, "x" * 90]), min_size=1, max_size=20).map("".join).filter(str.strip)


@settings(deadline=None, max_examples=50)
@given(text=TEXTS, html=TEXTS, subject=st.lists(LETTERS, max_size=20).map("".join))
def test_subject_and_parts_arrive_as_they_were_written(text: str, html: str, subject: str) -> None:
    """No line looks like the end of a part, no space at a line's end is lost; every server on the way can take it."""
    message = replace(MESSAGE, text=f"{text}\n", html=f"{html}\n", subject=f"Går ut {subject}!")

    arrived, data = read(message), composed(message)

    assert [part.defects for part in arrived.walk()] == [[], [], []]
    decoded = {part.get_content_type(): part.get_payload(decode=True) for part in arrived.iter_parts()}
    assert decoded == {"text/plain": message.text.encode(), "text/html": message.html.encode()}
    assert arrived["Subject"] == message.subject
    assert (data.isascii(), max(map(len, data.splitlines())) <= 78) == (True, True)
    assert data.count(b"\n") == len(data.splitlines())


def test_a_programmes_own_line_ends_become_those_of_the_wire() -> None:
    """A template may have been saved by any editor."""
    for ending in ("\r\n", "\r"):
        text = next(read(replace(MESSAGE, text=f"Hei{ending}Kari{ending}")).iter_parts())
        assert text.get_payload(decode=True) == b"Hei\nKari\n"


def test_the_headers_say_what_mail_programs_and_other_robots_look_for() -> None:
    """The Message-ID stays in one line and has the domain as DNS knows it: not that of an organisation's own sender."""
    key = "k" * 400
    message = replace(MESSAGE, sender="post@lhl.example", idempotency_key=key, list_name="digest.hlf")
    data = composed(message, "Blå Kors <post@blåkors.example>")

    assert travelling(data, "Message-ID") == f"Message-ID: <certjob-{key}@xn--blkors-jua.example>\n"
    headers = email.message_from_bytes(data)
    assert (headers["Auto-Submitted"], headers["X-Auto-Response-Suppress"]) == ("auto-generated", "All")
    assert (headers["List-Id"], headers["Content-Language"]) == ("<digest.hlf.xn--blkors-jua.example>", "nb")
    assert abs(parsedate_to_datetime(headers["Date"]).timestamp() - time.time()) < 60


def test_an_answer_goes_to_the_organisation_which_may_be_the_sender_too() -> None:
    """If what the app has stored is no address, the message goes out all the same, as it would without."""
    for contact, header in {
        "kontakt@blåbær.example": "kontakt@xn--blbr-roah.example",
        None: None,
        "HLF <kontakt@hlf.example>": "kontakt@hlf.example",
        f"kontakt@hlf.example{BCC}": None,
        "=?utf-8?q?x=0D=0ABcc:_spy@example.org?=@hlf.example": None,
        "kåre@hlf.example": None,
    }.items():
        message = read(replace(MESSAGE, reply_to=contact))
        assert (message["Reply-To"], message["Bcc"]) == (header, None)
    own = "LHL Likeperson <likeperson@lhl.example>"
    for sender in (own, None, "LHL", f"likeperson@lhl.example{BCC}"):
        message = read(replace(MESSAGE, sender=sender))
        assert (message["From"], message["Bcc"]) == (own if sender == own else "post@hlf.example", None)


def test_reminders_and_digests_are_from_their_organisation_and_answered_to_it(scene: Scene) -> None:
    """Each from its own sender, or the channel's; a daily message has a list by which it can be sorted."""
    scene.ended("Kari")
    scene.facts.certified_mentor(scene.facts.organisation("lhl", portal=None), day(-1), full_name="Ola")
    for slug, sender in (("nhf", None), ("lhl", "LHL <likeperson@lhl.example>")):
        set_organisation(scene.connection, slug, coordinators=[f"Åse Berg <ase@{slug}.example>"], sender=sender)

    sent = scene.night()

    named = ("kind", "sender", "reply_to", "to_name", "list_name")
    assert sorted(str([getattr(message, name) for name in named]) for message in sent) == [
        "['digest', 'LHL <likeperson@lhl.example>', 'kontakt@lhl.example', 'Åse Berg', 'digest.lhl']",
        "['digest', None, 'kontakt@nhf.example', 'Åse Berg', 'digest.nhf']",
        "['reminder', 'LHL <likeperson@lhl.example>', 'kontakt@lhl.example', 'Ola', None]",
        "['reminder', None, 'kontakt@nhf.example', 'Kari', None]",
    ]
