"""Addresses: which can receive mail, and what remains of them in the texts of servers."""

import pytest

from certjob.domain.addresses import MailAddress, parse_address, parse_sender
from certjob.mail.channels.server_text import readable

INVALID = {
    "no @": "kari",
    "two dots": "kari..nord@example.org",
    "a label of 64 letters": "kari@" + "x" * 64 + ".example",
    "255 octets": "k" * 243 + "@example.org",
    "another header": "kari@example.org\r\nRCPT TO:<ola@example.org>",
    "two addresses": "kari@example.org,ola@example.org",
    "a name": "Kari <kari@example.org>",
    "a line separator": "ka\u2028ri@example.org",
    "an encoded word": "=?utf-8?q?kari?=@example.org",
    "a domain that DNS would change": "kari@straße.example",
    "a domain that DNS cannot have": "kari@ø..example",
}


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (" Kari.O'Nord+hlf_1@Post.Example.org ", "Kari.O'Nord+hlf_1@Post.Example.org"),
        ("k" * 242 + "@example.org", "k" * 242 + "@example.org"),
        ("pål@BLÅBÆR.example", "pål@xn--blbr-roah.example"),
    ],
)
def test_address_stays_as_it_is_written(text: str, read: str) -> None:
    """Spaces around it are ignored, and an international domain has the form of DNS."""
    assert parse_address(text).specification == read


@pytest.mark.parametrize("text", INVALID.values(), ids=INVALID)
def test_invalid_address_is_rejected(text: str) -> None:
    """The error does not repeat it. No address may become several, or one of another domain."""
    with pytest.raises(ValueError, match=r"is not an address|has a domain") as caught:
        parse_address(text)
    assert "kari" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("post@hlf.example", ""),
        ('"Hørsel, Øst" <post@hlf.example>', "Hørsel, Øst"),
        ("Hørsel avd. Øst (Oslo), post <post@hlf.example>", "Hørsel avd. Øst (Oslo), post"),
    ],
)
def test_sender_may_have_a_name(text: str, name: str) -> None:
    """With or without quotes."""
    assert parse_sender(text) == MailAddress(local_part="post", domain="hlf.example", display_name=name)


@pytest.mark.parametrize(
    "text", ["HLF", "a@h.example, HLF <b@h.example>", "HLF\u202e <post@hlf.example>", "pøst@hlf.example"]
)
def test_sender_is_one_ascii_address(text: str) -> None:
    """Every server must accept it, because it is in every message."""
    with pytest.raises(ValueError, match=r"is not an address|has a character"):
        parse_sender(text)


def test_server_text_is_kept_without_addresses_and_secrets() -> None:
    """On one line and in any encoding."""
    said = "550 <pål@xn--blbr-roah.example> (pål@blåbær.example)\nunknown;\tpost@hlf.example, code 42".encode()
    recipient = parse_address("pål@blåbær.example")
    shown = readable(said.decode("ascii", "surrogateescape"), recipient=recipient, secrets=["42"])
    assert shown == "550 <recipient> (<recipient>) unknown; <address>, code <secret>"


@pytest.mark.parametrize(
    "said",
    [
        "no mailbox here for Kari.Nordmann",
        "see https://mail.example/why?rcpt=kari.nordmann%40example.org",
        "<bounce+kari.nordmann=example.org@hlf.example> rejected",
    ],
)
def test_server_text_does_not_name_the_recipient(said: str) -> None:
    """In any of the forms in which servers repeat an address."""
    assert "nordmann" not in readable(said, recipient=parse_address("kari.nordmann@example.org")).lower()
