"""Why a push or a reminder still waits, in a coordinator's words, and what to do about it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from enum import Enum
from typing import Any, Final
from uuid import UUID

from certjob import database
from certjob.database import Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class PushAlert:
    """An open portal push that a person should know about."""

    mentor_id: UUID
    organisation_id: UUID
    member_no: str
    full_name: str
    """The member number where there is no name."""
    visible: bool
    """What the portal should show."""
    sentence: str
    """The design's words for it; the dashboard shows the same."""
    error: str | None
    """The technical reason."""
    code: str | None
    """Why, as a FailureCode; None: nothing has failed, or long ago."""
    calls: int
    """Calls made to the portal for it."""
    wanted_at: datetime
    last_failed_at: datetime | None
    status: str
    """``pending`` or ``blocked``."""
    rounds: int
    """How often this wish was tried; 0 after a newer wish or a correction, whatever became of the older one."""
    next_attempt_at: datetime
    failure_kind: str | None
    """``transient``, ``permanent``, ``stage``; None: nothing has failed."""
    is_claimed: bool
    """Somebody is working on it."""
    has_contact_id: bool
    has_new_contact_id: bool
    """It was changed since the last review."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedReminder:
    """A reminder that was not delivered: refused, until somebody corrects something, or put off for over a day."""

    reminder_id: int
    mentor_id: UUID
    organisation_id: UUID
    member_no: str
    full_name: str
    threshold_days: int
    cert_id: UUID
    expires_on: date
    error: str | None
    code: str | None
    attempts: int
    queued_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedDigest:
    """A coordinator's daily mail that was not delivered and is not tried again before the next night."""

    digest_id: int
    coordinator_id: UUID
    organisation_id: UUID
    full_name: str
    """The address where there is no name."""
    digest_on: date
    error: str | None
    code: str | None
    attempts: int
    queued_at: datetime


class Cause(Enum):
    """Why a push waits: what is said, and what to do. ``{…}`` is filled in by ``explain`` and ``advise``."""

    IN_WORK = "certjob is working on it just now.", "nothing; look again in five minutes."
    NO_CONTACT_ID = (
        "The app has no contact id, so certjob cannot tell the portal whom to {verb}.",
        "add the contact id in the app, then {resync}.",
    )
    NEW_CONTACT_ID = (
        "The contact id was changed in the app; certjob has not asked the portal with the new one yet.",
        "nothing; certjob does it by itself {next_try}.",
    )
    UNKNOWN_CONTACT = (
        "The portal does not know this contact id.",
        "correct the contact id in the app, then {resync}.",
    )
    REFUSED = (
        "Dynamics refused to change this contact.",
        "check the contact id in the app and the contact in Dynamics; once that is mended, {resync}.",
    )
    UNTRIED = (
        "Not tried yet, although it has waited for more than an hour.",
        "{resync} does it now. Tell the operator that `certjob deliver` does not run, or cannot keep up.",
    )
    REOPENED = (
        "The last try failed; it was reopened since then, and certjob has not come to it again yet.",
        "nothing; certjob does it by itself {next_try}.",
    )
    NO_ANSWER = (
        "The portal did not answer, or could not do it.",
        "nothing; certjob tries again by itself {next_try}.",
    )
    OUTAGE = (
        "The portal was down or overloaded, and certjob stopped before it came to this.",
        "nothing; certjob tries again by itself {next_try}.",
    )
    OUT_OF_TIME = (
        "There was so much to do that certjob's time was over before it came to this.",
        "nothing; certjob goes on by itself {next_try}.",
    )
    OPERATOR = (
        "certjob can push nothing, whoever it is for: a setting, the key or the portal's function is wrong.",
        "nothing that a coordinator can mend; tell the operator, who needs the technical reason below.",
    )

    @property
    def why(self) -> str:
        """The reason, as a sentence."""
        return self.value[0]

    @property
    def what_to_do(self) -> str:
        """The end of a sentence."""
        return self.value[1]

    @property
    def is_tried_by_itself(self) -> bool:
        """Whether a time of the next try is worth saying."""
        return "{next_try}" in self.what_to_do


NO_ADDRESS: Final = "no address"

_PUT_OFF: Final = re.compile(r" put the \w+ off |may have arrived")
"""How a channel words that a message is tried again."""

_STAGE_ENDS: Final = (
    (re.compile(r"in a row (failed|were in vain)|asked to wait|answered (408|425|429|502|503|504) "), Cause.OUTAGE),
    (re.compile(r"time for deliveries is over|this process stood still|another run is in flight"), Cause.OUT_OF_TIME),
)
"""How PortalStage words the ends that pass by themselves; any other needs the operator."""


def find_cause(push: PushAlert) -> Cause:
    """Return why a push waits; the first that holds."""
    error = push.error or ""
    if push.is_claimed:
        return Cause.IN_WORK
    if not push.has_contact_id:
        return Cause.NO_CONTACT_ID
    if push.has_new_contact_id and not push.rounds:
        return Cause.NEW_CONTACT_ID
    if push.status == "blocked":
        return Cause.UNKNOWN_CONTACT if "contact_not_found" in error else Cause.REFUSED
    if push.failure_kind == "stage":
        return next((cause for pattern, cause in _STAGE_ENDS if pattern.search(error)), Cause.OPERATOR)
    if push.failure_kind is None and not error:
        return Cause.UNTRIED
    return Cause.NO_ANSWER if push.rounds or push.failure_kind is None else Cause.REOPENED


def explain(cause: Cause, *, visible: bool) -> str:
    """Return the reason as a sentence."""
    return cause.why.format(verb="show" if visible else "hide")


def advise(cause: Cause, *, resync: str, next_try: str) -> str:
    """Return what to do, as the end of a sentence."""
    return cause.what_to_do.format(resync=resync, next_try=next_try)


def explain_reminder(error: str | None) -> tuple[str, str]:
    """Return why a reminder was not delivered, and what to do."""
    then = "in the app; certjob sends the reminder after that by itself."
    if error == NO_ADDRESS:
        return "The app has no e-mail address.", f"add the address {then}"
    if (error or "").startswith("the e-mail address "):
        return "The e-mail address cannot be right.", f"correct the address {then}"
    if _PUT_OFF.search(error or ""):
        return (
            "The mail server has put it off for more than a day, as when a mailbox is full.",
            "ask the mentor, and correct the address in the app if it is not right; certjob goes on trying by itself.",
        )
    return (
        "The mail server refused the address, or the message.",
        f"ask the mentor for the address and correct it {then}",
    )


def explain_digest(error: str | None) -> tuple[str, str]:
    """Return why a coordinator's daily mail was not delivered, and what to do."""
    then = "in the app, or with `certjob organisation set`; certjob sends it after that by itself."
    if (error or "").startswith("the e-mail address "):
        return "The e-mail address cannot be right.", f"correct the coordinator's address {then}"
    return "The mail server refused the address, or the message.", f"correct the coordinator's address {then}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Organisation:
    """How people call an organisation, and how commands do."""

    id: UUID
    slug: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Alerts:
    """All that needs a person, at one moment."""

    pushes: Sequence[PushAlert] = ()
    """Hides first, then oldest first."""
    reminders: Sequence[FailedReminder] = ()
    """Oldest first."""
    digests: Sequence[FailedDigest] = ()
    """Oldest first."""
    organisations: Mapping[UUID, Organisation] = field(default_factory=dict)
    """All there are: a page says whose mentor it is only if there are several."""

    def __len__(self) -> int:
        return len(self.pushes) + len(self.reminders) + len(self.digests)

    @property
    def exit_code(self) -> int:
        """3 while there is anything, else 0."""
        return 3 if len(self) else 0


def read_alerts(connection: Connection, *, today: date) -> Alerts:
    """Read what needs a person: four short statements, nothing is kept open between or after them."""
    pushes = database.fetch(connection, "read_alert_details", into=PushAlert)
    reminders = database.fetch(connection, "read_failed_reminders", {"today": today}, into=FailedReminder)
    digests = database.fetch(connection, "read_failed_digests", into=FailedDigest)
    organisations = database.fetch(connection, "read_organisation_names", into=Organisation)
    return Alerts(
        pushes=pushes,
        reminders=reminders,
        digests=digests,
        organisations={each.id: each for each in organisations},
    )


def read_documents(connection: Connection, *, today: date) -> dict[str, list[dict[str, Any]]]:
    """Read the same for a program: rows as the statements return them, pushes as the app's dashboard sees them."""
    return {
        "alerts": database.fetch(connection, "read_portal_alerts", into=dict),
        "failed_reminders": database.fetch(connection, "read_failed_reminders", {"today": today}, into=dict),
        "failed_digests": database.fetch(connection, "read_failed_digests", into=dict),
    }
