"""Foreign texts: secrets and addresses are removed, in linear time."""

import time
from collections.abc import Callable

import psycopg
import pytest

from certjob import redaction
from certjob.database.connection_errors import explain_rejection
from certjob.mail.channels.server_text import readable
from certjob.redaction import LONGEST_FOREIGN_TEXT

KEY = "a-key-of-the-portal-for-these-tests"


def test_addresses_are_removed_in_brackets_quotes_and_lists() -> None:
    """Words without an @ are kept."""
    text = 'no <kari@example.org>, "ola@example.org"; RCPT:<a@b@c.example> (eva.å@example.org) at @home'

    assert redaction.without_people(text) == 'no <address>, "<address>"; RCPT:<address>@c.example> (<address>) at @home'


@pytest.mark.parametrize("cut_in", ["kari.hem", "kari.hemmelig@", "kari.hemmelig@exa"])
def test_long_text_is_not_cut_in_an_address(cut_in: str) -> None:
    """Half an address would not be recognized."""
    before = ("word " * LONGEST_FOREIGN_TEXT)[: LONGEST_FOREIGN_TEXT - len(cut_in) - 1]

    shown = redaction.without_people(f"{before} kari.hemmelig@example.org")

    assert ("kari" in shown, shown[-1]) == (False, "…")


def test_long_text_is_not_cut_in_a_secret() -> None:
    """Secrets are removed before the text is cut. The next command has other secrets."""
    redaction.keep(["another"])
    redaction.keep([KEY])

    shown = redaction.without_people(("; another" * LONGEST_FOREIGN_TEXT)[: LONGEST_FOREIGN_TEXT - 5] + KEY)

    redaction.keep([])
    assert KEY[:5] not in shown
    assert "another" in shown


@pytest.mark.parametrize(
    "read",
    [
        pytest.param(redaction.foreign_line, id="redaction"),
        pytest.param(readable, id="text of a mail server"),
        pytest.param(lambda text: explain_rejection(psycopg.OperationalError(text)), id="text of a database"),
    ],
)
def test_long_text_takes_no_quadratic_time(read: Callable[[str], object]) -> None:
    """A server cannot stop a run with a long text. In quadratic time, these would take minutes."""
    began = time.process_time()

    for piece in ("a@", "a.", '"', "<", ": ", "'", "invalid ", "a:b@", "a <"):
        read(piece * 30_000)

    assert time.process_time() - began < 10
