"""Why something needs attention, for operators: one sentence and one action for each cause.

`alerts`, its JSON and `explain` use these texts. A coordinator's digest has its own sentence for each cause, in
``certjob/mail/messages/digest.<language>.words``.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Final, Literal

from certjob.domain.explanations import whole_date
from certjob.domain.models import Effect
from certjob.errors import Cause

_ADDRESS: Final = {
    "reminder": "in the app or with `certjob load`",
    "digest": "in the app or with `certjob organisation set`",
}
"""Where to correct the address of a message's recipient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """The texts about one cause."""

    cause: str
    why: str = "{error}"
    action: str
    """What to do. ``advise`` fills in its parameters and ``{address}``."""
    says_all: bool = False
    """Whether the technical reason is left out."""
    is_for_all: bool = False
    """Whether one fault affects everyone, so that the action is needed once."""

    def advise(
        self,
        *,
        resync: str = "",
        next_try: str = "",
        message: Literal["reminder", "digest"] = "reminder",
        command: str = "",
        by_hand: str = "",
        acknowledge: str = "",
    ) -> str:
        """Return what to do.

        ``resync`` is a command, ``command`` the one that permits held changes, ``next_try`` the time of the next
        attempt, ``message`` the undelivered message, ``by_hand`` the command that confirms a hide by hand, and
        ``acknowledge`` the one that mutes this alert.
        """
        words = {"resync": resync, "next_try": next_try, "command": command, "by_hand": by_hand}
        words |= {"acknowledge": acknowledge}
        filled: str = self.action.format(**words, message=message, address=_ADDRESS[message])
        return filled


_ADVICE: Final[Mapping[str, Advice]] = {
    advice.cause: advice
    for advice in (
        Advice(
            cause=Cause.NO_CONTACT_ID,
            why="The app has no contact ID.",
            action="Enter the ID from Dynamics in the app or with `certjob load`; the next `certjob deliver` updates "
            "the portal.",
            says_all=True,
        ),
        Advice(
            cause=Cause.CONTACT_NOT_FOUND,
            why="Dynamics has no contact with this ID.",
            action="Correct the contact ID in the app or with `certjob load`; the next `certjob deliver` updates the "
            "portal.",
        ),
        Advice(
            cause=Cause.CHANGE_REFUSED,
            why="Dynamics rejected the change.",
            action="Correct the contact in Dynamics, then run {resync}.",
        ),
        Advice(
            cause=Cause.PORTAL_DOWN,
            why="The portal did not answer or could not make the change.",
            action="Wait; certjob tries again {next_try}. If it lasts longer than an hour, check the Edge Function "
            "and Dynamics.",
        ),
        Advice(
            cause=Cause.LATER_DAY_ON_PORTAL,
            why="The last day was moved earlier, but the portal may show the mentor until the later day.",
            action="Wait; certjob tries again {next_try}. If it does not succeed before the earlier day, correct the "
            "reason, then run {resync}.",
        ),
        Advice(cause=Cause.QUEUED, why="The change is in the queue.", action="Wait; certjob tries again {next_try}."),
        Advice(
            cause=Cause.PORTAL_STOPPED,
            why="The portal cannot be updated for anyone.",
            action="Correct the setting, the key or the Edge Function, test it with `certjob check`, then run "
            "`certjob alerts --retry-all`.",
            is_for_all=True,
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
            action="Wait; certjob tries again. If it lasts, ask whether the mailbox is full.",
        ),
        Advice(
            cause=Cause.MAIL_STOPPED,
            why="The mail server rejected this message.",
            action="If the reason is the address, correct it {address}; otherwise ask the administrator of the mail "
            "server.",
        ),
        Advice(
            cause="changes",
            action="Check the clock and the last import; `certjob run --dry-run` lists the mentors. If the import was "
            "wrong, correct it and run `certjob run`. If the changes are right, run `{command}`. "
            "`certjob resync MENTOR` makes those of one mentor.",
            says_all=True,
        ),
        Advice(
            cause="portal",
            action="Look at the portal. If these mentors are visible there, correct the function's settings. If they "
            "are really hidden, run `{command}`.",
            says_all=True,
        ),
        Advice(cause="not_reviewed", action="Fix the cause, then run {resync}.", says_all=True),
        Advice(
            cause=Cause.HIDE_BY_HAND,
            why="certjob can no longer hide this contact.",
            action="Hide it in Dynamics, then run {by_hand}.",
            says_all=True,
        ),
        Advice(
            cause="unknown_contact",
            why="This contact is visible, but belongs to no mentor of an organisation with a portal.",
            action="Hide it in Dynamics, or run {acknowledge}.",
        ),
        Advice(cause="not_read", action="Run `certjob reconcile`, then check its cron line.", says_all=True),
        Advice(
            cause="reading_failed",
            action="Fix the cause; the next `certjob reconcile` reads the portal.",
            says_all=True,
        ),
        Advice(
            cause="not_copied",
            action="Correct the named facts in the app, or mirror.sql's views; the next `certjob run` copies them.",
            says_all=True,
        ),
        Advice(
            cause="secret_ends",
            action="Create a second secret in Entra, and set AZURE_CLIENT_SECRET and AZURE_CLIENT_SECRET_UNTIL of the "
            "function (docs/edge-function.md, Changing the keys without a gap). Then run `certjob reconcile`.",
            says_all=True,
        ),
        Advice(cause="not_run", action="Run `certjob run`, then check cron.", says_all=True),
    )
}

_NEVER_TRIED: Final = Advice(
    cause=Cause.PORTAL_STOPPED,
    why="Not tried for over an hour.",
    action="Check that cron starts `certjob deliver`; running it now clears the queue.",
    is_for_all=True,
)

NO_MAIL_AT_ALL: Final = Advice(
    cause=Cause.MAIL_STOPPED,
    why="The mail server accepts no messages.",
    action="Correct the CERTJOB_NOTIFY_ settings or the server, test them with `certjob check`, then run "
    "`certjob deliver`.",
    is_for_all=True,
)
"""For queued messages, because no single message was rejected."""


HELD_REASONS: Final[Mapping[str, str]] = {
    "revoked": "a certificate was revoked",
    "left": "has left",
    "ended": "no certificate is in force",
    "ends_soon": "would end soon",
    "ends_earlier": "would end earlier",
    "new_contact": "has a new contact ID",
    "returns": "would be active or visible again",
    "reminder": "would get a reminder",
}
"""The words for ``still_due.reason`` of a held mentor, and for a mentor with held reminders."""


def held_words(reason: str, *, old_last_day: date | None, new_last_day: date | None) -> str:
    """Return why a mentor is held, with the last certified day if it would change.

    >>> held_words("ends_earlier", old_last_day=date(2027, 12, 25), new_last_day=date(2027, 12, 24))
    'would end earlier: last day 25 December 2027 → 24 December 2027'
    """
    old, new = (whole_date(day) if day else "none" for day in (old_last_day, new_last_day))
    return HELD_REASONS[reason] + (f": last day {old} → {new}" if old != new and reason != Effect.REMINDER else "")


def advise_on_push(cause: str, *, error: str | None) -> Advice:
    """Return the advice for an open push. Without an error, no delivery has tried it."""
    if cause == Cause.PORTAL_STOPPED and error is None:
        return _NEVER_TRIED
    return _ADVICE.get(cause, _ADVICE[Cause.PORTAL_STOPPED])


def why_pushes_fail(causes: Iterable[str]) -> str:
    """Return the causes for the end of a line about failed pushes. The line about an early end has its own."""
    named = {Cause.NO_CONTACT_ID, Cause.CONTACT_NOT_FOUND, Cause.CHANGE_REFUSED, Cause.PORTAL_DOWN}.intersection(causes)
    words = ", ".join(_ADVICE[each].why.removesuffix(".").replace("The ", "the ") for each in sorted(named))
    return words and f": {words}"


def advise_on_message(code: str | None) -> Advice:
    """Return the advice for a reminder or a digest that was not delivered."""
    return _ADVICE.get(code or "", _ADVICE[Cause.MAIL_STOPPED])


def advise_on(cause: str) -> Advice:
    """Return the advice for any other alert."""
    return _ADVICE[cause]
