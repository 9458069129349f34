"""`certjob check`: everything that a night depends on, each with its verdict and the next step, changing nothing."""

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from certjob.database import Connection, migrations
from certjob.database.clocks import Clocks
from certjob.reports.check import in_database
from tests.conftest import Certjob
from tests.support.command_line import SECRET, Finished, assert_no_secret, started, without_escapes
from tests.support.facts import Facts
from tests.support.ping_host import ping_host
from tests.support.portal_answers import answer, error, html
from tests.support.portal_server import PortalServer
from tests.support.smtp_server import CERTIFICATE, Fault, Mailbox, ScriptedServer, real_server, server_tls
from tests.support.waiting import until

Found = dict[str, list[str]]
"""What was said about each thing that is not well: the verdict and the whole text."""
OnTerminal = Callable[..., tuple[int, str]]
WELL: tuple[int, Found] = (0, {})
UNREACHABLE = f"postgresql://certjob:{SECRET}@127.0.0.1:1/certjob"


class Check:
    """The command; everything that can be set is set, and right."""

    def __init__(self, here: Certjob, settings: dict[str, str], folder: Path) -> None:
        self._here, self.settings, self.folder = here, settings, folder

    def page(self, *arguments: str, **settings: str) -> Finished:
        result = self._here("check", *arguments, **self.settings | settings)
        assert_no_secret(result)
        return result

    def __call__(self, *arguments: str, **settings: str) -> tuple[int, Found]:
        """Return the exit code and what is not well."""
        result = self.page("--json", *arguments, **settings)
        found: Found = {}
        for entry in json.loads(result.stdout)["checks"]:
            if entry["verdict"] != "ok":
                text = f"{entry['verdict']}: {entry['message']}; {entry['next_step']}"
                found.setdefault(entry["check"], []).append(text)
        return result.returncode, found

    def says(self, code: int, name: str, *phrases: str, **settings: str) -> None:
        """Assert that this one thing is not well, in these words; others may be skipped because of it."""
        got, found = self(**settings)
        wrong = [one for one, texts in found.items() if any(not text.startswith("skip: ") for text in texts)]
        assert (got, wrong) == (code, [name]), found
        assert all(phrase in " | ".join(found[name]) for phrase in phrases), (found, phrases)


@pytest.fixture
def check(here: Certjob, facts: Facts, portal: PortalServer, tmp_path: Path) -> Check:
    """An organisation that lacks nothing."""
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


# How it is shown.


def test_all_is_well(check: Check, portal: PortalServer) -> None:
    """Exit 0 and a line for each thing; nobody is pushed, nobody pinged, no message written."""
    with ping_host() as host:
        result = check.page(CERTJOB_PING_URL=host.url)

    assert (result.returncode, result.stderr) == (0, ""), result
    checks = "time_zone database writable clock schema rights last_run organisations portal"
    checks += " hiding_on_time mail templates ping settings settings"
    lines = [line.partition(":")[0] for line in result.stdout.splitlines()]
    assert lines == [f"ok    {name.replace('_', ' ')}" for name in checks.split()]
    assert [(request.method, request.body) for request in portal.requests] == [("GET", b"")]
    assert host.pings == []
    assert {path.name for path in check.folder.iterdir()} == {"home", "templates"}


def test_what_is_not_well_is_a_line_with_a_next_step(check: Check, facts: Facts, on_terminal: OnTerminal) -> None:
    """With -q nothing else, here on a database that takes no write; a terminal gets colours and whole words."""
    nobody = "DELETE FROM mentors; DELETE FROM coordinators; DELETE FROM organisations"
    facts.connection.execute(f"SET session_replication_role = replica; {nobody}".encode())
    facts.connection.execute(
        f"ALTER DATABASE {facts.connection.info.dbname} SET default_transaction_read_only = on".encode()
    )

    quiet = check.page("-q")
    _, shown = on_terminal("check", columns=60, **check.settings, CERTJOB_PORTAL_ULR="x")

    writable, organisations = quiet.stdout.splitlines()
    assert writable.startswith("fail  writable: the database is read-only; use the primary")
    assert organisations == "warn  organisations: there are none; create one with `certjob organisation set SLUG`"
    assert (quiet.returncode, quiet.stderr) == (1, "certjob check: 1 failed, 1 warning, 13 ok\n")
    assert re.search(r"\x1b\[[\d;]+mwarn\x1b\[0m  ", shown), "only the word is coloured"
    lines = without_escapes(shown).splitlines()
    assert all(len(line) <= 60 for line in lines)
    misspelt = ["warn  settings: CERTJOB_PORTAL_ULR is not a setting of", "      certjob; did you mean"]
    assert "\n".join(misspelt) in "\n".join(lines)
    verdicts = [line[:4] for line in lines if line[:4] in ("fail", "warn", "ok  ")]
    assert verdicts == sorted(verdicts, key=("fail", "warn", "ok  ").index), "problems come first"


# Settings, and what needs them.


def test_every_wrong_setting_is_named_and_the_rest_is_looked_at(check: Check, portal: PortalServer) -> None:
    """By its variable, never its value; one that is wrong is not missing, too, and has one next step."""
    code, said = check(
        CERTJOB_TIME_ZONE=SECRET, CERTJOB_PORTAL_KEY="", CERTJOB_NOTIFY_URL="smtp://h", CERTJOB_LOG_FORMAT="xml"
    )
    assert (code, set(said), portal.requests) == (2, {"settings", "portal", "mail"}, [])
    variables = ("CERTJOB_TIME_ZONE", "CERTJOB_LOG_FORMAT", "CERTJOB_PORTAL_KEY", "CERTJOB_MAIL_FROM")
    for variable, clause in zip(variables, said["settings"], strict=True):
        assert clause.startswith(f"fail: {variable}")
    assert said["portal"] == said["mail"] == ["skip: not checked: its settings are wrong; None"]


def test_a_setting_that_leads_nowhere_has_a_next_step(
    check: Check, portal: PortalServer, empty_database_url: str, connection: Connection
) -> None:
    """Exit 2 for what is wrong, 1 for what is away, 3 for what should be; the rest is looked at all the same."""
    folder, home = check.folder, check.folder / "home"
    (folder / "certjob.env").write_bytes(b"CERTJOB_PORTAL_KEY=bl\xe5\n")
    (folder / "letters").write_text("")
    no_ping, no_portal = {"PING_URL": ""}, {"PORTAL_URL": "", "PORTAL_KEY": ""}
    cases: list[tuple[dict[str, str], int, str, str]] = [
        ({"ENV_FILE": "certjob.env"}, 2, "settings", "cannot be read: it is not UTF-8 text; correct --env-file or "),
        ({"MAIL_HOURS": "08:00-08:00"}, 2, "settings", "CERTJOB_MAIL_HOURS: is an empty window"),
        ({"DATABASE_URL": ""}, 2, "settings", "CERTJOB_DATABASE_URL is not set; give a PostgreSQL URL or the word"),
        (
            {"DATABASE_URL": "embedded"},
            2,
            "database",
            "the embedded database does not exist yet; run `certjob db migrate`",
        ),
        ({"DATABASE_URL": UNREACHABLE}, 1, "database", "fail: the database cannot be reached"),
        ({"DATABASE_URL": empty_database_url}, 2, "schema", "tables do not exist yet; run `certjob db migrate`"),
        ({"MAIL_FROM": "nobody"}, 2, "mail", "CERTJOB_MAIL_FROM"),
        ({"NOTIFY_URL": f"maildir:{folder}/letters/deep"}, 2, "mail", "the Maildir folder cannot be written"),
        ({"NOTIFY_URL": ""}, 3, "mail", "warn: CERTJOB_NOTIFY_URL is not set, so reminders stay queued; set it"),
        ({"TEMPLATES_DIR": f"{folder}/nowhere"}, 2, "templates", "cannot be read"),
        (no_ping, 3, "monitoring", "warn: no external monitor is configured; set CERTJOB_PING_URL; "),
        (
            no_portal,
            3,
            "portal",
            "so pushes stay queued for hlf; set it and CERTJOB_PORTAL_KEY, or `certjob org",
        ),
    ]
    for settings, code, name, phrase in cases:
        given = {f"CERTJOB_{variable}": value for variable, value in settings.items()}
        check.says(code, name, phrase, **given, XDG_DATA_HOME=str(home))
    assert list(home.iterdir()) == [], "an embedded database was made"
    assert len(portal.requests) == len(cases) - 1, "without a database, too"

    unset = {f"CERTJOB_{variable}": "" for variable in no_portal}
    assert check(**unset, CERTJOB_DATABASE_URL=UNREACHABLE)[1]["portal"][0].startswith("skip: not checked: ")
    connection.execute("UPDATE organisations SET portal = NULL")
    assert check(**unset) == WELL


# The database.


def test_what_is_wrong_with_the_database_has_a_next_step(
    check: Check, connection: Connection, app: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings that the promises do not bear, runs by a wrong clock, an old certjob on some machine, an upgrade."""
    database = f"ALTER DATABASE {connection.info.dbname} "
    ran = "INSERT INTO job_runs (id, command, as_of, host, version, finished_at, outcome)"
    ran += " VALUES (gen_random_uuid(), 'run', '{}', 'h', '1', now() + '{} days', 'ok')"
    newest = "DELETE FROM migrations WHERE version = (SELECT max(version) FROM migrations);"
    future = "INSERT INTO migrations (version, name, sha256) VALUES (9999, 'future', 'x')"
    for change, code, name, phrase in (
        (
            database + "SET synchronous_commit = off",
            3,
            "database",
            "synchronous_commit is off: after a crash of the se",
        ),
        (
            database + "RESET ALL;" + ran.format("2026-01-01", 20),
            3,
            "last run",
            "1 run ended in the future, the last at",
        ),
        (ran.format("2999-01-01", 21), 2, "last run", "the last night was run for 2999-01-01"),
        (future, 2, "schema", "newer than this certjob (migration 9999_future); install the newer certjob"),
        (2 * newest, 2, "schema", "is older than this certjob, which needs version"),
    ):
        connection.execute(change.encode())
        check.says(code, name, phrase)

    monkeypatch.setattr(in_database, "STATEMENT_TIMEOUT_MS", 200)
    app.execute("LOCK TABLE migrations IN ACCESS EXCLUSIVE MODE")  # a migration that hangs is not waited for
    check.says(1, "database", "a query failed (canceling statement due to statement timeout)")


Login = Callable[[str], tuple[str, str]]


@pytest.fixture
def login(connection: Connection, database_url: str) -> Iterator[Login]:
    """Make a login with these attributes that may connect; return its name and its URL."""
    made: list[str] = []

    def make(attributes: str) -> tuple[str, str]:
        made.append(f"certjob_login_{uuid4().hex[:8]}")
        connection.execute(f"CREATE ROLE {made[-1]} LOGIN PASSWORD '{SECRET}' {attributes}".encode())
        connection.execute(f"GRANT CONNECT ON DATABASE {connection.info.dbname} TO {made[-1]}".encode())
        return made[-1], psycopg.conninfo.make_conninfo(database_url, user=made[-1], password=SECRET)

    yield make
    for role in made:
        connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())


def test_a_login_is_told_which_rights_it_lacks(check: Check, connection: Connection, login: Login) -> None:
    """Row-level security that may hide mentors is a failure: a night would take the hidden ones for none."""
    clerk, own = login("")
    connection.execute(
        f"GRANT USAGE ON SCHEMA certjob TO {clerk};"
        f"GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA certjob TO {clerk};"
        f"GRANT EXECUTE ON FUNCTION current_alerts(date), certjob_private.contact_is_taken(uuid) TO {clerk}".encode()
    )
    for table in ("migrations", "organisations", "coordinators", "mentors"):
        connection.execute(f"CREATE POLICY clerk ON {table} TO {clerk} USING (true)".encode())
    hidden = f"fail: row-level security may hide rows from the database user {clerk}: "
    check.says(2, "rights", hidden, "certificates", CERTJOB_DATABASE_URL=own)
    connection.execute(f"ALTER ROLE {clerk} BYPASSRLS".encode())
    assert check(CERTJOB_DATABASE_URL=own) == WELL
    connection.execute(f"REVOKE INSERT ON job_runs FROM {clerk}".encode())
    connection.execute(f"REVOKE EXECUTE ON FUNCTION current_alerts(date) FROM {clerk}".encode())
    lacks = f"{clerk} lacks INSERT on job_runs, EXECUTE on current_alerts; GRANT certjob_worker TO {clerk}"
    check.says(2, "rights", lacks, CERTJOB_DATABASE_URL=own)

    _, worker = login("IN ROLE certjob_worker")  # as docs/database-roles.md says to set it up
    assert check(CERTJOB_DATABASE_URL=worker) == WELL
    connection.execute("REVOKE ALL ON ALL TABLES IN SCHEMA certjob FROM certjob_worker")
    check.says(2, "schema", "; as the tables' owner, run `certjob db migrate`", CERTJOB_DATABASE_URL=worker)
    migrations.migrate(connection)
    assert check(CERTJOB_DATABASE_URL=worker) == WELL

    for change, phrase in (
        ("DROP POLICY worker ON certificates", ": certificates; "),
        ("ALTER POLICY worker ON job_runs WITH CHECK (false)", "job_runs"),
        ("REVOKE INSERT ON job_runs FROM certjob_worker", "lacks INSERT on job_runs"),
        ("REVOKE SELECT ON alerts FROM certjob_worker", "SELECT on alerts"),
    ):
        connection.execute(change.encode())
        check.says(2, "rights", phrase, CERTJOB_DATABASE_URL=worker)


def test_a_server_or_a_clock_that_does_not_fit_is_told() -> None:
    """Too old fails, too new is a warning; so is a minute between the clocks, and another day fails, as `run` does."""
    server: dict[str, Any] = {"version_number": 150_000, "version": "15", "in_recovery": False}
    server |= {"read_only": False, "user_name": "u", "synchronous_commit": "on"}
    changes: list[tuple[dict[str, Any], str]] = [
        ({"version_number": 140_012}, "fail: PostgreSQL 15 is too old"),
        ({"version_number": 150_000}, ""),
        ({"version_number": 180_004}, ""),
        ({"version_number": 190_001}, "warn: PostgreSQL 15 is newer than the tested versions"),
    ]
    for change, said in changes:
        findings = in_database.check_server(in_database.Server(**server | change))
        bad = " | ".join(f"{each.verdict}: {each.message}" for each in findings if each.verdict != "ok")
        assert (bad[: len(said)], bool(bad)) == (said, bool(said))

    noon = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)
    for seconds, said in (
        (60, "ok: this machine and the database server agree"),
        (3600, "warn: the database server is 3,600 s ahead of this machine; set both by NTP"),
        (-61, "warn: the database server is 61 s behind this machine"),
        (13 * 3600, "fail: "),
    ):
        clocks = Clocks(machine_at=noon, server_at=noon + timedelta(seconds=seconds))
        finding = in_database.check_clocks(clocks, zone=UTC)
        assert f"{finding.verdict}: {finding.text}".startswith(said)


def test_what_an_organisation_lacks_is_said_with_the_command(check: Check, facts: Facts) -> None:
    """Exit 3: a coordinator, a contact, contact ids; those who have left need none."""
    bare = facts.organisation("bare")
    facts.connection.execute("UPDATE organisations SET contact_email = NULL WHERE id = %s", (bare,))
    facts.mentor(bare, contact_id=None)
    facts.mentor(bare, contact_id=None, left_at=datetime(2026, 1, 1, tzinfo=UTC))
    facts.mentor(facts.organisation("none", portal=None), contact_id=None)

    found = "\n".join(check()[1]["organisations"])
    for phrase in (
        "bare has no coordinator, so no one gets its digests; `certjob organisation set bare --coordinator 'NAME <",
        "bare has no contact for its mentors' questions; `certjob organisation set bare --contact-email ADDRESS`",
        "the pushes of 1 mentor of bare are blocked without a contact ID; add the ID in the app; `certjob list --w",
        "none has no coordinator",
    ):
        assert phrase in found
    quiet = check.page("-q")
    assert (quiet.returncode, quiet.stderr) == (3, "certjob check: 4 warnings, 14 ok\n")


# The portal and the mail server.


def test_what_the_portal_answers_has_a_next_step(check: Check, portal: PortalServer) -> None:
    """A wrong setting is exit 2, something that is away exit 1; a function may take pushes and be too old to list."""
    for behaviour, code, phrases in (
        (html(404), 2, ["404", "not from the function", "that the function is deployed"]),
        (answer(200, {"contacts": []}), 2, ["the answer did not come from certjob's function", "own address"]),
        (error(500, "misconfigured"), 2, ["misconfigured", "check the function's secrets"]),
        (error(503, "token_unavailable"), 1, ["503", "try `certjob check` again"]),
        (answer(200, {"ok": True}), 2, ["too old for this certjob; deploy it again (docs/edge-function.md)"]),
    ):
        portal.then(behaviour)
        check.says(code, "portal", *phrases)
    unauthorized = "fail: the portal answered 401 unauthorized"  # the server looks at the key first, as the function
    check.says(2, "portal", unauthorized, "; check CERTJOB_PORTAL_KEY", CERTJOB_PORTAL_KEY="another")


def smtp(port: int, **more: str) -> dict[str, str]:
    return {"CERTJOB_NOTIFY_URL": f"smtp://localhost:{port}", "CERTJOB_MAIL_FROM": "certjob@example.org"} | more


def test_the_mail_server_is_tried_up_to_the_login(check: Check, portal: PortalServer) -> None:
    """TLS and the login, NOOP and QUIT, and not one message; else what it said. A webhook is not called."""
    mailbox = Mailbox()
    with real_server(mailbox, tls_context=server_tls(), authenticator=mailbox.authenticate) as server:
        login = {"CERTJOB_NOTIFY_USER": "post", "SSL_CERT_FILE": str(CERTIFICATE)}
        assert check(**smtp(server.port, CERTJOB_NOTIFY_PASSWORD="blåbær-9", **login)) == WELL
        step = "correct CERTJOB_NOTIFY_USER and CERTJOB_NOTIFY_PASSWORD"
        wrong = smtp(server.port, CERTJOB_NOTIFY_PASSWORD=SECRET, **login)
        check.says(2, "mail", "fail: the mail server refused the login", step, **wrong)
    assert mailbox.envelopes == []

    with ScriptedServer({"NOOP": b"250 fine"}) as scripted:
        assert check(**smtp(scripted.port)) == WELL
    assert [command.partition(" ")[0].upper() for command in scripted.commands] == ["EHLO", "NOOP", "QUIT"]
    scripts: list[tuple[dict[str, bytes | Fault], int, str]] = [
        ({"GREETING": b"554 go away"}, 1, "554 go away"),
        ({"NOOP": Fault.CUT}, 1, "the connection to the mail server broke"),
        ({"NOOP": b"500 what?"}, 2, "takes no commands (500 what?)"),
    ]
    for answers, code, phrase in scripts:
        with ScriptedServer(answers) as scripted:
            check.says(code, "mail", phrase, **smtp(scripted.port))
    webhook = "ok    mail: a webhook (http), which only a message can try; --send-test ADDRESS sends one"
    assert webhook in check.page(CERTJOB_NOTIFY_URL=portal.url + "/hook").stdout
    assert {request.method for request in portal.requests} == {"GET"}


def test_a_signal_ends_it_at_once(check: Check, environment: dict[str, str]) -> None:
    """While a mail server says nothing: there is nothing to wait for."""
    with ScriptedServer({"GREETING": Fault.HANG}) as server:
        settings = environment | check.settings | smtp(server.port)
        with started("check", environment=settings, folder=check.folder) as child:
            until(lambda: server.connections)
            result = child.stop_within(5)

    assert (result.returncode, "certjob check: stopped by SIGTERM" in result.stderr) == (1, True)


def test_a_test_message_is_sent_only_when_asked_for(check: Check) -> None:
    """To that address, and it says what it is; refused by the server or with nowhere to go, why."""
    mailbox, to = Mailbox(), ("--send-test", "drift@example.org")
    with real_server(mailbox) as server:
        result = check.page(*to, **smtp(server.port))
    with ScriptedServer({"NOOP": b"250 fine", "RCPT": b"550 no such user"}) as scripted:
        code, refused = check(*to, **smtp(scripted.port))

    assert (result.returncode, result.stderr) == (0, "")
    assert "ok    test message: handed over; check that it arrives, and not as spam" in result.stdout
    (envelope,) = mailbox.envelopes
    assert (envelope.rcpt_tos, b"Subject: certjob: test" in envelope.content) == (["drift@example.org"], True)
    assert (code, "550 no such user" in refused["test message"][0]) == (2, True)
    unsendable = {"CERTJOB_NOTIFY_URL": "https://push.example/", "CERTJOB_NOTIFY_PASSWORD": f"{SECRET} {SECRET}"}
    for settings, said in (
        ({"CERTJOB_NOTIFY_URL": ""}, "CERTJOB_NOTIFY_URL is not set"),
        (unsendable, "skip: not check"),
    ):
        assert said in check(*to, **settings)[1]["test message"][0]
    assert json.loads(check.page("--json", "--send-test", "nobody").stdout)["error"]["code"] == "usage"


def test_broken_template_is_named_with_file_line_and_next_step(check: Check) -> None:
    """Each template of the programme's own is rendered, an organisation's too; certjob's own text replaces it."""
    own = check.folder / "templates" / "hlf"
    own.mkdir()
    (own / "reminder.nb.txt").write_text("Emne\n\nHei {{ name }}\n")
    assert check() == WELL

    (own / "reminder.nb.txt").write_text("Emne\n\n{{ naem }}\n")
    said = (
        "fail: hlf/reminder.nb.txt line 3: 'naem' is undefined; certjob sends its own text instead; did you mean name?"
    )
    check.says(2, "templates", said)
