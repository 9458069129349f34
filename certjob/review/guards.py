"""The guards against a wrong clock or a wrong import: they hold surprising changes, and too many reminders.

A change is surprising if the last review did not foresee it. A mentor who is due by the calendar has only foreseen
changes, so a few mentors with changed facts need no closer look. Otherwise the decisions about all due mentors are
counted before the first chunk. A chunk adds only what has changed since. ``holds.judge`` is the rule.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from functools import cached_property, partial
from uuid import UUID

import psycopg

from certjob import database
from certjob.database import CONTENTION, Connection
from certjob.domain import holds, rules
from certjob.domain.holds import REMINDERS, Hold
from certjob.domain.models import Change, Decision, Organisation
from certjob.mail.reminders import find_new_reminders
from certjob.review import plan

_REMINDED = "reminded mentors"


class CountedElsewhereError(psycopg.errors.LockNotAvailable):
    """Another run counts the changes of the organisation for longer than the lock timeout."""


class MassChangeGuard:
    """Counts the surprising changes and the new reminders of a run, and knows which of them are held."""

    def __init__(
        self,
        connection: Connection,
        *,
        today: date,
        run_id: UUID | None,
        allow: Mapping[str, int] = Counter(),
        everybody: bool = False,
    ) -> None:
        """``allow`` has the permitted number of changes by slug, and must return 0 for a missing slug.

        ``run_id``: None if the changes are not made. ``everybody``: the plan reviews all mentors, not only due ones.
        """
        self._connection = connection
        self._today = today
        self._run_id = run_id
        self._allow = allow
        self._everybody = everybody
        self.reminded: Counter[UUID] = Counter()
        """Committed new reminders of this run, by organisation."""
        self.held: dict[tuple[UUID, str], Hold] = {}
        """Holds by organisation and kind."""

    def examine(self, organisation_id: UUID | None) -> None:
        """Find the holds before the first chunk. A run with few due mentors needs one look-up in an index."""
        asked = {
            "due_by": None if self._everybody else self._today,
            "organisation_id": organisation_id,
            "minimum": rules.MASS_CHANGE_MINIMUM,
        }
        for due_id, slug, due, changed, certificates in database.fetch(self._connection, "count_due_mentors", asked):
            surprising = due if due_id in self._after_gap else changed
            at_most = Counter({Change.REMOVAL: surprising, Change.RETURN: surprising, REMINDERS: certificates})
            if self._judge(due_id, slug, at_most, past=self._read_past(due_id)):
                self._hold(due_id, slug)

    def admit(self, decisions: Sequence[Decision]) -> list[Decision]:
        """Return the decisions that may be applied; a mentor with a held change stays due.

        The surprising ones are counted in the transaction that applies them.
        """
        for organisation, group in _by_organisation(d for d in decisions if self._is_surprising(d)):
            counts = Counter(str(d.change) for d in group if self.hold_of(d) is None)
            if not counts:
                continue
            past = self._read_past(organisation.id)
            is_permitted = holds.is_permitted(counts, past=past, allow=self._allow[organisation.slug])
            if not is_permitted:  # a permission is for this run only, so the changes of other runs do not matter
                self._lock(organisation.id)
                past = self._read_past(organisation.id)
                if self._judge(organisation.id, organisation.slug, counts, past=past):
                    self._hold(organisation.id, organisation.slug)
            row = {"organisation_id": organisation.id, "permitted_in": self._run_id if is_permitted else None}
            for what, count in counts.items():
                if (organisation.id, what) not in self.held:
                    database.execute(self._connection, "insert_guard_count", row | {"what": what, "number": count})
        return [decision for decision in decisions if self.hold_of(decision) is None]

    def hold_of(self, decision: Decision) -> Hold | None:
        """Return the hold of this decision."""
        hold = self.held.get((decision.organisation.id, str(decision.change)))
        return hold if hold is not None and self._is_surprising(decision) else None

    def hold_reminders(self, decisions: Sequence[Decision]) -> frozenset[UUID]:
        """Return the mentors with held new reminders; they stay due. Only near the limit does this need a query."""
        waiting: set[UUID] = set()
        for organisation, group in _by_organisation(d for d in decisions if d.reminders):
            key = (organisation.id, REMINDERS)
            most = max(rules.MASS_REMINDER_LIMIT, self._allow[organisation.slug]) - self.reminded[organisation.id]
            if key not in self.held and sum(len(d.reminders) for d in group) <= most:
                continue
            new = find_new_reminders(self._connection, group, today=self._today)
            if key not in self.held and len(new) > most:
                self._hold(organisation.id, organisation.slug)
            if key in self.held:
                waiting.update(mentor_id for mentor_id, _ in new)
        return frozenset(waiting)

    @cached_property
    def _certified(self) -> Counter[UUID]:
        """Certified mentors before this run, by organisation."""
        return Counter(dict(database.fetch(self._connection, "count_certified_mentors", {"today": self._today})))

    @cached_property
    def _after_gap(self) -> frozenset[UUID]:
        """Organisations that no run has reviewed for a week. All their changes are surprising."""
        rows = database.fetch(self._connection, "find_organisations_after_gap", {"today": self._today})
        return frozenset(row[0] for row in rows)

    def _is_surprising(self, decision: Decision) -> bool:
        return decision.change is not None and (not decision.foreseen or decision.organisation.id in self._after_gap)

    def _judge(self, organisation_id: UUID, slug: str, counts: Counter[str], *, past: Counter[str]) -> dict[str, str]:
        """Return the kinds that are held with these counts. The certified are counted only if that can matter."""
        judged = partial(holds.judge, counts, past=past, allow=self._allow[slug])
        return judged(certified=0) and judged(certified=self._certified[organisation_id])

    def _lock(self, organisation_id: UUID) -> None:
        try:
            database.execute(self._connection, "lock_counted_organisation", {"id": organisation_id})
        except CONTENTION as error:
            raise CountedElsewhereError from error

    def _hold(self, organisation_id: UUID, slug: str) -> None:
        """Count the changes of all due mentors of the organisation, and hold the kinds that exceed their limits."""
        pending = Counter[str]()
        for decisions, _broken in plan.due_decisions(
            self._connection, today=self._today, organisation_id=organisation_id, everybody=self._everybody
        ):
            pending.update(str(d.change) for d in decisions if self._is_surprising(d))
            new = find_new_reminders(self._connection, decisions, today=self._today)
            pending[REMINDERS] += len(new)
            pending[_REMINDED] += len({mentor_id for mentor_id, _ in new})
        for what, reason in self._judge(organisation_id, slug, pending, past=self._read_past(organisation_id)).items():
            is_change = what != REMINDERS
            hold = Hold(
                organisation_id=organisation_id,
                organisation=slug,
                what=what,
                reason=f"{reason}; everything else goes on",
                mentors=pending[what if is_change else _REMINDED],
                allow=sum(pending[each] for each in Change) if is_change else pending[what],
                after_gap=is_change and organisation_id in self._after_gap,
            )
            self.held.setdefault((organisation_id, what), hold)

    def _read_past(self, organisation_id: UUID) -> Counter[str]:
        """Return what counts beside new changes, as ``past`` of ``holds.judge``."""
        asked = {"organisation_id": organisation_id, "run_id": self._run_id}
        past = Counter(dict(database.fetch(self._connection, "read_guard_counts", asked)))
        past[REMINDERS] = self.reminded[organisation_id]
        return past


def _by_organisation(decisions: Iterable[Decision]) -> list[tuple[Organisation, list[Decision]]]:
    """Group decisions, in the order in which parallel runs lock the organisations."""
    groups: dict[UUID, list[Decision]] = defaultdict(list)
    for decision in decisions:
        groups[decision.organisation.id].append(decision)
    return [(group[0].organisation, group) for _, group in sorted(groups.items())]
