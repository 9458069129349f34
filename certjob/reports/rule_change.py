"""What other rules of an organisation would change in tonight's run, in numbers; nothing is written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Literal
from uuid import UUID

from certjob import database
from certjob.database import Connection
from certjob.domain.models import Mentor, Organisation, PauseChange
from certjob.facts import reading
from certjob.facts.lookup import find_organisation
from certjob.mail.reminders import find_new_reminders
from certjob.review.plan import decide_each


@dataclass(slots=True, kw_only=True)
class Tonight:
    """What a run would do for the organisation today."""

    reminders: int = 0
    """Those that were not queued or sent before."""
    paused: int = 0
    resumed: int = 0
    hidden: int = 0
    """Pushes to the portal, as are ``shown``."""
    shown: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleChange:
    """Tonight's run with the rules as they are, and with the new ones."""

    now: Tonight
    then: Tonight
    broken: Mapping[UUID, str] = field(default_factory=dict)
    """Mentors whose data break a rule, and why; they are left out."""


def compare_rules(
    connection: Connection,
    slug: str,
    *,
    today: date,
    portal: Literal["dynamics", "none"] | None,
    thresholds: Sequence[int] | None,
    optional_kinds: Sequence[str] | None,
) -> RuleChange:
    """Decide about every mentor of an organisation by both rules; None leaves a rule as it is.

    Works on a read-only server. What the guards would hold is counted as if somebody let it through. Raises
    ConfigurationError when there is no such organisation.
    """
    now, then = Tonight(), Tonight()
    broken: dict[UUID, str] = {}
    with database.read_only_snapshot(connection):
        organisation_id = find_organisation(connection, slug)
        old = reading.organisations(connection, [organisation_id])[organisation_id]
        new = replace(
            old,
            has_portal=old.has_portal if portal is None else portal == "dynamics",
            reminder_thresholds=old.reminder_thresholds if thresholds is None else tuple(thresholds),
            optional_kinds=old.optional_kinds if optional_kinds is None else frozenset(optional_kinds),
        )
        for read in reading.read_due(connection, due_by=None, organisation_id=organisation_id):
            under_new = replace(read, mentors=[_under(new, mentor) for mentor in read.mentors])
            for tonight, facts in ((now, read), (then, under_new)):
                broken |= _count(connection, tonight, facts, today=today)
    return RuleChange(now=now, then=then, broken=broken)


def _under(new: Organisation, mentor: Mentor) -> Mentor:
    """The mentor under the new rules; where the portal is new, nobody knows what it shows."""
    visible = mentor.portal_visible if new.has_portal == mentor.organisation.has_portal else None
    return replace(mentor, organisation=new, portal_visible=visible)


def _count(connection: Connection, tonight: Tonight, read: reading.FactsRead, *, today: date) -> dict[UUID, str]:
    decisions, broken = decide_each(read, today)
    tonight.reminders += len(find_new_reminders(connection, decisions))
    for decision in decisions:
        tonight.paused += decision.pause is PauseChange.OPEN
        tonight.resumed += decision.pause is PauseChange.LIFT
        tonight.hidden += decision.push and not decision.visible
        tonight.shown += decision.push and decision.visible
    return broken
