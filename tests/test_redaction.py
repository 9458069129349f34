"""What somebody else wrote: how it is made fit to be shown, and what that costs when it was written to cost much."""

import resource
import time
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any

import psycopg
import pytest

from certjob import redaction
from certjob.cli.terminal.csv_output import spreadsheet_text
from certjob.database import connection_errors
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


@pytest.mark.parametrize("cut_in", ["kari.hem", "kari.hemmelig", "kari.hemmelig@", "kari.hemmelig@exa"])
def test_of_an_address_that_a_long_text_is_cut_in_nothing_is_left(cut_in: str) -> None:
    """Half of one is not seen to be one."""
    before = "word " * LONGEST_FOREIGN_TEXT
    text = before[: LONGEST_FOREIGN_TEXT - len(cut_in) - 1] + " kari.hemmelig@example.org"

    shown = redaction.without_people(text)

    assert "kari" not in shown
    assert shown.endswith("…")


def test_of_a_secret_in_a_long_text_nothing_is_left() -> None:
    """It is looked for before the text is cut."""
    redaction.keep([KEY])
    text = ("; " * LONGEST_FOREIGN_TEXT)[: LONGEST_FOREIGN_TEXT - 5] + KEY

    assert KEY[:5] not in redaction.without_people(text)


def refusal(text: str) -> str:
    return str(connection_errors.explain_refusal(psycopg.OperationalError(text)))


def unless_refused(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """The same for texts that are mostly refused."""

    def attempt(text: str) -> Any:
        try:
            return read(text)
        except Exception as refused:  # noqa: BLE001 - whatever it says
            return refused

    return attempt


READERS = {
    "redaction": redaction.without_people,
    "a mail server's words": readable,
    "a database's words": refusal,
    "a cell for a spreadsheet": spreadsheet_text,
    "a sender": unless_refused(parse_sender),
    "a recipient": unless_refused(parse_address),
    "a coordinator": unless_refused(parse_coordinator),
    "a Retry-After": unless_refused(lambda text: parse_retry_after(text, now=datetime.now(UTC))),
    "a name in a roster": unless_refused(cells.read_name),
    "a kind in a roster": unless_refused(cells.read_key),
    "an address in a roster": unless_refused(cells.read_email),
    "a date in a roster": unless_refused(lambda text: cells.read_date(text, formats=cells.DEFAULT_DATE_FORMATS)),
}
HOSTILE = ["a", "a@", "a.", " ", '"', "<", "a b", ": ", "-", "0", "'", "; ", "invalid ", "a:b@", "=", "a <"]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("piece", HOSTILE)
def test_a_text_ten_times_as_long_costs_nothing_like_a_hundred_times_as_much(reader: str, piece: str) -> None:
    """Whatever it repeats. Measured in processor time, so that a busy machine changes nothing."""
    short, long = ((piece * length)[:length] for length in (3_000, 30_000))

    assert seconds(READERS[reader], long) < 60 * max(seconds(READERS[reader], short), 0.0002)


def seconds(read: Callable[[str], Any], text: str) -> float:
    """The processor time of the best of some readings."""

    def once() -> float:
        began = time.process_time()
        read(text)
        return time.process_time() - began

    return min(once() for _ in range(8))


def test_a_portal_that_answers_sixty_thousand_letters_does_not_hold_the_run(certjob: Certjob, facts: Facts) -> None:
    """It held it for more than a minute, after a signal, too."""
    facts.certified_mentor(facts.organisation(), date(2024, 2, 1), member_no="M1042")
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    with PortalServer(key=KEY) as portal:
        portal.then(error(404, "contact_not_found", message="a" * 60_000))

        result = certjob("resync", "M1042", CERTJOB_PORTAL_URL=portal.url, CERTJOB_PORTAL_KEY=KEY)

    assert result.returncode == 3
    assert "404 contact_not_found" in result.stderr
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 5
