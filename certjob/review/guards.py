"""The guards against a wrong clock or a wrong import: they hold surprising changes.

A change is surprising if the last review did not foresee it. A mentor who is due by the calendar has only foreseen
changes, so a few mentors with changed facts need no closer look. Otherwise the decisions about all due mentors are
counted before the first chunk. A chunk adds only what has changed since. ``holds.held_kinds`` is the rule.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import date
from functools import cached_property, partial
from uuid import UUID

import psycopg

from certjob import database
from certjob.database import CONTENTION, Connection
from certjob.domain import holds
from certjob.domain.holds import LIMITS, MENTORS, REMINDED, Hold, Past
from certjob.domain.models import Change, Decision, Effect, Organisation, Reminder
from certjob.mail.reminders import find_new_reminders
from certjob.review import plan


class CountedElsewhereError(psycopg.errors.LockNotAvailable):
    """Another run counts the changes of the organisation for longer than the lock timeout."""


class MassChangeGuard:
    """Counts the surprising changes of a run, and knows which of them are held."""

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
        self.held: dict[tuple[UUID, str], Hold] = {}
        """Holds by organisation and kind."""
        self.held_mentors: dict[tuple[UUID, str], Effect] = {}
        """The effect of each held change, by mentor and kind."""

    def examine(self, organisation_id: UUID | None) -> None:
        """Find the holds before the first chunk. A run with few due mentors needs one look-up in an index."""
        asked = {
            "due_by": None if self._everybody else self._today,
            "organisation_id": organisation_id,
            "minimum": min(limit.minimum for limit in LIMITS.values()),
        }
        for due_id, slug, due, changed in database.fetch(self._connection, "count_due_mentors", asked):
            surprising = due if due_id in self._after_gap else changed
            at_most = Counter(dict.fromkeys([*Change, MENTORS, REMINDED], surprising))
            if self._judge(due_id, slug, at_most, past=self._read_past(due_id)):
                self._hold(due_id, slug)

    def admit(self, decisions: Sequence[Decision]) -> list[Decision]:
        """Return the decisions that may be applied; a mentor with a held change stays due.

        The surprising ones are counted in the transaction that applies them.
        """
        self._lock(decisions)
        for organisation, group in _by_organisation(d for d in decisions if self._kinds(d)):
            if counts := self._count(d for d in group if self.hold_of(d) is None):
                is_permitted = self._find_holds(organisation, counts)
                admitted = self._count(d for d in group if self.hold_of(d) is None)
                self._insert(organisation, admitted, is_permitted=is_permitted)
            for decision in group:
                self._note_held(organisation.id, decision.mentor_id, self._kinds(decision), decision.surprise.effect)
        return [decision for decision in decisions if self.hold_of(decision) is None]

    def hold_of(self, decision: Decision) -> Hold | None:
        """Return the first hold of this decision."""
        held = (self.held.get((decision.organisation.id, kind)) for kind in self._kinds(decision))
        return next((hold for hold in held if hold is not None), None)

    def hold_reminders(self, decisions: Sequence[Decision]) -> frozenset[UUID]:
        """Return the mentors with held new reminders; they stay due. Other new reminders are counted."""
        for organisation, group in _by_organisation(d for d in decisions if d.surprise.reminders):
            new = self._find_new(group)
            counts = Counter({str(Change.REMINDER): sum(map(partial(_is_surprising, new=new), group))})
            if counts.total() and (organisation.id, Change.REMINDER) not in self.held:
                is_permitted = self._find_holds(organisation, counts)
                if (organisation.id, Change.REMINDER) not in self.held:
                    self._insert(organisation, counts, is_permitted=is_permitted)
        in_question = [d for d in decisions if d.reminders and (d.organisation.id, Change.REMINDER) in self.held]
        new = self._find_new(in_question)
        waiting = [d.mentor_id for d in in_question if self.hold_of_reminders(d, new[d.mentor_id]) is not None]
        self.held_mentors |= {(mentor_id, Change.REMINDER): Effect.REMINDER for mentor_id in waiting}
        return frozenset(waiting)

    def hold_of_reminders(self, decision: Decision, new: Collection[Reminder]) -> Hold | None:
        """Return the hold of the mentor's new reminders. While changes after a gap are held, all of them wait."""
        hold = self.held.get((decision.organisation.id, Change.REMINDER))
        if hold is None or (hold.after_gap and new):
            return hold
        return hold if not set(decision.surprise.reminders).isdisjoint(new) else None

    @cached_property
    def _certified(self) -> Counter[UUID]:
        """Certified mentors before this run, by organisation."""
        return Counter(dict(database.fetch(self._connection, "count_certified_mentors", {"today": self._today})))

    @cached_property
    def _after_gap(self) -> frozenset[UUID]:
        """Organisations without a run in the last two days. Their last reviews foresaw nothing."""
        rows = database.fetch(self._connection, "find_organisations_after_gap", {"today": self._today})
        return frozenset(row[0] for row in rows)

    def _kinds(self, decision: Decision) -> tuple[Change, ...]:
        surprise = decision.surprise
        if surprise.kinds == surprise.kinds_after_gap or decision.organisation.id not in self._after_gap:
            return surprise.kinds
        return surprise.kinds_after_gap

    def _count(self, decisions: Iterable[Decision]) -> Counter[str]:
        """Count decisions by kind, by effect and as MENTORS, without their reminders."""
        counts = Counter[str]()
        for decision in decisions:
            if kinds := self._kinds(decision):
                counts.update([*kinds, decision.surprise.effect, MENTORS])
        return counts

    def _note_held(self, organisation_id: UUID, mentor_id: UUID, kinds: Iterable[Change], effect: Effect) -> None:
        for kind in kinds:
            if (organisation_id, kind) in self.held:
                self.held_mentors[mentor_id, kind] = Effect.NEW_CONTACT if kind is Change.CONTACT else effect

    def _find_new(self, decisions: Sequence[Decision]) -> dict[UUID, list[Reminder]]:
        """Return the new reminders of decisions by mentor."""
        new: dict[UUID, list[Reminder]] = defaultdict(list)
        for mentor_id, reminder in find_new_reminders(self._connection, decisions, today=self._today):
            new[mentor_id].append(reminder)
        return new

    def _lock(self, decisions: Sequence[Decision]) -> None:
        """Lock the organisations whose changes and reminders must be counted, in one order for all runs.

        A permission is for this run only, so the changes of other runs do not matter then.
        """
        counted = [each for each in decisions if self._kinds(each) or each.surprise.reminders]
        for organisation, group in _by_organisation(counted):
            at_most = self._count(group)
            at_most[Change.REMINDER] = sum(bool(decision.surprise.reminders) for decision in group)
            past = self._read_past(organisation.id)
            if not holds.is_permitted(at_most, past=past, allow=self._allow[organisation.slug]):
                try:
                    database.execute(self._connection, "lock_counted_organisation", {"id": organisation.id})
                except CONTENTION as error:
                    raise CountedElsewhereError from error

    def _find_holds(self, organisation: Organisation, counts: Counter[str]) -> bool:
        """Hold the kinds that exceed their limits with these new changes. Return whether a person permits them all."""
        past = self._read_past(organisation.id)
        if holds.is_permitted(counts, past=past, allow=self._allow[organisation.slug]):
            return True
        if self._judge(organisation.id, organisation.slug, counts, past=past):
            self._hold(organisation.id, organisation.slug)
        return False

    def _judge(self, organisation_id: UUID, slug: str, counts: Counter[str], *, past: Past) -> dict[Change, str]:
        """Return the kinds that are held with these counts. The certified are counted only if that can matter."""
        is_after_gap = organisation_id in self._after_gap if counts[REMINDED] else False
        judged = partial(holds.held_kinds, counts, past=past, allow=self._allow[slug], is_after_gap=is_after_gap)
        return judged(certified=0) and judged(certified=self._certified[organisation_id])

    def _hold(self, organisation_id: UUID, slug: str) -> None:
        """Count the changes of all due mentors of the organisation, and hold the kinds that exceed their limits."""
        pending = Counter[str]()
        surprising: list[tuple[UUID, tuple[Change, ...], Effect]] = []
        for decisions, _broken in plan.due_decisions(
            self._connection, today=self._today, organisation_id=organisation_id, everybody=self._everybody
        ):
            pending += self._count(decisions)
            new = self._find_new(decisions)
            pending[REMINDED] += sum(bool(new.get(d.mentor_id)) and not self._kinds(d) for d in decisions)
            pending[Change.REMINDER] += sum(map(partial(_is_surprising, new=new), decisions))
            surprising += [(d.mentor_id, self._kinds(d), d.surprise.effect) for d in decisions if self._kinds(d)]
        for what, reason in self._judge(organisation_id, slug, pending, past=self._read_past(organisation_id)).items():
            is_reminder = what is Change.REMINDER
            hold = Hold(
                organisation_id=organisation_id,
                organisation=slug,
                what=what,
                reason=f"{reason}; all other changes proceed",
                mentors=pending[what] or pending[REMINDED],
                allow=(pending[what] or pending[REMINDED]) if is_reminder else pending[MENTORS],
                after_gap=organisation_id in self._after_gap,
            )
            self.held.setdefault((organisation_id, what), hold)
        for mentor_id, kinds, effect in surprising:
            self._note_held(organisation_id, mentor_id, kinds, effect)

    def _read_past(self, organisation_id: UUID) -> Past:
        past = Past()
        asked = {"organisation_id": organisation_id, "run_id": self._run_id}
        for what, is_permitted, number in database.fetch(self._connection, "read_guard_counts", asked):
            (past.permitted if is_permitted else past.counted)[what] = number
        return past

    def _insert(self, organisation: Organisation, counts: Counter[str], *, is_permitted: bool) -> None:
        """Count changes for later chunks and runs; permitted ones only for those of this run."""
        counted = {what: counts[what] for what in [*Change, MENTORS] if counts[what]}
        rows = {
            "organisation_id": organisation.id,
            "whats": list(counted),
            "numbers": list(counted.values()),
            "permitted_in": self._run_id if is_permitted else None,
        }
        if counted:
            database.execute(self._connection, "insert_guard_counts", rows)


def _is_surprising(decision: Decision, *, new: Mapping[UUID, Sequence[Reminder]]) -> bool:
    """Return whether one of the new reminders is about a certificate that no review has seen."""
    reminders = decision.surprise.reminders
    return bool(reminders) and not set(reminders).isdisjoint(new.get(decision.mentor_id, ()))


def _by_organisation(decisions: Iterable[Decision]) -> list[tuple[Organisation, list[Decision]]]:
    """Group decisions, in the order in which parallel runs lock the organisations."""
    groups: dict[UUID, list[Decision]] = defaultdict(list)
    for decision in decisions:
        groups[decision.organisation.id].append(decision)
    return [(group[0].organisation, group) for _, group in sorted(groups.items())]
