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

_ISSUE = "INSERT INTO certificates (mentor_id, kind, issued_on, expires_on) VALUES (%(mentor)s, 'likeperson',"
_LATEST = (
    "(SELECT id FROM certificates WHERE mentor_id = %(mentor)s AND issued_on <= %(today)s"
    " ORDER BY expires_on DESC, issued_on DESC LIMIT 1)"
)
_MENTOR = "UPDATE mentors SET {} WHERE id = %(mentor)s"
_LIFT = "UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'coordinator' WHERE mentor_id = %(mentor)s"


def member_no(number: int) -> str:
    return f"M{number:02}"


class Deed(StrEnum):
    """What somebody does to a mentor's facts: the statement that the app would run."""

    RENEW = f"{_ISSUE} %(issued_on)s, %(far)s)"
    RENEW_LATER = f"{_ISSUE} %(later)s, %(far)s)"
    REVOKE = f"UPDATE certificates SET revoked_at = now() WHERE id = {_LATEST}"
    REINSTATE = "UPDATE certificates SET revoked_at = NULL WHERE mentor_id = %(mentor)s"
    EXTEND = f"UPDATE certificates SET expires_on = greatest(%(day)s, issued_on) WHERE id = {_LATEST}"
    PAUSE = (
        "INSERT INTO mentor_pauses (mentor_id, reason, actor) VALUES (%(mentor)s, 'illness', 'coordinator')"
        " ON CONFLICT DO NOTHING"
    )
    LIFT = f"{_LIFT} AND actor <> 'certjob' AND lifted_at IS NULL"
    LIFT_CERTJOBS = f"{_LIFT} AND actor = 'certjob' AND lifted_at IS NULL"
    LEAVE = _MENTOR.format("left_at = now()")
    RETURN = _MENTOR.format("left_at = NULL")
    CORRECT_CONTACT = _MENTOR.format("dynamics_contact_id = %(contact)s")

    def __repr__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class MentorPlan:
    """One mentor to be made."""

    number: int
    days: int | None = LONG_DAYS
    """Until the last day of the certificate; None: there is none."""
    deed: Deed | None = None
    """Done before the first night."""
    has_portal: bool = True
    contact: str = "right"
    """Or ``wrong``, or ``missing``: what is noted as the portal's contact."""

    @property
    def member_no(self) -> str:
        return member_no(self.number)

    @property
    def contact_id(self) -> UUID:
        return UUID(int=(0xBAD0 if self.contact == "wrong" else 0xC0) << 96 | self.number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One deed; ``days`` and ``serial`` are its arguments, so that it does the same whenever it is done."""

    number: int
    deed: Deed
    days: int = LONG_DAYS
    serial: int = 0
    """Different for each: the day of issue, the new contact."""

    def do(self, facts: Facts, today: date) -> UUID:
        """Do it; return the contact that is new with it (or would be)."""
        contact = UUID(int=0xC1 << 96 | self.serial << 16 | self.number)
        ((mentor_id,),) = facts.rows("SELECT id FROM mentors WHERE member_no = %s", member_no(self.number))
        details = {
            "mentor": mentor_id,
            "today": today,
            "issued_on": today - timedelta(days=100 + self.serial),
            "later": today + timedelta(days=10 + self.serial),
            "far": today + timedelta(days=LONG_DAYS + self.serial),
            "day": today + timedelta(days=self.days),
            "contact": contact,
        }
        facts.connection.execute(self.deed.encode(), details)
        return contact


def draw_population(chance: Random) -> list[MentorPlan]:
    """8 to 25 mentors, most of the organisation with a portal."""
    deeds = [None, Deed.RENEW, Deed.RENEW_LATER, Deed.REVOKE, Deed.LEAVE, Deed.PAUSE]
    plans = []
    for number in range(1, chance.randint(8, 25) + 1):
        has_portal = number <= 2 or chance.random() < 0.75
        plans.append(
            MentorPlan(
                number=number,
                days=chance.choice([LONG_DAYS, LONG_DAYS, *SOON_DAYS[::2], *GONE_DAYS, None]),
                deed=chance.choices(deeds, weights=[13, 2, 1, 2, 1, 2])[0],
                has_portal=has_portal,
                contact=chance.choices(["right", "wrong", "missing"], weights=[12, 1, 1])[0] if has_portal else "right",
            )
        )
    return plans


def draw_changes(chance: Random, population: Sequence[MentorPlan], *, count: int, first_serial: int) -> list[Change]:
    """So many deeds to mentors picked at random."""
    return [
        Change(
            number=chance.choice(population).number,
            deed=chance.choices(list(Deed), weights=[5, 1, 3, 2, 2, 3, 3, 1, 1, 2, 2])[0],
            days=chance.choice([*SOON_DAYS, *GONE_DAYS[:3], LONG_DAYS]),
            serial=first_serial + index,
        )
        for index in range(count)
    ]


def create(facts: Facts, population: Sequence[MentorPlan], today: date) -> None:
    """Write the mentors' facts."""
    organisations = {True: facts.organisation("hlf"), False: facts.organisation("lag", portal=None)}
    for plan in population:
        contact = None if plan.contact == "missing" else plan.contact_id
        home = organisations[plan.has_portal]
        mentor_id = facts.mentor(home, member_no=plan.member_no, locale="en", contact_id=contact)
        if plan.days is not None:
            facts.certificate(mentor_id, today + timedelta(days=plan.days), issued_on=today - timedelta(days=800))
        if plan.deed is not None:
            Change(number=plan.number, deed=plan.deed).do(facts, today)
