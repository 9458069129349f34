"""Addresses: what can be sent to, what cannot, and what servers say about them."""

import pytest

from certjob.domain.addresses import MailAddress, parse_address, parse_sender
from certjob.mail.channels.server_text import readable

NO_ADDRESSES = (
    *("", "kari", "kari@", "@example.org", "kari nord@example.org", "kari@example@example.org"),
    *("kari..nord@example.org", "kari@example..org", "kari@-example.org", "kari@exa_mple.org", "kari@example.org\n"),
    *("kari@example.org\r\nRCPT TO:<ola@example.org>", "kari@example.org,ola@example.org", "Kari <kari@example.org>"),
    *('"kari nord"@example.org', "kari@[192.0.2.1]", "kari\u2028@example.org", "kari\udc80@example.org"),
    *("kari@straße.example", "kari@ø..example", "kari@" + "ø" * 70 + ".example", "kari@" + "x" * 64 + ".example"),
    *("=?utf-8?q?kari?=@example.org", "k" * 243 + "@example.org"),
)


def test_an_address_is_read_and_its_domain_comes_out_as_dns_knows_it() -> None:
    long = "k" * 242 + "@example.org"
    for text in ("Kari.O'Nord+hlf_1@Post.Example.org", "kari@localhost", long):
        assert parse_address(f" {text} ").specification == text
    assert parse_address("pål@BLÅBÆR.example").specification == "pål@xn--blbr-roah.example"


def test_what_cannot_be_sent_to_is_not_an_address() -> None:
    """One recipient, no tricks, and never another domain than the one that was meant."""
    for text in NO_ADDRESSES:
        with pytest.raises(ValueError, match=r"is not an address|has a domain") as caught:
            parse_address(text)
        assert "kari" not in str(caught.value)


def test_a_sender_is_exactly_one_ascii_address_that_may_have_a_name() -> None:
    """With or without quotes, as people write it. It stands in every message, so every server must take it."""
    for text, name in {
        "post@hlf.example": "",
        "<post@hlf.example>": "",
        '"Hørsel, Øst" <post@hlf.example>': "Hørsel, Øst",
        "Hørsel avd. Øst (Oslo), post <post@hlf.example>": "Hørsel avd. Øst (Oslo), post",
    }.items():
        assert parse_sender(text) == MailAddress(local_part="post", domain="hlf.example", display_name=name)
    for text in (
        *("HLF", "HLF <post@hlf.example", "HLF <post@hlf.example> x", "a@hlf.example, HLF <b@hlf.example>"),
        *("HLF\n <post@hlf.example>", "HLF\u202e <post@hlf.example>", "pøst@hlf.example"),
    ):
        with pytest.raises(ValueError, match=r"is not an address|has a character"):
            parse_sender(text)


def test_a_servers_words_are_kept_without_the_people_in_them() -> None:
    """What helps the operator stays, in one line, whatever the encoding."""
    said = "550 <pål@xn--blbr-roah.example> (pål@blåbær.example)\nunknown;\tpost@hlf.example, code 42".encode()
    shown = readable(
        said.decode("ascii", "surrogateescape"), recipient=parse_address("pål@blåbær.example"), secrets=["42"]
    )
    assert shown == "550 <recipient> (<recipient>) unknown; <address>, code <secret>"
    for echo in (
        "5.1.1 <kari.nordmann@example.org>: Recipient address rejected",
        "no mailbox here for Kari.Nordmann",
        "see https://mail.example/why?rcpt=kari.nordmann%40example.org",
        "<bounce+kari.nordmann=example.org@hlf.example> refused",
        "forwarded to knordmann@work.example and refused",
        "very " * 500 + "\x1b[31mno\x00\udcff",
    ):
        shown = readable(echo, recipient=parse_address("kari.nordmann@example.org"))
        assert ("nordmann" in shown.lower(), shown.isprintable(), len(shown) <= 300) == (False, True, True)
    assert readable("x" * 301) == "x" * 299 + "…"
