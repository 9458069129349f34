"""The guards against a bad clock or a bad import: what would change too much at once is held back and said."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from uuid import UUID

from certjob import database
from certjob.database import Connection
from certjob.domain import rules
from certjob.domain.models import Decision, Organisation, PauseChange
from certjob.errors import ConfigurationError
from certjob.mail.reminders import CertificationReminderService
from certjob.review import plan


@dataclass(slots=True)
class _Tally:
    """One organisation's changes in this run so far."""

    paused: int = 0
    resumed: int = 0
    reminders: int = 0


class MassChangeGuard:
    """Holds organisations whose run would pause, bring back or remind suspiciously many mentors.

    Counted before the first chunk for organisations with enough due mentors to exceed a limit, and again while
    applying.
    """

    def __init__(
        self,
        connection: database.Connection,
        *,
        today: date,
        reminders: CertificationReminderService,
        allow_mass_change: bool,
        everybody: bool = False,
    ) -> None:
        """``everybody``: a plan in which all mentors are looked at, due or not."""
        self._everybody = everybody
        self._due_by = None if everybody else today
        self._connection = connection
        self._today = today
        self._reminders = reminders
        self._allow = allow_mass_change
        self._tallies: dict[UUID, _Tally] = defaultdict(_Tally)
        self._active: dict[UUID, int] = {}
        self._counted_to: dict[UUID, int] = {}
        """So many active mentors were looked for; who has fewer was counted whole."""
        self.held: dict[UUID, str] = {}
        """Organisations for which nothing is applied, with the reason."""
        self.held_reminders: dict[UUID, str] = {}
        """Organisations whose new reminders wait, with the reason; everything else goes on."""

    @property
    def lines(self) -> list[str]:
        """What was held back and why, for the report."""
        return [*self.held.values(), *self.held_reminders.values()]

    def examine(self, organisation_id: UUID | None) -> None:
        """Count before the first chunk. A night with few due mentors pays one look at an index."""
        if self._allow:
            return
        bounds = database.fetch(
            self._connection,
            "bound_mass_changes",
            {
                "today": self._today,
                "due_by": self._due_by,
                "organisation_id": organisation_id,
                "minimum": rules.MASS_CHANGE_MINIMUM,
            },
        )
        for due_organisation, may_pause, may_resume, may_remind in bounds:
            with_reminders = may_remind > rules.MASS_REMINDER_LIMIT
            if with_reminders or self._exceeds(due_organisation, max(may_pause, may_resume)):
                self._decide_and_count(due_organisation, with_reminders=with_reminders)

    def admit(self, decisions: Sequence[Decision]) -> list[Decision]:
        """Return the decisions that may be applied; an organisation over its limit is held from here on."""
        admitted = [d for d in decisions if d.organisation.id not in self.held]
        if self._allow:
            return admitted
        held_before = len(self.held)
        for organisation, changes in _by_organisation(admitted):
            tally = self._tallies[organisation.id]
            paused = tally.paused + sum(d.pause is PauseChange.OPEN for d in changes)
            resumed = tally.resumed + sum(d.pause is PauseChange.LIFT for d in changes)
            self._hold_if_too_many(organisation, paused=paused, resumed=resumed, applied=tally)
        if len(self.held) == held_before:
            return admitted
        return [d for d in admitted if d.organisation.id not in self.held]

    def admit_reminders(self, organisation: Organisation, new_reminders: int) -> bool:
        """Whether so many more new reminders of an organisation may be queued."""
        if self._allow:
            return True
        if organisation.id not in self.held_reminders:
            total = self._tallies[organisation.id].reminders + new_reminders
            if total > rules.MASS_REMINDER_LIMIT:
                self.held_reminders[organisation.id] = _reminders_line(organisation.slug, f"at least {total:,}")
        return organisation.id not in self.held_reminders

    def reminders_could_exceed(self, organisation: Organisation, reminders: int) -> bool:
        """Whether so many reminders, were they all new, would pass the limit: only then it is worth counting."""
        tally = self._tallies[organisation.id].reminders
        return not self._allow and (
            organisation.id in self.held_reminders or tally + reminders > rules.MASS_REMINDER_LIMIT
        )

    def record(self, decisions: Iterable[Decision], *, queued_reminders: Iterable[UUID]) -> None:
        """Count what was committed; ``queued_reminders`` holds the organisation of each."""
        for decision in decisions:
            if decision.pause is PauseChange.OPEN:
                self._tallies[decision.organisation.id].paused += 1
            elif decision.pause is PauseChange.LIFT:
                self._tallies[decision.organisation.id].resumed += 1
        for organisation_id in queued_reminders:
            self._tallies[organisation_id].reminders += 1

    def _decide_and_count(self, organisation_id: UUID, *, with_reminders: bool) -> None:
        """Decide about the organisation's due mentors without a lock, and hold it if that is too much."""
        paused = resumed = reminders = 0
        organisation: Organisation | None = None
        for decisions, _problems in plan.due_decisions(
            self._connection, today=self._today, organisation_id=organisation_id, everybody=self._everybody
        ):
            organisation = decisions[-1].organisation if decisions else organisation
            paused += sum(d.pause is PauseChange.OPEN for d in decisions)
            resumed += sum(d.pause is PauseChange.LIFT for d in decisions)
            if with_reminders:
                reminders += len(self._reminders.find_new(decisions))
        if organisation is None:
            return
        self._hold_if_too_many(organisation, paused=paused, resumed=resumed, applied=_Tally())
        if reminders > rules.MASS_REMINDER_LIMIT and organisation_id not in self.held:
            self.held_reminders[organisation_id] = _reminders_line(organisation.slug, f"{reminders:,}")

    def _hold_if_too_many(self, organisation: Organisation, *, paused: int, resumed: int, applied: _Tally) -> None:
        for changes, words in ((paused, "paused"), (resumed, "brought back")):
            if self._exceeds(organisation.id, changes):
                active = self._active[organisation.id]
                limit = max(rules.MASS_CHANGE_MINIMUM, active // rules.MASS_CHANGE_PART)
                done = applied.paused + applied.resumed
                what = f"nothing more after {done}" if done else "nothing"
                self.held[organisation.id] = (
                    f"{organisation.slug}: {changes:,} mentors would be {words}, the limit is {limit:,} "
                    f"(of {active:,} active); {what} was applied for it. Check the clock and the last import, then "
                    f"`certjob run --organisation {organisation.slug} --allow-mass-change`"
                )
                return

    def _exceeds(self, organisation_id: UUID, changes: int) -> bool:
        """Whether so many pauses, or returns, are too many. If they are, ``_active`` has the whole organisation."""
        if changes <= rules.MASS_CHANGE_MINIMUM:
            return False
        enough = changes * rules.MASS_CHANGE_PART
        if enough > self._counted_to.get(organisation_id, 0):
            self._count_active(organisation_id, at_most=2 * enough)  # a run whose changes grow counts a few times
        return rules.exceeds_mass_change(changes, active_mentors=self._active[organisation_id])

    def _count_active(self, organisation_id: UUID, *, at_most: int) -> None:
        """Count the organisation's active mentors before this run's changes: all of them, or so many at least."""
        tally = self._tallies[organisation_id]
        now_active = database.fetch_value(
            self._connection,
            "count_active_mentors",
            {"organisation_id": organisation_id, "limit": at_most + tally.resumed},
        )
        self._active[organisation_id] = now_active + tally.paused - tally.resumed
        self._counted_to[organisation_id] = at_most


def _by_organisation(decisions: Iterable[Decision]) -> list[tuple[Organisation, list[Decision]]]:
    groups: dict[UUID, list[Decision]] = defaultdict(list)
    for decision in decisions:
        if decision.pause is not None:
            groups[decision.organisation.id].append(decision)
    return [(group[0].organisation, group) for group in groups.values()]


def _reminders_line(slug: str, number: str) -> str:
    return (
        f"{slug}: {number} new reminders, the limit is {rules.MASS_REMINDER_LIMIT:,}; none of them was queued, pauses "
        f"and portal went on. Check the last import, then `certjob run --organisation {slug} --allow-mass-change`"
    )


def last_run_date(connection: Connection) -> date | None:
    """Return the date of the last nightly run that came to its end; None: there was none."""
    last: date | None = database.fetch_value(connection, "read_last_run_date")
    return last


def refuse_earlier_date(connection: Connection, today: date) -> None:
    """Raise ConfigurationError when the clock says a day before the last finished night's."""
    last = last_run_date(connection)
    if last is not None and today < last:
        message = (
            f"today would be {today}, but the last night was run for {last}; correct the clock, or if the later date "
            "was the wrong one, `certjob run --allow-earlier-date`"
        )
        raise ConfigurationError(message)
