"""`certjob check`: one line for everything that a nightly run depends on, with the next step."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from certjob.database import Connection, migrations
from certjob.database.clocks import Clocks
from certjob.reports.check import in_database
from tests.conftest import Certjob
from tests.support.command_line import SECRET, Finished, assert_no_secret
from tests.support.facts import Facts
from tests.support.ping_host import ping_host
from tests.support.portal_answers import answer, error, html
from tests.support.portal_server import PortalServer
from tests.support.smtp_server import CERTIFICATE, Mailbox, ScriptedServer, real_server, server_tls

Check = Callable[..., Finished]
UNREACHABLE = f"postgresql://certjob:{SECRET}@127.0.0.1:1/certjob"


@pytest.fixture
def check(here: Certjob, facts: Facts, portal: PortalServer, tmp_path: Path) -> Check:
    """Run the command with right settings, except the given ones, and a complete organisation."""
    organisation = facts.organisation()
    facts.mentor(organisation)
    facts.insert("coordinators", organisation_id=organisation, email="k@example.org")
    (tmp_path / "templates").mkdir()
    right = {
        "CERTJOB_PORTAL_URL": portal.url,
        "CERTJOB_PORTAL_KEY": SECRET,
        "CERTJOB_NOTIFY_URL": f"maildir:{tmp_path / 'maildir'}",
        "CERTJOB_TEMPLATES_DIR": str(tmp_path / "templates"),
        "CERTJOB_OPERATOR_ADDRESS": "drift@hlf.example",
        "CERTJOB_PING_URL": "https://hc.example/a",
    }

    def run(*arguments: str, **settings: str) -> Finished:
        result = here("check", *arguments, **right | settings)
        assert_no_secret(result)
        return result

    return run


def assert_problem(result: Finished, line: str, *, code: int) -> None:
    """Check that the only problem begins like this. Other tests may be skipped because of it."""
    lines = result.stdout.splitlines()
    problems = [each for each in lines if not each.startswith(("ok ", "skip "))]
    assert (result.returncode, len(problems), problems[0][: len(line)]) == (code, 1, line), problems


# The page.


def test_check_has_a_line_for_each_subject_and_changes_nothing(
    check: Check, portal: PortalServer, tmp_path: Path
) -> None:
    """It exits with 0, and makes no push, no ping and no message."""
    with ping_host() as host:
        result = check(CERTJOB_PING_URL=host.url)

    assert (result.returncode, result.stderr) == (0, ""), result
    subjects = "time_zone database writable clock schema last_run organisations portal"
    subjects += " hiding_on_time client_secret mail templates operators ping settings settings"
    lines = [line.partition(":")[0] for line in result.stdout.splitlines()]
    assert lines == [f"ok    {name.replace('_', ' ')}" for name in subjects.split()]
    assert [(request.method, request.body) for request in portal.requests] == [("GET", b"")]
    assert host.pings == []
    assert {path.name for path in tmp_path.iterdir()} == {"home", "templates"}


def test_quiet_check_prints_only_problems(check: Check, facts: Facts) -> None:
    """Here on a read-only database without organisations."""
    nobody = "DELETE FROM mentors; DELETE FROM coordinators; DELETE FROM organisations"
    facts.connection.execute(f"SET session_replication_role = replica; {nobody}".encode())
    database = facts.connection.info.dbname
    facts.connection.execute(f"ALTER DATABASE {database} SET default_transaction_read_only = on".encode())

    quiet = check("-q")

    writable, organisations = quiet.stdout.splitlines()
    assert writable.startswith("fail  writable: the database is read-only; use the primary")
    assert organisations == "warn  organisations: there are none; create one with `certjob organisation set SLUG`"
    assert (quiet.returncode, quiet.stderr) == (1, "certjob check: 1 failed, 1 warning, 14 ok\n")


# Settings.


def test_every_wrong_setting_is_named_once(check: Check, portal: PortalServer) -> None:
    """The tests that need it are skipped, and all others are made."""
    wrong = {"CERTJOB_TIME_ZONE": SECRET, "CERTJOB_PORTAL_KEY": ""}

    result = check("-q", CERTJOB_NOTIFY_URL="smtp://h", **wrong)

    *failed, portal_line, mail_line = result.stdout.splitlines()
    variables = [line.removeprefix("fail  settings: ").partition(" ")[0].rstrip(":") for line in failed]
    assert variables == ["CERTJOB_TIME_ZONE", "CERTJOB_PORTAL_KEY", "CERTJOB_MAIL_FROM"]
    assert portal_line == "skip  portal: not checked: its settings are wrong"
    assert mail_line == "skip  mail: not checked: its settings are wrong"
    assert (result.returncode, portal.requests) == (2, [])


def test_wrong_or_missing_setting_has_a_next_step(check: Check, empty_database_url: str, tmp_path: Path) -> None:
    """The exit code is 2 for a wrong setting, 1 for something out of reach, and 3 for a warning."""
    (tmp_path / "file").write_text("")
    for code, line, settings in (
        (2, "fail  settings: CERTJOB_DATABASE_URL is not set; give a PostgreSQL URL", {"DATABASE_URL": ""}),
        (1, "fail  database: the database cannot be reached", {"DATABASE_URL": UNREACHABLE}),
        (
            2,
            "fail  schema: certjob's tables do not exist yet; run `certjob db mi",
            {"DATABASE_URL": empty_database_url},
        ),
        (2, "fail  settings: CERTJOB_APP_URL: must be a URL that starts with", {"APP_URL": "app.example"}),
        (2, "fail  mail: the Maildir folder cannot be written", {"NOTIFY_URL": f"maildir:{tmp_path}/file/deep"}),
        (3, "warn  mail: CERTJOB_NOTIFY_URL is not set, so reminders stay queued", {"NOTIFY_URL": ""}),
        (2, "fail  templates: ", {"TEMPLATES_DIR": f"{tmp_path}/nowhere"}),
        (3, "warn  operators: digests tell coordinators to write to them", {"OPERATOR_ADDRESS": ""}),
        (3, "warn  monitoring: no external monitor is configured; set CERTJOB_PING_URL", {"PING_URL": ""}),
        (3, "warn  portal: CERTJOB_PORTAL_URL is not set, so pushes stay queued", {"PORTAL_URL": "", "PORTAL_KEY": ""}),
        (3, "warn  settings: CERTJOB_PORTAL_ULR is not a setting of certjob; did you mean", {"PORTAL_ULR": "x"}),
    ):
        result = check(**{f"CERTJOB_{name}": value for name, value in settings.items()})

        assert_problem(result, line, code=code)


def test_portal_is_needed_only_by_an_organisation_with_one(check: Check, connection: Connection) -> None:
    connection.execute("UPDATE organisations SET portal = NULL")

    assert check(CERTJOB_PORTAL_URL="", CERTJOB_PORTAL_KEY="").returncode == 0


# The database.

RAN = """INSERT INTO job_runs (id, command, as_of, host, version, finished_at, outcome)
    VALUES (gen_random_uuid(), 'run', '{}', 'h', '1', now() + '{} days', 'ok')"""
FUTURE = "INSERT INTO migrations (version, name, sha256) VALUES (9999, 'future', 'x')"


@pytest.mark.parametrize(
    ("change", "code", "line"),
    [
        ("ALTER DATABASE {} SET synchronous_commit = off", 3, "warn  database: synchronous_commit is off"),
        (RAN.format("2026-01-01", 20), 3, "warn  last run: 1 run ended in the future, the last at"),
        (RAN.format("2999-01-01", 0), 2, "fail  last run: "),
        (FUTURE, 2, "fail  schema: the database schema is newer than this certjob (migration 9999_future)"),
        ("DELETE FROM migrations WHERE version > 1", 2, "fail  schema: version 1 is older than this certjob"),
    ],
    ids=["commits are not durable", "a run in the future", "a later date", "newer schema", "older schema"],
)
def test_wrong_database_has_a_next_step(
    check: Check, connection: Connection, change: str, code: int, line: str
) -> None:
    connection.execute(change.format(connection.info.dbname).encode())

    assert_problem(check(), line, code=code)


Login = Callable[[str], tuple[str, str]]


@pytest.fixture
def login(connection: Connection, database_url: str) -> Iterator[Login]:
    """Create a login with these attributes; return its name and its URL."""
    made: list[str] = []

    def make(attributes: str) -> tuple[str, str]:
        made.append(f"certjob_login_{uuid4().hex[:8]}")
        connection.execute(f"CREATE ROLE {made[-1]} LOGIN PASSWORD '{SECRET}' {attributes}".encode())
        connection.execute(f"GRANT CONNECT ON DATABASE {connection.info.dbname} TO {made[-1]}".encode())
        return made[-1], psycopg.conninfo.make_conninfo(database_url, user=made[-1], password=SECRET)

    yield make
    for role in made:
        connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())


def test_login_without_certjob_worker_does_not_see_the_tables(
    check: Check, connection: Connection, login: Login
) -> None:
    """A run would not see the mentors, so every command fails."""
    clerk, own = login("")
    connection.execute(f"GRANT USAGE ON SCHEMA certjob, certjob_private TO {clerk}".encode())
    connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA certjob TO {clerk}".encode())

    hidden = "fail  schema: row-level security hides certjob's tables from the database user; GRANT certjob_worker TO"
    assert_problem(check(CERTJOB_DATABASE_URL=own), hidden, code=2)


def test_member_of_certjob_worker_has_the_rights_of_the_last_migrate(
    check: Check, connection: Connection, login: Login
) -> None:
    """The next step of the failure repairs them."""
    _, worker = login("IN ROLE certjob_worker")
    assert check(CERTJOB_DATABASE_URL=worker).returncode == 0
    connection.execute("REVOKE SELECT ON job_runs FROM certjob_worker")
    without = check(CERTJOB_DATABASE_URL=worker)
    lacks = (
        "fail  database: the database user lacks a right (permission denied for table job_runs); as the tables' owner"
    )
    assert (without.returncode, lacks in without.stdout) == (2, True), without
    migrations.migrate(connection)
    assert check(CERTJOB_DATABASE_URL=worker).returncode == 0


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (60, "ok: this machine and the database server agree"),
        (3600, "warn: the database server is 3,600 s ahead of this machine; set both by NTP"),
        (-61, "warn: the database server is 61 s behind this machine"),
        (13 * 3600, "fail: "),
    ],
)
def test_difference_of_the_clocks_is_a_warning_and_another_day_fails(seconds: int, said: str) -> None:
    """`run` rejects another day as well."""
    noon = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)

    finding = in_database.check_clocks(Clocks(machine_at=noon, server_at=noon + timedelta(seconds=seconds)), zone=UTC)

    assert f"{finding.verdict}: {finding.text}".startswith(said)


def test_incomplete_organisation_has_the_command_that_completes_it(check: Check, facts: Facts) -> None:
    """Mentors who have left need no contact ID."""
    bare = facts.organisation("bare")
    facts.connection.execute("UPDATE organisations SET contact_email = NULL WHERE id = %s", (bare,))
    facts.mentor(bare, contact_id=None)
    facts.mentor(bare, contact_id=None, left_at=datetime(2026, 1, 1, tzinfo=UTC))

    result = check("-q")

    coordinator, contact, pushes = result.stdout.splitlines()
    assert "bare has no coordinator, so no one gets its digests; `certjob organisation set bare --coord" in coordinator
    assert "bare has no contact for its mentors' questions; `certjob organisation set bare --contact-em" in contact
    assert "the pushes of 1 mentor of bare are blocked without a contact ID; add the ID in the app or" in pushes
    assert result.returncode == 3


# The portal and the mail server.


def test_wrong_answer_of_the_portal_has_a_next_step(check: Check, portal: PortalServer) -> None:
    """The exit code is 2 for a wrong setting and 1 if the portal is away."""
    for behaviour, code, phrase in (
        (html(404), 2, "that the function is deployed"),
        (answer(200, {"contacts": []}), 2, "check that CERTJOB_PORTAL_URL is the function's own address"),
        (error(500, "misconfigured"), 2, "check the function's secrets"),
        (error(503, "token_unavailable"), 1, "try `certjob check` again"),
        (answer(200, {"ok": True}), 2, "too old for this certjob; deploy it again"),
        (error(401, "unauthorized"), 2, "check CERTJOB_PORTAL_KEY"),
    ):
        portal.then(behaviour)

        result = check("-q")

        assert result.stdout.startswith("fail  portal: ")
        assert (result.returncode, phrase in result.stdout) == (code, True), result


def smtp(port: int, **more: str) -> dict[str, str]:
    return {"CERTJOB_NOTIFY_URL": f"smtp://localhost:{port}", "CERTJOB_MAIL_FROM": "certjob@example.org"} | more


def test_mail_server_is_tested_up_to_the_login(check: Check) -> None:
    """With TLS, and without a message."""
    mailbox, user = Mailbox(), {"CERTJOB_NOTIFY_USER": "post", "SSL_CERT_FILE": str(CERTIFICATE)}
    with real_server(mailbox, tls_context=server_tls(), authenticator=mailbox.authenticate) as server:
        right = check(**smtp(server.port, CERTJOB_NOTIFY_PASSWORD="blåbær-9", **user))
        wrong = check(**smtp(server.port, CERTJOB_NOTIFY_PASSWORD=SECRET, **user))

    assert right.returncode == 0
    assert_problem(wrong, "fail  mail: the mail server rejected the login", code=2)
    assert "correct CERTJOB_NOTIFY_USER and CERTJOB_NOTIFY_PASSWORD" in wrong.stdout
    assert mailbox.envelopes == []


def test_answer_of_the_mail_server_is_quoted(check: Check) -> None:
    """A server that is away is out of reach; one that takes no commands is the wrong one."""
    with ScriptedServer({"GREETING": b"554 go away"}) as away, ScriptedServer({"NOOP": b"500 what?"}) as wrong:
        rejected, useless = check(**smtp(away.port)), check(**smtp(wrong.port))

    assert (rejected.returncode, "554 go away" in rejected.stdout) == (1, True)
    assert (useless.returncode, "takes no commands (500 what?)" in useless.stdout) == (2, True)


def test_test_message_goes_to_the_given_address(check: Check) -> None:
    mailbox = Mailbox()
    with real_server(mailbox) as server:
        result = check("--send-test", "drift@example.org", **smtp(server.port))

    assert (result.returncode, result.stderr) == (0, "")
    assert "ok    test message: handed over; check that it arrives, and not as spam" in result.stdout
    (envelope,) = mailbox.envelopes
    assert (envelope.rcpt_tos, b"Subject: certjob: test" in envelope.content) == (["drift@example.org"], True)


def test_test_message_that_cannot_be_sent_is_a_failure(check: Check) -> None:
    to = ("--send-test", "drift@example.org")
    with ScriptedServer({"NOOP": b"250 fine", "RCPT": b"550 no such user"}) as scripted:
        rejected = check(*to, **smtp(scripted.port))
    without_server = check(*to, CERTJOB_NOTIFY_URL="")

    assert (rejected.returncode, "550 no such user" in rejected.stdout) == (2, True)
    assert "fail  test message: CERTJOB_NOTIFY_URL is not set" in without_server.stdout


def test_broken_template_is_named_with_its_line_and_a_next_step(check: Check, tmp_path: Path) -> None:
    (tmp_path / "templates" / "reminder.nb.txt").write_text("Emne\n\n{{ name }\n")

    message = "reminder.nb.txt line 3: unexpected '}'; certjob sends its own text instead; correct the line"
    assert_problem(check(), f"fail  templates: {message}", code=2)
