"""Mentors of two organisations in every relevant state, and the changes that people make to their facts.

Each certificate has the same status and threshold on the next day, so midnight does not matter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from enum import StrEnum
from random import Random
from uuid import UUID

from tests.support.facts import Facts

LONG_DAYS = 300
SOON_DAYS = (5, 6, 20, 25, 45, 50)
GONE_DAYS = (-3, -5, -10, -40)

_ISSUE = "INSERT INTO certificates (mentor_id, kind, issued_on, expires_on) VALUES (%(mentor)s, 'likeperson',"
_LATEST = (
    "(SELECT id FROM certificates WHERE mentor_id = %(mentor)s AND issued_on <= %(today)s"
    " ORDER BY expires_on DESC, issued_on DESC LIMIT 1)"
)
_PAUSE = "INSERT INTO mentor_pauses (mentor_id, reason, actor) VALUES (%(mentor)s, 'illness', 'coordinator')"
_LIFT = (
    "UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'coordinator'"
    " WHERE mentor_id = %(mentor)s AND lifted_at IS NULL AND actor"
)


class Deed(StrEnum):
    """Someone's change to a mentor's facts: the statement of the app."""

    RENEW = f"{_ISSUE} %(issued_on)s, %(far)s)"
    RENEW_LATER = f"{_ISSUE} %(later)s, %(far)s)"
    REVOKE = f"UPDATE certificates SET revoked_at = now() WHERE id = {_LATEST}"
    REINSTATE = "UPDATE certificates SET revoked_at = NULL WHERE mentor_id = %(mentor)s"
    EXTEND = f"UPDATE certificates SET expires_on = greatest(%(day)s, issued_on) WHERE id = {_LATEST}"
    PAUSE = f"{_PAUSE} ON CONFLICT DO NOTHING"
    LIFT = f"{_LIFT} <> 'certjob'"
    LIFT_CERTJOBS = f"{_LIFT} = 'certjob'"
    LEAVE = "UPDATE mentors SET left_at = now() WHERE id = %(mentor)s"
    RETURN = "UPDATE mentors SET left_at = NULL WHERE id = %(mentor)s"
    CORRECT_CONTACT = "UPDATE mentors SET dynamics_contact_id = %(contact)s WHERE id = %(mentor)s"

    def __repr__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class MentorPlan:
    """A mentor at the start of a run."""

    number: int
    days: int | None = LONG_DAYS
    """Until the last day of the certificate; None: no certificate."""
    has_portal: bool = True
    contact: str = "right"
    """The stored contact ID: ``right``, ``wrong`` or ``missing``."""

    @property
    def member_no(self) -> str:
        return f"M{self.number:02}"

    @property
    def contact_id(self) -> UUID:
        return UUID(int=(0xBAD0 if self.contact == "wrong" else 0xC0) << 96 | self.number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change by a person. ``days`` and ``serial`` make its effect repeatable."""

    number: int
    deed: Deed
    days: int = LONG_DAYS
    serial: int = 0
    """Unique in a run: for the day of issue and the new contact."""

    def apply(self, facts: Facts, today: date) -> UUID:
        """Change the facts; return the contact ID that CORRECT_CONTACT stores."""
        contact = UUID(int=0xC1 << 96 | self.serial << 16 | self.number)
        ((mentor_id,),) = facts.rows("SELECT id FROM mentors WHERE member_no = %s", f"M{self.number:02}")
        days = {"issued_on": -100 - self.serial, "later": 10 + self.serial, "far": LONG_DAYS + self.serial}
        days |= {"today": 0, "day": self.days}
        dates = {name: today + timedelta(days=number) for name, number in days.items()}
        facts.connection.execute(self.deed.encode(), {"mentor": mentor_id, "contact": contact, **dates})
        return contact


def draw_population(chance: Random) -> list[MentorPlan]:
    """8 to 25 mentors, most of them in the organisation with a portal."""
    count = chance.randint(8, 25)
    contacts = chance.choices(["right", "wrong", "missing"], weights=[12, 1, 1], k=count)
    days = chance.choices([LONG_DAYS, LONG_DAYS, *SOON_DAYS[::2], *GONE_DAYS, None], k=count)
    return [
        MentorPlan(number=number, days=day, contact=contact, has_portal=number <= 2 or chance.random() < 0.75)
        for number, (day, contact) in enumerate(zip(days, contacts, strict=True), 1)
    ]


def draw_changes(chance: Random, population: Sequence[MentorPlan], *, count: int, first_serial: int) -> list[Change]:
    deeds = chance.choices(list(Deed), weights=[5, 1, 3, 2, 2, 3, 3, 1, 1, 2, 2], k=count)
    numbers = chance.choices([plan.number for plan in population], k=count)
    days = chance.choices([*SOON_DAYS, *GONE_DAYS[:3], LONG_DAYS], k=count)
    return [
        Change(number=number, deed=deed, days=day, serial=serial)
        for serial, (number, deed, day) in enumerate(zip(numbers, deeds, days, strict=True), first_serial)
    ]


def create(facts: Facts, population: Sequence[MentorPlan], today: date) -> None:
    """Store the mentors' facts."""
    organisations = {True: facts.organisation("hlf"), False: facts.organisation("lag", portal=None)}
    for plan in population:
        contact = None if plan.contact == "missing" else plan.contact_id
        home = organisations[plan.has_portal]
        mentor_id = facts.mentor(home, member_no=plan.member_no, locale="en", contact_id=contact)
        if plan.days is not None:
            facts.certificate(mentor_id, today + timedelta(days=plan.days), issued_on=today - timedelta(days=800))
