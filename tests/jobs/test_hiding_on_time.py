"""A portal that hides on time: ``visible_until`` over a year of random facts, runs and outages."""

import random
from datetime import UTC, date, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from tests.support.facts import TODAY
from tests.support.portal_answers import cut, error, ok, reset
from tests.support.scene import Scene

DAY = timedelta(days=1)
OUTAGES = [error(503, "dynamics_unavailable"), error(500, "misconfigured"), cut(applied=False), reset()]
PAUSE = "INSERT INTO mentor_pauses (mentor_id, reason, actor) VALUES (%s, 'illness', 'anna') ON CONFLICT DO NOTHING"
LIFT = (
    "UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'anna'"
    " WHERE mentor_id = %s AND reason = 'illness' AND lifted_at IS NULL"
)
INACTIVE = """
    SELECT dynamics_contact_id FROM mentors
    WHERE left_at IS NOT NULL OR id IN (SELECT mentor_id FROM mentor_pauses WHERE lifted_at IS NULL)"""


class RandomYear:
    """Mentors with random changes of facts, and the last certified day of each kind."""

    def __init__(self, scene: Scene, *, seed: int) -> None:
        self.scene = scene
        self.random = random.Random(seed)
        self.mentors: dict[UUID, UUID] = {}
        """Mentors by contact."""
        self.last_days: dict[UUID, dict[str, date]] = {}
        """The last certified day of each kind, by contact."""
        self.needs_run: set[UUID] = set()
        """Contacts with a revocation, a pause or a departure since the last run that reached the portal."""
        for number in range(8):
            last_day = TODAY + self.random.randrange(-20, 200) * DAY
            contact_id = uuid4()
            self.mentors[contact_id] = scene.certified(last_day, contact_id=contact_id)
            self.last_days[contact_id] = {"likeperson": last_day}
            if number % 2 == 0:
                self.renew(contact_id, last_day + 30 * DAY, kind="kursleder")

    def renew(self, contact_id: UUID, last_day: date, *, kind: str, today: date = TODAY) -> None:
        """Enter a certificate that begins today."""
        self.scene.facts.certificate(self.mentors[contact_id], last_day, kind=kind, issued_on=today)
        days = self.last_days[contact_id]
        days[kind] = max(days.get(kind, last_day), last_day)

    def change(self, today: date) -> None:
        """Change the facts of one mentor."""
        contact_id, mentor_id = self.random.choice([*self.mentors.items()])
        days, run_sql = self.last_days[contact_id], self.scene.run_sql
        choice = self.random.randrange(8)
        match choice:
            case 0:
                run_sql(PAUSE, mentor_id)
            case 1:
                run_sql(LIFT, mentor_id)
            case 2:
                run_sql("UPDATE certificates SET revoked_at = now() WHERE mentor_id = %s", mentor_id)
                days.update(dict.fromkeys(days, date.min))
            case 3:
                left_at = datetime(2026, 1, 1, tzinfo=UTC) if self.random.random() < 0.3 else None
                run_sql("UPDATE mentors SET left_at = %s WHERE id = %s", left_at, mentor_id)
            case _:
                kind = self.random.choice([*days])
                self.renew(contact_id, today + self.random.randrange(10, 300) * DAY, kind=kind, today=today)
        if choice in (0, 2, 3):
            self.needs_run.add(contact_id)

    def run(self, today: date) -> None:
        """Run certjob. If the portal works, it shows exactly the active and certified mentors."""
        self.scene.make_due()
        is_up = self.random.random() < 0.7
        self.scene.portal.default = ok() if is_up else self.random.choice(OUTAGES)
        report = self.scene.night(self.scene.portal, today=today)
        if is_up and report.to_document()["portal"]["pending"] == 0:
            self.needs_run.clear()
            inactive = {contact_id for (contact_id,) in self.scene.rows(INACTIVE)}
            certified = {contact_id for contact_id, days in self.last_days.items() if today <= min(days.values())}
            assert self.shown(today) == certified - inactive

    def shown(self, today: date) -> set[UUID]:
        """Return the contacts that the portal shows on a day."""
        portal = self.scene.portal
        until = portal.until or {}
        return {each for each, visible in portal.visible.items() if visible and str(today) <= (until[each] or "")}


@pytest.mark.parametrize("seed", range(3))
def test_no_mentor_is_shown_after_the_last_certified_day(scene: Scene, seed: int) -> None:
    """Runs happen on 15 % of the days. Only revocations, pauses and departures need one."""
    scene.portal.until = {}
    year = RandomYear(scene, seed=seed)
    scene.run_sql("UPDATE mentors SET portal_visible = NULL")  # a new portal, which shows no one
    was_shown = 0

    for number in range(366):
        today = TODAY + number * DAY
        if year.random.random() < 0.2:
            year.change(today)
        if year.random.random() < 0.15:
            year.run(today)
        shown = year.shown(today)
        was_shown += len(shown)

        for contact_id in shown - year.needs_run:
            assert today <= min(year.last_days[contact_id].values()), (contact_id, today)

    assert was_shown > 365
