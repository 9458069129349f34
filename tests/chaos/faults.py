"""What may go wrong, and where: plain values, made from a seed by ``tests.chaos.plans``."""

from dataclasses import dataclass
from enum import StrEnum


class Spot(StrEnum):
    """What is counted to find the place of a fault."""

    STATEMENT = "statement"
    REQUEST = "request"
    MAIL = "mail"
    STEP = "step of a mail session"  # the connection, each command of certjob's, and each body
    TURN = "turn"  # a callback that the event loop is about to run
    RESULT = "result"  # what a thread hands to the event loop
    PUSH = "push"  # the task of a push


IN_THE_LOOP = frozenset({Spot.TURN, Spot.RESULT, Spot.PUSH})
"""The process strikes itself there; see ``struck_command``."""


class When(StrEnum):
    """On which side of it."""

    BEFORE = "before"  # the statement is forwarded, the request acted on, the mail taken
    AFTER = "after"  # it is done, and not yet answered
    ANSWERED = "answered"


class Action(StrEnum):
    """What happens there."""

    KILL = "kill"
    STOP = "stop"  # SIGTERM and SIGINT: it ends at once, and cleans up
    CUT = "cut"  # the database connection is closed on both sides
    RESTART = "restart"  # PostgreSQL stopped with ``immediate``, and started again
    BLACK_HOLE_KILL = "black hole, kill"  # nothing passes to or from the database any more; then kill -9
    BLACK_HOLE_STOP = "black hole, stop"  # the same, ended by signals: certjob must not wait for the database
    LATE = "late"  # a turn takes more than a second, for which all timers wait; or a result comes so much later
    CANCEL = "cancel"  # a task is cancelled in the middle
    OVERTAKE = "overtake"  # it comes so late that its lease is over, and another run has done the work


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that goes wrong in one process."""

    spot: Spot
    number: int
    """The n-th statement, request or mail, from 1."""
    when: When = When.BEFORE
    action: Action
    settle: str = ""
    """Only settles of ``portal_events`` count, or of ``reminders``."""
    steps: int = 0
    """So many turns after a task was made it is cancelled."""

    @property
    def label(self) -> str:
        """The kind of fault, for the summary."""
        if self.spot in IN_THE_LOOP:
            return f"{self.action}: a {self.spot} of the event loop"
        place = f"a settle of {self.settle}" if self.settle else f"a {self.spot}"
        return f"{self.action} {self.when} {place}"


class Word(StrEnum):
    """What the portal does with one request: each way in which an answer counts, after acting and without.

    Which answers count in which way: see tests/portal/test_hlf_dynamics.py.
    """

    OK = "ok"
    SLOW = "slow"
    CUT = "200, but the answer is cut"
    ERROR = "502"
    ERROR_AFTER_ACTING = "500 after acting"
    THROTTLED_SECONDS = "429 with seconds"
    THROTTLED_LONG = "429 for 15 minutes"
    RESET = "reset"
    RESET_AFTER_ACTING = "reset after acting"
    HANG = "black hole"
    WRONG_KEY = "401"


ACTING = {Word.OK, Word.SLOW, Word.CUT} | {word for word in Word if "after acting" in word}
"""The words after which the portal shows the value."""


class Phase(StrEnum):
    """Where a mail session is."""

    CONNECT = "the connection"
    EHLO = "EHLO"
    STARTTLS = "STARTTLS"
    HANDSHAKE = "the TLS handshake"
    LOGIN = "the login"
    MAIL = "MAIL"
    RCPT = "RCPT"
    DATA = "DATA"
    BODY = "the body"
    DOT = "the dot"  # the message is whole, and is not taken
    REPLY = "the reply"  # the message is taken
    QUIT = "QUIT"


class Manner(StrEnum):
    """What the mail server does there instead of going on."""

    DROP = "dropped"
    HANG = "silent"
    GARBAGE = "garbage"
    SURPLUS = "two replies at once"
    LATER = "450"
    CLOSING = "421"


@dataclass(frozen=True, slots=True)
class MailTrouble:
    """One thing that goes wrong in a mail session, the next time it comes to this phase."""

    phase: Phase
    manner: Manner

    def __str__(self) -> str:
        return f"{self.manner} at {self.phase}"


MailWord = MailTrouble | None
"""What becomes of the next message; None: all is well."""

EACH_MESSAGE = frozenset({Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.BODY, Phase.DOT, Phase.REPLY})
"""Where each message comes by; the others belong to the connection."""
SECURED = frozenset({Phase.STARTTLS, Phase.HANDSHAKE, Phase.LOGIN})
"""Only sessions with a login come there."""

_PHASES = {
    **dict.fromkeys((Manner.DROP, Manner.HANG, Manner.GARBAGE), frozenset(Phase)),
    Manner.SURPLUS: frozenset(Phase) - {Phase.BODY, Phase.HANDSHAKE},
    Manner.CLOSING: frozenset(Phase) - {Phase.BODY, Phase.HANDSHAKE, Phase.REPLY, Phase.QUIT},
    Manner.LATER: frozenset({Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.DOT}),
}
"""A server that takes a message says nothing else, for that would be a lie."""

MAIL_TROUBLES = tuple(MailTrouble(phase, manner) for phase in Phase for manner in Manner if phase in _PHASES[manner])
"""All that can happen."""
