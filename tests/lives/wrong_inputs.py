"""Wrong inputs in the ordinary life of a programme, and what they do if no guard holds them."""

import pickle
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import TypeVar

from tests.lives.programme import DAY, TWO_YEARS, Person, Programme, Row, live

SUMMER, CHRISTMAS = date(2027, 6, 10), date(2027, 12, 26)
Value = TypeVar("Value")
Wrong = Callable[[Programme, int], None]


def _latest(programme: Programme, person: Person) -> Row | None:
    rows = [r for r in person.rows if not r.revoked and r.issued_on <= programme.today and r.kind == "course"]
    return max(rows, key=lambda each: each.expires_on, default=None)


def _certified(programme: Programme) -> list[tuple[Person, Row]]:
    found = []
    for person in programme.active:
        row = _latest(programme, person)
        is_certified = person.certified_until is not None and person.certified_until >= programme.today
        if is_certified and not person.illnesses and row is not None and row.expires_on >= programme.today:
            found.append((person, row))
    return found


def _paused(programme: Programme) -> list[Person]:
    return [person for person in programme.active if person.lapsed_kinds is not None]


def _pick(values: list[Value], number: int) -> list[Value]:
    return random.Random(5).sample(values, min(number, len(values)))


def _past(programme: Programme, number: int) -> None:
    chance = random.Random(1)
    for person, row in _pick(_certified(programme), number):
        programme.edit(person, row, programme.today - chance.randrange(1, 31) * DAY)


def _moved(first: int, last: int) -> Wrong:
    """Last days between these numbers of days from now."""

    def move(programme: Programme, number: int) -> None:
        chance = random.Random(1)
        later = [each for each in _certified(programme) if (each[1].expires_on - programme.today).days > last]
        for person, row in _pick(later, number):
            programme.edit(person, row, programme.today + chance.randrange(first, last + 1) * DAY)

    return move


def _year_early(programme: Programme, number: int) -> None:
    """And still more than 60 days ahead."""
    later = [each for each in _certified(programme) if (each[1].expires_on - programme.today).days > 366 + 61]
    for person, row in _pick(later, number):
        programme.edit(person, row, row.expires_on - 365 * DAY)


def _all_a_year_early(programme: Programme, _number: int) -> None:
    for person, row in _certified(programme):
        programme.edit(person, row, max(row.expires_on - 365 * DAY, row.issued_on + DAY))


def _contacts_shifted(programme: Programme, _number: int) -> None:
    people = [person for person in programme.active if person.contact is not None]
    contacts = [person.contact for person in people]
    for person, contact in zip(people, contacts[1:] + contacts[:1], strict=True):
        programme.set_contact(person, contact)


def _day_and_month_swapped(programme: Programme, _number: int) -> None:
    for person, row in _certified(programme):
        day = row.expires_on
        if day.day <= 12 and day.day != day.month:
            programme.edit(person, row, date(day.year, day.day, day.month))


def _file_of_another_organisation(*, with_contacts: bool) -> Wrong:
    def load(programme: Programme, _number: int) -> None:
        chance = random.Random(3)
        for person in programme.active:
            if chance.random() < 0.5:
                days = chance.randrange(1, 729) if chance.random() > 0.1 else chance.randrange(740, 1_000)
                issued_on = programme.today - days * DAY
                programme.add(person, "course", issued_on, issued_on + TWO_YEARS)
                if with_contacts and person.contact is not None:
                    programme.set_contact(person)

    return load


def _revoked(programme: Programme, number: int) -> None:
    for person, _ in _pick(_certified(programme), number):
        programme.revoke(person)


def _new_mentors_end_soon(programme: Programme, number: int) -> None:
    chance = random.Random(4)
    for _ in range(number):
        last_day = programme.today + chance.randrange(1, 60) * DAY
        programme.add(programme.join(with_contact=True), "course", last_day - TWO_YEARS, last_day)


def _optional_kind_ends_soon(programme: Programme, number: int) -> None:
    chance = random.Random(4)
    programme.set_rules(optional_kinds=["driver"])
    for person, _ in _pick(_certified(programme), number):
        last_day = programme.today + chance.randrange(1, 60) * DAY
        programme.add(person, "driver", last_day - TWO_YEARS, last_day)


def _expired_rows_deleted(programme: Programme, _number: int) -> None:
    for person in _paused(programme):
        person.rows, person.review_on = [], None


def _paused_edited_to_the_future(programme: Programme, number: int) -> None:
    for person in _pick([person for person in _paused(programme) if person.rows], number):
        for row in person.rows:
            if not row.revoked and row.expires_on < programme.today:
                programme.edit(person, row, programme.today + 700 * DAY)


def _paused_renewed(days_ago: int) -> Wrong:
    def renew(programme: Programme, number: int) -> None:
        for person in _pick(_paused(programme), number if days_ago else len(programme.people)):
            for kind in sorted({row.kind for row in person.rows}):
                issued_on = programme.today - days_ago * DAY
                programme.add(person, kind, issued_on, issued_on + TWO_YEARS)

    return renew


def _long_threshold(programme: Programme, _number: int) -> None:
    programme.set_rules(thresholds=(600, 60, 30, 14, 7, 1, -1))


def _nothing(_programme: Programme, _number: int) -> None:
    """The clock alone is wrong."""


@dataclass(frozen=True, slots=True)
class WrongInput:
    """A change of facts on a day, or a clock that is some days ahead on the next one."""

    name: str
    apply: Wrong
    day: date = SUMMER
    days_ahead: int = 0


WRONG_INPUTS = (
    WrongInput("60 last days in the past", _past),
    WrongInput("60 last days within 60 days", _moved(1, 60)),
    WrongInput("60 last days next week", _moved(7, 7)),
    WrongInput("60 last days in 61 to 200 days", _moved(61, 200)),
    WrongInput("60 last days a year early, later than in 60 days", _year_early),
    WrongInput("all last days a year early", _all_a_year_early),
    WrongInput("contact IDs shifted", _contacts_shifted),
    WrongInput("day and month swapped", _day_and_month_swapped),
    WrongInput("clock 1 day ahead", _nothing, days_ahead=1),
    WrongInput("clock 6 days ahead", _nothing, days_ahead=6),
    WrongInput("clock 2 days ahead before New Year", _nothing, date(2027, 12, 29), 2),
    WrongInput("clock 1 day ahead before New Year", _nothing, date(2027, 12, 30), 1),
    WrongInput("clock 6 days ahead before New Year", _nothing, CHRISTMAS, 6),
    WrongInput("clock a year ahead", _nothing, days_ahead=365),
    WrongInput("file of another organisation", _file_of_another_organisation(with_contacts=False)),
    WrongInput("file of another organisation, with contact IDs", _file_of_another_organisation(with_contacts=True)),
    WrongInput("60 revoked", _revoked),
    WrongInput("60 new mentors who end soon", _new_mentors_end_soon),
    WrongInput("60 certificates of an optional kind that end soon", _optional_kind_ends_soon),
    WrongInput("expired certificates deleted", _expired_rows_deleted),
    WrongInput("60 paused, expired certificates moved to the future", _paused_edited_to_the_future),
    WrongInput("60 paused, old certificates added", _paused_renewed(200)),
    WrongInput("everyone who is paused renewed today", _paused_renewed(0)),
    WrongInput("thresholds of 600 days", _long_threshold),
)


def try_wrong_inputs(mentors: int, *, seed: int = 3) -> dict[str, bool]:
    """Return for each wrong input that would do something whether the first run holds a part of it."""
    programme = Programme(mentors, seed, misses_nights=False)
    snapshots: dict[date, bytes] = {}
    for day in sorted({wrong.day for wrong in WRONG_INPUTS}):
        live(programme, until=day, is_guarded=False)
        programme.today = day
        snapshots[day] = pickle.dumps(programme)
        programme.today = day + DAY
    results = {}
    for wrong in WRONG_INPUTS:
        nights = 1 if wrong.days_ahead or wrong.apply is _nothing else 7
        ordinary, _ = _after(snapshots[wrong.day], wrong, nights=nights, is_wrong=False, is_guarded=False)
        harmed, _ = _after(snapshots[wrong.day], wrong, nights=nights, is_wrong=True, is_guarded=False)
        changed = {contact for contact, shown in ordinary.portal.items() if harmed.portal.get(contact) is not shown}
        if changed or harmed.mailed - ordinary.mailed:
            _, held = _after(snapshots[wrong.day], wrong, nights=1, is_wrong=True, is_guarded=True)
            results[wrong.name] = held
    return results


def _after(
    snapshot: bytes, wrong: WrongInput, *, nights: int, is_wrong: bool, is_guarded: bool
) -> tuple[Programme, bool]:
    """Run some nights after a day, with or without the wrong input; return whether the first one held something."""
    programme: Programme = pickle.loads(snapshot)  # noqa: S301 - our own
    programme.coming.clear()
    if is_wrong:
        wrong.apply(programme, 30 if len(programme.people) < 60 else 60)
    held = []
    for night in range(1, nights + 1):
        programme.today = wrong.day + (night + (wrong.days_ahead if is_wrong else 0)) * DAY
        held.append(bool(programme.run(is_guarded=is_guarded).held))
    return programme, held[0]
