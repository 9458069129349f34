"""The guards against a bad clock or a bad import: what would change too much at once is held back and said."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from uuid import UUID

from certjob import database
from certjob.database import Connection, persist
from certjob.domain import rules
from certjob.domain.models import Decision, Organisation, PauseChange
from certjob.errors import ConfigurationError
from certjob.mail.reminders import CertificationReminderService
from certjob.review import plan

MOST_IDS = 50
"""So many of the mentors who are held are stored."""


@dataclass(slots=True)
class _Tally:
    """One organisation's changes in this run so far."""

    paused: int = 0
    resumed: int = 0
    reminders: int = 0


@dataclass(slots=True)
class HeldCounts:
    """Who is held, and why these mentors were due."""

    mentors: int = 0
    ended_by_calendar: int = 0
    """Their day had come although no fact was changed: these certificates have really ended."""
    facts_changed: int = 0
    may_be_shown: int = 0
    """To be hidden, and perhaps still shown on the portal."""
    _ids: dict[tuple[bool, bool], list[UUID]] = field(default_factory=lambda: defaultdict(list))
    """Some of them, by whether they may be shown and whether they have ended."""

    @property
    def some_ids(self) -> list[UUID]:
        """At most 50 of them: those who may be shown first, and of these whose certificates have really ended."""
        return [mentor_id for group in sorted(self._ids, reverse=True) for mentor_id in self._ids[group]][:MOST_IDS]

    def add(self, connection: Connection, held: dict[UUID, Decision], *, reminders: bool) -> None:
        """Count some mentors. Of whom only the reminders are held, everything else goes on."""
        parameters = {
            "ids": list(held),
            "hides": [not reminders and d.push and not d.visible for d in held.values()],
        }
        for mentor_id, by_calendar, may_be_shown in database.fetch(connection, "count_held_mentors", parameters):
            decision = held[mentor_id]
            ended = reminders or decision.pause is PauseChange.OPEN or (decision.push and not decision.visible)
            self.mentors += 1
            ended = by_calendar and ended
            self.ended_by_calendar += ended
            self.facts_changed += not by_calendar
            self.may_be_shown += may_be_shown
            if len(ids := self._ids[may_be_shown, ended]) < MOST_IDS:
                ids.append(mentor_id)


@dataclass(slots=True, kw_only=True)
class HeldReview:
    """What the guard holds back for an organisation."""

    organisation_id: UUID
    slug: str
    what: str
    """``pauses``, ``returns`` or ``reminders``."""
    reason: str
    counts: HeldCounts | None = None
    """None: not counted yet."""
    is_stored: bool = False

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


@dataclass(slots=True)
class _Walk:
    """What the due mentors of an organisation would change."""

    organisation: Organisation | None = None
    paused: int = 0
    resumed: int = 0
    reminders: int = 0
    changes: HeldCounts = field(default_factory=HeldCounts)
    """Who would be paused, come back, or be shown or hidden."""
    reminded: HeldCounts = field(default_factory=HeldCounts)


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
        self.held: dict[UUID, HeldReview] = {}
        """Organisations for which nothing is applied."""
        self.held_reminders: dict[UUID, HeldReview] = {}
        """Organisations whose new reminders wait; everything else goes on."""

    @property
    def every(self) -> list[HeldReview]:
        """All that is held back."""
        return [*self.held.values(), *self.held_reminders.values()]

    @property
    def lines(self) -> list[str]:
        """What was held back and why, for the report."""
        return [held.line for held in self.every]

    def store(self, *, run_id: UUID) -> None:
        """Write down what is held and is not written down yet, each in a commit of its own: call it in no transaction.

        Raises what the database raises: a run that cannot tell of it has failed.
        """
        for held in self.every:
            if held.is_stored:
                continue
            if held.counts is None:  # held while applying
                walk = self._walk(held.organisation_id, with_reminders=held.what == "reminders")
                held.counts = walk.reminded if held.what == "reminders" else walk.changes
            counts = held.counts
            parameters = {
                "organisation_id": held.organisation_id,
                "what": held.what,
                "today": self._today,
                "reason": held.reason,
                "mentors": counts.mentors,
                "ended_by_calendar": counts.ended_by_calendar,
                "facts_changed": counts.facts_changed,
                "may_be_shown": counts.may_be_shown,
                "mentor_ids": counts.some_ids,
                "run_id": run_id,
            }
            persist(self._connection, partial(database.execute, self._connection, "store_held_review", parameters))
            held.is_stored = True

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
                self._decide_and_hold(due_organisation, with_reminders=with_reminders)

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
                self.held_reminders[organisation.id] = _held_reminders(organisation, f"at least {total:,}")
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

    def _decide_and_hold(self, organisation_id: UUID, *, with_reminders: bool) -> None:
        """Decide about the organisation's due mentors without a lock, and hold it if that is too much."""
        walk = self._walk(organisation_id, with_reminders=with_reminders)
        if walk.organisation is None:
            return
        self._hold_if_too_many(walk.organisation, paused=walk.paused, resumed=walk.resumed, applied=_Tally())
        if organisation_id in self.held:
            self.held[organisation_id].counts = walk.changes
        elif walk.reminders > rules.MASS_REMINDER_LIMIT:
            held = _held_reminders(walk.organisation, f"{walk.reminders:,}")
            held.counts = walk.reminded
            self.held_reminders[organisation_id] = held

    def _walk(self, organisation_id: UUID, *, with_reminders: bool) -> _Walk:
        """Decide about the organisation's due mentors without a lock, and count."""
        walk = _Walk()
        for decisions, _problems in plan.due_decisions(
            self._connection, today=self._today, organisation_id=organisation_id, everybody=self._everybody
        ):
            walk.organisation = decisions[-1].organisation if decisions else walk.organisation
            walk.paused += sum(d.pause is PauseChange.OPEN for d in decisions)
            walk.resumed += sum(d.pause is PauseChange.LIFT for d in decisions)
            changes = {d.mentor_id: d for d in decisions if d.pause is not None or d.push}
            walk.changes.add(self._connection, changes, reminders=False)
            if with_reminders:
                new = self._reminders.find_new(decisions)
                walk.reminders += len(new)
                ids = {mentor_id for mentor_id, _ in new}
                reminded = {d.mentor_id: d for d in decisions if d.mentor_id in ids}
                walk.reminded.add(self._connection, reminded, reminders=True)
        return walk

    def _hold_if_too_many(self, organisation: Organisation, *, paused: int, resumed: int, applied: _Tally) -> None:
        for what, changes, words in (("pauses", paused, "paused"), ("returns", resumed, "brought back")):
            if self._exceeds(organisation.id, changes):
                active = self._active[organisation.id]
                limit = max(rules.MASS_CHANGE_MINIMUM, active // rules.MASS_CHANGE_PART)
                done = applied.paused + applied.resumed
                applied_words = f"nothing more after {done}" if done else "nothing"
                self.held[organisation.id] = HeldReview(
                    organisation_id=organisation.id,
                    slug=organisation.slug,
                    what=what,
                    reason=f"{changes:,} mentors would be {words}, the limit is {limit:,} (of {active:,} active); "
                    f"{applied_words} was applied for it",
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


def _held_reminders(organisation: Organisation, number: str) -> HeldReview:
    return HeldReview(
        organisation_id=organisation.id,
        slug=organisation.slug,
        what="reminders",
        reason=f"{number} new reminders, the limit is {rules.MASS_REMINDER_LIMIT:,}; none of them was queued, pauses "
        "and portal went on",
    )


def last_run_date(connection: Connection) -> date | None:
    """Return the date of the last nightly run that came to its end; None: there was none."""
    last: date | None = database.fetch_value(connection, "read_last_run_date")
    return last


def refuse_earlier_date(connection: Connection, today: date) -> None:
    """Raise ConfigurationError when the clock says a day before the last finished night's."""
    last = last_run_date(connection)
    if last is not None and today < last:
        message = f"today would be {today}, but the last night was run for {last}"
        raise ConfigurationError(
            message,
            next_step="correct the clock, or if the later date was the wrong one, `certjob run --allow-earlier-date`",
        )
