"""A portal that hides on time, over a year of random facts, runs and outages."""

import random
from datetime import UTC, date, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from tests.support.facts import TODAY
from tests.support.portal_answers import Behaviour, cut, error, ok, reset
from tests.support.scene import Scene

DAY = timedelta(days=1)
OUTAGES: list[Behaviour] = [
    error(503, "dynamics_unavailable"),
    error(500, "misconfigured"),
    cut(applied=False),
    reset(),
]


class Programme:
    """Mentors whose facts change at random, and the days that the facts allow."""

    def __init__(self, scene: Scene, *, seed: int) -> None:
        self.scene = scene
        self.random = random.Random(seed)
        self.mentors: dict[UUID, UUID] = {}
        """By contact."""
        self.last_days: dict[UUID, dict[str, date]] = {}
        """The last certified day of each kind, by contact."""
        self.needs_run: set[UUID] = set()
        """Contacts with a revocation, a pause or a departure since the last run that reached the portal."""
        for number in range(8):
            self.add(TODAY + timedelta(days=self.random.randrange(-20, 200)), number=number)

    def add(self, last_day: date, *, number: int) -> None:
        """Add a mentor, with two kinds of certificates if the number is even."""
        contact_id = uuid4()
        mentor_id = self.scene.certified(last_day, contact_id=contact_id)
        self.mentors[contact_id] = mentor_id
        self.last_days[contact_id] = {"likeperson": last_day}
        if number % 2 == 0:
            self.renew(contact_id, last_day + 30 * DAY, kind="kursleder")

    def renew(self, contact_id: UUID, last_day: date, *, kind: str, today: date = TODAY) -> None:
        """Enter a certificate that begins today."""
        self.scene.facts.certificate(self.mentors[contact_id], last_day, kind=kind, issued_on=today)
        known = self.last_days[contact_id].get(kind, last_day)
        self.last_days[contact_id][kind] = max(known, last_day)

    def change(self, today: date) -> None:
        """Change the facts of one mentor."""
        contact_id = self.random.choice([*self.mentors])
        mentor_id = self.mentors[contact_id]
        match self.random.randrange(8):
            case 0:
                self.scene.run_sql(
                    "INSERT INTO mentor_pauses (mentor_id, reason, actor) VALUES (%s, 'illness', 'anna')"
                    " ON CONFLICT DO NOTHING",
                    mentor_id,
                )
                self.needs_run.add(contact_id)
            case 1:
                self.scene.run_sql(
                    "UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'anna'"
                    " WHERE mentor_id = %s AND reason = 'illness' AND lifted_at IS NULL",
                    mentor_id,
                )
            case 2:
                self.scene.run_sql("UPDATE certificates SET revoked_at = now() WHERE mentor_id = %s", mentor_id)
                self.last_days[contact_id] = dict.fromkeys(self.last_days[contact_id], date.min)
                self.needs_run.add(contact_id)
            case 3:
                left_at = datetime(2026, 1, 1, tzinfo=UTC) if self.random.random() < 0.3 else None
                self.scene.run_sql("UPDATE mentors SET left_at = %s WHERE id = %s", left_at, mentor_id)
                self.needs_run.add(contact_id)
            case _:
                kind = self.random.choice([*self.last_days[contact_id]])
                self.renew(contact_id, today + self.random.randrange(10, 300) * DAY, kind=kind, today=today)

    def run(self, today: date) -> None:
        """Run certjob, with luck on a portal that works."""
        self.scene.make_due()
        is_up = self.random.random() < 0.7
        self.scene.portal.default = ok() if is_up else self.random.choice(OUTAGES)
        report = self.scene.night(self.scene.portal, today=today)
        if is_up and report.to_document()["portal"]["pending"] == 0:
            self.needs_run.clear()
            assert self.shown(today) == self.wanted(today)

    def wanted(self, today: date) -> set[UUID]:
        """Return the contacts of active mentors whose every kind is in force."""
        idle = "SELECT id FROM mentors WHERE left_at IS NOT NULL UNION SELECT mentor_id FROM mentor_pauses"
        inactive = {row[0] for row in self.scene.rows(f"{idle} WHERE lifted_at IS NULL")}
        certified = {contact for contact, days in self.last_days.items() if today <= min(days.values())}
        return {contact for contact in certified if self.mentors[contact] not in inactive}

    def shown(self, today: date) -> set[UUID]:
        """Return the contacts that the portal's view shows on a day."""
        portal = self.scene.portal
        assert portal.until is not None
        return {
            contact_id
            for contact_id, visible in portal.visible.items()
            if visible and str(today) <= (portal.until[contact_id] or "")
        }


@pytest.mark.parametrize("seed", range(3))
def test_no_mentor_is_shown_after_the_last_certified_day(scene: Scene, seed: int) -> None:
    """Whatever certjob did or did not do. Revocations, pauses and departures need a run."""
    scene.portal.until = {}
    programme = Programme(scene, seed=seed)
    scene.run_sql("UPDATE mentors SET portal_visible = NULL")  # a new portal, which shows no one
    was_shown = 0

    for number in range(366):
        today = TODAY + number * DAY
        if programme.random.random() < 0.2:
            programme.change(today)
        if programme.random.random() < 0.15:
            programme.run(today)
        shown = programme.shown(today)
        was_shown += len(shown)

        for contact_id in shown - programme.needs_run:
            assert today <= min(programme.last_days[contact_id].values()), (contact_id, today)

    assert was_shown > 365
