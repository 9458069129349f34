"""The guards against a bad clock or a bad import: what would change too much at once is held back and said."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from functools import partial
from uuid import UUID

from certjob import database
from certjob.database import Connection, persist
from certjob.domain import rules
from certjob.domain.holds import Hold
from certjob.domain.models import Decision, Organisation, PauseChange
from certjob.mail.reminders import find_new_reminders
from certjob.review import plan
from certjob.review.held import MOST_IDS, store_hold

Changes = Counter[str]
"""How many ``pauses``, ``returns`` and ``reminders``."""


class MassChangeGuard:
    """Holds organisations whose run would pause, bring back or remind suspiciously many mentors.

    Counted before the first chunk for organisations with enough due mentors to exceed a limit, and again while
    applying.
    """

    def __init__(
        self, connection: Connection, *, today: date, allow_mass_change: bool, everybody: bool = False
    ) -> None:
        """``everybody``: a plan in which all mentors are looked at, due or not."""
        self._connection = connection
        self._today = today
        self._everybody = everybody
        self._allow = allow_mass_change
        self._done: dict[UUID, Changes] = defaultdict(Counter)
        """What this run has committed, by organisation."""
        self._active: dict[UUID, int] = {}
        """Active mentors before this run's changes, of organisations that were looked at; all, or enough of them."""
        self.held: dict[UUID, Hold] = {}
        """Organisations for which nothing is applied."""
        self.held_reminders: dict[UUID, Hold] = {}
        """Organisations whose new reminders wait; everything else goes on."""
        self._unstored: list[Hold] = []

    @property
    def every(self) -> list[Hold]:
        """All that is held back."""
        return [*self.held.values(), *self.held_reminders.values()]

    @property
    def lines(self) -> list[str]:
        """What was held back and why, for the report."""
        return [held.line for held in self.every]

    def examine(self, organisation_id: UUID | None) -> None:
        """Count before the first chunk. A night with few due mentors pays one look at an index."""
        if self._allow:
            return
        asked = {
            "today": self._today,
            "due_by": None if self._everybody else self._today,
            "organisation_id": organisation_id,
            "minimum": rules.MASS_CHANGE_MINIMUM,
        }
        for due_organisation, *may_change, may_remind in database.fetch(self._connection, "bound_mass_changes", asked):
            with_reminders = may_remind > rules.MASS_REMINDER_LIMIT
            if with_reminders or self._exceeds(due_organisation, max(may_change)):
                self._decide_and_hold(due_organisation, with_reminders=with_reminders)

    def admit(self, decisions: Sequence[Decision]) -> list[Decision]:
        """Return the decisions that may be applied; an organisation over its limit is held from here on."""
        if not self._allow:
            for organisation, group in _by_organisation(d for d in decisions if d.pause is not None):
                if organisation.id not in self.held:
                    self._hold_if_too_many(organisation, self._done[organisation.id] + _changes(group))
        return [d for d in decisions if d.organisation.id not in self.held]

    def hold_reminders(self, decisions: Sequence[Decision]) -> frozenset[UUID]:
        """Return the mentors whose new reminders must wait; they stay due. Looked up only near the limit."""
        waiting: set[UUID] = set()
        if self._allow:
            return frozenset()
        for organisation, group in _by_organisation(d for d in decisions if d.reminders):
            already = self._done[organisation.id]["reminders"]
            is_held = organisation.id in self.held_reminders
            if not is_held and already + sum(len(d.reminders) for d in group) <= rules.MASS_REMINDER_LIMIT:
                continue
            new = find_new_reminders(self._connection, group)
            if new and not is_held and already + len(new) > rules.MASS_REMINDER_LIMIT:
                self._hold_reminders(organisation, f"at least {already + len(new):,}")
            if organisation.id in self.held_reminders:
                waiting.update(mentor_id for mentor_id, _ in new)
        return frozenset(waiting)

    def record(self, decisions: Sequence[Decision], *, queued_reminders: Iterable[UUID]) -> None:
        """Count what was committed; ``queued_reminders`` holds the organisation of each."""
        for organisation, group in _by_organisation(d for d in decisions if d.pause is not None):
            self._done[organisation.id] += _changes(group)
        for organisation_id in queued_reminders:
            self._done[organisation_id]["reminders"] += 1

    def store(self, *, run_id: UUID) -> None:
        """Write down what is held and is not written down yet, each in a commit of its own: call it in no transaction.

        Raises what the database raises: a run that cannot tell of it has failed.
        """
        while self._unstored:
            hold = self._unstored.pop()
            self._count(hold)
            persist(self._connection, partial(store_hold, self._connection, hold, today=self._today, run_id=run_id))

    def _due_decisions(self, organisation_id: UUID) -> Iterator[list[Decision]]:
        """Decide about the organisation's due mentors without a lock, chunk by chunk."""
        for decisions, _broken in plan.due_decisions(
            self._connection, today=self._today, organisation_id=organisation_id, everybody=self._everybody
        ):
            yield decisions

    def _decide_and_hold(self, organisation_id: UUID, *, with_reminders: bool) -> None:
        """Hold the organisation, or its reminders, if all its due mentors together would change too much."""
        organisation: Organisation | None = None
        would: Changes = Counter()
        for decisions in self._due_decisions(organisation_id):
            organisation = decisions[-1].organisation if decisions else organisation
            would += _changes(decisions)
            would["reminders"] += len(find_new_reminders(self._connection, decisions)) if with_reminders else 0
        if organisation is None:
            return
        self._hold_if_too_many(organisation, would)
        if organisation_id not in self.held and would["reminders"] > rules.MASS_REMINDER_LIMIT:
            self._hold_reminders(organisation, f"{would['reminders']:,}")

    def _count(self, hold: Hold) -> None:
        """Count who would be paused, come back, or be shown or hidden; or who would be reminded."""
        reminders = hold.what == "reminders"
        first: list[tuple[bool, bool, UUID]] = []
        for decisions in self._due_decisions(hold.organisation_id):
            if reminders:
                ids = {mentor_id for mentor_id, _ in find_new_reminders(self._connection, decisions)}
            else:
                ids = {d.mentor_id for d in decisions if d.pause is not None or d.push}
            held = {d.mentor_id: d for d in decisions if d.mentor_id in ids}
            hides = [not reminders and d.push and not d.visible for d in held.values()]
            rows = database.fetch(self._connection, "count_held_mentors", {"ids": list(held), "hides": hides})
            for mentor_id, by_calendar, may_be_shown in rows:
                d = held[mentor_id]
                ends = reminders or d.pause is PauseChange.OPEN or (d.push and not d.visible)
                hold.mentors += 1
                hold.ended_by_calendar += by_calendar and ends
                hold.facts_changed += not by_calendar
                hold.may_be_shown += may_be_shown
                first.append((may_be_shown, by_calendar and ends, mentor_id))
            first.sort(key=lambda each: each[:2], reverse=True)
            del first[MOST_IDS:]  # however many are held, memory stays flat
        hold.mentor_ids = [mentor_id for *_, mentor_id in first]

    def _hold_if_too_many(self, organisation: Organisation, would: Changes) -> None:
        for what, words in (("pauses", "paused"), ("returns", "brought back")):
            if self._exceeds(organisation.id, would[what]):
                active = self._active[organisation.id]
                limit = rules.mass_change_limit(active)
                done = self._done[organisation.id]
                number = done["pauses"] + done["returns"]
                applied = f"nothing more after {number}" if number else "nothing"
                reason = (
                    f"{would[what]:,} mentors would be {words}, the limit is {limit:,} (of {active:,} active); "
                    f"{applied} was applied for it"
                )
                self.held[organisation.id] = self._hold(organisation, what, reason)
                return

    def _hold_reminders(self, organisation: Organisation, number: str) -> None:
        reason = (
            f"{number} new reminders, the limit is {rules.MASS_REMINDER_LIMIT:,}; none of them was queued, pauses and "
            "portal went on"
        )
        self.held_reminders[organisation.id] = self._hold(organisation, "reminders", reason)

    def _hold(self, organisation: Organisation, what: str, reason: str) -> Hold:
        hold = Hold(organisation_id=organisation.id, organisation=organisation.slug, what=what, reason=reason)
        self._unstored.append(hold)
        return hold

    def _exceeds(self, organisation_id: UUID, changes: int) -> bool:
        """Whether so many pauses, or returns, are too many. A normal night has few, and counts nobody.

        Of the active mentors twice as many are counted as make it few; when it is too many, that is all of them.
        """
        if changes <= rules.MASS_CHANGE_MINIMUM:
            return False
        if changes > rules.mass_change_limit(self._active.get(organisation_id, 0)):
            done = self._done[organisation_id]
            asked = {"organisation_id": organisation_id, "enough": 2 * rules.ACTIVE_PER_CHANGE * changes}
            now_active = database.fetch_value(self._connection, "count_active_mentors", asked)
            self._active[organisation_id] = now_active + done["pauses"] - done["returns"]
        return changes > rules.mass_change_limit(self._active[organisation_id])


def _changes(decisions: Iterable[Decision]) -> Changes:
    names = {PauseChange.OPEN: "pauses", PauseChange.LIFT: "returns"}
    return Counter(names[decision.pause] for decision in decisions if decision.pause is not None)


def _by_organisation(decisions: Iterable[Decision]) -> Iterator[tuple[Organisation, list[Decision]]]:
    groups: dict[UUID, list[Decision]] = defaultdict(list)
    for decision in decisions:
        groups[decision.organisation.id].append(decision)
    return ((group[0].organisation, group) for group in groups.values())
