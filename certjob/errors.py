"""Every error certjob raises on purpose: what is wrong, the next step, and ids as attributes.

CertjobError                      exit 1
├── ConfigurationError            exit 2   a setting or argument is missing or wrong
│   ├── SchemaError               exit 2   not migrated, too new, or an applied migration was edited
│   ├── UsageError                exit 2   the command line cannot be understood
│   ├── UnknownMentorError        exit 2   no such mentor, or several
│   ├── ClocksDisagreeError       exit 2   this machine and the database server are on different days
│   ├── TemplateError             exit 2   a message template of the programme's own is broken
│   └── InputError                exit 2   a file that is no CSV
├── DatabaseUnavailableError      exit 1
├── DatabaseError                 exit 1   it refused a statement, or could not do it now
├── DiskFullError                 exit 1
├── InternalError                 exit 1
├── StoppedBySignalError          exit 1
├── BrokenMentorError             exit 3   one mentor's rows are beyond the bounds of the schema
├── MentorBusyError               exit 3   a resync could not get its lock, or another run's push is in flight
├── DynamicsSyncException         exit 3   a portal push was given up for now
├── PortalCallError                        one call to the Edge Function went wrong (internal to the saga)
│   ├── TransientPortalError               worth another try
│   ├── PermanentPortalError               this mentor cannot be pushed until somebody corrects something
│   └── PortalStageError                   nobody can be pushed: wrong key, failed deploy, redirect
└── NotifyError                            one message could not be handed over (internal to the mail stage)
    ├── RecipientRefusedError              this recipient, for good
    ├── RecipientDeferredError             this recipient, for now
    ├── OutcomeUnknownError                it may or may not have been accepted
    └── ChannelDownError                   everybody: connection, TLS, login
"""

from enum import StrEnum
from uuid import UUID


class FailureCode(StrEnum):
    """Why a push or a message was not delivered. It is stored beside the text and says what a reader is told.

    A value, once released, keeps its meaning: rows and other programs hold it.
    """

    NO_CONTACT_ID = "no_contact_id"
    """The mentor has no ``dynamics_contact_id``; no call was made."""
    CONTACT_NOT_FOUND = "contact_not_found"
    """The portal has no contact with this id."""
    INVALID_REQUEST = "invalid_request"
    """The Edge Function did not accept the request for this contact."""
    DYNAMICS_REJECTED = "dynamics_rejected"
    """Dynamics refused the change of this contact."""

    PORTAL_NO_ANSWER = "portal_no_answer"
    """No connection, or no whole answer in time."""
    PORTAL_THROTTLED = "portal_throttled"
    """The portal asked to be called later (429)."""
    PORTAL_FAILED = "portal_failed"
    """The portal answered that it could not do it."""
    OUTCOME_UNKNOWN = "outcome_unknown"
    """The portal may have made the change, or may make it later."""

    PORTAL_KEY_REFUSED = "portal_key_refused"
    """The portal refused the key (401, 403): no push can succeed."""
    PORTAL_MISCONFIGURED = "portal_misconfigured"
    """The address, the function or its secrets are wrong: no push can succeed."""
    NO_URL = "no_url"
    """CERTJOB_PORTAL_URL is not set."""
    BREAKER = "breaker"
    """Several pushes in a row failed, and the stage ended before this one."""
    RETRY_AFTER = "retry_after"
    """The portal asked to wait for longer than the stage does, and the stage ended before this push."""
    DEADLINE = "deadline"
    """The time for deliveries ended before this push."""
    LEASE = "lease"
    """The process stood still for so long that nothing could be begun."""
    IN_FLIGHT = "in_flight"
    """Another run is pushing for this mentor."""
    CRASH = "crash"
    """The stage ended by an error that nobody foresaw."""

    NO_ADDRESS = "no_address"
    """There is no e-mail address; no server was asked."""
    BAD_ADDRESS = "bad_address"
    """The e-mail address is not valid; no server was asked."""
    ADDRESS_NOT_SUPPORTED = "address_not_supported"
    """The mail server does not accept letters beyond ASCII before the @."""
    ADDRESS_REFUSED = "address_refused"
    """The mail server refused the recipient for good."""
    MESSAGE_REFUSED = "message_refused"
    """The mail server or the webhook refused the message for good, or the message cannot be written."""
    DEFERRED = "deferred"
    """The mail server or the webhook asked to try this recipient later."""
    MAYBE_ARRIVED = "maybe_arrived"
    """The connection broke when the message was handed over: it may have arrived."""
    BOUNCED = "bounced"
    """The mail was sent, and a delivery report says that it did not arrive."""
    CHANNEL_DOWN = "channel_down"
    """The mail server or the webhook takes no messages at all."""

    @classmethod
    def parse(cls, stored: str | None) -> "FailureCode | None":
        """Return the code of a row; None without one, and for one that a newer certjob has written."""
        try:
            return cls(stored) if stored is not None else None
        except ValueError:
            return None


class CertjobError(Exception):
    """Root of certjob's own errors; carries the exit code and the code of the JSON error document."""

    exit_code = 1
    code: str = "failed"

    def __init__(self, message: str, *, next_step: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        """What is wrong."""
        self.next_step = next_step
        """What to do; None: nothing, or the message says it."""

    def __str__(self) -> str:
        """What is wrong and the next step, on one line."""
        if not self.next_step:
            return self.message
        return f"{self.message}{'' if self.message.endswith('?') else ';'} {self.next_step}"

    def to_document(self) -> dict[str, str | None]:
        """Return the ``error`` of a JSON document."""
        return {"code": str(self.code), "message": self.message, "next_step": self.next_step}


class ConfigurationError(CertjobError):
    """A setting, an option or an argument is missing or wrong."""

    exit_code = 2
    code = "configuration"


class SchemaError(ConfigurationError):
    """The database's schema is not the one this certjob works with."""

    code = "schema"


class UsageError(ConfigurationError):
    """The command line cannot be understood."""

    code = "usage"


class UnknownMentorError(ConfigurationError):
    """No mentor, or more than one, goes by that name."""

    code = "unknown_mentor"


class ClocksDisagreeError(ConfigurationError):
    """This machine's clock and the database server's show different days; one of them is wrong."""

    code = "clocks_disagree"


class TemplateError(ConfigurationError):
    """A message template is broken, or breaks on one mentor's data; ``file`` is its path in the templates' folder."""

    code = "template"

    def __init__(self, reason: str, *, file: str, next_step: str, line: int | None = None) -> None:
        super().__init__(f"{file} line {line}: {reason}" if line else f"{file}: {reason}", next_step=next_step)
        self.file = file
        self.line = line
        self.reason = reason


class InputError(ConfigurationError):
    """A file cannot be read as what it should be."""

    code = "input"


class DatabaseUnavailableError(CertjobError):
    """The database cannot be reached, or went away."""

    code = "database_unavailable"


class DatabaseError(CertjobError):
    """The database did not do what it was asked to do."""

    code = "database"


class DiskFullError(CertjobError):
    """No space is left on this machine's disk."""

    code = "disk_full"


class InternalError(CertjobError):
    """Something that nobody foresaw."""

    code = "internal"


class StoppedBySignalError(CertjobError):
    """SIGTERM, SIGINT or SIGHUP; what was settled is settled, the rest is still queued."""

    code = "stopped"


class BrokenMentorError(CertjobError):
    """One mentor has more rows, or longer ones, than certjob reads; somebody has to delete or shorten them."""

    exit_code = 3
    code = "broken_mentor"


class MentorBusyError(CertjobError):
    """One mentor could not be worked on now, because somebody else is doing so."""

    exit_code = 3
    code = "mentor_busy"


class PortalCallError(CertjobError):
    """One call to the Edge Function did not succeed.

    ``code`` says why, each class has its usual one. ``status`` is that of the answer, None without one;
    ``retry_after_seconds`` what the server asked for, ``correlation_id`` its X-Correlation-Id.
    """

    code = FailureCode.PORTAL_FAILED

    def __init__(
        self,
        message: str,
        *,
        next_step: str | None = None,
        code: FailureCode | None = None,
        status: int | None = None,
        retry_after_seconds: float | None = None,
        correlation_id: str | None = None,
    ) -> None:
        super().__init__(message, next_step=next_step)
        self.code = code or type(self).code
        self.status = status
        self.retry_after_seconds = retry_after_seconds
        self.correlation_id = correlation_id


class TransientPortalError(PortalCallError):
    """Network trouble, throttling, a cold or broken server, an answer that is not the contract."""

    code = FailureCode.PORTAL_NO_ANSWER


class PermanentPortalError(PortalCallError):
    """The function understood and refused this contact; the next call would be refused too."""

    code = FailureCode.DYNAMICS_REJECTED


class PortalStageError(PortalCallError):
    """No push can succeed now, whoever it is for; nobody is to blame but the configuration."""

    code = FailureCode.PORTAL_MISCONFIGURED


class DynamicsSyncException(CertjobError):  # noqa: N818 - the programme's own word for it, fixed by the design
    """A mentor's portal push was given up for this round; our state stays, the event stays open."""

    exit_code = 3
    code = "dynamics_sync"

    def __init__(
        self,
        message: str,
        *,
        next_step: str | None = None,
        mentor_id: UUID,
        event_id: int,
        attempts: int,
        cause: PortalCallError,
    ) -> None:
        super().__init__(message, next_step=next_step)
        self.mentor_id = mentor_id
        self.event_id = event_id
        self.attempts = attempts
        """Calls made in this round."""
        self.cause = cause


class NotifyError(CertjobError):
    """One message was not handed over; ``code`` says why, each class has its usual one.

    ``retry_after_seconds`` is what the server asked for.
    """

    code = FailureCode.CHANNEL_DOWN

    def __init__(
        self,
        message: str,
        *,
        next_step: str | None = None,
        code: FailureCode | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message, next_step=next_step)
        self.code = code or type(self).code
        self.retry_after_seconds = retry_after_seconds


class RecipientRefusedError(NotifyError):
    """The server refused this recipient or message for good (5xx to RCPT or DATA)."""

    code = FailureCode.MESSAGE_REFUSED


class RecipientDeferredError(NotifyError):
    """The server asked to try this recipient later (4xx to RCPT or DATA)."""

    code = FailureCode.DEFERRED


class OutcomeUnknownError(NotifyError):
    """The connection broke after the message was handed over and before the answer: it may have arrived."""

    code = FailureCode.MAYBE_ARRIVED


class ChannelDownError(NotifyError):
    """Connection, TLS, login or sender were refused, or the webhook is out of order: no message can go out."""


class Outcome(StrEnum):
    """How a run ended; the exit code follows from it."""

    OK = "ok"
    ATTENTION = "attention"
    FAILED = "failed"


EXIT_CODES = {Outcome.OK: 0, Outcome.FAILED: 1, Outcome.ATTENTION: 3}
