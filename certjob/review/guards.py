"""The guard against a wrong clock or a wrong import: it holds surprising changes.

A change is surprising if the last review did not foresee it. ``holds.held_changes`` is the rule. Before the first
chunk, ``examine`` counts the due mentors with changed facts, because all other changes are foreseen. If these could
exceed a limit, it counts the decisions about all due mentors. During the run, ``admit`` counts the changes of each
chunk.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from uuid import UUID

import psycopg

from certjob import database
from certjob.database import CONTENTION, Connection
from certjob.domain import holds
from certjob.domain.holds import Hold
from certjob.domain.models import Change, Decision, Effect, Organisation, Reminder
from certjob.mail.reminders import find_held_reminders, find_new_reminders, release_reminders
from certjob.review import plan


class CountedElsewhereError(psycopg.errors.LockNotAvailable):
    """Another run counts the changes of the organisation for longer than the lock timeout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldMentor:
    """A mentor with a held change."""

    mentor_id: UUID
    effect: Effect
    after_gap: bool
    """Whether the change was foreseen, but by a review that is too old. Later runs must hold it as well."""
    certified_until: date
    """The value that a review would store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """The decisions of a chunk that may be written."""

    decisions: Sequence[Decision]
    held: Sequence[HeldMentor] = ()
    """The mentors of the others."""
    held_reminders: Collection[tuple[UUID, Reminder]] = frozenset()
    """New reminders of the admitted decisions that must wait for a permission."""
    permitted: Mapping[UUID, Counter[Change]] = field(default_factory=dict)
    """The mentors of each organisation whose changes a person has permitted."""


class MassChangeGuard:
    """Counts the mentors with surprising changes, and knows which are held."""

    def __init__(
        self,
        connection: Connection,
        *,
        today: date,
        allow: Mapping[str, int] = Counter(),
        everybody: bool = False,
    ) -> None:
        """``allow`` is the permitted number of mentors by slug, and returns 0 for a missing slug.

        Only a plan of all mentors sets ``everybody``.
        """
        self._connection = connection
        self._today = today
        self._allow = allow
        self._everybody = everybody
        self._permitted: dict[UUID, Counter[Change]] = defaultdict(Counter)
        self.held: dict[UUID, Hold] = {}
        """Holds by organisation."""

    def examine(self, organisation_id: UUID | None) -> None:
        """Find the holds before the first chunk. A run with few due mentors needs one look-up in an index."""
        asked = {
            "due_by": None if self._everybody else self._today,
            "organisation_id": organisation_id,
            "minimum": min(holds.LEAST, holds.MOST_RETURNS),
        }
        rows = database.fetch(self._connection, "count_due_mentors", asked)
        past = self._read_past([row[0] for row in rows])
        for due_id, slug, due, changed in rows:
            is_gap = due_id in self._after_gap or due_id in self._held_after_gap.values()
            surprising = due if is_gap else changed
            if allow := self._allow[slug]:
                waiting = len(find_held_reminders(self._connection, due_id))
                if surprising + waiting <= allow:
                    continue
            at_most = Counter(dict.fromkeys(Change, surprising))
            if self._judge(due_id, at_most, past=past[due_id]):
                self._hold(due_id, slug, past=past[due_id])

    def admit(self, decisions: Sequence[Decision]) -> Admitted:
        """Return the decisions that may be written, and count them in the caller's transaction."""
        new = self._find_new(decisions)
        groups = _by_organisation(d for d in decisions if self.change_of(d, new) is not None)
        past = self._lock({each: self._count(group, new) for each, group in groups})
        permitted = dict[UUID, Counter[Change]]()
        counted = list[tuple[UUID, Change, int]]()
        for organisation, group in groups:
            before = past[organisation.id]
            if organisation.id not in self.held and self._judge(
                organisation.id, self._count(group, new), past=before, allow=self._allow[organisation.slug]
            ):
                self._hold(organisation.id, organisation.slug, past=before)
            passing = self._count((d for d in group if not self._is_held(d, new)), new)
            if self._allow[organisation.slug] and organisation.id not in self.held:
                permitted[organisation.id] = passing
            else:
                counted += [(organisation.id, change, mentors) for change, mentors in passing.items()]
        self._insert(counted)
        if not self.held:
            return Admitted(decisions=decisions, permitted=permitted)
        held = [d for d in decisions if self.hold_of(d) is not None]
        ids = {d.mentor_id for d in held}
        return Admitted(
            decisions=[d for d in decisions if d.mentor_id not in ids],
            held=[
                HeldMentor(
                    mentor_id=d.mentor_id,
                    effect=d.surprise.effect,
                    after_gap=d.surprise.change is None,
                    certified_until=d.certified_until,
                )
                for d in held
            ],
            held_reminders={each for d in decisions for each in self.held_reminders_of(d, new)},
            permitted=permitted,
        )

    def release_reminders(self) -> None:
        """Make held reminders pending if a person permits them, in the caller's transaction."""
        for slug, number in self._allow.items():
            if slug not in {each.organisation for each in self.held.values()}:
                release_reminders(self._connection, slug, allow=number)

    def note_permitted(self, admitted: Admitted) -> None:
        """Count the permitted changes of a committed transaction for the rest of this run."""
        for organisation_id, counts in admitted.permitted.items():
            self._permitted[organisation_id] += counts

    def hold_of(self, decision: Decision) -> Hold | None:
        """Return the hold of this mentor."""
        hold = self.held.get(decision.organisation.id)
        return hold if hold is not None and self._visibility_change(decision) in hold.changes else None

    def held_reminders_of(
        self, decision: Decision, new: Collection[tuple[UUID, Reminder]]
    ) -> list[tuple[UUID, Reminder]]:
        """Return the held reminders of a mentor. With a change of visibility, only this change counts."""
        hold = self.held.get(decision.organisation.id)
        if hold is None or Change.REMINDER not in hold.changes or self._visibility_change(decision) is not None:
            return []
        return [each for reminder in decision.surprise.reminders if (each := (decision.mentor_id, reminder)) in new]

    def change_of(self, decision: Decision, new: Collection[tuple[UUID, Reminder]]) -> Change | None:
        """Return the surprising change as which this mentor counts. ``new`` has the reminders that are not queued."""
        change = self._visibility_change(decision)
        if change is None and any((decision.mentor_id, each) in new for each in decision.surprise.reminders):
            return Change.REMINDER
        return change

    @cached_property
    def _certified(self) -> Counter[UUID]:
        """Certified mentors before this run, by organisation."""
        return Counter(dict(database.fetch(self._connection, "count_certified_mentors", {"today": self._today})))

    @cached_property
    def _after_gap(self) -> frozenset[UUID]:
        """Organisations without a run in the last two days, or ever."""
        rows = database.fetch(self._connection, "find_organisations_after_gap", {"today": self._today})
        return frozenset(row[0] for row in rows)

    @cached_property
    def _held_after_gap(self) -> dict[UUID, UUID]:
        """Mentors whom earlier runs have held after a gap, with their organisations."""
        return dict(database.fetch(self._connection, "find_mentors_held_after_gap"))

    def _visibility_change(self, decision: Decision) -> Change | None:
        surprise = decision.surprise
        if surprise.change is None and surprise.change_after_gap is not None:
            is_gap = decision.organisation.id in self._after_gap or decision.mentor_id in self._held_after_gap
            return surprise.change_after_gap if is_gap else None
        return surprise.change

    def _is_held(self, decision: Decision, new: Collection[tuple[UUID, Reminder]]) -> bool:
        hold = self.held.get(decision.organisation.id)
        return hold is not None and self.change_of(decision, new) in hold.changes

    def _count(self, decisions: Iterable[Decision], new: Collection[tuple[UUID, Reminder]]) -> Counter[Change]:
        changes = (self.change_of(each, new) for each in decisions)
        return Counter(change for change in changes if change is not None)

    def _find_new(self, decisions: Iterable[Decision]) -> frozenset[tuple[UUID, Reminder]]:
        """Return the new reminders of the mentors without a surprising change of visibility, which counts first."""
        surprising = [d for d in decisions if d.surprise.reminders and self._visibility_change(d) is None]
        return frozenset(find_new_reminders(self._connection, surprising))

    def _lock(self, counts: Mapping[Organisation, Counter[Change]]) -> dict[UUID, Counter[Change]]:
        """Lock organisations and return their changes of the last 20 hours and the permitted ones of this run.

        Changes that a person has permitted need no lock, because a permission applies to one run.
        """
        ids = [each.id for each in counts]
        contended = [each.id for each, counted in counts.items() if counted.total() > self._allow[each.slug]]
        if contended:
            try:
                database.execute(self._connection, "lock_counted_organisations", {"ids": contended})
            except CONTENTION as error:
                raise CountedElsewhereError from error
        return self._read_past(ids)

    def _judge(
        self, organisation_id: UUID, counts: Counter[Change], *, past: Counter[Change], allow: int = 0
    ) -> frozenset[Change]:
        """Return the changes that are held. The certified are counted only if that can matter."""
        held = holds.held_changes(counts, past=past, certified=0)
        if held:
            held = holds.held_changes(counts, past=past, certified=self._certified[organisation_id])
        permitted = self._permitted[organisation_id] + counts
        return held if sum(permitted[each] for each in held) > allow else frozenset()

    def _hold(self, organisation_id: UUID, slug: str, *, past: Counter[Change]) -> None:
        """Count the changes of all due mentors of the organisation, and hold what exceeds a limit."""
        surprising: dict[UUID, tuple[Change, Effect]] = {}
        for decisions, _broken in plan.due_decisions(
            self._connection, today=self._today, organisation_id=organisation_id, everybody=self._everybody
        ):
            new = self._find_new(decisions)
            for each in decisions:
                change = self.change_of(each, new)
                if change is not None:
                    surprising[each.mentor_id] = (change, each.surprise.effect)
        changes = self._judge(organisation_id, Counter(change for change, _ in surprising.values()), past=past)
        effects = {mentor: effect for mentor, (change, effect) in surprising.items() if change in changes}
        waiting = find_held_reminders(self._connection, organisation_id)
        effects = dict.fromkeys(waiting, Effect.REMINDER) | effects
        permitted = sum(self._permitted[organisation_id][each] for each in changes)
        if changes and permitted + len(effects) > self._allow[slug]:
            self.held[organisation_id] = Hold(
                organisation_id=organisation_id,
                organisation=slug,
                what=holds.CHANGES,
                reason=holds.hold_reason(Counter(effects.values())),
                mentors=len(effects),
                changes=changes,
            )

    def _read_past(self, organisation_ids: Sequence[UUID]) -> dict[UUID, Counter[Change]]:
        past = {each: Counter(self._permitted[each]) for each in organisation_ids}
        asked = {"organisation_ids": organisation_ids}
        for organisation_id, what, mentors in (
            database.fetch(self._connection, "read_guard_counts", asked) if past else ()
        ):
            past[organisation_id][Change(what)] += mentors
        return past

    def _insert(self, counted: Sequence[tuple[UUID, Change, int]]) -> None:
        """Count changes for later chunks and runs."""
        if counted:
            columns = dict(
                zip(("organisation_ids", "whats", "numbers"), map(list, zip(*counted, strict=True)), strict=True)
            )
            database.execute(self._connection, "insert_guard_counts", columns)


def _by_organisation(decisions: Iterable[Decision]) -> list[tuple[Organisation, list[Decision]]]:
    """Group decisions, in the order in which parallel runs lock the organisations."""
    groups: dict[UUID, list[Decision]] = defaultdict(list)
    for decision in decisions:
        groups[decision.organisation.id].append(decision)
    return [(group[0].organisation, group) for _, group in sorted(groups.items())]
