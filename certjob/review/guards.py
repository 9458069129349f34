"""The guards against a wrong clock or a wrong import: they hold surprising changes.

A change is surprising if the last review did not foresee it. ``holds.held_kinds`` is the rule. Before the first chunk,
``examine`` counts the due mentors with changed facts, because all other changes are foreseen. If these could exceed a
limit, it counts the decisions about all due mentors. During the run, ``admit`` counts the changes of each chunk.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property, partial
from uuid import UUID

import psycopg

from certjob import database
from certjob.database import CONTENTION, Connection
from certjob.domain import holds
from certjob.domain.holds import LIMITS, MENTORS, REMINDED, Hold, Past
from certjob.domain.models import Change, Decision, Effect, Organisation, PauseChange, Reminder
from certjob.mail.reminders import find_new_reminders
from certjob.review import plan

_NewReminders = frozenset[tuple[UUID, Reminder]]
"""Reminders that are not queued yet, each with its mentor."""
_Effects = tuple[tuple[Change, Effect], ...]
"""The kinds of a surprising change, each with its effect."""


class CountedElsewhereError(psycopg.errors.LockNotAvailable):
    """Another run counts the changes of the organisation for longer than the lock timeout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """The decisions of a chunk that may be written."""

    decisions: Sequence[Decision]
    without_reminders: frozenset[UUID] = frozenset()
    """Mentors with held new reminders."""
    staying_due: frozenset[UUID] = frozenset()
    """These mentors, and those with held changes."""


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
        """``allow`` is the permitted number of changes by slug, and returns 0 for a missing slug.

        ``run_id`` is None for a plan. Only a plan of all mentors sets ``everybody``.
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
        rows = database.fetch(self._connection, "count_due_mentors", asked)
        past = self._read_past([row[0] for row in rows])
        for due_id, slug, due, changed in rows:
            surprising = due if due_id in self._after_gap else changed
            at_most = Counter(dict.fromkeys([*Change, MENTORS, REMINDED], surprising))
            if self._judge(due_id, slug, at_most, past=past[due_id]):
                self._hold(due_id, slug, past=past[due_id])

    def admit(self, decisions: Sequence[Decision]) -> Admitted:
        """Return the decisions that may be written, and count them in the caller's transaction.

        A mentor with a held change or reminder stays due.
        """
        groups = _by_organisation(d for d in decisions if self._kinds(d) or d.surprise.reminders)
        past = self._lock(groups)
        new = self._find_new(d for _, group in groups for d in group if d.surprise.reminders)
        counted: list[tuple[UUID, bool, Counter[str]]] = []
        for organisation, group in groups:
            for count in (self._count, partial(self._count_reminders, new=new)):
                is_permitted = self._find_holds(organisation, count(self._passing(group)), past=past[organisation.id])
                counted.append((organisation.id, is_permitted, count(self._passing(group))))
        self._insert(counted)
        return self._without_held(decisions) if self.held else Admitted(decisions=decisions)

    def hold_of(self, decision: Decision) -> Hold | None:
        """Return the first hold of this decision."""
        held = (self.held.get((decision.organisation.id, kind)) for kind in self._kinds(decision))
        return next((hold for hold in held if hold is not None), None)

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
        """Organisations without a run in the last two days. All their changes are surprising."""
        rows = database.fetch(self._connection, "find_organisations_after_gap", {"today": self._today})
        return frozenset(row[0] for row in rows)

    def _kinds(self, decision: Decision) -> tuple[Change, ...]:
        surprise = decision.surprise
        is_after_gap = surprise.kinds_after_gap and decision.organisation.id in self._after_gap
        return surprise.kinds_after_gap if is_after_gap else surprise.kinds

    def _passing(self, decisions: Iterable[Decision]) -> list[Decision]:
        return [decision for decision in decisions if self.hold_of(decision) is None]

    def _count(self, decisions: Iterable[Decision]) -> Counter[str]:
        """Count surprising decisions by kind, by effect and as MENTORS, without their reminders."""
        surprising = ((self._kinds(each), each.surprise.effect) for each in decisions if self._kinds(each))
        return Counter(what for kinds, effect in surprising for what in (*kinds, effect, MENTORS))

    def _count_reminders(self, decisions: Iterable[Decision], *, new: _NewReminders) -> Counter[str]:
        """Count the mentors with new reminders about certificates that no review has seen, unless these are held."""
        return Counter(
            Change.REMINDER
            for each in decisions
            if any((each.mentor_id, reminder) in new for reminder in each.surprise.reminders)
            and (each.organisation.id, Change.REMINDER) not in self.held
        )

    def _without_held(self, decisions: Sequence[Decision]) -> Admitted:
        """Note the held changes and reminders, and return the decisions without them."""
        for each in decisions:
            self._note_held(each.organisation.id, each.mentor_id, self._effects(each))
        passing = self._passing(decisions)
        reminded = [d for d in passing if d.reminders and (d.organisation.id, Change.REMINDER) in self.held]
        new = self._find_new(reminded)
        waiting = frozenset(d.mentor_id for d in reminded if self.hold_of_reminders(d, _new_of(d, new)) is not None)
        self.held_mentors |= {(mentor_id, Change.REMINDER): Effect.REMINDER for mentor_id in waiting}
        held = frozenset(d.mentor_id for d in decisions) - {d.mentor_id for d in passing}
        return Admitted(decisions=passing, without_reminders=waiting, staying_due=held | waiting)

    def _effects(self, decision: Decision) -> _Effects:
        """Return the kinds of a decision with the most harmful effect of each.

        With a new contact ID, an end of the certification that is already known does not count.
        """
        effect = decision.surprise.effect
        is_news = effect is Effect.LEFT or decision.pause is PauseChange.OPEN
        of_contact = effect if is_news else Effect.NEW_CONTACT
        return tuple((kind, of_contact if kind is Change.CONTACT else effect) for kind in self._kinds(decision))

    def _note_held(self, organisation_id: UUID, mentor_id: UUID, effects: _Effects) -> None:
        held = ((kind, effect) for kind, effect in effects if (organisation_id, kind) in self.held)
        self.held_mentors.update(((mentor_id, kind), effect) for kind, effect in held)

    def _find_new(self, decisions: Iterable[Decision]) -> _NewReminders:
        return frozenset(find_new_reminders(self._connection, decisions, today=self._today))

    def _lock(self, groups: Sequence[tuple[Organisation, Sequence[Decision]]]) -> dict[UUID, Past]:
        """Lock organisations and return their earlier changes.

        Changes that a person has permitted need no lock, because a permission applies to one run.
        """
        ids = [organisation.id for organisation, _ in groups]
        past = self._read_past(ids)
        contended: list[UUID] = []
        for organisation, group in groups:
            at_most = self._count(group) + Counter(Change.REMINDER for each in group if each.surprise.reminders)
            if not holds.is_permitted(at_most, past=past[organisation.id], allow=self._allow[organisation.slug]):
                contended.append(organisation.id)
        if not contended:
            return past
        try:
            database.execute(self._connection, "lock_counted_organisations", {"ids": contended})
        except CONTENTION as error:
            raise CountedElsewhereError from error
        return self._read_past(ids)

    def _find_holds(self, organisation: Organisation, counts: Counter[str], *, past: Past) -> bool:
        """Hold the kinds that exceed their limits with these new changes. Return whether a person permits them all."""
        if holds.is_permitted(counts, past=past, allow=self._allow[organisation.slug]):
            return True
        if self._judge(organisation.id, organisation.slug, counts, past=past):
            self._hold(organisation.id, organisation.slug, past=past)
        return False

    def _judge(self, organisation_id: UUID, slug: str, counts: Counter[str], *, past: Past) -> dict[Change, str]:
        """Return the kinds that are held with these counts. The certified are counted only if that can matter."""
        is_after_gap = organisation_id in self._after_gap if counts[REMINDED] else False
        judged = partial(holds.held_kinds, counts, past=past, allow=self._allow[slug], is_after_gap=is_after_gap)
        return judged(certified=0) and judged(certified=self._certified[organisation_id])

    def _hold(self, organisation_id: UUID, slug: str, *, past: Past) -> None:
        """Count the changes of all due mentors of the organisation, and hold the kinds that exceed their limits."""
        pending = Counter[str]()
        surprising: list[tuple[UUID, _Effects]] = []
        for decisions, _broken in plan.due_decisions(
            self._connection, today=self._today, organisation_id=organisation_id, everybody=self._everybody
        ):
            new = self._find_new(decisions)
            pending += self._count(decisions) + self._count_reminders(decisions, new=new)
            pending[REMINDED] += sum(bool(_new_of(d, new)) and not self._kinds(d) for d in decisions)
            surprising += [(d.mentor_id, self._effects(d)) for d in decisions if self._kinds(d)]
        for what, reason in self._judge(organisation_id, slug, pending, past=past).items():
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
        for mentor_id, effects in surprising:
            self._note_held(organisation_id, mentor_id, effects)

    def _read_past(self, organisation_ids: Sequence[UUID]) -> dict[UUID, Past]:
        past = {organisation_id: Past() for organisation_id in organisation_ids}
        asked = {"organisation_ids": organisation_ids, "run_id": self._run_id}
        rows = database.fetch(self._connection, "read_guard_counts", asked) if past else ()
        for organisation_id, what, is_permitted, number in rows:
            each = past[organisation_id]
            (each.permitted if is_permitted else each.counted)[what] = number
        return past

    def _insert(self, counted: Sequence[tuple[UUID, bool, Counter[str]]]) -> None:
        """Count changes for later chunks and runs; permitted ones only for later chunks of this run."""
        rows = [
            (organisation_id, what, counts[what], is_permitted)
            for organisation_id, is_permitted, counts in counted
            for what in [*Change, MENTORS]
            if counts[what]
        ]
        if rows:
            names = ("organisation_ids", "whats", "numbers", "permitted")
            columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
            database.execute(self._connection, "insert_guard_counts", columns | {"run_id": self._run_id})


def _new_of(decision: Decision, new: _NewReminders) -> list[Reminder]:
    """Return the new reminders of a decision."""
    return [each for each in decision.reminders if (decision.mentor_id, each) in new]


def _by_organisation(decisions: Iterable[Decision]) -> list[tuple[Organisation, list[Decision]]]:
    """Group decisions, in the order in which parallel runs lock the organisations."""
    groups: dict[UUID, list[Decision]] = defaultdict(list)
    for decision in decisions:
        groups[decision.organisation.id].append(decision)
    return [(group[0].organisation, group) for _, group in sorted(groups.items())]
