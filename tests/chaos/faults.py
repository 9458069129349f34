"""What may go wrong, and where: plain values, made from a seed by ``tests.chaos.plans``."""

from dataclasses import dataclass
from enum import StrEnum


class Spot(StrEnum):
    """What is counted to find the place of a fault."""

    STATEMENT = "statement"
    REQUEST = "request"
    MAIL = "mail"
    MOMENT = "moment"
    """So many milliseconds after the first statement."""


class When(StrEnum):
    """On which side of it."""

    BEFORE = "before"
    """Before the statement is forwarded, the request acted on, the mail taken."""
    AFTER = "after"
    """Once that is done, before its answer."""
    ANSWERED = "answered"
    """Once the answer has left."""


class Action(StrEnum):
    """What happens there."""

    KILL = "kill"
    """kill -9 of the process."""
    STOP = "stop"
    """SIGTERM and SIGINT: it ends at once, and cleans up."""
    CUT = "cut"
    """The database connection is closed on both sides."""
    TERMINATE = "terminate"
    """pg_terminate_backend of its sessions."""
    RESTART = "restart"
    """PostgreSQL stopped with ``immediate``, and started again."""
    BLACK_HOLE_KILL = "black hole, kill"
    """Nothing passes to or from the database any more; then kill -9."""
    BLACK_HOLE_STOP = "black hole, stop"
    """The same, ended by signals: certjob must not wait for the database."""
    OVERTAKE = "overtake"
    """The facts of the mentor in hand change, and a resync of them begins meanwhile."""
    OUTLAST = "outlast"
    """The lease of what is just being settled runs out, and another process has taken it over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that goes wrong in one process."""

    spot: Spot
    number: int
    """The n-th statement, request or mail, from 1; for a moment, milliseconds."""
    when: When = When.BEFORE
    action: Action
    text: str = ""
    """Only statements with this text count: the beginning of a settle."""

    @property
    def label(self) -> str:
        """The kind of fault, for the summary."""
        if self.spot is Spot.MOMENT:
            return f"{self.action} at a moment"
        place = f"the settle of {self.text.split()[1]}" if self.text else f"a {self.spot}"
        return f"{self.action} {self.when} {place}"

    @property
    def answer_survives(self) -> bool:
        """Whether certjob still gets the answer that was kept back meanwhile."""
        return self.action in {Action.STOP, Action.OVERTAKE, Action.OUTLAST}


class Word(StrEnum):
    """What the portal does with one request."""

    OK = "ok"
    SLOW = "slow"
    CUT = "200, but the answer is cut"
    ERROR = "502"
    ERROR_AFTER_ACTING = "500 after acting"
    THROTTLED_SECONDS = "429 with seconds"
    THROTTLED_DATE = "429 with a date"
    THROTTLED_LONG = "429 for 15 minutes"
    RESET = "reset"
    RESET_AFTER_ACTING = "reset after acting"
    DRIP = "slow drip"
    HANG = "black hole"
    TOO_LARGE = "413"
    REDIRECT = "redirect"
    NO_JSON = "invalid JSON"
    NO_JSON_AFTER_ACTING = "invalid JSON after acting"
    HTML_OK = "HTML with 200"
    HTML_ERROR = "HTML error page"
    WRONG_KEY = "401"


ACTING = frozenset(
    {
        Word.OK,
        Word.SLOW,
        Word.CUT,
        Word.ERROR_AFTER_ACTING,
        Word.RESET_AFTER_ACTING,
        Word.DRIP,
        Word.NO_JSON_AFTER_ACTING,
    }
)
"""The words after which the portal shows the value."""


class MailWord(StrEnum):
    """What the mail server does with one message."""

    OK = "ok"
    DEFER = "451, not taken"
    CUT = "taken, connection cut"
    LOST = "not taken, connection cut"
    CUT_AT_MAIL = "connection cut at MAIL"
    CUT_AT_RCPT = "connection cut at RCPT"
    CUT_AT_DATA = "connection cut after 354"
    GREYLIST = "450 at RCPT"
    CLOSING = "421 at RCPT"
    SURPLUS = "two answers to RCPT"
