"""`certjob check`: one line for everything that a nightly run depends on, with the next step."""

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from certjob.database import Connection, migrations, statements
from certjob.database.clocks import Clocks
from certjob.reports.check import in_database
from tests.conftest import Certjob
from tests.support.command_line import SECRET, Finished, assert_no_secret, started, without_escapes
from tests.support.facts import Facts
from tests.support.ping_host import ping_host
from tests.support.portal_answers import Behaviour, answer, error, html
from tests.support.portal_server import PortalServer
from tests.support.smtp_server import CERTIFICATE, Fault, Mailbox, ScriptedServer, real_server, server_tls
from tests.support.waiting import until

Found = dict[str, list[str]]
"""The verdict and the text of each finding that is not ok, by its subject."""
WELL: tuple[int, Found] = (0, {})
UNREACHABLE = f"postgresql://certjob:{SECRET}@127.0.0.1:1/certjob"


class Check:
    """The command, with correct values for all settings."""

    def __init__(self, here: Certjob, settings: dict[str, str], folder: Path) -> None:
        self._here, self.settings, self.folder = here, settings, folder

    def page(self, *arguments: str, **settings: str) -> Finished:
        """Run the command. Settings are named without their prefix."""
        given = {f"CERTJOB_{name}": value for name, value in settings.items()}
        result = self._here("check", *arguments, **self.settings | given)
        assert_no_secret(result)
        return result

    def __call__(self, *arguments: str, **settings: str) -> tuple[int, Found]:
        """Return the exit code and the findings that are not ok."""
        result = self.page("--json", *arguments, **settings)
        found: Found = {}
        for entry in json.loads(result.stdout)["checks"]:
            if entry["verdict"] != "ok":
                text = f"{entry['verdict']}: {entry['message']}; {entry['next_step']}"
                found.setdefault(entry["check"], []).append(text)
        return result.returncode, found

    def says(self, code: int, name: str, *phrases: str, **settings: str) -> None:
        """Assert that only this subject is not ok, with these phrases. Others may be skipped because of it."""
        got, found = self(**settings)
        wrong = [one for one, texts in found.items() if any(not text.startswith("skip: ") for text in texts)]
        assert (got, wrong) == (code, [name]), found
        assert all(phrase in " | ".join(found[name]) for phrase in phrases), (found, phrases)


@pytest.fixture
def check(here: Certjob, facts: Facts, portal: PortalServer, tmp_path: Path) -> Check:
    """The command on an organisation that lacks nothing."""
    organisation = facts.organisation()
    facts.mentor(organisation)
    facts.insert("coordinators", organisation_id=organisation, email="k@example.org")
    (tmp_path / "templates").mkdir()
    settings = {
        "CERTJOB_PORTAL_URL": portal.url,
        "CERTJOB_PORTAL_KEY": SECRET,
        "CERTJOB_NOTIFY_URL": f"maildir:{tmp_path / 'maildir'}",
        "CERTJOB_TEMPLATES_DIR": str(tmp_path / "templates"),
        "CERTJOB_PING_URL": "https://hc.example/a",
    }
    return Check(here, settings, tmp_path)


# The page.


def test_check_has_a_line_for_each_subject_and_changes_nothing(check: Check, portal: PortalServer) -> None:
    """It exits with 0, and makes no push, no ping and no message."""
    with ping_host() as host:
        result = check.page(PING_URL=host.url)

    assert (result.returncode, result.stderr) == (0, ""), result
    subjects = "time_zone database writable clock schema rights last_run organisations portal"
    subjects += " hiding_on_time mail templates ping settings settings"
    lines = [line.partition(":")[0] for line in result.stdout.splitlines()]
    assert lines == [f"ok    {name.replace('_', ' ')}" for name in subjects.split()]
    assert [(request.method, request.body) for request in portal.requests] == [("GET", b"")]
    assert host.pings == []
    assert {path.name for path in check.folder.iterdir()} == {"home", "templates"}


def test_quiet_check_prints_only_problems(check: Check, facts: Facts) -> None:
    """Here on a read-only database without organisations."""
    nobody = "DELETE FROM mentors; DELETE FROM coordinators; DELETE FROM organisations"
    facts.connection.execute(f"SET session_replication_role = replica; {nobody}".encode())
    database = facts.connection.info.dbname
    facts.connection.execute(f"ALTER DATABASE {database} SET default_transaction_read_only = on".encode())

    quiet = check.page("-q")

    writable, organisations = quiet.stdout.splitlines()
    assert writable.startswith("fail  writable: the database is read-only; use the primary")
    assert organisations == "warn  organisations: there are none; create one with `certjob organisation set SLUG`"
    assert (quiet.returncode, quiet.stderr) == (1, "certjob check: 1 failed, 1 warning, 13 ok\n")


def test_terminal_shows_problems_first_and_colours_their_verdict(
    check: Check, on_terminal: Callable[..., tuple[int, str]]
) -> None:
    """A misspelt setting is a problem, and lines fit the terminal."""
    _, shown = on_terminal("check", columns=60, **check.settings, CERTJOB_PORTAL_ULR="x")

    assert re.search(r"\x1b\[[\d;]+mwarn\x1b\[0m  ", shown), "only the word is coloured"
    lines = without_escapes(shown).splitlines()
    assert all(len(line) <= 60 for line in lines)
    misspelt = "warn  settings: CERTJOB_PORTAL_ULR is not a setting of\n      certjob; did you mean"
    assert misspelt in "\n".join(lines)
    verdicts = [line[:4] for line in lines if line[:4] in ("warn", "ok  ")]
    assert verdicts == ["warn"] + ["ok  "] * (len(verdicts) - 1)


# Settings.


def test_every_wrong_setting_is_named_once(check: Check, portal: PortalServer) -> None:
    """The tests that need it are skipped, and all others are made."""
    code, found = check(TIME_ZONE=SECRET, PORTAL_KEY="", NOTIFY_URL="smtp://h", LOG_FORMAT="xml")

    assert (code, set(found), portal.requests) == (2, {"settings", "portal", "mail"}, [])
    variables = ("CERTJOB_TIME_ZONE", "CERTJOB_LOG_FORMAT", "CERTJOB_PORTAL_KEY", "CERTJOB_MAIL_FROM")
    for variable, text in zip(variables, found["settings"], strict=True):
        assert text.startswith(f"fail: {variable}")
    assert found["portal"] == found["mail"] == ["skip: not checked: its settings are wrong; None"]


SETTINGS: dict[str, tuple[dict[str, str], int, str, str]] = {
    "env file": ({"ENV_FILE": "certjob.env"}, 2, "settings", "it is not UTF-8 text; correct --env-file or "),
    "mail hours": ({"MAIL_HOURS": "08:00-08:00"}, 2, "settings", "CERTJOB_MAIL_HOURS: is an empty window"),
    "no database": ({"DATABASE_URL": ""}, 2, "settings", "CERTJOB_DATABASE_URL is not set; give a PostgreSQL URL"),
    "embedded": ({"DATABASE_URL": "embedded"}, 2, "database", "does not exist yet; run `certjob db migrate`"),
    "unreachable": ({"DATABASE_URL": UNREACHABLE}, 1, "database", "fail: the database cannot be reached"),
    "empty database": ({"DATABASE_URL": "{empty}"}, 2, "schema", "do not exist yet; run `certjob db migrate`"),
    "sender": ({"MAIL_FROM": "nobody"}, 2, "mail", "CERTJOB_MAIL_FROM"),
    "Maildir": ({"NOTIFY_URL": "maildir:{folder}/file/deep"}, 2, "mail", "the Maildir folder cannot be written"),
    "no mail": ({"NOTIFY_URL": ""}, 3, "mail", "warn: CERTJOB_NOTIFY_URL is not set, so reminders stay queued"),
    "templates": ({"TEMPLATES_DIR": "{folder}/nowhere"}, 2, "templates", "cannot be read"),
    "no ping": ({"PING_URL": ""}, 3, "monitoring", "warn: no external monitor is configured; set CERTJOB_PING_URL"),
    "no portal": ({"PORTAL_URL": "", "PORTAL_KEY": ""}, 3, "portal", "so pushes stay queued for hlf; set it and CERT"),
}
"""The settings, the exit code, the subject and a phrase."""


@pytest.mark.parametrize(("settings", "code", "subject", "phrase"), SETTINGS.values(), ids=SETTINGS)
def test_setting_that_leads_nowhere_has_a_next_step(
    check: Check, empty_database_url: str, settings: dict[str, str], code: int, subject: str, phrase: str
) -> None:
    """The exit code is 2 for a wrong setting, 1 for something out of reach, and 3 for a warning."""
    (check.folder / "certjob.env").write_bytes(b"CERTJOB_PORTAL_KEY=bl\xe5\n")
    (check.folder / "file").write_text("")
    check.settings["XDG_DATA_HOME"] = str(check.folder / "home")
    given = {name: value.format(folder=check.folder, empty=empty_database_url) for name, value in settings.items()}

    check.says(code, subject, phrase, **given)

    assert list((check.folder / "home").iterdir()) == [], "an embedded database was created"


def test_portal_is_needed_only_by_an_organisation_with_one(check: Check, connection: Connection) -> None:
    """Without the database this is unknown."""
    unset = {"PORTAL_URL": "", "PORTAL_KEY": ""}
    assert check(**unset, DATABASE_URL=UNREACHABLE)[1]["portal"][0].startswith("skip: not checked: ")

    connection.execute("UPDATE organisations SET portal = NULL")

    assert check(**unset) == WELL


# The database.

RAN = """INSERT INTO job_runs (id, command, as_of, host, version, finished_at, outcome)
    VALUES (gen_random_uuid(), 'run', '{}', 'h', '1', now() + '{} days', 'ok')"""
NEWEST = "DELETE FROM migrations WHERE version = (SELECT max(version) FROM migrations);"
FUTURE = "INSERT INTO migrations (version, name, sha256) VALUES (9999, 'future', 'x')"
DATABASE = {
    "commits": ("ALTER DATABASE {} SET synchronous_commit = off", 3, "database", "synchronous_commit is off: after a"),
    "clock": (RAN.format("2026-01-01", 20), 3, "last run", "1 run ended in the future, the last at"),
    "later date": (RAN.format("2999-01-01", 0), 2, "last run", "2999-01-01"),
    "old certjob": (FUTURE, 2, "schema", "newer than this certjob (migration 9999_future); install the newer certjob"),
    "old schema": (2 * NEWEST, 2, "schema", "is older than this certjob, which needs version"),
}
"""A change of the database, the exit code, the subject and a phrase."""


@pytest.mark.parametrize(("change", "code", "subject", "phrase"), DATABASE.values(), ids=DATABASE)
def test_wrong_database_has_a_next_step(
    check: Check, connection: Connection, change: str, code: int, subject: str, phrase: str
) -> None:
    connection.execute(change.format(connection.info.dbname).encode())

    check.says(code, subject, phrase)


def test_check_does_not_wait_for_a_locked_table(
    check: Check, app: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reports a migration that hangs."""
    monkeypatch.setattr(statements, "LOCK_TIMEOUT_MS", 200)
    app.execute("LOCK TABLE migrations IN ACCESS EXCLUSIVE MODE")

    check.says(1, "database", "a query failed (canceling statement due to lock timeout)")


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


def test_login_of_its_own_lacks_rights_or_does_not_see_all_rows(
    check: Check, connection: Connection, login: Login
) -> None:
    """Row-level security is a failure, because a run would not see the hidden mentors."""
    clerk, own = login("")
    connection.execute(
        f"GRANT USAGE ON SCHEMA certjob TO {clerk};"
        f"GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA certjob TO {clerk};"
        f"GRANT EXECUTE ON FUNCTION current_alerts(date), certjob_private.contact_is_taken(uuid) TO {clerk}".encode()
    )
    for table in ("migrations", "organisations", "coordinators", "mentors"):
        connection.execute(f"CREATE POLICY clerk ON {table} TO {clerk} USING (true)".encode())
    hidden = f"fail: row-level security may hide rows from the database user {clerk}: "
    check.says(2, "rights", hidden, "certificates", DATABASE_URL=own)

    connection.execute(f"ALTER ROLE {clerk} BYPASSRLS".encode())
    assert check(DATABASE_URL=own) == WELL

    connection.execute(f"REVOKE INSERT ON job_runs FROM {clerk}".encode())
    connection.execute(f"REVOKE EXECUTE ON FUNCTION current_alerts(date) FROM {clerk}".encode())
    lacks = f"{clerk} lacks INSERT on job_runs, EXECUTE on current_alerts; GRANT certjob_worker TO {clerk}, or connect"
    check.says(2, "rights", lacks, DATABASE_URL=own)


def test_member_of_certjob_worker_has_the_rights_of_the_last_migrate(
    check: Check, connection: Connection, login: Login
) -> None:
    """The next step repairs them, and each missing right or policy is a failure."""
    _, worker = login("IN ROLE certjob_worker")
    assert check(DATABASE_URL=worker) == WELL
    connection.execute("REVOKE ALL ON ALL TABLES IN SCHEMA certjob FROM certjob_worker")
    check.says(2, "schema", "; as the tables' owner, run `certjob db migrate`", DATABASE_URL=worker)
    migrations.migrate(connection)
    assert check(DATABASE_URL=worker) == WELL

    for change, phrase in (
        ("DROP POLICY worker ON certificates", ": certificates; "),
        ("ALTER POLICY worker ON job_runs WITH CHECK (false)", "job_runs"),
        ("REVOKE INSERT ON job_runs FROM certjob_worker", "lacks INSERT on job_runs"),
        ("REVOKE SELECT ON alerts FROM certjob_worker", "SELECT on alerts"),
    ):
        connection.execute(change.encode())
        check.says(2, "rights", phrase, DATABASE_URL=worker)


@pytest.mark.parametrize(
    ("version", "said"),
    [
        (140_012, ["fail: PostgreSQL 15 is too old"]),
        (150_000, []),
        (180_004, []),
        (190_001, ["warn: PostgreSQL 15 is newer than the tested versions"]),
    ],
)
def test_old_server_fails_and_a_new_one_is_a_warning(version: int, said: list[str]) -> None:
    server: dict[str, Any] = {"version": "15", "in_recovery": False, "read_only": False, "user_name": "u"}

    findings = in_database.check_server(in_database.Server(version_number=version, synchronous_commit="on", **server))

    assert [f"{each.verdict}: {each.message}" for each in findings if each.verdict != "ok"] == said


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
    """`run` refuses another day as well."""
    noon = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)

    finding = in_database.check_clocks(Clocks(machine_at=noon, server_at=noon + timedelta(seconds=seconds)), zone=UTC)

    assert f"{finding.verdict}: {finding.text}".startswith(said)


def test_incomplete_organisation_has_the_command_that_completes_it(check: Check, facts: Facts) -> None:
    """Mentors who have left need no contact ID, nor mentors without a portal."""
    bare = facts.organisation("bare")
    facts.connection.execute("UPDATE organisations SET contact_email = NULL WHERE id = %s", (bare,))
    facts.mentor(bare, contact_id=None)
    facts.mentor(bare, contact_id=None, left_at=datetime(2026, 1, 1, tzinfo=UTC))
    facts.mentor(facts.organisation("none", portal=None), contact_id=None)

    code, found = check()

    command = "certjob organisation set bare"
    assert (code, found["organisations"][:3]) == (
        3,
        [
            f"warn: bare has no coordinator, so no one gets its digests; `{command} --coordinator 'NAME <MAIL>'`",
            f"warn: bare has no contact for its mentors' questions; `{command} --contact-email ADDRESS`",
            "warn: the pushes of 1 mentor of bare are blocked without a contact ID; add the ID in the app;"
            " `certjob list --without-contact-id --organisation bare` lists the mentors",
        ],
    )
    assert ["none has no coordinator" in text for text in found["organisations"][3:]] == [True]


# The portal and the mail server.

PORTAL: dict[str, tuple[Behaviour, int, list[str]]] = {
    "not deployed": (html(404), 2, ["404", "not from the function", "that the function is deployed"]),
    "another function": (answer(200, {"contacts": []}), 2, ["did not come from certjob's function", "own address"]),
    "secrets": (error(500, "misconfigured"), 2, ["misconfigured", "check the function's secrets"]),
    "away": (error(503, "token_unavailable"), 1, ["503", "try `certjob check` again"]),
    "old function": (answer(200, {"ok": True}), 2, ["too old for this certjob; deploy it again"]),
}


@pytest.mark.parametrize(("behaviour", "code", "phrases"), PORTAL.values(), ids=PORTAL)
def test_answer_of_the_portal_has_a_next_step(
    check: Check, portal: PortalServer, behaviour: Behaviour, code: int, phrases: list[str]
) -> None:
    """The exit code is 2 for a wrong setting and 1 if the portal is away."""
    portal.then(behaviour)

    check.says(code, "portal", *phrases)


def test_wrong_portal_key_is_a_failure(check: Check) -> None:
    check.says(2, "portal", "fail: the portal answered 401 unauthorized", "; check CERTJOB_PORTAL_KEY", PORTAL_KEY="x")


def smtp(port: int, **more: str) -> dict[str, str]:
    return {"NOTIFY_URL": f"smtp://localhost:{port}", "MAIL_FROM": "certjob@example.org"} | more


def test_mail_server_is_tested_up_to_the_login(check: Check) -> None:
    """With TLS, and without a message."""
    mailbox = Mailbox()
    check.settings["SSL_CERT_FILE"] = str(CERTIFICATE)
    with real_server(mailbox, tls_context=server_tls(), authenticator=mailbox.authenticate) as server:
        right = check(**smtp(server.port, NOTIFY_USER="post", NOTIFY_PASSWORD="blåbær-9"))
        _, wrong = check(**smtp(server.port, NOTIFY_USER="post", NOTIFY_PASSWORD=SECRET))

    assert right == WELL
    assert wrong["mail"][0].startswith("fail: the mail server refused the login")
    assert "correct CERTJOB_NOTIFY_USER and CERTJOB_NOTIFY_PASSWORD" in wrong["mail"][0]
    assert mailbox.envelopes == []


MAIL: dict[str, tuple[dict[str, bytes | Fault], int, str]] = {
    "refused": ({"GREETING": b"554 go away"}, 1, "554 go away"),
    "broken": ({"NOOP": Fault.CUT}, 1, "the connection to the mail server broke"),
    "no commands": ({"NOOP": b"500 what?"}, 2, "takes no commands (500 what?)"),
}


@pytest.mark.parametrize(("answers", "code", "phrase"), MAIL.values(), ids=MAIL)
def test_answer_of_the_mail_server_is_quoted(
    check: Check, answers: dict[str, bytes | Fault], code: int, phrase: str
) -> None:
    with ScriptedServer(answers) as scripted:
        check.says(code, "mail", phrase, **smtp(scripted.port))


def test_mail_server_gets_a_noop_and_a_webhook_no_request(check: Check, portal: PortalServer) -> None:
    """Only a message can test a webhook."""
    with ScriptedServer({"NOOP": b"250 fine"}) as scripted:
        assert check(**smtp(scripted.port)) == WELL
    page = check.page(NOTIFY_URL=portal.url + "/hook").stdout

    assert [command.partition(" ")[0].upper() for command in scripted.commands] == ["EHLO", "NOOP", "QUIT"]
    assert "ok    mail: a webhook (http), which only a message can try; --send-test ADDRESS sends one" in page
    assert {request.method for request in portal.requests} == {"GET"}


def test_signal_ends_a_check_at_once(check: Check, environment: dict[str, str]) -> None:
    """Here while a mail server is silent."""
    with ScriptedServer({"GREETING": Fault.HANG}) as server:
        given = {f"CERTJOB_{name}": value for name, value in smtp(server.port).items()}
        settings = environment | check.settings | given
        with started("check", environment=settings, folder=check.folder) as child:
            until(lambda: server.connections)
            result = child.stop_within(5)

    assert (result.returncode, "certjob check: stopped by SIGTERM" in result.stderr) == (1, True)


def test_test_message_goes_to_the_given_address(check: Check) -> None:
    mailbox = Mailbox()
    with real_server(mailbox) as server:
        result = check.page("--send-test", "drift@example.org", **smtp(server.port))

    assert (result.returncode, result.stderr) == (0, "")
    assert "ok    test message: handed over; check that it arrives, and not as spam" in result.stdout
    (envelope,) = mailbox.envelopes
    assert (envelope.rcpt_tos, b"Subject: certjob: test" in envelope.content) == (["drift@example.org"], True)


def test_test_message_that_cannot_be_sent_is_a_finding(check: Check) -> None:
    """An invalid address is an error of the command line."""
    to = ("--send-test", "drift@example.org")
    with ScriptedServer({"NOOP": b"250 fine", "RCPT": b"550 no such user"}) as scripted:
        code, refused = check(*to, **smtp(scripted.port))

    assert (code, "550 no such user" in refused["test message"][0]) == (2, True)
    assert "CERTJOB_NOTIFY_URL is not set" in check(*to, NOTIFY_URL="")[1]["test message"][0]
    wrong = check(*to, NOTIFY_URL="https://push.example/", NOTIFY_PASSWORD=f"{SECRET} {SECRET}")[1]
    assert wrong["test message"][0].startswith("skip: not checked")
    assert json.loads(check.page("--json", "--send-test", "nobody").stdout)["error"]["code"] == "usage"


def test_broken_template_is_named_with_its_line_and_a_next_step(check: Check) -> None:
    """Here in the folder of an organisation."""
    own = check.folder / "templates" / "hlf"
    own.mkdir()
    (own / "reminder.nb.txt").write_text("Emne\n\nHei {{ name }}\n")
    assert check() == WELL

    (own / "reminder.nb.txt").write_text("Emne\n\n{{ naem }}\n")

    message = "fail: hlf/reminder.nb.txt line 3: 'naem' is undefined; certjob sends its own text instead; did you mean"
    check.says(2, "templates", message)
