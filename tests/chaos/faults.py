"""The faults of a run: where each one happens, and its effect."""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class Spot(StrEnum):
    """The events that are counted to find the place of a fault."""

    STATEMENT = "statement"
    REQUEST = "request"
    MAIL = "mail"


class When(StrEnum):
    """The moment of a fault at a spot."""

    BEFORE = "before"  # the server has not seen the statement, the request or the mail
    AFTER = "after"  # the server has applied it, and has not answered
    ANSWERED = "answered"


class Action(StrEnum):
    """The effect of a fault."""

    KILL = "kill"
    STOP = "stop"  # SIGTERM and SIGINT: certjob ends at once and cleans up
    CUT = "cut"  # both sides of the database connection close
    RESTART = "restart"  # PostgreSQL stops with ``immediate`` and starts again
    BLACK_HOLE = "black hole"  # the database connection goes silent, then signals: certjob must not wait for it
    OVERTAKE = "overtake"  # the lease expires first, and another run does the work


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault in one process, at the n-th event of its spot."""

    spot: Spot
    number: int
    when: When = When.BEFORE
    action: Action
    settle: str = ""
    """``portal_events`` or ``reminders``: count only the statements that settle these."""


class MailFault(NamedTuple):
    """A fault the next time that a mail session reaches this phase."""

    phase: str
    manner: str


PHASES = ("GREETING", "EHLO", "MAIL", "RCPT", "DATA", "BODY", "DOT", "REPLY", "QUIT")
"""The server takes a message between DOT and REPLY."""

_NOT_IN = {
    "dropped": "",
    "silent": "",
    "garbage": "",
    "421": "BODY REPLY QUIT",  # a server that has taken a message does not reject it
    "450": "GREETING EHLO BODY REPLY QUIT",
}
MAIL_FAULTS = [
    MailFault(phase, how) for phase in PHASES for how, phases in _NOT_IN.items() if phase not in phases.split()
]
