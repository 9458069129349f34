"""Mentors of two organisations in all the states that matter, and what people do to their facts meanwhile.

Every day of a certificate is chosen so that midnight changes nothing: the day after has the same status and threshold.
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


class Shape(StrEnum):
    """What a mentor is like at the beginning."""

    VALID = "valid"
    EXPIRING = "expiring"
    EXPIRED = "expired"
    RENEWED = "renewed"
    REVOKED = "revoked"
    LEFT = "left"
    PAUSED = "paused"
    EXPIRED_AND_PAUSED = "expired and paused"
    UPCOMING = "expired, the next one begins later"
    NONE = "no certificate"


class Contact(StrEnum):
    """What is noted as the portal's contact."""

    RIGHT = "right"
    WRONG = "wrong"
    MISSING = "missing"


class Deed(StrEnum):
    """What somebody does to a mentor's facts."""

    RENEW = "renew"
    REVOKE = "revoke"
    REINSTATE = "take a revocation back"
    EXTEND = "change the last day"
    EXTEND_A_LITTLE = "change the last day, same threshold"
    PAUSE = "pause"
    LIFT = "lift the pause"
    LIFT_CERTJOBS = "lift certjob's pause"
    LEAVE = "leave"
    RETURN = "come back"
    CORRECT_CONTACT = "correct the contact"


@dataclass(frozen=True, slots=True, kw_only=True)
class MentorPlan:
    """One mentor to be made."""

    number: int
    shape: Shape
    has_portal: bool = True
    contact: Contact = Contact.RIGHT
    days: int = LONG_DAYS
    """Until the last day of the certificate."""

    @property
    def member_no(self) -> str:
        return f"M{self.number:02}"

    def __str__(self) -> str:
        where = f"portal, {self.contact} contact" if self.has_portal else "no portal"
        return f"{self.member_no}: {self.shape}, {self.days} days, {where}"

    @property
    def contact_id(self) -> UUID | None:
        if self.contact is Contact.MISSING:
            return None
        return UUID(int=(0xBAD0 if self.contact is Contact.WRONG else 0xC0) << 96 | self.number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One deed; ``days`` and ``serial`` are its arguments, so that it does the same whenever it is done."""

    number: int
    deed: Deed
    days: int
    serial: int
    """Different for each: the day of issue, the new contact."""

    @property
    def member_no(self) -> str:
        return f"M{self.number:02}"


def draw_population(chance: Random) -> list[MentorPlan]:
    """8 to 25 mentors, most of the organisation with a portal."""
    plans = []
    for number in range(1, chance.randint(8, 25) + 1):
        shape = chance.choices(list(Shape), weights=[4, 4, 5, 2, 2, 1, 1, 1, 1, 1])[0]
        days = LONG_DAYS
        if shape is Shape.EXPIRING:
            days = chance.choice(SOON_DAYS)
        elif shape in {Shape.EXPIRED, Shape.EXPIRED_AND_PAUSED, Shape.UPCOMING, Shape.RENEWED}:
            days = chance.choice(GONE_DAYS)
        has_portal = number <= 2 or chance.random() < 0.75
        contact = chance.choices(list(Contact), weights=[12, 1, 1])[0] if has_portal else Contact.RIGHT
        plans.append(MentorPlan(number=number, shape=shape, has_portal=has_portal, contact=contact, days=days))
    return plans


def draw_changes(chance: Random, population: Sequence[MentorPlan], *, count: int, first_serial: int) -> list[Change]:
    """So many deeds to mentors picked at random."""
    return [
        Change(
            number=chance.choice(population).number,
            deed=chance.choices(list(Deed), weights=[5, 3, 2, 2, 2, 3, 3, 1, 1, 2, 2])[0],
            days=chance.choice([*SOON_DAYS, *GONE_DAYS[:3], LONG_DAYS]),
            serial=first_serial + index,
        )
        for index in range(count)
    ]


def create(facts: Facts, population: Sequence[MentorPlan], today: date) -> None:
    """Write the mentors' facts."""
    organisations = {True: facts.organisation("hlf"), False: facts.organisation("lag", portal=None)}
    for plan in population:
        home, of_theirs = organisations[plan.has_portal], {"locale": "en", "contact_id": plan.contact_id}
        mentor_id = facts.mentor(home, member_no=plan.member_no, **of_theirs)  # type: ignore[arg-type]
        if plan.shape is not Shape.NONE:
            facts.certificate(mentor_id, today + timedelta(days=plan.days), issued_on=today - timedelta(days=800))
        if (begins_in := {Shape.RENEWED: plan.days - 1, Shape.UPCOMING: 10}.get(plan.shape)) is not None:
            last_day = today + timedelta(days=LONG_DAYS)
            facts.certificate(mentor_id, last_day, issued_on=today + timedelta(days=begins_in))
        if (deed := _DONE_BEFORE.get(plan.shape)) is not None:
            change(facts, Change(number=plan.number, deed=deed, days=0, serial=0), today)


_DONE_BEFORE = {Shape.PAUSED: Deed.PAUSE, Shape.EXPIRED_AND_PAUSED: Deed.PAUSE}
_DONE_BEFORE |= {Shape.REVOKED: Deed.REVOKE, Shape.LEFT: Deed.LEAVE}

_LATEST = (
    "(SELECT id FROM certificates WHERE mentor_id = %(mentor)s AND issued_on <= %(today)s"
    " ORDER BY expires_on DESC, issued_on DESC LIMIT 1)"
)
_LIFT = "UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'coordinator' WHERE mentor_id = %(mentor)s"
_STATEMENTS = {
    Deed.RENEW: "INSERT INTO certificates (mentor_id, kind, issued_on, expires_on) VALUES"
    " (%(mentor)s, 'likeperson', %(issued_on)s, %(far)s)",
    Deed.REVOKE: f"UPDATE certificates SET revoked_at = now() WHERE id = {_LATEST}",
    Deed.REINSTATE: "UPDATE certificates SET revoked_at = NULL WHERE mentor_id = %(mentor)s",
    Deed.EXTEND: f"UPDATE certificates SET expires_on = greatest(%(day)s, issued_on) WHERE id = {_LATEST}",
    # 5 and 6 days, 20 and 25, 45 and 50, -3 and -5 are each within one threshold.
    Deed.EXTEND_A_LITTLE: "UPDATE certificates SET expires_on = greatest(issued_on, expires_on + CASE expires_on"
    " - %(today)s WHEN 5 THEN 1 WHEN 6 THEN -1 WHEN 20 THEN 5 WHEN 25 THEN -5 WHEN 45 THEN 5 WHEN 50 THEN -5"
    f" WHEN -3 THEN -2 WHEN -5 THEN 2 ELSE 0 END) WHERE id = {_LATEST}",
    Deed.PAUSE: "INSERT INTO mentor_pauses (mentor_id, reason, actor) VALUES (%(mentor)s, 'illness', 'coordinator')"
    " ON CONFLICT DO NOTHING",
    Deed.LIFT: f"{_LIFT} AND actor <> 'certjob' AND lifted_at IS NULL",
    Deed.LIFT_CERTJOBS: f"{_LIFT} AND actor = 'certjob' AND lifted_at IS NULL",
    Deed.LEAVE: "UPDATE mentors SET left_at = now() WHERE id = %(mentor)s",
    Deed.RETURN: "UPDATE mentors SET left_at = NULL WHERE id = %(mentor)s",
    Deed.CORRECT_CONTACT: "UPDATE mentors SET dynamics_contact_id = %(contact)s WHERE id = %(mentor)s",
}


def change(facts: Facts, what: Change, today: date) -> UUID:
    """Do a deed, as the app would; return the contact that is new with it (or would be)."""
    contact = UUID(int=0xC1 << 96 | what.serial << 16 | what.number)
    ((mentor_id,),) = facts.rows("SELECT id FROM mentors WHERE member_no = %s", what.member_no)
    details = {
        "mentor": mentor_id,
        "today": today,
        "issued_on": today - timedelta(days=100 + what.serial),
        "far": today + timedelta(days=LONG_DAYS + what.serial),
        "day": today + timedelta(days=what.days),
        "contact": contact,
    }
    facts.connection.execute(_STATEMENTS[what.deed].encode(), details)
    return contact
