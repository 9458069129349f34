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


class Cause(StrEnum):
    """Why a push or a message was not delivered: what the reader can do something about.

    Stored as ``failure_code`` beside the technical text. `certjob.domain.causes` and the digest have the sentences.
    """

    NO_CONTACT_ID = "no_contact_id"
    """The mentor has no ``dynamics_contact_id``."""
    CONTACT_NOT_FOUND = "contact_not_found"
    """Dynamics has no contact with this ID."""
    CHANGE_REFUSED = "change_refused"
    """The Edge Function or Dynamics rejected the change of this contact."""
    PORTAL_DOWN = "portal_down"
    """The portal did not answer, throttled, or could not make the change."""
    QUEUED = "queued"
    """It was not its turn: the time was over, or another run is pushing."""
    PORTAL_STOPPED = "portal_stopped"
    """No push can succeed: the key, the address, the function or certjob itself is wrong."""
    HIDE_BY_HAND = "hide_by_hand"
    """The organisation lost its portal while a hide was open."""

    NO_ADDRESS = "no_address"
    """There is no e-mail address."""
    WRONG_ADDRESS = "wrong_address"
    """The e-mail address is not valid, cannot be used, was refused, or the mail came back."""
    MAIL_DELAYED = "mail_delayed"
    """The mail server asked to try later, or did not confirm that it has the message."""
    MAIL_STOPPED = "mail_stopped"
    """The mail server or the webhook refused the message, or takes none at all."""

    @classmethod
    def parse(cls, stored: str | None) -> "Cause | None":
        """Return the cause in a row; None without one, and for one that a newer certjob has written."""
        try:
            return cls(stored) if stored is not None else None
        except ValueError:
            return None


class StageEnd(StrEnum):
    """Why a stage ended before everything was delivered."""

    DEADLINE = "deadline"
    """The time for deliveries was over."""
    LEASE = "lease"
    """The process stood still for so long that nothing could be begun."""
    IN_FLIGHT = "in_flight"
    """Another run is pushing for this mentor."""
    LOCKED = "locked"
    """Another database session holds a lock."""
    BREAKER = "breaker"
    """Several pushes in a row failed."""
    RETRY_AFTER = "retry_after"
    """The portal asked for a wait that is longer than the stage."""
    KEY_REFUSED = "key_refused"
    """The portal refused the key (401, 403)."""
    MISCONFIGURED = "misconfigured"
    """The portal's address, its function or the function's secrets are wrong."""
    NOT_READ = "not_read"
    """The portal's list of contacts could not be read to its end."""
    NO_URL = "no_url"
    """The address of the portal, or of the mail server, is not set."""
    CHANNEL_DOWN = "channel_down"
    """The mail server or the webhook takes no messages."""
    OUTCOMES_UNKNOWN = "outcomes_unknown"
    """Several messages in a row may or may not have been accepted."""
    ALL_REFUSED = "all_refused"
    """Several messages in a row were refused."""
    TEMPLATE = "template"
    """A message template of the programme's own is broken."""
    CLOCKS_DISAGREE = "clocks_disagree"
    """This machine and the database server are on different days."""
    CRASH = "crash"
    """An internal error. It is reported every time, and the run failed."""

    @property
    def cause(self) -> Cause:
        """The cause for each mentor whose push was not reached."""
        match self:
            case StageEnd.DEADLINE | StageEnd.LEASE | StageEnd.IN_FLIGHT | StageEnd.LOCKED:
                return Cause.QUEUED
            case StageEnd.BREAKER | StageEnd.RETRY_AFTER:
                return Cause.PORTAL_DOWN
        return Cause.PORTAL_STOPPED


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

    code = Cause.PORTAL_DOWN

    def __init__(
        self,
        message: str,
        *,
        next_step: str | None = None,
        code: Cause | None = None,
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


class PermanentPortalError(PortalCallError):
    """The function understood and refused this contact; the next call would be refused too."""

    code = Cause.CHANGE_REFUSED


class PortalStageError(PortalCallError):
    """No push can succeed now, whoever it is for; nobody is to blame but the configuration."""

    code = Cause.PORTAL_STOPPED


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

    code = Cause.MAIL_STOPPED

    def __init__(
        self,
        message: str,
        *,
        next_step: str | None = None,
        code: Cause | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message, next_step=next_step)
        self.code = code or type(self).code
        self.retry_after_seconds = retry_after_seconds


class RecipientRefusedError(NotifyError):
    """The server refused this recipient or message for good (5xx to RCPT or DATA)."""

    code = Cause.MAIL_STOPPED


class RecipientDeferredError(NotifyError):
    """The server asked to try this recipient later (4xx to RCPT or DATA)."""

    code = Cause.MAIL_DELAYED


class OutcomeUnknownError(NotifyError):
    """The connection broke after the message was handed over and before the answer: it may have arrived."""

    code = Cause.MAIL_DELAYED


class ChannelDownError(NotifyError):
    """Connection, TLS, login or sender were refused, or the webhook is out of order: no message can go out."""


class Outcome(StrEnum):
    """How a run ended; the exit code follows from it."""

    OK = "ok"
    ATTENTION = "attention"
    FAILED = "failed"


EXIT_CODES = {Outcome.OK: 0, Outcome.FAILED: 1, Outcome.ATTENTION: 3}
