"""What the coming nights will do to one mentor if no fact changes: the rules, applied one review after the other.

Pure, as the rules are. Between two reviews nothing can happen: that is what ``Decision.review_on`` says.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from uuid import UUID

from certjob.domain import rules
from certjob.domain.models import OWN_PAUSE_REASON, Decision, Mentor, OpenPause, PauseChange, Reminder

_PAUSE_TO_COME = OpenPause(id=UUID(int=0), reason=OWN_PAUSE_REASON)
"""Stands for certjob's own pause that has no id before it is written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComingNight:
    """A night on which this mentor is reviewed."""

    day: date
    decision: Decision
    reminders: tuple[Reminder, ...]
    """Those due that night and on no earlier night; the log may have them already."""

    @property
    def does_something(self) -> bool:
        """Whether it changes anything, or is due for a reminder that no earlier night was due for."""
        decision = self.decision
        return bool(decision.transitions or decision.pause or decision.push or self.reminders)


def coming_nights(mentor: Mentor, *, first: date, until: date | None = None) -> Iterator[ComingNight]:
    """Yield the nights that review this mentor: ``first``, and then whenever the review before says, to the last."""
    known: set[Reminder] = set()
    day: date | None = first
    while day is not None and (until is None or day <= until):
        decision = rules.decide(mentor, day)
        reminders = tuple(reminder for reminder in decision.reminders if reminder not in known)
        known.update(reminders)
        yield ComingNight(day=day, decision=decision, reminders=reminders)
        mentor = after(mentor, decision)
        day = decision.review_on


def after(mentor: Mentor, decision: Decision) -> Mentor:
    """Return the mentor as the database holds them once the decision is committed."""
    if decision.transitions:
        statuses = {transition.certificate_id: transition.to_status for transition in decision.transitions}
        certificates = tuple(replace(each, status=statuses.get(each.id, each.status)) for each in mentor.certificates)
        mentor = replace(mentor, certificates=certificates)
    if decision.pause is PauseChange.OPEN:
        mentor = replace(mentor, open_pauses=(*mentor.open_pauses, _PAUSE_TO_COME))
    elif decision.pause is PauseChange.LIFT:
        left = tuple(pause for pause in mentor.open_pauses if pause.id != decision.own_pause_id)
        mentor = replace(mentor, open_pauses=left)
    visible = decision.visible if decision.push else mentor.portal_visible
    return replace(mentor, portal_visible=visible, certified_until=decision.certified_until, due_by_calendar=True)
