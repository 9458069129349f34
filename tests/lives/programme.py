"""Three years of ordinary life of a programme, decided by certjob's rules and its guards' rule.

Courses, cohorts that end at New Year, revocations, departures, pauses, new mentors in autumn, changed rules, corrected
typos and missed nights. Everything follows from the seed.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from uuid import UUID

from certjob.domain import holds, rules
from certjob.domain.models import (
    OWN_PAUSE_REASON,
    Certificate,
    Change,
    Decision,
    Mentor,
    OpenPause,
    Organisation,
    PauseChange,
    Reminder,
)

START = date(2026, 9, 1)
DAY = timedelta(days=1)
TWO_YEARS = timedelta(days=729)
NEVER = date.max
ILLNESS = OpenPause(id=UUID(int=2), reason="illness")
Mailed = tuple[int, str, int, date]
"""Mentor, kind, threshold and last day."""


@dataclass(slots=True)
class Row:
    """A certificate."""

    id: UUID
    kind: str
    issued_on: date
    expires_on: date
    revoked: bool = False

    def value(self, seen: frozenset[str]) -> Certificate:
        return Certificate(
            id=self.id,
            kind=self.kind,
            issued_on=self.issued_on,
            expires_on=self.expires_on,
            revoked=self.revoked,
            unseen=rules.seen_key(self.kind, self.expires_on) not in seen,
        )


@dataclass(slots=True)
class Person:
    """A mentor."""

    number: int
    rows: list[Row] = field(default_factory=list)
    left: bool = False
    contact: int | None = None
    reviewed_contact: int | None = None
    illnesses: int = 0
    lapsed_kinds: frozenset[str] | None = None
    """With certjob's open pause."""
    portal_visible: bool | None = True
    certified_until: date | None = None
    decided_visible: bool | None = None
    seen: frozenset[str] = frozenset()
    held_after_gap: bool = False
    review_on: date | None = None
    """None: a fact has changed."""


@dataclass(frozen=True, slots=True)
class Night:
    """What a run held."""

    day: date
    held: frozenset[Change]
    hidden: int = 0
    """Held mentors who are hidden and may be visible."""
    exposed: int = 0
    """Held mentors who are visible and must not be."""


class Programme:
    """An organisation with a portal."""

    def __init__(self, mentors: int, seed: int, *, misses_nights: bool = True) -> None:
        self.chance = random.Random(seed * 7919 + mentors)
        self.today = START
        self.rules = Organisation(
            id=UUID(int=1),
            slug="hlf",
            has_portal=True,
            reminder_thresholds=(60, 30, 14, 7, 1, -1),
            optional_kinds=frozenset(),
        )
        self.people: list[Person] = []
        self.portal: dict[int, bool] = {}
        self.mailed: set[Mailed] = set()
        self.waiting: set[Mailed] = set()
        """Held reminders."""
        self.coming: dict[date, list[tuple[Callable[..., None], tuple[object, ...]]]] = defaultdict(list)
        self._numbers = iter(range(1, 1_000_000))  # unlike count, it can be pickled in Python 3.14
        self._renewed_on: dict[date, list[tuple[Person, str]]] = defaultdict(list)
        self._runs: list[date] = []
        self._found(mentors)
        self._plan_life(mentors)
        outages = self._plan_outages()
        self.outages = outages if misses_nights else set()

    # Facts.

    def at(self, day: date, event: Callable[..., None], *values: object) -> None:
        self.coming[max(day, self.today + DAY)].append((event, values))

    def add(self, person: Person, kind: str, issued_on: date, expires_on: date) -> None:
        row = Row(UUID(int=next(self._numbers)), kind, issued_on, expires_on)
        person.rows.append(row)
        person.review_on = None
        if expires_on not in self._renewed_on:
            self.at(expires_on - 90 * DAY, self._plan_renewals, expires_on)
        self._renewed_on[expires_on].append((person, kind))

    def edit(self, person: Person, row: Row, expires_on: date) -> None:
        if expires_on > row.issued_on:
            row.expires_on, person.review_on = expires_on, None

    def set_contact(self, person: Person, contact: int | None = None) -> None:
        person.contact = next(self._numbers) if contact is None else contact
        person.portal_visible = person.review_on = None

    def join(self, *, with_contact: bool) -> Person:
        """Add a mentor; a new contact is visible on the portal."""
        person = Person(len(self.people))
        self.people.append(person)
        if with_contact:
            person.contact = next(self._numbers)
            self.portal[person.contact] = True
            person.portal_visible = None
        return person

    def revoke(self, person: Person) -> None:
        for row in person.rows:
            if row.expires_on >= self.today:
                row.revoked = True
        person.review_on = None

    def set_rules(self, *, thresholds: Sequence[int] | None = None, optional_kinds: Sequence[str] = ()) -> None:
        self.rules = Organisation(
            id=self.rules.id,
            slug="hlf",
            has_portal=True,
            reminder_thresholds=tuple(thresholds or self.rules.reminder_thresholds),
            optional_kinds=frozenset(optional_kinds),
        )
        for person in self.people:
            person.review_on = None

    @property
    def active(self) -> list[Person]:
        return [person for person in self.people if not person.left]

    # An ordinary life.

    def _found(self, mentors: int) -> None:
        """40 % hold certificates until New Year, the others those of courses; some have none or an old one."""
        chance = self.chance
        order = [self.join(with_contact=False) for _ in range(mentors)]
        chance.shuffle(order)
        cohorts, others = order[: int(mentors * 0.4)], order[int(mentors * 0.4) :]
        for index, person in enumerate(cohorts):
            year = START.year + (index >= len(cohorts) / 2)
            self.add(person, "course", date(year - 2, 12, 1) - chance.randrange(30) * DAY, date(year, 12, 31))
        while others:
            size = chance.randint(8, 30) if chance.random() < 0.8 else 1
            group, others = others[:size], others[size:]
            issued_on = START - chance.randrange(1, 729) * DAY
            for person in group:
                self.add(person, "course", issued_on, issued_on + TWO_YEARS)
        for person in order:
            luck = chance.random()
            if luck < 0.03:
                person.rows = []
            elif luck < 0.09:
                row = person.rows[0]
                row.expires_on = START - chance.randrange(1, 300) * DAY
                row.issued_on = row.expires_on - TWO_YEARS
                self._return_later(person, "course")
        without = [person for person in self.people if chance.random() < 0.1]
        for person in self.people:
            if person not in without:
                person.contact = next(self._numbers)
                self.portal[person.contact] = True
        late = int(len(without) * 0.7)
        self.at(START + 21 * DAY, self._set_contacts, without[:late])
        for person in without[late:]:
            self.at(START + chance.randrange(5, 120) * DAY, self._set_contacts, [person])

    def _plan_life(self, mentors: int) -> None:
        chance = self.chance
        for year in range(START.year, START.year + 4):
            for _ in range(1 if mentors < 3_000 else 8):
                newcomers = chance.randint(10, max(10, min(40, int(mentors * 0.2))))
                self.at(date(year, 9, 20) + chance.randrange(50) * DAY, self._new_mentors, newcomers)
            self.at(date(year, 1, 10) + chance.randrange(15) * DAY, self._clean_up)
            corrected = min(chance.randint(5, 25), int(mentors * 0.3))
            self.at(date(year, 3, 1) + chance.randrange(200) * DAY, self._correct_contacts, corrected)
            self.at(date(year, 6, 15), self._summer, date(year, 8, 15))
        self.at(START + chance.randrange(380, 420) * DAY, self._add_threshold)
        self.at(START + chance.randrange(480, 560) * DAY, self._add_kind)
        daily = ((0.005, self._revocation), (0.04, self._departure), (0.05, self._illness), (0.03, self._typo))
        for days in range(1, 1_100):
            for share, event in daily:
                expected = share * mentors / 365
                for _ in range(int(expected) + (chance.random() < expected % 1)):
                    self.at(START + days * DAY, event)

    def _plan_outages(self) -> set[date]:
        """A night in twenty, two weekends a year, and one week."""
        chance = random.Random(self.chance.random())
        missed = {START + days * DAY for days in range(1, 1_096) if chance.random() < 0.05}
        for half_year in range(6):
            day = START + (half_year // 2 * 365 + half_year % 2 * 182 + chance.randrange(182)) * DAY
            saturday = day - (day.weekday() - 5) % 7 * DAY
            missed |= {saturday + days * DAY for days in range(chance.choice((2, 3)))}
        week = START + chance.randrange(60, 1_000) * DAY
        return missed | {week + days * DAY for days in range(7)}

    def _plan_renewals(self, last_day: date) -> None:
        """85 % take a course around the last day, mostly in groups; the others leave or come back later."""
        chance, groups = self.chance, defaultdict(list)
        for person, kind in self._renewed_on.pop(last_day, []):
            last_days = [row.expires_on for row in person.rows if row.kind == kind and not row.revoked]
            if not person.left and last_days and max(last_days) == last_day:
                groups[kind].append(person)
        for kind, group in groups.items():
            staying = []
            for person in group:
                if chance.random() < 0.85:
                    staying.append(person)
                elif chance.random() < 0.5:
                    self.at(last_day + chance.randrange(1, 300) * DAY, self._departure, person)
                else:
                    self._return_later(person, kind)
            chance.shuffle(staying)
            while staying:
                size = chance.randint(8, 30) if len(staying) >= 5 and chance.random() < 0.85 else 1
                course, staying = staying[:size], staying[size:]
                days = int(chance.gauss(-20, 20)) if size > 1 else chance.randrange(-45, 30)
                held_on = max(last_day + max(-75, min(25, days)) * DAY, self.today + DAY)
                entered_on = held_on + chance.randrange(21 if size > 1 else 11) * DAY
                is_cohort = (last_day.month, last_day.day) == (12, 31)
                until = date(last_day.year + 2, 12, 31) if is_cohort else held_on + TWO_YEARS
                self.at(entered_on, self._renew, course, kind, held_on, until)

    def _return_later(self, person: Person, kind: str) -> None:
        day = self.today + (90 + self.chance.randrange(30, 300)) * DAY
        self.at(day, self._renew, [person], kind, day - 5 * DAY, day - 5 * DAY + TWO_YEARS)

    def _renew(self, people: Sequence[Person], kind: str, issued_on: date, expires_on: date) -> None:
        for person in people:
            if not person.left:
                self.add(person, kind, issued_on, expires_on)

    def _set_contacts(self, people: Sequence[Person]) -> None:
        for person in people:
            if not person.left:
                self.set_contact(person)

    def _new_mentors(self, number: int) -> None:
        """They come with a certificate, before their course, or without a contact ID."""
        luck, issued_on = self.chance.random(), self.today - 9 * DAY
        people = [self.join(with_contact=luck < 0.75) for _ in range(number)]
        if luck < 0.5 or luck >= 0.75:
            self._renew(people, "course", issued_on, issued_on + TWO_YEARS)
        if 0.5 <= luck < 0.75:
            day = self.today + self.chance.randrange(14, 45) * DAY
            self.at(day, self._renew, people, "course", day - 5 * DAY, day - 5 * DAY + TWO_YEARS)
        if luck >= 0.75:
            self.at(self.today + self.chance.randrange(3, 20) * DAY, self._set_contacts, people)

    def _clean_up(self) -> None:
        """4 % leave, half of them without a certificate in force."""
        certified = [p for p in self.active if any(r.expires_on >= self.today and not r.revoked for r in p.rows)]
        others = [person for person in self.active if person not in certified]
        self.chance.shuffle(others)
        self.chance.shuffle(certified)
        number = int(len(self.active) * 0.04)
        leaving = others[: number // 2]
        for person in leaving + certified[: number - len(leaving)]:
            self._departure(person)

    def _correct_contacts(self, number: int) -> None:
        known = [person for person in self.active if person.contact is not None]
        self._set_contacts(self.chance.sample(known, min(number, len(known))))

    def _summer(self, until: date) -> None:
        people = self.chance.sample(self.active, int(len(self.active) * 0.02))
        for person in people:
            person.illnesses, person.review_on = person.illnesses + 1, None
        self.at(until, self._recover, people)

    def _recover(self, people: Sequence[Person]) -> None:
        for person in people:
            if person.illnesses:
                person.illnesses, person.review_on = person.illnesses - 1, None

    def _add_threshold(self) -> None:
        self.set_rules(thresholds=(90, 60, 30, 14, 7, 1, -1))

    def _add_kind(self) -> None:
        """70 % have a certificate of the new kind, 5 % of these an old one."""
        chance = self.chance
        for person in self.active:
            if chance.random() < 0.7:
                days = chance.randrange(1, 729) if chance.random() > 0.05 else chance.randrange(735, 1_000)
                issued_on = self.today - days * DAY
                self.add(person, "first aid", issued_on, issued_on + TWO_YEARS)
                if issued_on + TWO_YEARS < self.today:
                    self._return_later(person, "first aid")

    def _revocation(self) -> None:
        self.revoke(self.chance.choice(self.active))

    def _departure(self, person: Person | None = None) -> None:
        person = person or self.chance.choice(self.active)
        person.left, person.review_on = True, None

    def _illness(self) -> None:
        person = self.chance.choice(self.active)
        person.illnesses, person.review_on = person.illnesses + 1, None
        self.at(self.today + self.chance.randrange(30, 200) * DAY, self._recover, [person])

    def _typo(self) -> None:
        """A wrong last day, which is corrected within ten days."""
        person = self.chance.choice(self.active)
        if person.rows:
            row = max(person.rows, key=lambda each: each.expires_on)
            right = row.expires_on
            self.edit(person, row, right + self.chance.choice((-365, -31, -10, 10, 31, 365)) * DAY)
            self.at(self.today + self.chance.randrange(1, 10) * DAY, self.edit, person, row, right)

    # Nights.

    def begin(self, day: date) -> None:
        """Let the events of a day happen."""
        self.today = day
        for event, values in self.coming.pop(day, []):
            event(*values)

    def run(self, *, allow: int = 0, is_guarded: bool = True) -> Night:
        """Decide about the due mentors, hold what `holds.held_changes` holds, and apply the rest."""
        today = self.today
        is_gap = not any(0 <= (today - day).days <= 2 for day in self._runs[-12:])
        decided = []
        for person in self.people:
            if person.review_on is None or person.review_on <= today:
                decision = rules.decide(self._mentor(person), today)
                known = self.mailed | self.waiting
                new = [each for each in decision.reminders if self._key(person, each) not in known]
                surprise = decision.surprise
                change = surprise.change or (surprise.change_after_gap if is_gap or person.held_after_gap else None)
                if change is None and not set(surprise.reminders).isdisjoint(new):
                    change = Change.REMINDER
                decided.append((person, decision, change, new))
        counts = Counter(change for _, _, change, _ in decided if change is not None)
        held = frozenset[Change]()
        if is_guarded:
            certified = sum(self._was_certified(person) for person in self.people)
            held = holds.held_changes(counts, past=Counter(), certified=certified)
        if sum(counts[each] for each in held) <= allow:
            held = frozenset()
            self.mailed |= self.waiting
            self.waiting = set()
        hidden = exposed = 0
        for person, decision, change, new in decided:
            if change in held and change is not Change.REMINDER:
                person.held_after_gap = decision.surprise.change is None
                is_shown = person.contact is not None and self.portal.get(person.contact, False)
                hidden += decision.push and decision.visible and not is_shown
                exposed += decision.push and not decision.visible and is_shown
                continue
            waits = set(decision.surprise.reminders) if Change.REMINDER in held else ()
            self.waiting |= {self._key(person, each) for each in new if each in waits}
            self._apply(person, decision, [each for each in new if each not in waits])
        self._runs.append(today)
        return Night(today, held, hidden, exposed)

    def _mentor(self, person: Person) -> Mentor:
        own = OpenPause(id=UUID(int=1), reason=OWN_PAUSE_REASON, lapsed_kinds=person.lapsed_kinds or frozenset())
        return Mentor(
            id=UUID(int=person.number),
            member_no=str(person.number),
            organisation=self.rules,
            left=person.left,
            portal_visible=person.portal_visible,
            has_contact=person.contact is not None,
            contact_replaced=None not in (person.contact, person.reviewed_contact)
            and person.contact != person.reviewed_contact,
            certified_until=person.certified_until,
            decided_visible=person.decided_visible,
            seen=person.seen,
            due_by_calendar=person.review_on is not None,
            certificates=tuple(row.value(person.seen) for row in person.rows),
            open_pauses=((own,) if person.lapsed_kinds is not None else ()) + (ILLNESS,) * person.illnesses,
        )

    def _key(self, person: Person, reminder: Reminder) -> Mailed:
        kind = next(row.kind for row in person.rows if row.id == reminder.cert_id)
        return person.number, kind, reminder.threshold_days, reminder.expires_on

    def _was_certified(self, person: Person) -> bool:
        if person.left:
            return False
        if person.certified_until is not None:
            return person.certified_until >= self.today
        return any(not row.revoked and row.issued_on <= self.today <= row.expires_on for row in person.rows)

    def _apply(self, person: Person, decision: Decision, new: Sequence[Reminder]) -> None:
        if decision.pause is PauseChange.LIFT:
            person.lapsed_kinds = None
        elif decision.lapsed_kinds is not None:
            person.lapsed_kinds = decision.lapsed_kinds
        if decision.push:
            person.portal_visible = decision.visible
            if person.contact is not None:
                self.portal[person.contact] = decision.visible
        self.mailed |= {self._key(person, reminder) for reminder in new}
        person.certified_until, person.review_on = decision.certified_until, decision.review_on or NEVER
        person.decided_visible, person.held_after_gap = decision.visible, False
        person.seen = person.seen if decision.seen is None else frozenset(decision.seen)
        person.reviewed_contact = person.contact if person.contact is not None else person.reviewed_contact


def live(programme: Programme, *, until: date, is_guarded: bool = True) -> list[list[Night]]:
    """Live until a day. On the first working day after a hold, a person permits it. Return the nights of each hold."""
    alarms: list[list[Night]] = []
    permitted_on: date | None = None
    day = programme.today
    while day <= until:
        programme.begin(day)
        is_permitted = permitted_on is not None and day >= permitted_on
        if day == START or is_permitted or day not in programme.outages:
            night = programme.run(allow=10**9 if is_permitted else 0, is_guarded=is_guarded)
            if is_permitted:
                permitted_on = None
            if night.held and permitted_on is None:
                alarms.append([])
                permitted_on = day + DAY
                while permitted_on.weekday() >= 5:
                    permitted_on += DAY
            if night.held:
                alarms[-1].append(night)
        day += DAY
    return alarms
