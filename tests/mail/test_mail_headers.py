"""Headers as they travel: the sender and the Message-ID arrive letter by letter, whatever the sender is called."""

import email
import email.policy
import re
from dataclasses import replace
from datetime import timedelta
from email.header import decode_header
from email.utils import parseaddr

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from certjob.database import Connection
from certjob.domain.addresses import parse_sender
from certjob.facts.organisations import set_organisation
from certjob.mail.message import compose
from tests.support.facts import TODAY, Facts
from tests.support.mails import MESSAGE
from tests.support.nights import CollectingChannel, night

SENDER = parse_sender("post@hlf.example")


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


@pytest.mark.parametrize(
    "name",
    [
        "HLF",
        "Hørselshemmedes Landsforbund, likepersonstjenesten på Østlandet (Oslo)",
        "Hørselshemmedes Landsforbund ; likepersoner og høreapparatbrukere, Østfold",
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


@settings(deadline=None)
@given(st.lists(LETTERS, max_size=14).map("".join))
def test_no_name_is_read_as_another_one(name: str) -> None:
    """Neither does one reach into the other headers, the recipient's no more than the sender's."""
    sender = parse_sender(f"{name} <post@hlf.example>")

    _, data = compose(replace(MESSAGE, to_name=name), sender=sender)

    assert person_as_read(data) == (sender.display_name, "post@hlf.example")
    assert person_as_read(data, "To") == (" ".join(name.split()), MESSAGE.to)
    headers = email.message_from_bytes(data, policy=email.policy.default).keys()
    assert sorted(headers) == [
        "Auto-Submitted",
        "Content-Language",
        "Content-Type",
        "Date",
        "From",
        "MIME-Version",
        "Message-ID",
        "Subject",
        "To",
        "X-Auto-Response-Suppress",
    ]


@pytest.mark.parametrize("to", ["kari@example.org", "pål@example.org"])
@pytest.mark.parametrize("length", [20, 70, 150, 400])
def test_a_message_id_stays_in_one_line(to: str, length: int) -> None:
    """It is how a mail program knows a repeat; some find none that begins on the second line."""
    _, data = compose(replace(MESSAGE, to=to, idempotency_key="k" * length), sender=SENDER)

    assert travelling(data, "Message-ID") == f"Message-ID: <certjob-{'k' * length}@hlf.example>\n"


@pytest.mark.parametrize(
    ("contact", "header"),
    [
        ("kontakt@hlf.example", "kontakt@hlf.example"),
        ("kontakt@blåbær.example", "kontakt@xn--blbr-roah.example"),
        (None, None),
        ("", None),
        ("HLF <kontakt@hlf.example>", None),
        ("kontakt@hlf.example\r\nBcc: spy@example.org", None),
        ("a@hlf.example, b@hlf.example", None),
        ("=?utf-8?q?x=0D=0ABcc:_spy@example.org?=@hlf.example", None),
        ("kåre@hlf.example", None),
    ],
)
def test_an_answer_goes_to_the_organisation(contact: str | None, header: str | None) -> None:
    """To its contact address if that is one; if not, the message goes out all the same, without the header."""
    _, data = compose(replace(MESSAGE, reply_to=contact), sender=SENDER)

    message = email.message_from_bytes(data, policy=email.policy.default)
    assert message["Reply-To"] == header
    assert message["Bcc"] is None


def test_a_reminder_is_answered_to_its_organisation(connection: Connection, facts: Facts) -> None:
    """Many a reader asks by pressing "reply"."""
    facts.certified_mentor(facts.organisation("nhf", portal=None), TODAY + timedelta(days=5))
    channel = CollectingChannel()

    night(connection, channel=channel)

    assert [message.reply_to for message in channel.sent] == ["kontakt@nhf.example"]


@pytest.mark.parametrize(
    ("sender", "header"),
    [
        ("LHL Likeperson <likeperson@lhl.example>", "LHL Likeperson <likeperson@lhl.example>"),
        ("likeperson@lhl.example", "likeperson@lhl.example"),
        (None, str(SENDER.specification)),
        ("LHL", str(SENDER.specification)),
        ("likeperson@lhl.example\r\nBcc: spy@example.org", str(SENDER.specification)),
    ],
)
def test_an_organisation_may_have_a_sender_of_its_own(sender: str | None, header: str) -> None:
    """If the app has stored one that is not an address, the message goes out all the same, from the usual one."""
    _, data = compose(replace(MESSAGE, sender=sender), sender=replace(SENDER, display_name=""))

    message = email.message_from_bytes(data, policy=email.policy.default)
    assert message["From"] == header
    assert message["Bcc"] is None


def test_reminders_and_digests_are_from_their_organisation(connection: Connection, facts: Facts) -> None:
    """Each from its own; without one, the channel's."""
    for slug in ("lhl", "hlf"):
        organisation = facts.organisation(slug, portal=None)
        facts.certified_mentor(organisation, TODAY - timedelta(days=1))
        set_organisation(connection, slug, coordinators=[f"kari@{slug}.example"])
    set_organisation(connection, "lhl", sender="LHL <likeperson@lhl.example>")
    channel = CollectingChannel()

    night(connection, channel=channel)

    assert sorted((message.kind, str(message.sender)) for message in channel.sent) == [
        ("digest", "LHL <likeperson@lhl.example>"),
        ("digest", "None"),
        ("reminder", "LHL <likeperson@lhl.example>"),
        ("reminder", "None"),
    ]


def test_a_digest_can_be_sorted_and_answered(connection: Connection, facts: Facts) -> None:
    """A daily message has a list of its own; an answer goes to the organisation, not to a sender that nobody reads."""
    organisation = facts.organisation("nhf", portal=None)
    connection.execute(
        "INSERT INTO coordinators (organisation_id, full_name, email) VALUES (%s, 'Åse Berg', 'ase@nhf.example')",
        (organisation,),
    )
    facts.certified_mentor(organisation, TODAY - timedelta(days=1))
    channel = CollectingChannel()

    night(connection, channel=channel)

    (digest,) = [message for message in channel.sent if message.kind == "digest"]
    _, data = compose(digest, sender=SENDER)
    message = email.message_from_bytes(data, policy=email.policy.default)
    assert message["To"] == "Åse Berg <ase@nhf.example>"
    assert message["Reply-To"] == "kontakt@nhf.example"
    assert message["List-Id"].startswith("<digest.nhf.")
    assert message["Content-Language"] == digest.locale


@pytest.mark.parametrize(
    ("sender", "domain"),
    [("Blå Kors <post@blåkors.example>", "xn--blkors-jua.example"), ('"Norge, HLF" <post@hlf.example>', "hlf.example")],
)
def test_the_message_id_has_the_senders_domain_as_dns_knows_it(sender: str, domain: str) -> None:
    """Not that of an organisation's own sender: the reports about it come to one mailbox."""
    _, data = compose(replace(MESSAGE, sender="post@lhl.example"), sender=parse_sender(sender))

    assert travelling(data, "Message-ID") == f"Message-ID: <certjob-reminder-4711-0@{domain}>\n"
