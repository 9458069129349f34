"""Foreign texts: secrets and addresses are removed, in linear time."""

import contextlib
import time
import timeit
from collections.abc import Callable
from datetime import UTC, datetime

import psycopg
import pytest

from certjob import redaction
from certjob.cli.terminal.csv_output import spreadsheet_text
from certjob.database.connection_errors import explain_refusal
from certjob.domain.addresses import parse_address, parse_sender
from certjob.facts import cells
from certjob.facts.organisations import read_coordinator
from certjob.mail.channels.server_text import readable
from certjob.outbox.retry import parse_retry_after
from certjob.redaction import LONGEST_FOREIGN_TEXT

KEY = "a-key-of-the-portal-for-these-tests"


def test_addresses_are_removed_in_brackets_quotes_and_lists() -> None:
    """Words without an @ are kept."""
    text = 'no <kari@example.org>, "ola@example.org"; RCPT:<a@b@c.example> (eva.å@example.org) at @home'

    assert redaction.without_people(text) == 'no <address>, "<address>"; RCPT:<address>@c.example> (<address>) at @home'


@pytest.mark.parametrize("cut_in", ["kari.hem", "kari.hemmelig", "kari.hemmelig@", "kari.hemmelig@exa"])
def test_long_text_is_not_cut_in_an_address(cut_in: str) -> None:
    """Half an address would not be recognized."""
    before = ("word " * LONGEST_FOREIGN_TEXT)[: LONGEST_FOREIGN_TEXT - len(cut_in) - 1]

    shown = redaction.without_people(f"{before} kari.hemmelig@example.org")

    assert ("kari" in shown, shown[-1]) == (False, "…")


def test_long_text_is_not_cut_in_a_secret() -> None:
    """Secrets are removed before the text is cut."""
    redaction.keep([KEY])

    assert KEY[:5] not in redaction.without_people(("; " * LONGEST_FOREIGN_TEXT)[: LONGEST_FOREIGN_TEXT - 5] + KEY)


READERS: dict[str, Callable[[str], object]] = {
    "redaction": redaction.foreign_line,
    "text of a mail server": readable,
    "text of a database": lambda text: str(explain_refusal(psycopg.OperationalError(text))),
    "cell for a spreadsheet": spreadsheet_text,
    "sender": parse_sender,
    "recipient": parse_address,
    "coordinator": read_coordinator,
    "Retry-After": lambda text: parse_retry_after(text, now=datetime.now(UTC)),
    "name in a roster": cells.read_name,
    "kind in a roster": cells.read_key,
    "address in a roster": cells.read_email,
    "date in a roster": cells.read_date,
}
PIECES = ["a", "a@", "a.", " ", '"', "<", "a b", ": ", "-", "0", "'", "; ", "invalid ", "a:b@", "=", "a <"]


@pytest.mark.parametrize("reader", READERS)
def test_long_text_takes_linear_time(reader: str) -> None:
    """A text of repeated pieces that is ten times as long takes at most 60 times the processor time."""

    def read(text: str) -> None:
        with contextlib.suppress(Exception):  # a reader may refuse the text
            READERS[reader](text)

    def seconds(text: str) -> float:
        return min(timeit.repeat(lambda: read(text), timer=time.process_time, repeat=8, number=1))

    for piece in PIECES:
        short, long = ((piece * length)[:length] for length in (3_000, 30_000))
        assert seconds(long) < 60 * max(seconds(short), 0.0002), piece
