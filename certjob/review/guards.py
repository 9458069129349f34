"""The guards against a wrong clock or a wrong import: they hold surprising changes, and too many reminders.

A change is surprising if the last review did not foresee it. Surprising changes are counted for each organisation and
kind, together with those of the last 20 hours: before the first chunk, and again in each chunk.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from functools import partial
from uuid import UUID

from certjob import database
from certjob.database import Connection, persist
from certjob.domain import rules
from certjob.domain.explanations import number
from certjob.domain.holds import Hold
from certjob.domain.models import Change, Decision, Organisation
from certjob.mail.reminders import find_new_reminders
from certjob.review import plan
from certjob.review.held import store_hold

REMINDERS = "reminders"
_REMINDED = "reminded mentors"

_WORDS = {Change.REMOVAL: "paused or hidden", Change.RETURN: "shown or brought back"}


class MassChangeGuard:
    """Counts the surprising changes and the new reminders of a run, and holds them if there are too many."""

    def __init__(
        self, connection: Connection, *, today: date, allow: Mapping[str, int] = Counter(), everybody: bool = False
    ) -> None:
        """``allow`` has the permitted number of changes by slug, and must return 0 for a missing slug.

        ``everybody``: the plan reviews all mentors, not only due ones.
        """
        self._connection = connection
        self._today = today
        self._everybody = everybody
        self._allow = allow
        self._permitted: dict[UUID, Counter[str]] = defaultdict(Counter)
        """Committed changes with a permission, by organisation. Later runs do not count them."""
        self._reminded: Counter[UUID] = Counter()
        """Queued reminders of this run, by organisation."""
        self._unpermitted: set[UUID] = set()
        """Organisations with more changes than permitted. The usual limits apply to them."""
        self._after_gap: dict[UUID, bool] = {}
        self._certified: dict[UUID, int] = {}
        """Certified mentors before this run, as far as they were counted."""
        self.held: dict[tuple[UUID, str], Hold] = {}
        """Holds by organisation and kind."""
        self._unstored: list[Hold] = []
        self.new_lines: list[str] = []
        """The lines of stored holds that no earlier run had stored."""

    @property
    def lines(self) -> list[str]:
        """The lines of all holds, for the report."""
        return [hold.line for hold in self.held.values()]

    def examine(self, organisation_id: UUID | None) -> None:
        """Count before the first chunk. A run with few due mentors needs one look-up in an index."""
        asked = {
            "today": self._today,
            "due_by": None if self._everybody else self._today,
            "organisation_id": organisation_id,
            "minimum": rules.MASS_CHANGE_MINIMUM,
        }
        bounds = database.fetch(self._connection, "bound_mass_changes", asked)
        for due_id, slug, removals, returns, reminders in bounds:
            past, at_most = self._past(due_id), {Change.REMOVAL: removals, Change.RETURN: returns}
            many_reminders = reminders > self._reminder_limit(slug)
            many_changes = removals + returns > self._allow[slug] and any(
                self._exceeds(due_id, past[change] + at_most[change]) for change in Change
            )
            if many_reminders or many_changes:
                pending = self._count_pending(due_id, reminders=many_reminders)
                self._judge(due_id, slug, pending, pending=pending)
                self._judge_reminders(due_id, slug, pending)

    def admit(self, decisions: Sequence[Decision], *, count: bool = False) -> list[Decision]:
        """Return the decisions that may be applied; a mentor with a held change stays due.

        With ``count``, the surprising ones are counted for later runs, in the transaction that applies them.
        """
        surprising = self._count_surprising(decisions)
        if surprising and count:
            ids = [organisation.id for organisation, _ in surprising]
            database.execute(self._connection, "lock_counted_organisations", {"ids": ids})
        for organisation, changes in surprising:
            self._judge(organisation.id, organisation.slug, changes)
        admitted = [decision for decision in decisions if self.hold_of(decision) is None]
        for organisation, changes in self._count_surprising(admitted) if count else ():
            if organisation.id in self._unpermitted:
                for what, count_ in changes.items():
                    counted = {"organisation_id": organisation.id, "what": what, "number": count_}
                    database.execute(self._connection, "insert_guard_count", counted)
        return admitted

    def hold_of(self, decision: Decision, what: str = "") -> Hold | None:
        """Return the hold of this decision, or with ``REMINDERS`` also that of its new reminders."""
        hold = self.held.get((decision.organisation.id, decision.change or ""))
        if hold is not None and self._is_surprising(decision):
            return hold
        return self.held.get((decision.organisation.id, what))

    def hold_reminders(self, decisions: Sequence[Decision]) -> frozenset[UUID]:
        """Return the mentors with held new reminders; they stay due. Only near the limit does this need a query."""
        waiting: set[UUID] = set()
        for organisation, group in _by_organisation(d for d in decisions if d.reminders):
            already, limit = self._reminded[organisation.id], self._reminder_limit(organisation.slug)
            is_held = (organisation.id, REMINDERS) in self.held
            if not is_held and already + sum(len(d.reminders) for d in group) <= limit:
                continue
            new = find_new_reminders(self._connection, group)
            if new and not is_held and already + len(new) > limit:
                pending = self._count_pending(organisation.id, reminders=True)
                is_held = self._judge_reminders(organisation.id, organisation.slug, pending)
            if is_held:
                waiting.update(mentor_id for mentor_id, _ in new)
        return frozenset(waiting)

    def record(self, decisions: Sequence[Decision], *, queued_reminders: Iterable[UUID]) -> None:
        """Count a commit of this run; ``queued_reminders`` has the organisation of each queued reminder."""
        for organisation, changes in self._count_surprising(decisions):
            if organisation.id not in self._unpermitted:
                self._permitted[organisation.id] += changes
        self._reminded.update(queued_reminders)

    def store(self, *, run_id: UUID) -> None:
        """Store each new hold for the alerts in a separate transaction.

        Raises the database's errors, because a run that cannot report a hold has failed.
        """
        while self._unstored:
            hold = self._unstored.pop()
            if persist(self._connection, partial(store_hold, self._connection, hold, today=self._today, run_id=run_id)):
                self.new_lines.append(hold.line)

    def _count_surprising(self, decisions: Sequence[Decision]) -> list[tuple[Organisation, Counter[str]]]:
        groups = _by_organisation(d for d in decisions if self._is_surprising(d))
        return [(organisation, Counter(str(d.change) for d in group)) for organisation, group in groups]

    def _is_surprising(self, decision: Decision) -> bool:
        """Return whether the last review did not foresee the change, or no run has reviewed for a week."""
        return decision.change is not None and (
            not decision.foreseen or self._is_after_gap(decision.organisation.id, decision.organisation.slug)
        )

    def _is_after_gap(self, organisation_id: UUID, slug: str) -> bool:
        if organisation_id not in self._after_gap:
            asked = {"organisation_id": organisation_id, "slug": slug, "today": self._today}
            self._after_gap[organisation_id] = database.fetch_value(self._connection, "is_after_gap", asked)
        return self._after_gap[organisation_id]

    def _judge(
        self, organisation_id: UUID, slug: str, changes: Mapping[str, int], *, pending: Mapping[str, int] | None = None
    ) -> None:
        """Hold each kind that exceeds its limit with these changes; ``pending`` has the numbers of all due mentors."""
        permitted = self._permitted[organisation_id]
        if organisation_id not in self._unpermitted:
            total = sum(changes.get(change, 0) + permitted[change] for change in Change)
            if total <= self._allow[slug]:
                return
            self._unpermitted.add(organisation_id)
        past = self._past(organisation_id)
        for change in Change:
            earlier = past[change] + permitted[change]
            is_held = (organisation_id, change) in self.held
            if is_held or not changes.get(change) or not self._exceeds(organisation_id, earlier + changes[change]):
                continue
            if pending is None:
                pending = self._count_pending(organisation_id, reminders=False)
            certified, mentors = self._certified[organisation_id], pending[change]
            reason = f"{number(mentors, 'mentor')} would be {_WORDS[change]}" + (
                f" after {earlier:,} in the last 20 hours" if earlier else ""
            )
            self._hold(
                organisation_id,
                slug,
                what=change,
                reason=f"{reason}, the limit is {rules.mass_change_limit(certified):,} (of {certified:,} certified)",
                mentors=mentors,
                allow=sum(pending[each] for each in Change),
            )

    def _judge_reminders(self, organisation_id: UUID, slug: str, pending: Mapping[str, int]) -> bool:
        """Hold the new reminders if there are too many; return whether they are held."""
        limit = self._reminder_limit(slug)
        total = self._reminded[organisation_id] + pending[REMINDERS]
        if total > limit:
            self._hold(
                organisation_id,
                slug,
                what=REMINDERS,
                reason=f"{total:,} new reminders, the limit is {limit:,}",
                mentors=pending[_REMINDED],
                allow=pending[REMINDERS],
            )
        return total > limit

    def _hold(self, organisation_id: UUID, slug: str, *, what: str, reason: str, mentors: int, allow: int) -> None:
        hold = Hold(
            organisation_id=organisation_id,
            organisation=slug,
            what=what,
            reason=f"{reason}; everything else went on",
            mentors=mentors,
            allow=allow,
            after_gap=what != REMINDERS and self._is_after_gap(organisation_id, slug),
        )
        self.held[organisation_id, what] = hold
        self._unstored.append(hold)

    def _count_pending(self, organisation_id: UUID, *, reminders: bool) -> Counter[str]:
        """Decide about the due mentors of an organisation without locks, and count surprising changes and reminders."""
        pending = Counter[str]()
        for decisions, _broken in plan.due_decisions(
            self._connection, today=self._today, organisation_id=organisation_id, everybody=self._everybody
        ):
            pending.update(str(d.change) for d in decisions if self._is_surprising(d))
            if reminders:
                new = find_new_reminders(self._connection, decisions)
                pending[REMINDERS] += len(new)
                pending[_REMINDED] += len({mentor_id for mentor_id, _ in new})
        return pending

    def _past(self, organisation_id: UUID) -> Counter[str]:
        """Return the surprising changes of the last 20 hours, without permitted ones."""
        rows = database.fetch(self._connection, "read_guard_counts", {"organisation_id": organisation_id})
        return Counter(dict(rows))

    def _exceeds(self, organisation_id: UUID, changes: int) -> bool:
        """Return whether this number of changes exceeds the limit.

        A normal run has few changes and does not count the certified mentors. Otherwise they are counted up to twice
        the number that would permit the changes, or completely if the changes exceed the limit.
        """
        if changes <= rules.MASS_CHANGE_MINIMUM:
            return False
        if changes > rules.mass_change_limit(self._certified.get(organisation_id, 0)):
            enough = 2 * rules.CERTIFIED_PER_CHANGE * changes
            asked = {"organisation_id": organisation_id, "today": self._today, "enough": enough}
            self._certified[organisation_id] = database.fetch_value(self._connection, "count_certified_mentors", asked)
        return changes > rules.mass_change_limit(self._certified[organisation_id])

    def _reminder_limit(self, slug: str) -> int:
        return max(rules.MASS_REMINDER_LIMIT, self._allow[slug])


def _by_organisation(decisions: Iterable[Decision]) -> Iterator[tuple[Organisation, list[Decision]]]:
    groups: dict[UUID, list[Decision]] = defaultdict(list)
    for decision in decisions:
        groups[decision.organisation.id].append(decision)
    return ((group[0].organisation, group) for group in groups.values())
