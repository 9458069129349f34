"""What the reviews of a run did, counted once each mentor's transaction is committed."""

from collections import Counter
from dataclasses import dataclass, field
from uuid import UUID

from certjob.models import Decision, PauseChange, Status
from certjob.planning import Problem

LOCKED = "held by another session until the end of the run; the next run does this review"
MAY_STAY_VISIBLE = (
    "the organisation has no portal any more and the hide was withdrawn; hide by hand whom it still shows"
)


@dataclass(slots=True, kw_only=True)
class ReviewCounts:
    """What the reviews of a run did."""

    reviewed: int = 0
    paused: int = 0
    resumed: int = 0
    without_certificate: int = 0
    transitions: Counter[Status] = field(default_factory=Counter)
    """Transitions into each status."""
    reminders_queued: int = 0
    portal_queued: int = 0
    skipped: list[UUID] = field(default_factory=list)
    """Mentors who stayed locked by somebody else until the end."""
    broken: dict[UUID, str] = field(default_factory=dict)
    may_stay_visible: list[UUID] = field(default_factory=list)
    """Mentors who moved to an organisation without a portal before they were hidden on the other one's."""

    def add(self, decision: Decision) -> None:
        """Count one reviewed mentor."""
        self.reviewed += 1
        self.paused += decision.pause is PauseChange.OPEN
        self.resumed += decision.pause is PauseChange.LIFT
        self.without_certificate += decision.without_certificate
        for change in decision.transitions:
            self.transitions[change.to_status] += 1

    @property
    def problems(self) -> list[Problem]:
        """Skipped and broken mentors, and those whom a portal may go on showing, each with the reason."""
        return [
            *(Problem(mentor_id=mentor_id, reason=LOCKED) for mentor_id in self.skipped),
            *(Problem(mentor_id=mentor_id, reason=reason) for mentor_id, reason in self.broken.items()),
            *(Problem(mentor_id=mentor_id, reason=MAY_STAY_VISIBLE) for mentor_id in self.may_stay_visible),
        ]
