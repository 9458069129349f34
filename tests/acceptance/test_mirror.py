"""docs/examples/mirror.sql: certjob's facts follow the tables of an app that knows nothing of certjob."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from certjob import database
from certjob.jobs.report import RunReport
from tests.support.facts import TODAY, Facts
from tests.support.nights import CollectingChannel, FlakyPortal, night

MIRROR = (Path(__file__).parents[2] / "docs/examples/mirror.sql").read_text()

APP = """
CREATE TABLE public.clubs (id serial PRIMARY KEY, slug text UNIQUE);
CREATE TABLE public.profiles (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    club_id integer REFERENCES public.clubs,
    member_number text,
    name text,
    email text,
    crm_contact uuid,
    deactivated_at timestamptz,
    is_mentor boolean NOT NULL DEFAULT true
);
CREATE TABLE public.certifications (
    profile_id uuid REFERENCES public.profiles ON DELETE CASCADE,
    course text,
    passed_on date,
    valid_until date,
    withdrawn_at timestamptz
);
INSERT INTO public.clubs (slug) VALUES ('hlf');
"""


class App:
    """The app, its database, and the schedule's call of ``sync()`` with the login of the job."""

    def __init__(self, owner: psycopg.Connection[Any], worker: psycopg.Connection[Any]) -> None:
        self.owner, self._worker = owner, worker
        self.portal, self.channel = FlakyPortal(), CollectingChannel()

    def rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        cursor = self.owner.execute(statement.encode(), values)
        return cursor.fetchall() if cursor.description else []

    def profile(self, number: str, *, contact: UUID | None = None, ends_in_days: int | None = 300) -> UUID:
        """A mentor with a contact and a certificate."""
        ((profile,),) = self.rows(
            "INSERT INTO public.profiles (club_id, member_number, name, email, crm_contact)"
            " VALUES (1, %s, 'Kari', %s, %s) RETURNING id",
            *(number, f"{number}@example.org", contact or uuid4()),
        )
        if ends_in_days is not None:
            self.certificate(profile, ends_in_days=ends_in_days)
        return UUID(str(profile))

    def certificate(self, profile: UUID, *, ends_in_days: int) -> None:
        last_day = TODAY + timedelta(days=ends_in_days)
        insert = "INSERT INTO public.certifications VALUES (%s, 'likeperson', %s::date - 730, %s)"
        self.rows(insert, profile, last_day, last_day)

    def sync(self, *arguments: int) -> list[tuple[Any, ...]]:
        marks = ", ".join("%s" for _ in arguments)
        return self._worker.execute(f"SELECT * FROM certjob_mirror.sync({marks})".encode(), arguments).fetchall()

    def run(self) -> RunReport:
        with database.connect(self.owner.info.dsn) as connection:
            return night(connection, portal=self.portal, channel=self.channel)

    def certjob_knows(self) -> list[tuple[Any, ...]]:
        """Each mentor with the last days of the certificates."""
        return self.rows(
            "SELECT m.id, m.member_no, m.dynamics_contact_id,"
            " array_agg(c.expires_on ORDER BY c.expires_on) FILTER (WHERE c.id IS NOT NULL)"
            " FROM certjob.mentors AS m LEFT JOIN certjob.certificates AS c ON c.mentor_id = m.id"
            " GROUP BY m.id ORDER BY 2"
        )

    def app_knows(self) -> list[tuple[Any, ...]]:
        """The same of the app."""
        return self.rows(
            "SELECT p.id, p.member_number, p.crm_contact,"
            " array_agg(c.valid_until ORDER BY c.valid_until) FILTER (WHERE c.course IS NOT NULL)"
            " FROM public.profiles AS p LEFT JOIN public.certifications AS c ON c.profile_id = p.id"
            " GROUP BY p.id ORDER BY 2"
        )


@pytest.fixture
def app(facts: Facts, database_url: str, worker_url: str) -> Iterator[App]:
    """An app with a club that certjob knows as ``hlf``; the mirror is installed."""
    facts.organisation("hlf")
    with (
        psycopg.connect(database_url, autocommit=True) as owner,
        psycopg.connect(worker_url, autocommit=True) as worker,
    ):
        owner.execute(APP)
        owner.execute(MIRROR.encode())
        yield App(owner, worker)


def test_sync_makes_the_facts_equal_and_a_second_call_changes_nothing(app: App) -> None:
    """First fill, by the job's login; the file may be run again."""
    for number in ("M1", "M2", "M3"):
        app.profile(number)

    assert app.sync() == []
    assert app.certjob_knows() == app.app_knows()

    app.rows("UPDATE certjob.mentors SET review_on = 'infinity'")
    app.owner.execute(MIRROR.encode())
    assert app.sync() == []
    assert app.rows("SELECT DISTINCT review_on::text FROM certjob.mentors") == [("infinity",)]


def test_sync_follows_changes_of_profiles_and_certificates(app: App) -> None:
    """A renewal, a deleted certificate, a deactivated profile, a profile that is not a mentor any more."""
    renewed, lost, left, other = (app.profile(number) for number in ("M1", "M2", "M3", "M4"))
    app.sync()
    app.rows("DELETE FROM certjob.portal_sync_events")
    app.rows("UPDATE certjob.mentors SET portal_visible = false")
    app.certificate(renewed, ends_in_days=900)
    app.rows("DELETE FROM public.certifications WHERE profile_id = %s", lost)
    app.rows("UPDATE public.profiles SET deactivated_at = now() WHERE id = %s", left)
    app.rows("UPDATE public.profiles SET is_mentor = false WHERE id = %s", other)

    assert app.sync() == []

    app.rows("DELETE FROM public.profiles WHERE NOT is_mentor")
    assert app.certjob_knows() == app.app_knows()
    assert app.rows("SELECT id FROM certjob.mentors WHERE left_at IS NOT NULL") == [(left,)]


def test_swapped_contacts_converge_in_one_call(app: App) -> None:
    """Also in a ring of three."""
    profiles = [app.profile(number) for number in ("M1", "M2", "M3")]
    app.sync()
    app.run()
    contacts = [contact for _, _, contact, _ in app.app_knows()]
    for shifted in ([contacts[1], contacts[0], contacts[2]], [contacts[2], contacts[1], contacts[0]], contacts):
        for profile, contact in zip(profiles, shifted, strict=True):
            app.rows("UPDATE public.profiles SET crm_contact = %s WHERE id = %s", contact, profile)

        assert app.sync() == []

        assert app.certjob_knows() == app.app_knows()


def test_a_mentor_with_rejected_facts_keeps_the_contact(app: App) -> None:
    """The other one waits for the contact and is reported, too; once the facts are right, both follow."""
    first, second = app.profile("M1"), app.profile("M2")
    app.sync()
    before = app.certjob_knows()
    (contact, other), new = [contact for _, _, contact, _ in before], uuid4()
    app.rows("UPDATE public.profiles SET crm_contact = %s, name = repeat('x', 1001) WHERE id = %s", new, first)
    app.rows("UPDATE public.profiles SET crm_contact = %s WHERE id = %s", contact, second)

    problems = dict(app.sync())

    assert problems[first] == "mentors.full_name is too long, at most 1,000 characters are allowed"
    known = {mentor: known for mentor, _, known, _ in app.certjob_knows()}
    assert known in ({first: contact, second: other}, {first: None, second: contact})
    app.rows("UPDATE public.profiles SET name = 'Kari' WHERE id = %s", first)
    assert app.sync() == []
    assert app.certjob_knows() == app.app_knows()


def test_a_deleted_profile_is_hidden_first_and_deleted_by_a_later_call(app: App) -> None:
    """Its member number is free at once."""
    app.profile("M1")
    app.sync()
    app.rows("DELETE FROM public.profiles")
    again = app.profile("M1")

    assert app.sync() == []
    ((numbers, gone),) = app.rows("SELECT array_agg(member_no ORDER BY member_no), count(left_at) FROM certjob.mentors")
    assert (numbers[0], numbers[1].startswith("M1 (deleted "), gone) == ("M1", True, 1)

    app.run()
    assert list(app.portal.visible.values()) == [False]
    assert app.sync() == []
    assert [mentor for mentor, *_ in app.certjob_knows()] == [again]


def test_a_bad_row_is_returned_and_all_others_follow(app: App) -> None:
    """A duplicate contact, a last day before the first, a member number that is empty."""
    contact = uuid4()
    app.profile("M0")
    app.profile("M1", contact=contact)
    twin, backwards, nameless = app.profile("M2", contact=contact), app.profile("M3"), app.profile("")
    app.rows("UPDATE public.certifications SET valid_until = passed_on - 1 WHERE profile_id = %s", backwards)

    problems = dict(app.sync())

    assert len(problems) == 3
    assert {backwards, nameless} < problems.keys()
    assert problems.keys() - {backwards, nameless} <= {twin, *(row[0] for row in app.app_knows())}
    assert {number for _, number, _, _ in app.certjob_knows()} in ({"M0", "M1"}, {"M0", "M2"})


def test_an_empty_table_of_the_app_removes_no_one(app: App) -> None:
    """A restore in progress looks the same as everyone leaving; a number lets it through."""
    for number in range(21):
        app.profile(f"M{number:02}")
    app.sync()
    app.rows("DELETE FROM public.profiles")

    with pytest.raises(psycopg.errors.RaiseException, match="21 mentors are no longer in the app"):
        app.sync()
    assert app.rows("SELECT count(*) FROM certjob.mentors WHERE left_at IS NULL") == [(21,)]
    assert app.sync(21) == []
    assert app.rows("SELECT count(*) FROM certjob.mentors WHERE left_at IS NULL") == [(0,)]


def test_ten_thousand_profiles_are_filled_in_one_call(app: App) -> None:
    """Although one of them is rejected."""
    app.rows(
        "INSERT INTO public.profiles (club_id, member_number, name, crm_contact)"
        " SELECT 1, 'M' || n, 'Kari', gen_random_uuid() FROM generate_series(1, 10000) AS n"
    )
    app.rows(
        "INSERT INTO public.certifications"
        " SELECT id, kind, '2025-01-01', '2027-01-01' FROM public.profiles, unnest('{likeperson,kurs}'::text[]) AS kind"
    )

    app.rows("UPDATE public.profiles SET name = repeat('x', 1001) WHERE member_number = 'M5000'")

    assert len(app.sync()) == 1

    assert app.rows("SELECT count(*) FROM certjob.certificates") == [(19_998,)]
    assert app.rows("SELECT count(*) FROM certjob_mirror.differing") == [(1,)]


def test_sync_deadlocks_with_no_run(app: App) -> None:
    """Two runs review the mentors whose facts change all the time."""
    for number in range(60):
        app.profile(f"M{number:02}", ends_in_days=-1)
    app.sync()

    def change_and_sync() -> list[list[tuple[Any, ...]]]:
        problems = []
        for round_number in range(10):
            app.rows("UPDATE public.certifications SET valid_until = valid_until + %s", (-1) ** round_number * 300)
            problems.append(app.sync())
        return problems

    with ThreadPoolExecutor(3) as threads:
        syncing = threads.submit(change_and_sync)
        reports = [threads.submit(lambda: [app.run().to_document() for _ in range(3)]) for _ in range(2)]
        assert syncing.result(120) == [[]] * 10
        outcomes = {document["outcome"] for report in reports for document in report.result(120)}
    assert "failed" not in outcomes
    assert app.rows("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == [(0,)]
