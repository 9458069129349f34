"""What somebody else wrote: how it is made fit to be shown, and what that costs when it was written to cost much."""

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


def test_an_address_goes_wherever_it_stands() -> None:
    """In brackets, quotes and lists; words without an @ stay."""
    said = 'no <kari@example.org>, "ola@example.org"; RCPT:<a@b@c.example> (eva.å@example.org) at @home'

    assert redaction.without_people(said) == 'no <address>, "<address>"; RCPT:<address>@c.example> (<address>) at @home'


def test_of_an_address_or_a_secret_that_a_long_text_is_cut_in_nothing_is_left() -> None:
    """Half of one is not seen to be one: it is looked for before the text is cut."""
    for cut_in in ("kari.hem", "kari.hemmelig", "kari.hemmelig@", "kari.hemmelig@exa"):
        before = ("word " * LONGEST_FOREIGN_TEXT)[: LONGEST_FOREIGN_TEXT - len(cut_in) - 1]
        shown = redaction.without_people(f"{before} kari.hemmelig@example.org")
        assert ("kari" in shown, shown[-1]) == (False, "…")
    redaction.keep([KEY])
    assert KEY[:5] not in redaction.without_people(("; " * LONGEST_FOREIGN_TEXT)[: LONGEST_FOREIGN_TEXT - 5] + KEY)


READERS: dict[str, Callable[[str], object]] = {
    "redaction": redaction.foreign_line,
    "a mail server's words": readable,
    "a database's words": lambda text: str(explain_refusal(psycopg.OperationalError(text))),
    "a cell for a spreadsheet": spreadsheet_text,
    "a sender": parse_sender,
    "a recipient": parse_address,
    "a coordinator": read_coordinator,
    "a Retry-After": lambda text: parse_retry_after(text, now=datetime.now(UTC)),
    "a name in a roster": cells.read_name,
    "a kind in a roster": cells.read_key,
    "an address in a roster": cells.read_email,
    "a date in a roster": cells.read_date,
}
HOSTILE = ["a", "a@", "a.", " ", '"', "<", "a b", ": ", "-", "0", "'", "; ", "invalid ", "a:b@", "=", "a <"]


@pytest.mark.parametrize("reader", READERS)
def test_a_text_ten_times_as_long_costs_nothing_like_a_hundred_times_as_much(reader: str) -> None:
    """Whatever it repeats. Measured in processor time, so that a busy machine changes nothing."""

    def read(text: str) -> None:
        with contextlib.suppress(Exception):  # it may be refused, if that is quick
            READERS[reader](text)

    def seconds(text: str) -> float:
        return min(timeit.repeat(lambda: read(text), timer=time.process_time, repeat=8, number=1))

    for piece in HOSTILE:
        short, long = ((piece * length)[:length] for length in (3_000, 30_000))
        assert seconds(long) < 60 * max(seconds(short), 0.0002), piece
