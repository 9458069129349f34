"""The kinds of alerts and their words. Runs, pages, digests and documents use this list; the database has the rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

A_MONTH: Final = 31
A_YEAR: Final = 365


class Kind(StrEnum):
    """The kinds of alerts, in the order of harm."""

    NO_FULL_RUN = "no_full_run"
    HELD = "held"
    NEVER_REVIEWED = "never_reviewed"
    MAY_BE_VISIBLE = "may_be_visible"
    FACTS_MISSING = "facts_missing"
    UNKNOWN_CONTACTS = "unknown_contacts"
    PORTAL_NOT_READ = "portal_not_read"
    SECRET_ENDS = "secret_ends"  # noqa: S105 - the name of a kind
    MAY_BE_HIDDEN = "may_be_hidden"
    FAILED_REMINDERS = "failed_reminders"
    FAILED_DIGESTS = "failed_digests"
    WAITING_REMINDERS = "waiting_reminders"
    WAITING_DIGESTS = "waiting_digests"


@dataclass(frozen=True, slots=True, kw_only=True)
class KindWords:
    """The words about one kind."""

    one: str
    """After the number 1."""
    many: str
    """After any other number."""
    meaning: str
    """What these alerts mean. ``{mentors}`` is their number."""
    longest_days: int = 0
    """For how many days someone may acknowledge an alert. Never if someone may be visible who must not be."""
    section: str | None = None
    """The section of a coordinator's digest, or None if only an operator can act."""


_NOT_SENT: Final = "They were not sent: the mail server does not accept it, or `certjob deliver` does not run."

WORDS: Final[Mapping[Kind, KindWords]] = {
    Kind.NO_FULL_RUN: KindWords(
        one="full run is overdue",
        many="full runs are overdue",
        meaning="No mentor with an expired certificate has been paused or hidden since then.",
        section="not_run",
    ),
    Kind.HELD: KindWords(
        one="guard holds changes back",
        many="guards hold changes back",
        meaning="certjob does not make these changes until someone decides.",
        section="held",
    ),
    Kind.NEVER_REVIEWED: KindWords(
        one="mentor could not be reviewed",
        many="mentors could not be reviewed",
        meaning="certjob does not know whether they are certified, so uncertified ones may be visible.",
        section="unreviewed",
    ),
    Kind.MAY_BE_VISIBLE: KindWords(
        one="mentor may still be visible on the portal",
        many="mentors may still be visible on the portal",
        meaning="{mentors} must not be visible, but the portal has not confirmed that it hides them: people may still "
        "find them there. If it cannot wait, hide them by hand in Dynamics.",
        section="visible",
    ),
    Kind.FACTS_MISSING: KindWords(
        one="source of facts is incomplete",
        many="sources of facts are incomplete",
        meaning="certjob uses the last facts that it has, so someone may be visible, hidden or reminded by mistake.",
        section="facts_missing",
    ),
    Kind.UNKNOWN_CONTACTS: KindWords(
        one="contact on the portal does not belong to any mentor",
        many="contacts on the portal do not belong to any mentor",
        longest_days=A_YEAR,
        meaning="certjob reads the portal every night, but never hides a contact that belongs to no mentor.",
        section="unknown",
    ),
    Kind.PORTAL_NOT_READ: KindWords(
        one="portal was not read for three days",
        many="portals were not read for three days",
        longest_days=A_MONTH,
        meaning="certjob does not know whether someone has changed the portal by hand.",
    ),
    Kind.SECRET_ENDS: KindWords(
        one="client secret ends within 30 days",
        many="client secrets end within 30 days",
        longest_days=A_MONTH,
        meaning="After its last day, certjob can show and hide no one on the portal.",
    ),
    Kind.MAY_BE_HIDDEN: KindWords(
        one="mentor may still be hidden on the portal",
        many="mentors may still be hidden on the portal",
        longest_days=A_MONTH,
        meaning="{mentors} should be visible, but the portal has not confirmed that it shows them.",
        section="hidden",
    ),
    Kind.FAILED_REMINDERS: KindWords(
        one="reminder was not delivered",
        many="reminders were not delivered",
        longest_days=A_MONTH,
        meaning="These mentors have not received the mail about their certificate.",
        section="undelivered",
    ),
    Kind.FAILED_DIGESTS: KindWords(
        one="digest was not delivered",
        many="digests were not delivered",
        longest_days=A_MONTH,
        meaning="These coordinators have not received the news about their mentors.",
    ),
    Kind.WAITING_REMINDERS: KindWords(
        one="reminder has waited for more than a day",
        many="reminders have waited for more than a day",
        longest_days=A_MONTH,
        meaning=_NOT_SENT,
        section="undelivered",
    ),
    Kind.WAITING_DIGESTS: KindWords(
        one="digest has waited for more than a day",
        many="digests have waited for more than a day",
        longest_days=A_MONTH,
        meaning=_NOT_SENT,
    ),
}


def count_in_words(kind: Kind, number: int) -> str:
    """Return the number of alerts of a kind in words."""
    return f"{number:,} {WORDS[kind].one if number == 1 else WORDS[kind].many}"


def summarize(numbers: Mapping[str, int]) -> str:
    """Return the numbers of all kinds in one line; empty if there are no alerts."""
    return ", ".join(count_in_words(Kind(kind), number) for kind, number in numbers.items() if number)
