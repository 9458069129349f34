"""docs/examples/mirror.sql: certjob's facts follow the tables of an app that does not know certjob."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from certjob import database
from certjob.jobs.report import RunReport
from tests.conftest import Certjob
from tests.support.docs import read
from tests.support.facts import TODAY, Facts
from tests.support.nights import CollectingChannel, night
from tests.support.portal_server import PortalServer
from tests.support.programme_world import APP_TABLES

MIRROR = read("docs/examples/mirror.sql").encode()

KNOWN = """
    SELECT m.id, m.member_no, m.dynamics_contact_id, o.slug, m.left_at IS NOT NULL, array_agg(
        (c.expires_on, c.revoked_at IS NOT NULL)::text ORDER BY c.expires_on
    ) FILTER (WHERE c.id IS NOT NULL)
    FROM certjob.mentors AS m
    JOIN certjob.organisations AS o ON o.id = m.organisation_id
    LEFT JOIN certjob.certificates AS c ON c.mentor_id = m.id GROUP BY m.id, o.slug ORDER BY 2
"""
"""What certjob knows of each mentor."""

EXPECTED = """
    SELECT p.id, p.member_number, p.crm_contact, c.slug, p.deactivated_at IS NOT NULL, array_agg(
        (k.valid_until, k.withdrawn_at IS NOT NULL)::text ORDER BY k.valid_until
    ) FILTER (WHERE k.course IS NOT NULL)
    FROM public.profiles AS p
    JOIN public.clubs AS c ON c.id = p.club_id
    LEFT JOIN public.certifications AS k ON k.profile_id = p.id WHERE p.is_mentor GROUP BY p.id, c.slug ORDER BY 2
"""
"""The same of the app."""


class App:
    """The app's database, as the owner, and the job's login."""

    def __init__(self, owner: psycopg.Connection[Any], worker: psycopg.Connection[Any], portal: PortalServer) -> None:
        self.owner, self.worker, self.portal = owner, worker, portal

    def rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        cursor = self.owner.execute(statement.encode(), values)
        return cursor.fetchall() if cursor.description else []

    def profiles(self, *numbers: str, club: int = 1, ends_in_days: int = 300) -> list[UUID]:
        """Insert profiles with a contact and a certificate each."""
        insert = "INSERT INTO public.profiles (club_id, member_number) VALUES (%s, %s) RETURNING id"
        ids = [self.rows(insert, club, number)[0][0] for number in numbers]
        last_day = TODAY + timedelta(days=ends_in_days)
        for profile in ids:
            self.rows("INSERT INTO public.certifications (profile_id, valid_until) VALUES (%s, %s)", profile, last_day)
        return ids

    def change(self, profile: UUID, **columns: object) -> None:
        for name, value in columns.items():
            self.rows(f"UPDATE public.profiles SET {name} = %s WHERE id = %s", value, profile)

    def sync(self, *permit: object) -> list[tuple[str | None, str | None, str]]:
        marks = ", ".join("%s" for _ in permit)
        return self.worker.execute(f"SELECT * FROM certjob_mirror.sync({marks})".encode(), permit).fetchall()

    def run(self) -> RunReport:
        with database.connect(make_conninfo(self.owner.info.dsn, options="-c role=certjob_worker")) as connection:
            return night(connection, portal=self.portal, channel=CollectingChannel())


@pytest.fixture
def app(facts: Facts, database_url: str, worker_url: str, portal: PortalServer) -> Iterator[App]:
    """An app with the club ``hlf``; the mirror is installed."""
    facts.organisation("hlf")
    with (
        psycopg.connect(database_url, autocommit=True) as owner,
        psycopg.connect(worker_url, autocommit=True) as worker,
    ):
        owner.execute(APP_TABLES)
        owner.execute(MIRROR)
        yield App(owner, worker, portal)


def test_sync_makes_the_facts_equal_and_a_second_call_changes_nothing(app: App) -> None:
    """The job's login may call it, and the file may be run again."""
    app.profiles("M1", "M2", "M3")
    assert app.sync() == []
    assert app.rows(KNOWN) == app.rows(EXPECTED)
    app.rows("UPDATE certjob.mentors SET review_on = 'infinity'")

    app.owner.execute(MIRROR)

    assert app.sync() == []
    assert app.rows("SELECT DISTINCT review_on::text FROM certjob.mentors") == [("infinity",)]


def test_sync_follows_every_kind_of_change(app: App) -> None:
    """A renewal, deleted and withdrawn certificates, a departure, a return, and the end of being a mentor."""
    renewed, lost, withdrawn, left, other = app.profiles("M1", "M2", "M3", "M4", "M5")
    app.sync()
    app.rows("UPDATE certjob.mentors SET portal_visible = false")
    app.rows("INSERT INTO public.certifications VALUES (%s, 'likeperson', '2025-01-01', '2029-01-01')", renewed)
    app.rows("DELETE FROM public.certifications WHERE profile_id = %s", lost)
    app.rows("UPDATE public.certifications SET withdrawn_at = now() WHERE profile_id = %s", withdrawn)
    app.change(left, deactivated_at="2026-03-01")
    app.change(other, is_mentor=False)

    assert app.sync() == []
    assert app.rows(KNOWN) == app.rows(EXPECTED)

    app.change(left, deactivated_at=None)
    assert app.sync() == []
    assert app.rows(KNOWN) == app.rows(EXPECTED)


@pytest.mark.parametrize("column", ["crm_contact", "member_number"])
def test_swapped_values_converge_in_one_call(app: App, column: str) -> None:
    """A ring of three mentors exchanges their contacts, or their numbers."""
    first, second, third = app.profiles("M1", "M2", "M3")
    app.sync()
    one, two, three = (row[0] for row in app.rows(f"SELECT {column} FROM public.profiles ORDER BY member_number"))
    app.change(first, **{column: two})
    app.change(second, **{column: three})
    app.change(third, **{column: one})

    assert app.sync() == []

    assert app.rows(KNOWN) == app.rows(EXPECTED)


def test_bad_rows_are_returned_and_all_other_facts_follow(app: App) -> None:
    """Two profiles have one contact, one has a certificate that ends before it begins, and one has no number."""
    _, first, twin, backwards, nameless = app.profiles("M0", "M1", "M2", "M3", "")
    app.rows("UPDATE public.profiles SET crm_contact = %s WHERE id IN (%s, %s)", uuid4(), first, twin)
    app.rows(
        "INSERT INTO public.certifications (profile_id, course, valid_until) VALUES (%s, 'x', '2000-01-01')", backwards
    )

    rejected = {profile for profile, *_ in app.sync()}

    others = {str(backwards), str(nameless)}
    assert rejected in ({str(first), *others}, {str(twin), *others})
    assert app.rows("SELECT count(*) FROM certjob.mentors") == [(3,)]
    assert app.rows("SELECT count(*) FROM certjob.certificates") == [(3,)]


def test_departure_and_lost_certificate_apply_despite_invalid_facts(app: App) -> None:
    """A mentor who has left or has lost a certificate is hidden, although the new name or date is rejected."""
    left, withdrawn, lost = app.profiles("M1", "M2", "M3")
    app.sync()
    app.change(left, deactivated_at="2026-03-01")
    app.rows(
        "UPDATE public.certifications SET withdrawn_at = now(), valid_until = '2000-01-01' WHERE profile_id = %s",
        withdrawn,
    )
    app.rows("DELETE FROM public.certifications WHERE profile_id = %s", lost)
    app.rows("UPDATE public.profiles SET name = repeat('x', 1001)")

    assert {profile for profile, *_ in app.sync()} == {*map(str, (left, withdrawn, lost))}

    app.run()
    assert list(app.portal.visible.values()) == [False, False, False]


REMOVALS = {
    "everyone is gone": "DELETE FROM public.profiles WHERE club_id = 1",
    "everyone has moved": "UPDATE public.profiles SET club_id = 2 WHERE club_id = 1",
    "no certificates are left": "DELETE FROM public.certifications WHERE profile_id IN"
    " (SELECT id FROM public.profiles WHERE club_id = 1)",
}


@pytest.mark.parametrize("statement", REMOVALS.values(), ids=REMOVALS.keys())
def test_many_removals_of_an_organisation_need_a_permission(app: App, facts: Facts, statement: str) -> None:
    """A table that is being restored looks the same. Other organisations go on."""
    facts.organisation("nhf")
    app.profiles("M0", "M1", "M2", "M3", "M4", "M5")
    (other,) = app.profiles("N1", club=2)
    app.sync()
    before = app.rows(KNOWN)
    app.rows(statement)
    app.change(other, name="Ola")

    ((profile, member, problem),) = app.sync()

    assert (profile, member) == (None, None)
    assert problem == (
        "6 of 6 mentors of hlf would be deleted, be moved or lose a certificate, so certjob keeps all of these; if the"
        " app is right: SELECT * FROM certjob_mirror.sync('hlf', 6). Mentors: M0, M1, M2, M3, M4, M5"
    )
    assert app.rows(KNOWN) == before
    assert app.rows("SELECT full_name FROM certjob.mentors WHERE member_no = 'N1'") == [("Ola",)]
    assert len(app.sync("hlf", 5)) == 1, "the permission is for fewer mentors"
    assert app.sync("hlf", 6) == []
    assert app.rows(KNOWN) != before


def test_few_removals_need_no_permission(app: App) -> None:
    """Seven of 70 mentors are a tenth. Seven of the remaining 63 are more."""
    app.profiles(*(f"M{number}" for number in range(10, 80)))
    app.sync()

    app.rows("DELETE FROM public.profiles WHERE member_number < 'M17'")
    assert app.sync() == []
    app.rows("DELETE FROM public.profiles WHERE member_number < 'M24'")
    assert "7 of 63 mentors of hlf would be deleted" in str(app.sync())


def test_unknown_organisation_is_returned_and_its_mentors_stay(app: App) -> None:
    """A renamed slug looks like this. Departures apply nevertheless."""
    left, *_ = app.profiles("M1", "M2")
    app.sync()
    app.rows("UPDATE public.clubs SET slug = 'new' WHERE slug = 'hlf'")
    app.rows("INSERT INTO public.profiles (member_number) VALUES ('M3')")
    app.change(left, deactivated_at="2026-03-01")

    problems = app.sync()

    told = "organisation is unknown to certjob; create it, or correct it in the app (mentors: {})"
    assert problems == [(None, "M1", told.format(2)), (None, "M3", told.format(1))]
    assert [(row[1], row[3], row[4]) for row in app.rows(KNOWN)] == [("M1", "hlf", True), ("M2", "hlf", False)]


def test_deleted_profile_is_hidden_first_and_deleted_by_a_later_call(app: App) -> None:
    """Its member number is free at once."""
    app.profiles("M1")
    app.sync()
    app.rows("DELETE FROM public.profiles")
    (again,) = app.profiles("M1")

    assert app.sync() == []
    ((numbers, gone),) = app.rows("SELECT array_agg(member_no ORDER BY member_no), count(left_at) FROM certjob.mentors")
    assert (numbers[0], numbers[1].startswith("M1 (deleted "), gone) == ("M1", True, 1)

    app.run()
    assert sorted(app.portal.visible.values()) == [False, True]
    assert app.sync() == []
    assert app.rows(KNOWN) == app.rows(EXPECTED)
    assert [mentor for mentor, *_ in app.rows(KNOWN)] == [again]


def test_contact_is_hidden_if_the_mentor_who_gets_it_is_rejected(app: App) -> None:
    """Otherwise it would stay visible and belong to no mentor. Once the facts are right, it is shown again."""
    profile, _ = app.profiles("M1", "M2")
    app.run()
    ((contact,),) = app.rows("DELETE FROM public.profiles WHERE id = %s RETURNING crm_contact", profile)
    (again,) = app.profiles("")
    app.change(again, crm_contact=contact)

    assert [stop.stage for stop in app.run().stopped] == ["mirror"]
    assert app.portal.visible[contact] is False

    app.change(again, member_number="M1")
    assert app.run().outcome == "ok"
    assert app.portal.visible[contact] is True
    assert app.rows(KNOWN) == app.rows(EXPECTED)


def test_rejected_rows_are_reported_and_are_an_alert_until_a_copy_succeeds(app: App) -> None:
    """The other mentors are reviewed. Only the first run of a day prints the line. The digest has it, too."""
    app.rows("UPDATE certjob.organisations SET reminder_thresholds = '{}'")
    app.profiles("M1", ends_in_days=-1)
    eva = "INSERT INTO certjob.coordinators (organisation_id, email, locale) SELECT id, 'eva@example.org', 'en'"
    app.rows(f"{eva} FROM certjob.organisations RETURNING 1")
    nameless, *_ = app.profiles("")

    first, second = app.run(), app.run()

    (line,) = (line for line in first.news if line.startswith("mirror"))
    said = f"{nameless}: mentors_member_no_check was rejected (23514)"
    assert line == f"mirror: certjob_mirror.sync(): some facts of the app were not copied; {said}"
    assert (first.outcome, second.outcome, second.news) == ("attention", "attention", [])
    assert list(app.portal.visible.values()) == [False]
    ((alert_id, cause, problem),) = app.rows(ALERTS)
    assert (alert_id, cause, said in problem) == ("all:facts_missing:not_copied", "not_copied", True)
    ((reported,),) = app.rows("SELECT array_to_string(reported, ' ') FROM certjob.coordinator_digests")
    ((key,),) = app.rows("SELECT md5('all:facts_missing:not_copied:not_copied')")
    assert key in reported

    with app.owner.transaction(force_rollback=True):
        app.rows("DROP SCHEMA certjob_mirror CASCADE")
        assert app.rows(ALERTS) == []
    app.change(nameless, member_number="M2")
    assert app.run().outcome == "ok"
    assert app.rows(ALERTS) == []


def test_run_works_and_reports_it_if_the_copy_fails(app: App) -> None:
    """It uses the facts of the last copy: profiles that row-level security hides do not count as deleted."""
    app.profiles("M1", ends_in_days=-1)
    app.sync()
    app.rows("ALTER VIEW certjob_mirror.mentors OWNER TO certjob_worker")
    app.rows("GRANT SELECT ON ALL TABLES IN SCHEMA public TO certjob_worker")
    app.rows("ALTER TABLE public.profiles ENABLE ROW LEVEL SECURITY")

    report = app.run()

    (line,) = (line for line in report.reasons if line.startswith("mirror"))
    assert 'query would be affected by row-level security policy for table "profiles"' in line
    assert list(app.portal.visible.values()) == [False]


def test_run_calls_no_function_of_another_role(app: App) -> None:
    """It would run someone else's code with the rights of the job."""
    app.rows("ALTER FUNCTION certjob_mirror.sync OWNER TO certjob_worker")

    (line,) = (line for line in app.run().reasons if line.startswith("mirror"))

    assert "it does not belong to the owner of the schema certjob" in line


ALERTS = "SELECT alert_id, cause, error FROM certjob.current_alerts(current_date)"
SECRET = "Kari 99887766"
UNREADABLE = {
    "dynamics_contact_id": ("profiles", "crm_contact", SECRET, "M1: dynamics_contact_id cannot be read (22P02)"),
    "left_at": ("profiles", "deactivated_at", "in May", "M1: left_at cannot be read (22007)"),
    "issued_on": ("certifications", "passed_on", "01/02/2024", "M1: issued_on cannot be read (22007)"),
    "expires_on": ("certifications", "valid_until", "2027-02-30", "M1: expires_on cannot be read (22007)"),
    "revoked_at": ("certifications", "withdrawn_at", "yes", "M1: revoked_at cannot be read (22007)"),
    "too long": ("profiles", "name", SECRET * 100, "M1: full_name was rejected (22001)"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_value_that_cannot_be_read_is_named_without_the_value_and_stops_no_one_else(app: App, name: str) -> None:
    """The app has texts. The mentor keeps the facts of the last copy, and the other mentors follow."""
    table, column, value, line = UNREADABLE[name]
    app.rows("DROP SCHEMA certjob_mirror CASCADE")
    for of, texts in (
        ("profiles", ("crm_contact", "deactivated_at")),
        ("certifications", ("passed_on", "valid_until")),
    ):
        for text in (*texts, *(["withdrawn_at"] if of == "certifications" else [])):
            app.rows(f"ALTER TABLE public.{of} ALTER {text} DROP DEFAULT, ALTER {text} TYPE text USING {text}::text")
    app.rows("ALTER TABLE public.certifications ALTER passed_on SET DEFAULT '2024-01-01'")
    app.rows("ALTER TABLE public.profiles ALTER crm_contact SET DEFAULT gen_random_uuid()::text")
    app.owner.execute(MIRROR)
    first, second = app.profiles("M1", "M2")
    assert app.sync() == []
    before = app.rows(KNOWN)
    key = "id" if table == "profiles" else "profile_id"
    app.rows(f"UPDATE public.{table} SET {column} = %s WHERE {key} = %s", value, first)
    app.rows("UPDATE public.certifications SET valid_until = '2031-01-01' WHERE profile_id = %s", second)

    stopped = [str(stop) for stop in app.run().stopped]

    assert stopped == [f"mirror: certjob_mirror.sync(): some facts of the app were not copied; {line}"]
    assert app.rows(KNOWN)[0] == before[0]
    assert app.rows(KNOWN)[1][-1] == ["(2031-01-01,f)"]
    assert value not in str(app.rows("SELECT lines, counts FROM certjob.job_runs"))


def test_problem_without_a_member_number_names_the_id_of_the_app(app: App) -> None:
    """An app with numbers as ids. No one could find the uuid that certjob stores for them."""
    derived = MIRROR.replace(b"SELECT p.id, p.id AS app_id", b"SELECT p.id, 1000 + p.club_id AS app_id")
    app.owner.execute(derived)
    nameless, _ = app.profiles("", "M2")
    app.rows("UPDATE public.certifications SET valid_until = NULL WHERE profile_id = %s", nameless)

    problems = app.sync()

    assert ("1001", "", "mentors_member_no_check was rejected (23514)") in problems
    assert ("1001", "", "expires_on is missing (23502)") in problems
    assert "1001: expires_on is missing (23502)" in str(app.run().stopped)


def test_mentor_who_cannot_be_read_keeps_the_contact(app: App) -> None:
    """Another mentor should get it. It stays with the mentor whom the portal shows, so a hide still reaches it."""
    app.rows("DROP SCHEMA certjob_mirror CASCADE")
    app.rows("ALTER TABLE public.profiles ALTER deactivated_at TYPE text")
    app.owner.execute(MIRROR)
    first, second = app.profiles("M1", "M2")
    assert app.sync() == []
    before = app.rows(KNOWN)
    ((contact,),) = app.rows("SELECT crm_contact FROM public.profiles WHERE id = %s", first)
    app.change(first, deactivated_at="in May", crm_contact=uuid4())
    app.change(second, crm_contact=contact)

    assert {profile for profile, *_ in app.sync()} == {str(first), str(second)}

    assert app.rows(KNOWN) == before


def test_breaks_of_the_app_are_pauses_as_long_as_they_last(app: App) -> None:
    """docs/examples/breaks.sql. A pause by a coordinator stays."""
    statements = read("docs/examples/breaks.sql").strip().removesuffix(";").split(";\n\n")
    app.rows("CREATE TABLE public.breaks (profile_id uuid, begins_at timestamptz, ends_at timestamptz)")
    first, second = app.profiles("M1", "M2")
    app.sync()
    app.rows("INSERT INTO public.breaks VALUES (%s, '2026-01-01', 'infinity')", first)
    app.rows("INSERT INTO public.breaks VALUES (%s, '2026-01-01', '2026-02-01')", second)
    app.rows("INSERT INTO certjob.mentor_pauses (mentor_id, reason, actor) VALUES (%s, 'illness', 'eva')", second)
    paused = "SELECT mentor_id, reason, lifted_at IS NULL FROM certjob.mentor_pauses ORDER BY reason"

    for _ in range(2):
        for statement in statements:
            app.rows(statement)
    assert app.rows(paused) == [(first, "break", True), (second, "illness", True)]

    app.rows("UPDATE public.breaks SET ends_at = now()")
    for statement in statements:
        app.rows(statement)
    assert app.rows(paused) == [(first, "break", False), (second, "illness", True)]


def test_failed_copy_is_reported_without_a_value_of_the_app(app: App) -> None:
    """An app that casts in the view stops the copy of everyone, and PostgreSQL's message quotes the value."""
    app.profiles("M1")
    app.rows(f"UPDATE public.profiles SET name = '{SECRET}'")
    app.rows(
        "CREATE OR REPLACE VIEW certjob_mirror.mentors AS SELECT p.id, p.id AS app_id, 'hlf'::text AS organisation,"
        " p.member_number AS member_no, p.name AS full_name, p.email, p.language AS locale,"
        " p.name::uuid AS dynamics_contact_id, p.deactivated_at AS left_at FROM public.profiles AS p"
    )

    (line,) = (line for line in app.run().reasons if line.startswith("mirror"))

    assert (
        line == "mirror: certjob_mirror.sync(): InvalidTextRepresentation (22P02); the facts of the app were not copied"
    )


def test_departure_and_revocation_in_the_future_count_from_their_time_on(app: App) -> None:
    """certjob has no planned ones. A withdrawal next month leaves the certificate in force."""
    left, withdrawn = app.profiles("M1", "M2")
    app.change(left, deactivated_at=datetime.now(UTC) + timedelta(days=30))
    app.rows(
        "UPDATE public.certifications SET withdrawn_at = now() + interval '30 days' WHERE profile_id = %s", withdrawn
    )

    assert app.sync() == []
    facts = (
        "SELECT m.left_at, c.revoked_at FROM certjob.mentors AS m JOIN certjob.certificates AS c ON c.mentor_id = m.id"
    )
    assert app.rows(facts) == [(None, None)] * 2

    app.change(left, deactivated_at=datetime.now(UTC))
    app.rows("UPDATE public.certifications SET withdrawn_at = now() WHERE profile_id = %s", withdrawn)
    assert app.sync() == []
    assert app.rows(KNOWN) == app.rows(EXPECTED)


def test_language_of_the_app_is_copied(app: App) -> None:
    """Any other language than nynorsk and English counts as bokmål."""
    app.profiles("M1", "M2", "M3")
    app.rows("UPDATE public.profiles SET language = CASE member_number WHEN 'M1' THEN 'NN' WHEN 'M2' THEN 'sv' END")

    assert app.sync() == []

    assert app.rows("SELECT locale FROM certjob.mentors ORDER BY member_no") == [("nn",), ("nb",), ("nb",)]


@pytest.mark.parametrize("kind", ["dynamics", None])
def test_profile_that_is_no_mentor_for_some_nights_gets_no_mail_twice(app: App, kind: str | None) -> None:
    """Meanwhile certjob keeps the mentor without name, address and contact, and hides them, until `db prune`."""
    app.rows("UPDATE certjob.organisations SET portal = %s", kind)
    app.profiles("M0")
    (profile,) = app.profiles("M1", ends_in_days=7)
    mentor = "certjob.mentors WHERE member_no ^@ 'M1'"
    app.change(profile, email="kari@example.org")
    assert app.run().mail.reminders.sent == 1
    sent = app.rows("SELECT id, sent_at FROM certjob.cert_notification_log")

    app.change(profile, is_mentor=False)
    for _ in range(3):
        app.run()
    ((number, *person),) = app.rows(f"SELECT member_no, full_name, email, dynamics_contact_id FROM {mentor}")
    assert (number, person) == (f"M1 (deleted {profile})", [None, None, None])
    assert False in app.portal.visible.values() or kind is None
    quiet = app.rows(f"SELECT xmin::text FROM {mentor}")
    app.sync()
    assert app.rows(f"SELECT xmin::text FROM {mentor}") == quiet

    app.change(profile, is_mentor=True)
    assert app.run().mail.reminders.sent == 0
    assert app.rows(KNOWN) == app.rows(EXPECTED)
    assert app.rows("SELECT id, sent_at FROM certjob.cert_notification_log") == sent

    app.change(profile, is_mentor=False)
    for _ in range(2):
        app.run()
    app.rows("DELETE FROM certjob.cert_notification_log")
    app.sync()
    assert app.rows(f"SELECT FROM {mentor}") == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            "ALTER TABLE public.profiles ALTER id DROP DEFAULT, ALTER id TYPE text",
            "certjob_mirror.mentors.id is text, but must be uuid",
        ),
        (
            "ALTER TABLE public.certifications ALTER passed_on DROP DEFAULT, ALTER passed_on TYPE timestamptz",
            "certjob_mirror.certificates.issued_on is timestamp with time zone, but must be date or text",
        ),
    ],
    ids=["id", "first day"],
)
def test_wrong_type_changes_nothing_and_the_corrected_file_may_be_run(app: App, change: str, said: str) -> None:
    app.rows("DROP SCHEMA certjob_mirror CASCADE")
    app.rows("ALTER TABLE public.certifications DROP CONSTRAINT certifications_profile_id_fkey")
    app.rows(change)

    with pytest.raises(psycopg.errors.RaiseException) as rejected:
        app.owner.execute(MIRROR)
    app.owner.execute("ROLLBACK")

    assert rejected.value.diag.message_primary == said
    assert app.rows("SELECT to_regnamespace('certjob_mirror') IS NULL") == [(True,)]
    right = MIRROR.replace(b"SELECT p.id,", b"SELECT p.id::uuid,").replace(b"c.passed_on AS", b"c.passed_on::date AS")
    app.owner.execute(right)


def test_load_is_rejected_because_the_next_copy_would_undo_it(app: App, here: Certjob, tmp_path: Path) -> None:
    (tmp_path / "people.csv").write_text("organisation,member_no,email\nhlf,M1,kari@example.org\n")

    rejected = here("load", "people.csv")

    assert rejected.returncode == 2
    assert rejected.stderr == (
        "certjob load: certjob_mirror copies the facts from the app, and would undo this load; correct them in the app;"
        " the next `certjob run` copies them\n"
    )
    app.rows("DROP SCHEMA certjob_mirror CASCADE")
    assert here("load", "people.csv").returncode == 3
