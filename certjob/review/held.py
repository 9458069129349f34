"""What a guard holds back for an organisation: why, whom it concerns, and the command that lets it through."""

from dataclasses import dataclass, field
from datetime import date
from uuid import UUID

from certjob import database
from certjob.database import Connection
from certjob.domain.models import Decision, PauseChange

MOST_IDS = 50
"""The ids of at most this many held mentors are stored."""


@dataclass(slots=True)
class HeldCounts:
    """Who is held, and why these mentors were due."""

    mentors: int = 0
    ended_by_calendar: int = 0
    """Their day had come although no fact was changed: these certificates have really ended."""
    facts_changed: int = 0
    may_be_shown: int = 0
    """To be hidden, and perhaps still shown on the portal."""
    first: list[tuple[bool, bool, UUID]] = field(default_factory=list)
    """Some of them, those who may be shown first, and of these whose certificate has really ended."""

    def add(self, connection: Connection, held: dict[UUID, Decision], *, reminders: bool) -> None:
        """Count some mentors; with ``reminders`` only their reminders are held, and everything else goes on."""
        hides = [not reminders and d.push and not d.visible for d in held.values()]
        rows = database.fetch(connection, "count_held_mentors", {"ids": list(held), "hides": hides})
        for mentor_id, by_calendar, may_be_shown in rows:
            decision = held[mentor_id]
            is_over = reminders or decision.pause is PauseChange.OPEN or (decision.push and not decision.visible)
            self.mentors += 1
            self.ended_by_calendar += by_calendar and is_over
            self.facts_changed += not by_calendar
            self.may_be_shown += may_be_shown
            self.first.append((may_be_shown, by_calendar and is_over, mentor_id))
        self.first.sort(key=lambda each: each[:2], reverse=True)
        del self.first[MOST_IDS:]  # however many are held, memory stays flat


@dataclass(slots=True, kw_only=True)
class HeldReview:
    """What the guard holds back for an organisation."""

    organisation_id: UUID
    slug: str
    what: str
    """``pauses``, ``returns``, ``reminders`` or ``portal``."""
    reason: str
    is_stored: bool = False

    def store(self, connection: Connection, counts: HeldCounts, *, today: date, run_id: UUID) -> None:
        """Write it down, inside the caller's transaction."""
        database.execute(
            connection,
            "store_held_review",
            {
                "organisation_id": self.organisation_id,
                "what": self.what,
                "today": today,
                "reason": self.reason,
                "mentors": counts.mentors,
                "ended_by_calendar": counts.ended_by_calendar,
                "facts_changed": counts.facts_changed,
                "may_be_shown": counts.may_be_shown,
                "mentor_ids": [mentor_id for *_, mentor_id in counts.first],
                "run_id": run_id,
            },
        )
        self.is_stored = True

    @property
    def line(self) -> str:
        """What was held, why, and what to do, for the report."""
        return held_line(self.slug, self.what, self.reason)


def let_through(slug: str, what: str) -> str:
    """Return the command that lets through what is held."""
    if what == "portal":
        return "certjob reconcile --allow-mass-change"
    return f"certjob run --organisation {slug} --allow-mass-change"


def held_line(slug: str, what: str, reason: str) -> str:
    """Return one line about what is held: for a run that holds it, and for those that come after it."""
    look = {
        "reminders": "the last import",
        "portal": "DYNAMICS_VISIBILITY_FIELD and DYNAMICS_URL of the function",
    }.get(what, "the clock and the last import")
    return f"{slug}: {reason}. Check {look}, then `{let_through(slug, what)}`"
