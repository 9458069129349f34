"""Project the coming runs of one mentor: the rules, applied review after review, while no fact changes."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from uuid import UUID

from certjob.domain import rules
from certjob.domain.models import OWN_PAUSE_REASON, Decision, Mentor, OpenPause, PauseChange, Reminder

_COMING_PAUSE = OpenPause(id=UUID(int=0), reason=OWN_PAUSE_REASON)
"""certjob's own pause, which gets its id when it is written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComingRun:
    """A run that reviews the mentor."""

    day: date
    decision: Decision
    reminders: tuple[Reminder, ...]
    """Reminders due in this run and in no earlier one. The log may have them already."""

    @property
    def does_something(self) -> bool:
        """Whether the run changes the mentor or has a new reminder."""
        decision = self.decision
        return bool(decision.transitions or decision.pause or decision.push or self.reminders)


def coming_runs(mentor: Mentor, *, first: date) -> Iterator[ComingRun]:
    """Yield the runs that review this mentor: ``first``, and then each ``review_on`` of the decision before."""
    known: set[Reminder] = set()
    day: date | None = first
    while day is not None:
        decision = rules.decide(mentor, day)
        reminders = tuple(reminder for reminder in decision.reminders if reminder not in known)
        known.update(reminders)
        yield ComingRun(day=day, decision=decision, reminders=reminders)
        mentor = after(mentor, decision)
        day = decision.review_on


def after(mentor: Mentor, decision: Decision) -> Mentor:
    """Return the mentor as stored after the commit of the decision."""
    statuses = {transition.certificate_id: transition.to_status for transition in decision.transitions}
    pauses = mentor.open_pauses
    if decision.pause is PauseChange.OPEN:
        pauses = (*pauses, replace(_COMING_PAUSE, lapsed_kinds=decision.lapsed_kinds or frozenset()))
    elif decision.pause is PauseChange.LIFT:
        pauses = tuple(pause for pause in pauses if pause.id != decision.own_pause_id)
    elif decision.lapsed_kinds is not None:
        kinds = decision.lapsed_kinds
        pauses = tuple(replace(p, lapsed_kinds=kinds) if p.id == decision.own_pause_id else p for p in pauses)
    return replace(
        mentor,
        certificates=tuple(
            replace(each, status=statuses.get(each.id, each.status), unseen=False) for each in mentor.certificates
        ),
        open_pauses=pauses,
        portal_visible=decision.visible if decision.push else mentor.portal_visible,
        contact_replaced=False,
        certified_until=decision.certified_until,
        decided_visible=decision.visible,
        seen=frozenset(decision.seen) if decision.seen is not None else mentor.seen,
        due_by_calendar=True,
    )
