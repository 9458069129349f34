"""What somebody else wrote: how it is made fit to be shown, and what that costs when it was written to cost much."""

import contextlib
import time
from collections.abc import Callable
from datetime import UTC, date, datetime

import psycopg
import pytest

from certjob import redaction
from certjob.cli.terminal.csv_output import spreadsheet_text
from certjob.database.connection_errors import explain_refusal
from certjob.domain.addresses import parse_address, parse_sender
from certjob.facts import cells
from certjob.facts.organisations import parse_coordinator
from certjob.mail.channels.server_text import readable
from certjob.outbox.retry import parse_retry_after
from certjob.redaction import LONGEST_FOREIGN_TEXT
from tests.conftest import Certjob
from tests.support.facts import Facts
from tests.support.portal_answers import error
from tests.support.portal_server import PortalServer

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
    "redaction": redaction.without_people,
    "a mail server's words": readable,
    "a database's words": lambda text: str(explain_refusal(psycopg.OperationalError(text))),
    "a cell for a spreadsheet": spreadsheet_text,
    "a sender": parse_sender,
    "a recipient": parse_address,
    "a coordinator": parse_coordinator,
    "a Retry-After": lambda text: parse_retry_after(text, now=datetime.now(UTC)),
    "a name in a roster": cells.read_name,
    "a kind in a roster": cells.read_key,
    "an address in a roster": cells.read_email,
    "a date in a roster": lambda text: cells.read_date(text, formats=cells.DEFAULT_DATE_FORMATS),
}
HOSTILE = ["a", "a@", "a.", " ", '"', "<", "a b", ": ", "-", "0", "'", "; ", "invalid ", "a:b@", "=", "a <"]


@pytest.mark.parametrize("reader", READERS)
def test_a_text_ten_times_as_long_costs_nothing_like_a_hundred_times_as_much(reader: str) -> None:
    """Whatever it repeats. Measured in processor time, so that a busy machine changes nothing."""

    def seconds(text: str) -> float:
        took = []
        for _ in range(8):
            began = time.process_time()
            with contextlib.suppress(Exception):  # it may be refused, if that is quick
                READERS[reader](text)
            took.append(time.process_time() - began)
        return min(took)

    for piece in HOSTILE:
        short, long = ((piece * length)[:length] for length in (3_000, 30_000))
        assert seconds(long) < 60 * max(seconds(short), 0.0002), piece


def test_a_portal_that_answers_sixty_thousand_letters_does_not_hold_the_run(
    here: Certjob, portal: PortalServer, ways_out: dict[str, str], facts: Facts
) -> None:
    """It held it for more than a minute, after a signal, too."""
    facts.certified_mentor(facts.organisation(), date(2024, 2, 1), member_no="M1042")
    portal.then(error(404, "contact_not_found", message="a" * 60_000))

    began = time.process_time()
    result = here("resync", "M1042", **ways_out)

    assert (result.returncode, "404 contact_not_found" in result.stderr) == (3, True)
    assert time.process_time() - began < 5
