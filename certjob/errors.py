"""The errors that certjob raises on purpose, with their exit codes, and the causes that it stores.

CertjobError                        exit 1
├── ConfigurationError              exit 2
│   ├── SchemaError
│   ├── UsageError
│   ├── UnknownMentorError
│   ├── ClocksDisagreeError
│   ├── TemplateError
│   └── InputError
├── DatabaseUnavailableError
├── DatabaseError
├── DiskFullError
├── InternalError
├── StoppedBySignalError
├── BrokenMentorError               exit 3
├── MentorBusyError                 exit 3
├── DynamicsSyncException           exit 3
└── DeliveryError                   caught by the stages, `reconcile` and `check`
    ├── PortalCallError
    │   ├── TransientPortalError
    │   ├── PermanentPortalError
    │   └── PortalStageError
    └── NotifyError
        ├── RecipientRejectedError
        ├── MailRejectedError
        ├── RecipientDeferredError
        ├── OutcomeUnknownError
        └── ChannelDownError
"""

from enum import StrEnum
from uuid import UUID


class Cause(StrEnum):
    """The cause of a failed push or message, stored as ``failure_code``.

    `certjob.domain.causes` and the words of the digest have a sentence for each.
    """

    NO_CONTACT_ID = "no_contact_id"  # the mentor has no ``dynamics_contact_id``
    CONTACT_NOT_FOUND = "contact_not_found"  # Dynamics has no contact with this ID
    CHANGE_REFUSED = "change_refused"  # the Edge Function or Dynamics rejected the change of this contact
    PORTAL_DOWN = "portal_down"  # the portal did not answer, throttled, or could not make the change
    LATER_DAY_ON_PORTAL = "later_day_on_portal"  # an earlier last day is not confirmed, in alerts only
    QUEUED = "queued"  # the time was over, or another run is pushing
    PORTAL_STOPPED = "portal_stopped"  # no push can succeed, because the key, the URL or the function is wrong
    HIDE_BY_HAND = "hide_by_hand"  # the organisation lost its portal while a hide was open

    NO_ADDRESS = "no_address"  # there is no e-mail address
    WRONG_ADDRESS = "wrong_address"  # the address is not valid or was rejected, or the mail came back
    MAIL_DELAYED = "mail_delayed"  # the mail server asked for a retry, or did not confirm the message
    MAIL_STOPPED = "mail_stopped"  # the mail server rejected the message, or accepts none at all


class StageEnd(StrEnum):
    """Why a stage ended before everything was delivered."""

    DEADLINE = "deadline"  # the time limit for deliveries
    LEASE = "lease"  # the process was suspended, so no call could finish within its lease
    IN_FLIGHT = "in_flight"  # another run is pushing for this mentor
    LOCKED = "locked"  # another database session holds a lock
    BREAKER = "breaker"  # several pushes in a row failed
    RETRY_AFTER = "retry_after"  # the portal asked for a longer wait than the stage allows
    KEY_REFUSED = "key_refused"  # the portal rejected the key (401, 403)
    MISCONFIGURED = "misconfigured"  # the portal's URL, its function or the function's secrets, or a setting about mail
    NOT_READ = "not_read"  # the portal's list of contacts could not be read to its end
    NO_URL = "no_url"  # the URL of the portal, or of the mail server, is not set
    CHANNEL_DOWN = "channel_down"  # the mail server accepts no messages
    OUTCOMES_UNKNOWN = "outcomes_unknown"  # several messages in a row may or may not have been accepted
    ALL_REFUSED = "all_refused"  # many messages were rejected and none was accepted
    TEMPLATE = "template"  # a message template of the programme's own is broken
    CLOCKS_DISAGREE = "clocks_disagree"  # this machine and the database server are on different days
    NOT_COPIED = "not_copied"  # certjob_mirror.sync() failed, or did not copy every fact of the app
    CRASH = "crash"  # an internal error, which is reported every time, and the run failed

    @property
    def cause(self) -> Cause:
        """The cause for mentors without a push attempt."""
        match self:
            case StageEnd.DEADLINE | StageEnd.LEASE | StageEnd.IN_FLIGHT | StageEnd.LOCKED:
                return Cause.QUEUED
            case StageEnd.BREAKER | StageEnd.RETRY_AFTER:
                return Cause.PORTAL_DOWN
        return Cause.PORTAL_STOPPED


class CertjobError(Exception):
    """Base class with the exit code, and the code in the JSON error document."""

    exit_code = 1
    code: str = "failed"

    def __init_subclass__(cls, *, code: str = "", exit_code: int = 0) -> None:
        """Set the codes of the class; without them, it has those of its base."""
        cls.code, cls.exit_code = code or cls.code, exit_code or cls.exit_code

    def __init__(self, message: str, *, next_step: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step
        """The action to take, or None if there is none or ``message`` contains it."""

    def __str__(self) -> str:
        """Return the message and the next step on one line."""
        if not self.next_step:
            return self.message
        return f"{self.message}{'' if self.message.endswith('?') else ';'} {self.next_step}"

    def to_document(self) -> dict[str, str | None]:
        """Return the value of ``error`` in a JSON document."""
        return {"code": str(self.code), "message": self.message, "next_step": self.next_step}


class ConfigurationError(CertjobError, code="configuration", exit_code=2):
    """A setting, an option or an argument is missing or wrong."""


class SchemaError(ConfigurationError, code="schema"):
    """The database has not been migrated, is newer than this certjob, or an applied migration was edited."""


class UsageError(ConfigurationError, code="usage"):
    """The command line is not valid."""


class UnknownMentorError(ConfigurationError, code="unknown_mentor"):
    """No mentor matches the given name or ID, or more than one does."""


class ClocksDisagreeError(ConfigurationError, code="clocks_disagree"):
    """This machine and the database server are on different days, so one of the clocks is wrong."""


class TemplateError(ConfigurationError, code="template"):
    """A message template is broken, or fails with one mentor's data.

    ``file`` is its path in the template folder.
    """

    def __init__(self, reason: str, *, file: str, next_step: str, line: int | None = None) -> None:
        super().__init__(f"{file} line {line}: {reason}" if line else f"{file}: {reason}", next_step=next_step)
        self.file, self.line, self.reason = file, line, reason


class InputError(ConfigurationError, code="input"):
    """An input file cannot be read or has the wrong format."""


class DatabaseUnavailableError(CertjobError, code="database_unavailable"):
    """The database cannot be reached, or the connection was lost."""


class DatabaseError(CertjobError, code="database"):
    """The database rejected a statement, or could not run it now."""


class DiskFullError(CertjobError, code="disk_full"):
    """This machine's disk is full."""


class InternalError(CertjobError, code="internal"):
    """An unexpected error, probably a bug in certjob."""


class StoppedBySignalError(CertjobError, code="stopped"):
    """SIGTERM, SIGINT or SIGHUP ended the command. Settled work is kept and the rest stays queued."""


class BrokenMentorError(CertjobError, code="broken_mentor", exit_code=3):
    """One mentor has more rows, or longer ones, than the schema allows. Someone must delete or shorten them."""


class MentorBusyError(CertjobError, code="mentor_busy", exit_code=3):
    """Another session has locked a mentor or an organisation, or another run has claimed the push."""


class DynamicsSyncException(CertjobError, code="dynamics_sync", exit_code=3):  # noqa: N818 - the design fixes this name
    """A mentor's push failed in this round. certjob keeps its own state, and the event stays open."""

    def __init__(
        self,
        message: str,
        *,
        next_step: str | None = None,
        mentor_id: UUID,
        event_id: int,
        attempts: int,
        cause: "PortalCallError",
    ) -> None:
        """``attempts`` are the calls made in this round."""
        super().__init__(message, next_step=next_step)
        self.mentor_id, self.event_id, self.attempts, self.cause = mentor_id, event_id, attempts, cause


class DeliveryError(CertjobError, code=Cause.PORTAL_STOPPED):
    """One push or one message was not delivered. ``code`` is the cause; each class has a default."""

    code: Cause

    def __init__(self, message: str, *, next_step: str | None = None, code: Cause | None = None) -> None:
        super().__init__(message, next_step=next_step)
        self.code = code or type(self).code


class PortalCallError(DeliveryError, code=Cause.PORTAL_DOWN):
    """One call to the Edge Function failed."""

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
        """``status``, ``retry_after_seconds`` and ``correlation_id`` are those of the answer, if there was one."""
        super().__init__(message, next_step=next_step, code=code)
        self.status, self.retry_after_seconds, self.correlation_id = status, retry_after_seconds, correlation_id


class TransientPortalError(PortalCallError):
    """A retry may succeed: network failure, throttling, a cold or broken server, an answer that breaks the contract."""


class PermanentPortalError(PortalCallError, code=Cause.CHANGE_REFUSED):
    """The function rejected this contact. Every retry fails until someone corrects the data."""


class PortalStageError(PortalCallError, code=Cause.PORTAL_STOPPED):
    """No push can succeed until the configuration is corrected, as with a wrong key, a failed deploy or a redirect."""


class NotifyError(DeliveryError, code=Cause.MAIL_STOPPED):
    """One message was not delivered to the mail server."""


class RecipientRejectedError(NotifyError):
    """The server rejected this address, or the message cannot be written."""


class MailRejectedError(NotifyError):
    """The server rejected the mail (5xx), and not certainly because of the address, so certjob tries it again."""

    def __init__(self, message: str, *, may_be_address: bool) -> None:
        """``may_be_address``: it is about the address if the server accepts others."""
        super().__init__(message)
        self.may_be_address = may_be_address


class RecipientDeferredError(NotifyError, code=Cause.MAIL_DELAYED):
    """The server asked certjob to retry this recipient later (4xx to RCPT or DATA)."""


class OutcomeUnknownError(NotifyError, code=Cause.MAIL_DELAYED):
    """The connection broke after the message was sent and before the answer, so it may have arrived."""


class ChannelDownError(NotifyError):
    """No message can be sent: connection, TLS, login or sender were rejected."""


class Outcome(StrEnum):
    """The outcome of a run, which determines the exit code."""

    OK = "ok"
    ATTENTION = "attention"
    FAILED = "failed"


EXIT_CODES = {Outcome.OK: 0, Outcome.FAILED: 1, Outcome.ATTENTION: 3}
