"""A portal that hides on time: ``visible_until`` over 120 days of random facts, runs and outages."""

import random
from collections.abc import Iterable
from datetime import date, timedelta
from uuid import UUID

from tests.support.facts import TODAY
from tests.support.portal_answers import cut, error, ok, reset
from tests.support.portal_server import PortalServer
from tests.support.programmes import Person, read_people
from tests.support.scene import Scene

DAY = timedelta(days=1)
OUTAGES = [error(503, "dynamics_unavailable"), error(500, "misconfigured"), cut(applied=False), reset()]
NEED_A_RUN = [
    "INSERT INTO mentor_pauses (mentor_id, reason, actor) VALUES (%s, 'illness', 'anna') ON CONFLICT DO NOTHING",
    "UPDATE certificates SET revoked_at = now() WHERE mentor_id = %s",
    "UPDATE mentors SET left_at = now() WHERE id = %s",
]
OTHER_CHANGES = [
    "UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'anna' WHERE mentor_id = %s AND lifted_at IS NULL",
    "UPDATE mentors SET left_at = NULL WHERE id = %s",
]


def test_no_mentor_is_shown_after_the_last_certified_day(scene: Scene) -> None:
    """Runs happen on 20 % of the days. Only a pause, a revocation or a departure needs one."""
    chance, portal = random.Random(0), scene.portal
    portal.until = {}
    mentors = [scene.certified(TODAY + chance.randrange(-20, 100) * DAY) for _ in range(8)]
    for mentor in mentors[::2]:
        scene.facts.certificate(mentor, TODAY + chance.randrange(10, 100) * DAY, kind="first_aid")
    scene.run_sql("UPDATE mentors SET portal_visible = NULL")  # a new portal, which shows no one
    need_a_run: set[UUID] = set()
    shown_days = 0

    for number in range(120):
        today, mentor = TODAY + number * DAY, chance.choice(mentors)
        change = chance.random()
        if change < 0.08:
            scene.run_sql(chance.choice(NEED_A_RUN), mentor)
            need_a_run.add(mentor)
        elif change < 0.16:
            scene.run_sql(chance.choice(OTHER_CHANGES), mentor)
        elif change < 0.3:
            kind = chance.choice(["likeperson", "first_aid"]) if mentor in mentors[::2] else "likeperson"
            scene.facts.certificate(mentor, today + chance.randrange(10, 100) * DAY, kind=kind, issued_on=today)
        people = read_people(scene.connection, today).values()
        to_show = {person.id for person in people if person.decision.visible}

        if chance.random() < 0.2:
            is_up = chance.random() < 0.7
            portal.default = ok() if is_up else chance.choice(OUTAGES)
            scene.make_due()
            report = scene.night(portal, today=today)
            if is_up and report.to_document()["portal"]["pending"] == 0:
                need_a_run.clear()
                assert shown(portal, people, today) == to_show

        assert shown(portal, people, today) - need_a_run <= to_show
        shown_days += len(shown(portal, people, today))
    assert shown_days > 120


def shown(portal: PortalServer, people: Iterable[Person], today: date) -> set[UUID]:
    """Return the mentors whom the portal shows on a day."""
    last_days = {contact: date.fromisoformat(day) for contact, day in (portal.until or {}).items() if day}
    contacts = {each for each, visible in portal.visible.items() if visible and today <= last_days.get(each, date.min)}
    return {person.id for person in people if person.contact_id in contacts}
