"""certjob_worker: every command works as that role, and nothing else does; how the roles come into being."""

import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from certjob import database
from certjob.database import embedded, migrations
from tests.conftest import Certjob, database_of
from tests.support import supabase
from tests.support.app_rows import furnish
from tests.support.bounces import postfix
from tests.support.command_line import commands, run_in_process, today
from tests.support.facts import TODAY, Facts
from tests.support.own_server import data_folder
from tests.support.portal_answers import error
from tests.support.portal_server import PortalServer
from tests.support.waiting import until

PATIENCE_SECONDS = 60


@pytest.fixture
def login_url(database_url: str) -> Iterator[str]:
    """A login of this test's own that was given certjob_worker and nothing else, as docs/database-roles.md says."""
    name = f"certjob_cron_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN IN ROLE certjob_worker").format(sql.Identifier(name)))
        here = sql.Identifier(admin.info.dbname)
        admin.execute(sql.SQL("REVOKE CONNECT ON DATABASE {} FROM PUBLIC").format(here))
        admin.execute(sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(here, sql.Identifier(name)))
        yield psycopg.conninfo.make_conninfo(database_url, user=name)
        admin.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(name)))
        admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


@pytest.fixture
def worker(login_url: str) -> Iterator[database.Connection]:
    """certjob's kind of connection, by that login."""
    with database.connect(login_url) as connection:
        yield connection


class TestHappyPath:
    """The commands from the first file to a quiet night, by a login that is a certjob_worker."""

    def test_every_command_works(
        self, bare_environment: dict[str, str], login_url: str, facts: Facts, tmp_path: Path
    ) -> None:
        """Also with rows to lock, to insert, to change and to delete in every table."""
        user_id = uuid.uuid4()
        contact_id = uuid.uuid4()
        ended, lasting = today() - timedelta(days=1), today() + timedelta(days=900)
        people = tmp_path / "people.csv"
        header = "organisation,member_no,full_name,email,dynamics_contact_id,kind,issued_on,expires_on\n"
        rows = [
            f"hlf,M1,Kari,kari@example.org,{contact_id},likeperson,2020-01-01,{ended}\n",
            f"hlf,M2,Ola,ola@example.org,{uuid.uuid4()},likeperson,2020-01-01,{today() + timedelta(days=20)}\n",
            f"hlf,M3,Liv,,{uuid.uuid4()},likeperson,2020-01-01,{today() + timedelta(days=20)}\n",
        ]
        report = tmp_path / "report.eml"
        done: list[str] = []

        with PortalServer([error(503, "dynamics_unavailable")] * 3) as portal:
            environment = bare_environment | {
                "CERTJOB_DATABASE_URL": login_url,
                "CERTJOB_PORTAL_URL": portal.url,
                "CERTJOB_PORTAL_KEY": portal.key,
                "CERTJOB_NOTIFY_URL": f"maildir:{tmp_path / 'mail'}",
                "CERTJOB_MAIL_FROM": "post@hlf.example",
                "CERTJOB_METRICS_FILE": str(tmp_path / "certjob.prom"),
            }

            def run(*arguments: str, code: int = 0) -> str:
                result = run_in_process(*arguments, environment=environment, folder=tmp_path)
                assert result.returncode == code, (arguments, result)
                done.append(" ".join(arguments))
                return result.stdout

            run("db", "status")
            run("organisation", "set", "hlf", "--portal", "dynamics", "--coordinator", "Eva <eva@example.org>")
            run("organisation", "set", "hlf", "--contact-email", "post@hlf.example", "--thresholds", "30,7,-1")
            people.write_text(header + "".join(rows))
            run("load", str(people))
            facts.pause(facts.rows("SELECT id FROM mentors WHERE member_no = 'M2'")[0][0])  # type: ignore[arg-type]
            run("forecast")
            run("list", "--csv")
            run("run", "--dry-run")
            run("run", code=3)
            run("organisation", "set", "hlf", "--coordinator", f"{user_id} Eva Dahl <eva@example.org>")
            run("organisation", "list")
            run("organisation", "show", "hlf")
            run("organisation", "set", "hlf", "--thresholds", "90,30", "--dry-run")
            run("organisation", "set", "hlf", "--coordinator", "gone@example.org", "--sender", "HLF <post@hlf.example>")
            run("organisation", "set", "hlf", "--remove-coordinator", "gone@example.org")
            run("alerts", code=3)
            run("explain", "M1")
            run("preview", "M2")
            run("alerts", "--retry-all", code=3)  # M3 has no address
            run("deliver")
            run("reconcile", "--dry-run")
            run("reconcile")
            run("resync", "M1")
            people.write_text(header + rows[0].replace("2020-01-01", "2026-01-01").replace(str(ended), str(lasting)))
            run("load", "--strict", str(people))
            run("run", code=3)
            run("deliver", "--json")
            ((log_id, address),) = facts.rows(
                "SELECT l.id, m.email FROM cert_notification_log AS l JOIN mentors AS m ON m.id = l.mentor_id"
                " WHERE l.status = 'sent' ORDER BY l.id LIMIT 1"
            )
            report.write_bytes(postfix(f"<certjob-reminder-{log_id}-0@hlf.example>", str(address)))
            run("bounces", str(report))
            run("check")
            run("status", code=3)
            run("db", "prune", "--older-than", "3y")

        ran = {name for name in commands() for line in done if f"certjob {line} ".startswith(f"{name} ")}
        assert ran == commands().keys() - {"certjob db migrate", "certjob demo"}, "a new command belongs in here, too"
        assert portal.visible[contact_id] is True
        assert facts.rows("SELECT id FROM coordinators") == [(user_id,)]
        assert facts.rows("SELECT count(*) FROM mentor_pauses WHERE lifted_by = 'certjob'") == [(1,)]
        assert facts.rows("SELECT count(*) FROM cert_notification_log WHERE status = 'sent'") == [(1,)]
        assert facts.rows("SELECT count(*) FROM cert_notification_log WHERE failure_code = 'bounced'") == [(1,)]
        assert facts.rows("SELECT count(*) > 0 FROM coordinator_digests WHERE status = 'sent'") == [(True,)]

    def test_its_digest_sees_the_other_nights_of_the_same_login(self, worker: database.Connection) -> None:
        """What a digest covers ends where the oldest open transaction of certjob began: that one must be visible."""
        with worker.transaction():
            began = worker.execute(
                "SELECT xact_start = now() FROM pg_stat_activity WHERE pid = pg_backend_pid()"
            ).fetchone()

        assert began == (True,)


FORBIDDEN = [
    "CREATE TABLE public.mine ()",
    "DROP TABLE mentors CASCADE",
    "ALTER TABLE mentors ADD COLUMN mine int",
    "ALTER TABLE mentors DISABLE ROW LEVEL SECURITY",
    "CREATE POLICY mine ON mentors USING (true)",
    'DROP POLICY "worker works here" ON mentors',
    "TRUNCATE cert_notification_log",
    "ALTER TABLE mentors DISABLE TRIGGER mentor_updated",
    "DELETE FROM mentors",
    "INSERT INTO certjob_migrations (version, name, sha256) VALUES (9, 'x', 'x')",
    "UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'certjob' WHERE actor <> 'certjob'",
    "INSERT INTO mentor_pauses (mentor_id, reason, actor) SELECT id, 'illness', 'somebody' FROM mentors",
    "SELECT certjob_private.set_up_roles()",
    "SELECT certjob_private.coordinator_organisation_id()",
    "SELECT public.request_portal_resync(id) FROM mentors",
    "CREATE ROLE mine",
    "GRANT certjob_worker TO certjob_worker",
    "SET ROLE postgres",
    "SET session_replication_role = replica",
    "COPY mentors TO PROGRAM 'cat'",
    "SELECT pg_read_file('PG_VERSION')",
    "SELECT secret FROM diary",
]


class TestLimits:
    """What a stolen login of certjob could not do."""

    def test_it_may_not(self, worker: database.Connection, facts: Facts) -> None:
        """Refused, with PostgreSQL's word for a right that is missing; nor touch the app's other tables."""
        facts.pause(facts.certified_mentor(facts.organisation(), TODAY))
        facts.connection.execute("CREATE TABLE diary (secret text)")
        done = []

        for statement in FORBIDDEN:
            with suppress(psycopg.errors.InsufficientPrivilege, psycopg.errors.InvalidGrantOperation):
                worker.execute(statement.encode())
                done.append(statement)

        assert done == []

    def test_it_deletes_what_is_closed_and_never_what_is_open(self, worker: database.Connection, facts: Facts) -> None:
        """A mistake in retention must not lose an event, an alert or a mail."""
        furnish(facts.connection, "hlf")
        facts.connection.execute("UPDATE portal_sync_events SET status = 'blocked'")
        deleted = {}
        for table, is_closed in (
            ("portal_sync_events", "status = 'delivered'"),
            ("cert_notification_log", "status = 'sent'"),
            ("dynamics_sync_failures", "resolved_at = now()"),
            ("coordinator_digests", "status = 'sent'"),
        ):
            while_open = worker.execute(f"DELETE FROM {table}".encode()).rowcount
            worker.execute(f"UPDATE {table} SET {is_closed}".encode())
            deleted[table] = (while_open, worker.execute(f"DELETE FROM {table}".encode()).rowcount)

        assert set(deleted.values()) == {(0, 1)}, deleted

    def test_migrating_as_the_worker_is_refused_with_the_next_step(self, certjob: Certjob, login_url: str) -> None:
        """The schema belongs to its owner."""
        result = certjob("db", "migrate", CERTJOB_DATABASE_URL=login_url)

        assert result.returncode == 2
        assert "migrate as its owner" in result.stderr


Admin = psycopg.Connection[tuple[object, ...]]


@pytest.fixture(scope="module")
def own_server() -> Iterator[str]:
    """A server of this module's own: roles belong to a whole server, and here nobody has made any yet."""
    with data_folder("roles") as folder, embedded.server(folder / "postgresql") as url:
        yield url


@pytest.fixture
def admin(own_server: str) -> Iterator[Admin]:
    """That server's superuser; afterwards its databases and roles are gone again."""
    with psycopg.connect(own_server, autocommit=True) as admin:
        yield admin
        for (name,) in admin.execute("SELECT datname FROM pg_database WHERE datname LIKE 'test%'").fetchall():
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(str(name))))
        for (name,) in admin.execute("SELECT rolname FROM pg_roles WHERE rolname !~ '^(pg_|postgres)'").fetchall():
            admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(str(name))))


def new_database(admin: Admin, *, owner: str = "postgres") -> str:
    name = f"test_{uuid.uuid4().hex[:12]}"
    admin.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(name), sql.Identifier(owner)))
    return psycopg.conninfo.make_conninfo(database_of(admin.info.dsn, name), user=owner)


def policies(connection: database.Connection, role: str = "certjob_worker") -> int:
    rows = connection.execute("SELECT count(*) FROM pg_policies WHERE %s = ANY (roles)", (role,)).fetchall()
    return int(rows[0][0])


class TestComingIntoBeing:
    """Roles belong to the whole server, and the databases on it do not ask each other."""

    def test_a_plain_server_gets_the_worker_and_one_call_serves_supabases_roles_that_come_later(
        self, admin: Admin
    ) -> None:
        """The worker cannot log in: the operator gives it to somebody who can. The app is left out until then."""
        with database.connect(new_database(admin)) as connection:
            migrations.migrate(connection)
            made = connection.execute(
                "SELECT rolcanlogin, rolsuper, rolbypassrls, rolcreaterole, rolcreatedb FROM pg_roles"
                " WHERE rolname = 'certjob_worker'"
            ).fetchall()
            assert made == [(False, False, False, False, False)]
            assert policies(connection) > 10
            assert policies(connection, "authenticated") == 0

            supabase.set_up(connection)
            coordinator = furnish(connection, "hlf").coordinator
            look = "SELECT count(*) FROM mentors"
            with pytest.raises(psycopg.errors.InsufficientPrivilege), supabase.logged_in(connection, coordinator):
                connection.execute(look)
            for _ in range(2):  # and may be repeated
                connection.execute("SELECT certjob_private.set_up_roles()")
            with supabase.logged_in(connection, coordinator):
                assert connection.execute(look).fetchone() == (1,)
            heard = connection.execute("SELECT tablename FROM pg_publication_tables").fetchall()
            assert heard == [("dynamics_sync_failures",)]

    def test_roles_of_supabases_names_without_its_user_function_get_nothing(self, admin: Admin) -> None:
        """Another product's PostgREST: nobody could tell who asks."""
        with database.connect(new_database(admin)) as connection:
            supabase.create_roles(connection)
            connection.execute("ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON TABLES TO authenticated, anon")
            migrations.migrate(connection)

            assert policies(connection, "authenticated") == 0
            for role in ("anon", "authenticated"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege), supabase.acting(connection, role):
                    connection.execute("SELECT FROM mentors")

    def test_an_owner_who_may_not_create_roles_is_told_what_to_do_and_it_works(
        self, admin: Admin, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The schema is migrated all the same; where the role is there already, there is not a word to read."""
        admin.execute("CREATE ROLE landlord LOGIN")
        with database.connect(new_database(admin, owner="landlord")) as connection:
            migrations.migrate(connection)

            migrations.require_current(connection)
            assert "certjob_worker was not created" in caplog.text
            assert "CREATE ROLE certjob_worker NOLOGIN" in caplog.text
            assert policies(connection) == 0

            admin.execute("CREATE ROLE certjob_worker NOLOGIN")
            connection.execute("SELECT certjob_private.set_up_roles()")

            assert policies(connection) > 10
            admin.execute("GRANT certjob_worker TO landlord")
            connection.execute("SET ROLE certjob_worker")
            migrations.require_current(connection)
        caplog.clear()
        with database.connect(new_database(admin, owner="landlord")) as connection:
            migrations.migrate(connection)

            assert policies(connection) > 10
            assert caplog.text == ""

    def test_an_owner_who_may_not_open_the_database_to_the_worker_is_told_who_must(
        self, admin: Admin, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A database that was closed to the public: PostgreSQL only warns that nothing was granted."""
        admin.execute("CREATE ROLE landlord LOGIN CREATEROLE")
        url = new_database(admin)
        name = str(psycopg.conninfo.conninfo_to_dict(url)["dbname"])
        with database.connect(url) as superuser:
            superuser.execute(f"REVOKE ALL ON DATABASE {name} FROM PUBLIC".encode())
            superuser.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
            superuser.execute(f"GRANT CONNECT, CREATE ON DATABASE {name} TO landlord".encode())
            superuser.execute("GRANT USAGE, CREATE ON SCHEMA public TO landlord")

            with database.connect(psycopg.conninfo.make_conninfo(url, user="landlord")) as landlord:
                migrations.migrate(landlord)
                advice = caplog.text.partition("as its owner: ")[2].splitlines()[0]
                superuser.execute(advice.encode())

            superuser.execute("SET ROLE certjob_worker")
            assert superuser.execute("SELECT count(*) FROM mentors").fetchone() == (0,)
            superuser.execute("CREATE TEMPORARY TABLE load_rows ()")

    def test_an_owner_who_is_no_superuser_serves_the_app_as_well(self, admin: Admin) -> None:
        """As on Supabase: postgres may create roles there, and auth belongs to somebody else."""
        admin.execute("CREATE ROLE landlord LOGIN CREATEROLE")
        url = new_database(admin, owner="landlord")
        as_superuser = psycopg.conninfo.make_conninfo(url, user="postgres")
        with database.connect(as_superuser) as superuser, database.connect(url) as landlord:
            supabase.set_up(superuser)
            superuser.execute("ALTER PUBLICATION supabase_realtime OWNER TO landlord")
            superuser.execute("GRANT USAGE ON SCHEMA auth TO landlord")
            migrations.migrate(landlord)
            ours = furnish(landlord, "hlf")
            furnish(landlord, "nhf")

            with supabase.logged_in(superuser, ours.coordinator):
                seen = superuser.execute("SELECT id FROM mentors").fetchall()
                request = "SELECT event_version FROM request_portal_resync(%s)"
                asked = superuser.execute(request, (ours.mentor,)).fetchall()

            assert (seen, asked) == ([(ours.mentor,)], [(2,)])
            assert policies(landlord) > 10

    def test_databases_that_migrate_at_once_share_the_role(self, admin: Admin) -> None:
        """First the narrow moment, held open: another one's CREATE ROLE is done, its commit is not. Then a race."""
        urls = [new_database(admin) for _ in range(5)]
        barrier = threading.Barrier(4)

        def migrate(url: str, *, at_once: bool = True) -> int:
            with database.connect(url) as connection:
                if at_once:
                    barrier.wait(PATIENCE_SECONDS)
                migrations.migrate(connection)
                return policies(connection)

        with ThreadPoolExecutor(4) as threads:
            with psycopg.connect(database_of(admin.info.dsn, "postgres")) as other:
                other.execute("CREATE ROLE certjob_worker NOLOGIN")
                waiting = threads.submit(migrate, urls[0], at_once=False)
                locks = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                until(lambda: admin.execute(locks).fetchone() == (1,), seconds=PATIENCE_SECONDS)
                assert not waiting.done()
                other.commit()
            found = [waiting.result(PATIENCE_SECONDS)]
            admin.execute(
                sql.SQL("DROP DATABASE {}").format(
                    sql.Identifier(str(psycopg.conninfo.conninfo_to_dict(urls[0])["dbname"]))
                )
            )
            admin.execute("DROP ROLE certjob_worker")
            found += [*threads.map(migrate, urls[1:])]

        assert min(found) > 10
