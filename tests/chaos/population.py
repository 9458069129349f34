"""Mentors of two organisations in every relevant state, and the changes that people make to their facts.

Each certificate has the same status and threshold on the next day, so midnight does not matter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from enum import StrEnum
from random import Random

from tests.support.facts import Facts

LONG_DAYS = 300
SOON_DAYS = (5, 6, 20, 25, 45, 50)
GONE_DAYS = (-3, -5, -10, -40)


class Deed(StrEnum):
    """Someone's change to a mentor's facts: the statement of the app."""

    RENEW = (
        "INSERT INTO certificates (mentor_id, kind, issued_on, expires_on)"
        " SELECT %(mentor)s, 'likeperson', %(today)s::date - 100 + count(*)::integer, %(far)s"
        " FROM certificates WHERE mentor_id = %(mentor)s"
    )
    REVOKE = "UPDATE certificates SET revoked_at = now() WHERE mentor_id = %(mentor)s"
    REINSTATE = "UPDATE certificates SET revoked_at = NULL WHERE mentor_id = %(mentor)s"
    EXTEND = "UPDATE certificates SET expires_on = greatest(%(day)s, issued_on) WHERE mentor_id = %(mentor)s"
    PAUSE = (
        "INSERT INTO mentor_pauses (mentor_id, reason, actor) VALUES (%(mentor)s, 'illness', 'coordinator')"
        " ON CONFLICT DO NOTHING"
    )
    LIFT = (
        "UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'coordinator'"
        " WHERE mentor_id = %(mentor)s AND lifted_at IS NULL"
    )
    LEAVE = "UPDATE mentors SET left_at = now() WHERE id = %(mentor)s"
    RETURN = "UPDATE mentors SET left_at = NULL WHERE id = %(mentor)s"

    def __repr__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class MentorPlan:
    """A mentor at the start of a run."""

    number: int
    days: int | None = LONG_DAYS
    """Until the last day of the certificate; None: no certificate."""
    has_portal: bool = True

    @property
    def member_no(self) -> str:
        return f"M{self.number:02}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change by a person. EXTEND sets the last day to so many days after today."""

    number: int
    deed: Deed
    days: int = LONG_DAYS

    def apply(self, facts: Facts, today: date) -> None:
        ((mentor_id,),) = facts.rows("SELECT id FROM mentors WHERE member_no = %s", f"M{self.number:02}")
        days = {"today": 0, "day": self.days, "far": LONG_DAYS}
        dates = {name: today + timedelta(days=number) for name, number in days.items()}
        facts.connection.execute(self.deed.encode(), {"mentor": mentor_id, **dates})


def draw_population(chance: Random) -> list[MentorPlan]:
    """8 to 25 mentors, most of them in the organisation with a portal."""
    days = chance.choices([LONG_DAYS, LONG_DAYS, *SOON_DAYS[::2], *GONE_DAYS, None], k=chance.randint(8, 25))
    return [
        MentorPlan(number=number, days=day, has_portal=number <= 2 or chance.random() < 0.75)
        for number, day in enumerate(days, 1)
    ]


def draw_changes(chance: Random, population: Sequence[MentorPlan], *, count: int) -> list[Change]:
    numbers = [plan.number for plan in population]
    days = [*SOON_DAYS, *GONE_DAYS[:3], LONG_DAYS]
    return [
        Change(number=chance.choice(numbers), deed=chance.choice(list(Deed)), days=chance.choice(days))
        for _ in range(count)
    ]


def create(facts: Facts, population: Sequence[MentorPlan], today: date) -> None:
    """Store the mentors' facts."""
    organisations = {True: facts.organisation("hlf"), False: facts.organisation("lag", portal=None)}
    for plan in population:
        home = organisations[plan.has_portal]
        mentor_id = facts.mentor(home, member_no=plan.member_no, locale="en")
        if plan.days is not None:
            facts.certificate(mentor_id, today + timedelta(days=plan.days), issued_on=today - timedelta(days=800))
