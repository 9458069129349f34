"""The two parts of a message: they arrive as they were written, whatever stands in them."""

import email
import email.policy
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certjob.domain.addresses import parse_sender
from certjob.mail.message import OutgoingMessage, compose
from tests.support.mails import MESSAGE

SENDER = parse_sender("post@hlf.example")
PIECES = st.sampled_from(
    [
        "Hei",
        "å",
        "😀",
        " ",
        "\t",
        "\n",
        "\n.\n",
        "\n..",
        "=",
        "=_",
        "--=_certjob",
        "--=_certjob--",
        "\nFrom ",
        "\x0b",
        "x" * 90,
    ]
)
TEXTS = st.lists(PIECES, min_size=1, max_size=20).map("".join).filter(str.strip)


def parts(message: OutgoingMessage) -> dict[str, str]:
    """The decoded parts by their types, their lines ended as certjob's texts end them."""
    _, written = compose(message, sender=SENDER)
    read = email.message_from_bytes(written, policy=email.policy.default)
    assert [part.defects for part in read.walk()] == [[], [], []]
    decoded = {part.get_content_type(): part.get_payload(decode=True) for part in read.iter_parts()}
    return {kind: data.decode() for kind, data in decoded.items() if isinstance(data, bytes)}


@given(text=TEXTS, html=TEXTS)
def test_both_parts_arrive_as_they_were_written(text: str, html: str) -> None:
    """No line looks like the end of a part, and no space at a line's end is lost on the way."""
    message = replace(MESSAGE, text=f"{text}\n", html=f"{html}\n")

    arrived = parts(message)

    assert arrived == {"text/plain": message.text, "text/html": message.html}


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_a_programmes_own_line_ends_become_those_of_the_wire(ending: str) -> None:
    """A template may have been saved by any editor."""
    arrived = parts(replace(MESSAGE, text=f"Hei{ending}Kari{ending}"))

    assert arrived["text/plain"] == "Hei\nKari\n"


def test_a_message_travels_in_short_lines_of_ascii() -> None:
    """Every server on the way can take it (RFC 5321, 4.5.3.1.6)."""
    message = replace(MESSAGE, subject="Går ut snart, " * 20, text="blåbær " * 300, html="😀" * 300)

    _, data = compose(message, sender=SENDER)

    assert data.isascii()
    assert max(map(len, data.splitlines())) <= 78
    assert data.count(b"\n") == len(data.splitlines())
