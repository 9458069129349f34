"""Every error certjob raises on purpose. The text says what is wrong and the next step; ids are attributes.

CertjobError                      exit 1
├── ConfigurationError            exit 2   a setting or argument is missing or wrong
│   ├── SchemaError               exit 2   not migrated, too new, or an applied migration was edited
│   ├── UnknownMentorError        exit 2   no such mentor, or several
│   ├── TemplateError             exit 2   a message template of the programme's own is broken
│   └── InputError                exit 2   a file that is no CSV
├── DatabaseUnavailableError      exit 1
├── StoppedBySignalError          exit 1
├── TooManyBrokenMentorsError     exit 1
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

from datetime import datetime
from enum import StrEnum
from uuid import UUID


class CertjobError(Exception):
    """Root of certjob's own errors; carries the exit code and the code of the JSON error document."""

    exit_code = 1
    code = "failed"


class ConfigurationError(CertjobError):
    """A setting, an option or an argument is missing or wrong."""

    exit_code = 2
    code = "configuration"


class SchemaError(ConfigurationError):
    """The database's schema is not the one this certjob works with."""

    code = "schema"


class UnknownMentorError(ConfigurationError):
    """No mentor, or more than one, goes by that name."""

    code = "unknown_mentor"


class TemplateError(ConfigurationError):
    """A message template is broken, or breaks on one mentor's data; ``file`` is its path in the templates' folder."""

    code = "template"

    def __init__(self, reason: str, *, file: str, line: int | None = None) -> None:
        super().__init__(f"{file} line {line}: {reason}" if line else f"{file}: {reason}")
        self.file = file
        self.line = line
        self.reason = reason


class InputError(ConfigurationError):
    """A file cannot be read as what it should be."""

    code = "input"


class DatabaseUnavailableError(CertjobError):
    """The database cannot be reached, or went away."""

    code = "database_unavailable"


class StoppedBySignalError(CertjobError):
    """SIGTERM or SIGINT; what was settled is settled, the rest is still queued."""

    code = "stopped"


class TooManyBrokenMentorsError(CertjobError):
    """So many mentors broke that the cause is not in their data."""

    code = "too_many_broken"


class MentorBusyError(CertjobError):
    """One mentor could not be worked on now, because somebody else is doing so."""

    exit_code = 3
    code = "mentor_busy"


class PortalCallError(CertjobError):
    """One call to the Edge Function did not succeed.

    ``status`` is that of the answer, None without one; ``retry_after_seconds`` what the server asked for,
    ``correlation_id`` its X-Correlation-Id.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        retry_after_seconds: float | None = None,
        correlation_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_seconds = retry_after_seconds
        self.correlation_id = correlation_id


class TransientPortalError(PortalCallError):
    """Network trouble, throttling, a cold or broken server, an answer that is not the contract."""


class PermanentPortalError(PortalCallError):
    """The function understood and refused this contact; the next call would be refused too."""


class PortalStageError(PortalCallError):
    """No push can succeed now, whoever it is for; nobody is to blame but the configuration."""


class DynamicsSyncException(CertjobError):  # noqa: N818 - the programme's own word for it, fixed by the design
    """A mentor's portal push was given up for this round; our state stays, the event stays open."""

    exit_code = 3
    code = "dynamics_sync"

    def __init__(
        self,
        message: str,
        *,
        mentor_id: UUID,
        event_id: int,
        attempts: int,
        cause: PortalCallError,
        retry_at: datetime | None = None,
    ) -> None:
        super().__init__(message)
        self.mentor_id = mentor_id
        self.event_id = event_id
        self.attempts = attempts
        """Calls made in this round."""
        self.cause = cause
        self.retry_at = retry_at
        """When a later round is due; None while the event is blocked."""


class NotifyError(CertjobError):
    """One message was not handed over."""


class RecipientRefusedError(NotifyError):
    """The server refused this recipient or message for good (5xx to RCPT or DATA)."""


class RecipientDeferredError(NotifyError):
    """The server asked to try this recipient later (4xx to RCPT or DATA)."""


class OutcomeUnknownError(NotifyError):
    """The connection broke after the message was handed over and before the answer: it may have arrived."""


class ChannelDownError(NotifyError):
    """Connection, TLS, login or sender were refused, or the webhook is out of order: no message can go out.

    ``retry_after_seconds`` is what the server asked for.
    """

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class Outcome(StrEnum):
    """How a run ended; the exit code follows from it."""

    OK = "ok"
    ATTENTION = "attention"
    FAILED = "failed"


EXIT_CODES = {Outcome.OK: 0, Outcome.FAILED: 1, Outcome.ATTENTION: 3}
