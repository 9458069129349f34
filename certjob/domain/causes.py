"""Why a push or a message was not delivered, as operators read it: one sentence and one action for each cause.

`alerts`, its JSON and `explain` use these texts. A coordinator's digest has its own sentence for each cause, in
``certjob/mail/messages/digest.<language>.words``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from certjob.errors import Cause


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What an operator is told about one cause."""

    cause: Cause
    why: str
    action: str
    """What to do. ``advise`` fills in ``{resync}``, ``{next_try}``, ``{message}`` and ``{address}``."""
    says_all: bool = False
    """The technical text adds nothing."""

    def advise(
        self, *, resync: str = "", next_try: str = "", message: Literal["reminder", "digest"] = "reminder"
    ) -> str:
        """Return what to do.

        ``resync`` is the command to type, ``next_try`` when certjob tries again, ``message`` what was not delivered.
        """
        filled: str = self.action.format(resync=resync, next_try=next_try, message=message, address=_ADDRESS[message])
        return filled

    @property
    def is_tried_automatically(self) -> bool:
        """Whether the action names the time of the next try."""
        return "{next_try}" in self.action


_ADDRESS: Final = {
    "reminder": "in the app",
    "digest": "in the app or with `certjob organisation set`",
}
"""Where the address of a message's recipient is corrected."""

_ADVICE: Final[Mapping[Cause, Advice]] = {
    advice.cause: advice
    for advice in (
        Advice(
            cause=Cause.NO_CONTACT_ID,
            why="The app has no contact ID.",
            action="Enter the ID from Dynamics in the app; the next `certjob deliver` updates the portal.",
            says_all=True,
        ),
        Advice(
            cause=Cause.CONTACT_NOT_FOUND,
            why="Dynamics has no contact with this ID.",
            action="Correct the contact ID in the app; the next `certjob deliver` updates the portal.",
        ),
        Advice(
            cause=Cause.CHANGE_REFUSED,
            why="Dynamics rejected the change.",
            action="Correct the contact in Dynamics, then run {resync}.",
        ),
        Advice(
            cause=Cause.PORTAL_DOWN,
            why="The portal did not answer or could not make the change.",
            action="Nothing; certjob tries again {next_try}. If it lasts longer than an hour, check the Edge Function "
            "and Dynamics.",
        ),
        Advice(
            cause=Cause.QUEUED,
            why="The change is in the queue.",
            action="Nothing; certjob tries again {next_try}.",
        ),
        Advice(
            cause=Cause.PORTAL_STOPPED,
            why="The portal cannot be updated for anyone.",
            action="Correct the setting, the key or the Edge Function, test it with `certjob check`, then run "
            "`certjob alerts --retry-all`.",
        ),
        Advice(
            cause=Cause.NO_ADDRESS,
            why="There is no e-mail address.",
            action="Enter it {address}; the next `certjob deliver` sends the {message}.",
            says_all=True,
        ),
        Advice(
            cause=Cause.WRONG_ADDRESS,
            why="The e-mail address is wrong or cannot be used.",
            action="Ask for an address that works and enter it {address}; the next `certjob deliver` sends the "
            "{message}.",
        ),
        Advice(
            cause=Cause.MAIL_DELAYED,
            why="The mail server has not confirmed delivery.",
            action="Nothing; certjob tries again. If it lasts, ask whether the mailbox is full.",
        ),
        Advice(
            cause=Cause.MAIL_STOPPED,
            why="The mail server refused this message.",
            action="If the reason is the address, correct it {address}; otherwise ask the administrator of the mail "
            "server.",
        ),
    )
}

NEVER_TRIED: Final = Advice(
    cause=Cause.PORTAL_STOPPED,
    why="Not tried for over an hour.",
    action="Check that cron starts `certjob deliver`; running it now clears the queue.",
)
"""For a push that no delivery has reached."""

NO_MAIL_AT_ALL: Final = Advice(
    cause=Cause.MAIL_STOPPED,
    why="The mail server accepts no messages.",
    action="Correct the CERTJOB_NOTIFY_ settings or the server, test them with `certjob check`, then run "
    "`certjob deliver`.",
)
"""For messages that wait, rather than one that was refused."""

_BY_KIND: Final = {"permanent": Cause.CHANGE_REFUSED, "stage": Cause.PORTAL_STOPPED}
"""For a failure whose stored cause is unknown to this certjob."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PushState:
    """The facts that decide why a push is still open."""

    status: str
    """``pending`` or ``blocked``."""
    rounds: int
    """How often this value was tried; 0 after a newer value or a correction."""
    failure_kind: str | None
    """``transient``, ``permanent``, ``stage``; None: nothing has failed."""
    code: str | None
    """The stored cause; None: nothing has failed."""
    is_claimed: bool
    """A run is working on it."""
    has_contact_id: bool
    has_new_contact_id: bool
    """It was changed since the last review."""


def advise_on_push(push: PushState) -> Advice:
    """Return the advice for the first cause that applies."""
    if push.is_claimed:
        return _ADVICE[Cause.QUEUED]
    if not push.has_contact_id:
        return _ADVICE[Cause.NO_CONTACT_ID]
    if push.has_new_contact_id and not push.rounds:
        return _ADVICE[Cause.QUEUED]
    if push.failure_kind is None and push.code is None and push.status == "pending":
        return NEVER_TRIED
    if push.failure_kind in {"transient", "permanent"} and push.status == "pending" and not push.rounds:
        return _ADVICE[Cause.QUEUED]
    kind = "permanent" if push.status == "blocked" else push.failure_kind
    return _ADVICE[Cause.parse(push.code) or _BY_KIND.get(kind or "", Cause.PORTAL_DOWN)]


def advise_on_message(code: str | None) -> Advice:
    """Return the advice for a reminder or a digest that was not delivered."""
    return _ADVICE[Cause.parse(code) or Cause.MAIL_STOPPED]
