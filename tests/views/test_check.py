"""`certjob check`: everything that a night depends on, each with its verdict and the next step, changing nothing."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from certjob.database import Connection
from certjob.database.clocks import Clocks
from certjob.views.check import in_database
from certjob.views.check.findings import Verdict
from tests.conftest import Certjob
from tests.support.command_line import (
    SECRET,
    Finished,
    assert_no_secret,
    on_terminal,
    run_in_process,
    started,
    without_escapes,
)
from tests.support.facts import Facts
from tests.support.full_disk import full_disk
from tests.support.ping_host import ping_host
from tests.support.portal_answers import answer, error, html, redirect, reset
from tests.support.portal_server import PortalServer
from tests.support.smtp_server import CERTIFICATE, Fault, Mailbox, real_server, scripted_server, server_tls
from tests.support.waiting import until

Found = dict[str, list[str]]
"""What was said about each thing that is not well: the verdict and the whole text."""
Check = Callable[..., tuple[int, Found]]


@pytest.fixture
def portal() -> Iterator[PortalServer]:
    with PortalServer(key=SECRET) as server:
        yield server


@pytest.fixture
def templates(tmp_path: Path) -> Path:
    folder = tmp_path / "templates"
    folder.mkdir()
    return folder


@pytest.fixture
def environment(
    bare_environment: dict[str, str], database_url: str, portal: PortalServer, templates: Path, tmp_path: Path
) -> dict[str, str]:
    """Everything that can be set is set, and right; other tests' logins have no way in."""
    with psycopg.connect(database_url) as owner:
        owner.execute(f"REVOKE CONNECT ON DATABASE {owner.info.dbname} FROM PUBLIC".encode())
    return bare_environment | {
        "CERTJOB_DATABASE_URL": database_url,
        "CERTJOB_PORTAL_URL": portal.url,
        "CERTJOB_PORTAL_KEY": SECRET,
        "CERTJOB_NOTIFY_URL": f"maildir:{tmp_path / 'maildir'}",
        "CERTJOB_TEMPLATES_DIR": str(templates),
        "CERTJOB_METRICS_FILE": str(tmp_path / "certjob.prom"),
    }


@pytest.fixture
def here(environment: dict[str, str], tmp_path: Path) -> Certjob:
    def run(*arguments: str, **settings: str) -> Finished:
        result = run_in_process("check", *arguments, environment=environment | settings, folder=tmp_path)
        assert_no_secret(result)
        return result

    return run


@pytest.fixture
def check(here: Certjob) -> Check:
    """Run it with --json; return the exit code and what is not well."""

    def run(*arguments: str, **settings: str) -> tuple[int, Found]:
        result = here("--json", *arguments, **settings)
        found: Found = {}
        for entry in json.loads(result.stdout)["checks"]:
            if entry["verdict"] != "ok":
                step = f"; {entry['next_step']}" if entry["next_step"] else ""
                found.setdefault(entry["check"], []).append(f"{entry['verdict']}: {entry['message']}{step}")
        return result.returncode, found

    return run


@pytest.fixture
def complete(facts: Facts) -> Facts:
    """An organisation that lacks nothing."""
    organisation = facts.organisation()
    facts.connection.execute(
        "INSERT INTO coordinators (organisation_id, email) VALUES (%s, 'k@example.org')", (organisation,)
    )
    facts.mentor(organisation)
    return facts


# All is well, and how it is shown.


def test_all_is_well(here: Certjob, complete: Facts, portal: PortalServer, tmp_path: Path) -> None:
    """Exit 0 and a line for each thing; nobody is pushed, nobody pinged, no message or metrics file written."""
    with ping_host() as host:
        result = here(CERTJOB_PING_URL=host.url)

    assert (result.returncode, result.stderr) == (0, ""), result
    lines = result.stdout.splitlines()
    assert {line[:6] for line in lines} == {"ok    "}
    checks = "settings,settings,time zone,database,writable,clock,schema,rights,last run,organisations,portal"
    checks += ",portal reading,mail,templates,metrics,ping"
    assert ",".join(line[6:].partition(":")[0] for line in lines) == checks
    assert [(request.method, request.body) for request in portal.requests] == [("GET", b"")] * 2
    assert host.pings == []
    assert {path.name for path in tmp_path.iterdir()} == {"home", "templates"}


def test_it_works_without_writing_anything(here: Certjob, complete: Facts, connection: Connection) -> None:
    """On a database that takes no write only that is said; nothing that was looked at needed one."""
    connection.execute(f"ALTER DATABASE {connection.info.dbname} SET default_transaction_read_only = on".encode())

    result = here("-q")

    assert result.returncode == 1
    (line,) = result.stdout.splitlines()
    assert line.startswith("fail  writable: the database is read-only; use the primary")
    assert result.stderr == "certjob check: 14 ok, 1 failed\n"


def test_the_document_has_a_verdict_a_message_and_a_next_step(here: Certjob, facts: Facts) -> None:
    """One document; where all is well there is no next step. -q prints what is not."""
    result, quiet = here("--json"), here("-q")

    document = json.loads(result.stdout)
    assert (result.returncode, document["outcome"], list(document)) == (3, "attention", ["outcome", "checks"])
    for entry in document["checks"]:
        assert list(entry) == ["check", "verdict", "message", "next_step"]
        assert (entry["verdict"] == "ok") == (entry["next_step"] is None)
    assert quiet.stdout == "warn  organisations: there is none; create one with `certjob organisation set SLUG`\n"


def test_on_a_terminal_it_is_coloured_and_fits(environment: dict[str, str], facts: Facts, tmp_path: Path) -> None:
    """A setting that there is not is named."""
    settings = environment | {"CERTJOB_PORTAL_ULR": "x"}

    code, shown = on_terminal(["check"], environment=settings, folder=tmp_path, columns=60)

    assert code == 3
    assert "\x1b[33mwarn" in shown
    lines = without_escapes(shown).splitlines()
    assert all(len(line) <= 60 for line in lines)
    assert "warn  settings: CERTJOB_PORTAL_ULR is not a setting of" in lines
    assert "      certjob; did you mean CERTJOB_PORTAL_URL?" in lines


def test_a_signal_ends_it_at_once(environment: dict[str, str], complete: Facts, tmp_path: Path) -> None:
    """While a mail server says nothing: there is nothing to wait for."""
    with (
        scripted_server({"GREETING": Fault.HANG}) as server,
        started("check", environment=environment | smtp(server.port), folder=tmp_path) as child,
    ):
        until(lambda: server.connections)
        result = child.stop_within(5)

    assert result.returncode == 1
    assert "certjob check: stopped by SIGTERM" in result.stderr


# Settings, and what needs them.


def test_every_wrong_setting_is_named_and_everything_else_is_looked_at(
    check: Check, complete: Facts, portal: PortalServer
) -> None:
    """By its variable, never its value; the database and the templates are still looked at."""
    code, said = check(
        CERTJOB_TIME_ZONE=SECRET,
        CERTJOB_PORTAL_KEY="",
        CERTJOB_NOTIFY_URL="smtp://mail.example",
        CERTJOB_PORTAL_RATE="-1",
    )

    assert (code, set(said)) == (2, {"settings", "portal", "mail"})
    variables = ("CERTJOB_TIME_ZONE", "CERTJOB_PORTAL_RATE", "CERTJOB_PORTAL_KEY", "CERTJOB_MAIL_FROM")
    for variable, clause in zip(variables, said["settings"], strict=True):
        assert clause.startswith(f"fail: {variable}"), clause
    assert said["portal"] == said["mail"] == ["skip: not checked: its settings are wrong"]
    assert portal.requests == []


def test_a_setting_that_is_wrong_is_not_missing_too_and_has_one_next_step(check: Check, complete: Facts) -> None:
    """It was left out, so that everything else can be looked at."""
    _, found = check(CERTJOB_PORTAL_KEY="two words", CERTJOB_MAIL_HOURS="08:00-08:00")

    key, hours = found["settings"]
    assert key.startswith("fail: CERTJOB_PORTAL_KEY: must be one word")
    assert hours.startswith("fail: CERTJOB_MAIL_HOURS: is an empty window")
    assert hours.count("; ") == 2, "correct it; see the page"


def test_without_a_database_the_rest_is_looked_at(
    check: Check, portal: PortalServer, bare_environment: dict[str, str]
) -> None:
    """None set; the word embedded, which makes none; a server that nobody answers at: exit 1, as every command's."""
    unset, said = check(CERTJOB_DATABASE_URL="")
    assert unset == 2
    assert said["settings"][0].startswith("fail: CERTJOB_DATABASE_URL is not set; give a PostgreSQL URL or the word")
    assert said["schema"] == ["skip: not checked: CERTJOB_DATABASE_URL is not set"]

    home = Path(bare_environment["HOME"])
    _, said = check(CERTJOB_DATABASE_URL="embedded", XDG_DATA_HOME=str(home))
    assert said["database"] == ["fail: there is no embedded database yet; run `certjob db migrate`"]
    assert list(home.iterdir()) == []

    away, said = check(CERTJOB_DATABASE_URL=f"postgresql://certjob:{SECRET}@127.0.0.1:1/certjob")
    assert away == 1
    assert said["database"][0].startswith("fail: the database cannot be reached")
    assert said["rights"] == ["skip: not checked: the database did not answer"]
    assert len(portal.requests) == 6


def test_an_env_file_that_cannot_be_read_is_said_so(check: Check, complete: Facts, tmp_path: Path) -> None:
    """And the environment's own variables count."""
    (tmp_path / "certjob.env").write_bytes(b"CERTJOB_PORTAL_KEY=bl\xe5\n")

    step = "correct --env-file or CERTJOB_ENV_FILE"
    message = "fail: the settings file certjob.env cannot be read: it is not UTF-8 text"
    assert check(CERTJOB_ENV_FILE="certjob.env") == (2, {"settings": [f"{message}; {step}"]})


# The database.


def test_a_schema_of_another_version_names_the_way_out(
    check: Check, connection: Connection, empty_database_url: str
) -> None:
    """Absent, older after an upgrade, newer where an old certjob was left on some machine."""
    code, said = check(CERTJOB_DATABASE_URL=empty_database_url)
    assert (code, said["schema"]) == (2, ["fail: certjob's tables are not there yet; run `certjob db migrate`"])
    assert [len(said[name]) for name in ("rights", "last run", "organisations")] == [1, 1, 1]

    connection.execute("INSERT INTO certjob_migrations (version, name, sha256) VALUES (9999, 'future', 'x')")
    code, said = check()
    assert code == 2
    assert "newer than this certjob (migration 9999_future); install the newer certjob" in said["schema"][0]

    connection.execute("DELETE FROM certjob_migrations WHERE version = 9999")
    connection.execute("DELETE FROM certjob_migrations WHERE version = (SELECT max(version) FROM certjob_migrations)")
    expected = ["fail: older than this certjob, 1 migration is pending; run `certjob db migrate`"]
    code, said = check()
    assert (code, said["schema"]) == (2, expected)


@pytest.fixture
def login(complete: Facts, database_url: str) -> Iterator[Callable[[str], str]]:
    """Make a login with these attributes that may connect; return its URL."""
    connection, made = complete.connection, []

    def make(attributes: str) -> str:
        made.append(f"certjob_login_{uuid4().hex[:8]}")
        connection.execute(f"CREATE ROLE {made[-1]} LOGIN PASSWORD '{SECRET}' {attributes}".encode())
        connection.execute(f"GRANT CONNECT ON DATABASE {connection.info.dbname} TO {made[-1]}".encode())
        return psycopg.conninfo.make_conninfo(database_url, user=made[-1], password=SECRET)

    yield make
    for role in made:
        connection.execute(f"DROP OWNED BY {role}".encode())
        connection.execute(f"DROP ROLE {role}".encode())


def user_of(url: str) -> str:
    return str(psycopg.conninfo.conninfo_to_dict(url)["user"])


def test_a_login_with_rights_of_its_own_is_told_which_are_missing(
    check: Check, complete: Facts, login: Callable[[str], str]
) -> None:
    """Row-level security that may hide mentors is a failure: a night would take the hidden ones for none."""
    url = login("")
    role = user_of(url)
    complete.connection.execute(f"GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO {role}".encode())
    tables = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
    for (table,) in complete.rows(tables):
        condition = "member_no <> 'M1'" if table == "mentors" else "true"
        policy = f"CREATE POLICY clerk ON {table} TO {role} USING ({condition}) WITH CHECK (true)"
        complete.connection.execute(policy.encode())

    code, said = check(CERTJOB_DATABASE_URL=url)
    assert code == 2
    assert said["rights"][0].startswith(
        f"fail: row-level security may hide rows from the database user {role}: mentors; "
    )

    complete.connection.execute(b"ALTER POLICY clerk ON mentors USING (true)")
    assert check(CERTJOB_DATABASE_URL=url) == (0, {})

    complete.connection.execute(f"REVOKE INSERT ON job_runs FROM {role}".encode())
    lacks = f"fail: the database user {role} lacks INSERT on job_runs"
    step = f"GRANT certjob_worker TO {role}, or connect as the tables' owner"
    assert check(CERTJOB_DATABASE_URL=url) == (2, {"rights": [f"{lacks}; {step}"]})


def test_what_was_taken_away_from_the_workers_role_is_noticed(
    check: Check, complete: Facts, login: Callable[[str], str]
) -> None:
    """A login as docs/database-roles.md says to set it up may do what a night needs, until somebody changes that."""
    url = login("IN ROLE certjob_worker")
    assert check(CERTJOB_DATABASE_URL=url) == (0, {})

    for change, phrase in (
        ('DROP POLICY "worker works here" ON mentors', ": mentors; "),
        ('ALTER POLICY "worker works here" ON job_runs WITH CHECK (false)', "job_runs"),
        ("REVOKE INSERT ON job_runs FROM certjob_worker", "lacks INSERT on job_runs"),
        ("REVOKE SELECT ON portal_alerts FROM certjob_worker", "SELECT on portal_alerts"),
    ):
        complete.connection.execute(change.encode())
        code, said = check(CERTJOB_DATABASE_URL=url)
        assert code == 2
        assert phrase in " ".join(said["rights"]), change


def test_a_login_of_a_role_that_came_after_the_migration_is_told_what_sets_it_up(
    check: Check, complete: Facts, login: Callable[[str], str]
) -> None:
    """It has the role, which has no rights here yet: another GRANT of it would change nothing."""
    url = login("IN ROLE certjob_worker")
    complete.connection.execute("DROP OWNED BY certjob_worker")  # in this database it is as new
    (step,) = {text.partition("; ")[2] for text in check(CERTJOB_DATABASE_URL=url)[1]["schema"]}
    assert step == "as the tables' owner, `SELECT certjob_private.set_up_roles()`"

    complete.connection.execute(step.partition("`")[2].rstrip("`").encode())

    assert "fail" not in str(check(CERTJOB_DATABASE_URL=url)[1].get("rights"))


def test_the_login_of_another_programme_on_the_server_is_warned_of_until_it_has_no_way_in(
    check: Check, complete: Facts, login: Callable[[str], str]
) -> None:
    """certjob_worker belongs to the whole server, and everybody may connect to a new database."""
    ours, theirs = login("IN ROLE certjob_worker"), login("IN ROLE certjob_worker")
    name = complete.connection.info.dbname
    complete.connection.execute(f"REVOKE CONNECT ON DATABASE {name} FROM {user_of(theirs)}".encode())

    complete.connection.execute(f"GRANT CONNECT ON DATABASE {name} TO PUBLIC".encode())
    before = check(CERTJOB_DATABASE_URL=ours)
    with psycopg.connect(theirs) as stranger:
        assert stranger.execute("SELECT count(*) FROM mentors").fetchone() == (1,)
    complete.connection.execute(f"REVOKE CONNECT ON DATABASE {name} FROM PUBLIC".encode())
    after = check(CERTJOB_DATABASE_URL=ours)

    (said,) = before[1]["rights"]
    assert said.startswith("warn: other logins in certjob_worker may read this programme's data: ")
    assert user_of(theirs) in said or " more" in said
    assert f"; REVOKE CONNECT ON DATABASE {name} FROM PUBLIC, then grant it to those that belong here" in said
    assert (before[0], after) == (3, (0, {}))


def test_a_setting_that_the_promises_do_not_bear_is_said(check: Check, complete: Facts) -> None:
    """Wherever it is set: for the role, the database or the server."""
    alter = f"ALTER DATABASE {complete.connection.info.dbname} SET "

    complete.connection.execute((alter + "synchronous_commit = off").encode())
    code, said = check()
    assert code == 3
    assert said["database"][0].startswith("warn: synchronous_commit is off: after a crash of the server a call")

    complete.connection.execute((alter + "session_replication_role = replica").encode())
    code, said = check()
    assert code == 2
    assert said["database"][1].startswith("fail: session_replication_role is replica: what `certjob load`")


def test_a_table_that_somebody_holds_is_said_and_not_waited_for(
    check: Check, complete: Facts, app: psycopg.Connection[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A migration that hangs, say: exit 1, and the portal and the mail are looked at all the same."""
    monkeypatch.setattr(in_database, "STATEMENT_TIMEOUT_MS", 200)
    app.execute("LOCK TABLE organisations IN ACCESS EXCLUSIVE MODE")

    code, said = check()

    assert (code, set(said)) == (1, {"database", "organisations"})
    assert "it did not answer a question (canceling statement due to statement timeout)" in said["database"][0]
    assert said["organisations"] == ["skip: not checked: the database did not answer"]


def test_a_clock_that_was_wrong_once_is_seen_in_the_runs(check: Check, complete: Facts) -> None:
    """A run that ended in the future must not be taken for the last good one; a later date stops the next night."""

    def ran(day: str, *, ended_in: str) -> None:
        complete.connection.execute(
            "INSERT INTO job_runs (id, command, as_of, host, version, finished_at, outcome)"
            " VALUES (gen_random_uuid(), 'run', %s, 'h', '1', now() + %s::interval, 'ok')",
            (day, ended_in),
        )

    ran("2026-01-01", ended_in="20 days")
    code, said = check()
    assert code == 3
    assert said["last run"][0].startswith("warn: 1 run has ended in the future, the last at ")

    ran("2999-01-01", ended_in="21 days")
    code, said = check()
    assert code == 2
    assert "the last night was run for 2999-01-01" in said["last run"][0]


@pytest.mark.parametrize(
    ("server_is_ahead_by", "verdict", "phrase"),
    [
        (timedelta(seconds=60), "ok", "agree"),
        (timedelta(hours=1), "warn", "the database server is 3,600 s ahead of this machine; set both by NTP"),
        (-timedelta(seconds=61), "warn", "the database server is 61 s behind this machine"),
        (timedelta(hours=13), "fail", "2026-03-11 01:00"),
        (-timedelta(days=300), "fail", "correct the wrong one"),
    ],
)
def test_a_difference_of_the_clocks_is_told(server_is_ahead_by: timedelta, verdict: str, phrase: str) -> None:
    """Another day, and `run` would refuse; less is a warning, in whole seconds and with its direction."""
    noon = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)

    finding = in_database.check_clocks(Clocks(machine_at=noon, server_at=noon + server_is_ahead_by), zone=UTC)

    assert finding.verdict == verdict
    assert phrase in finding.text


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"version_number": 140_012}, [("database", Verdict.FAIL, "too old")]),
        ({"version_number": 150_000}, []),
        ({"version_number": 180_004}, []),
        ({"version_number": 190_001}, [("database", Verdict.WARN, "newer")]),
        ({"encoding": "LATIN1"}, [("database", Verdict.FAIL, "LATIN1")]),
        ({"in_recovery": True}, [("writable", Verdict.FAIL, "in recovery")]),
    ],
)
def test_a_server_that_this_one_is_not(change: dict[str, Any], found: list[tuple[str, Verdict, str]]) -> None:
    """Too old fails, too new is a warning; a narrow encoding and a standby fail."""
    server: dict[str, Any] = {
        "version_number": 150_000,
        "version": "15",
        "encoding": "UTF8",
        "in_recovery": False,
        "read_only": False,
        "user_name": "certjob",
        "synchronous_commit": "on",
        "replication_role": "origin",
    }

    findings = list(in_database.check_server(in_database.Server(**server | change)))

    bad = [finding for finding in findings if finding.verdict is not Verdict.OK]
    assert [(finding.check, finding.verdict) for finding in bad] == [(check, verdict) for check, verdict, _ in found]
    assert all(phrase in finding.message for finding, (*_, phrase) in zip(bad, found, strict=True))


def test_what_an_organisation_lacks_is_said_with_the_command(here: Certjob, facts: Facts) -> None:
    """Exit 3: a coordinator, a contact, contact ids; those who have left need none."""
    bare = facts.organisation("bare")
    facts.connection.execute("UPDATE organisations SET contact_email = NULL WHERE id = %s", (bare,))
    facts.mentor(bare, contact_id=None)
    facts.mentor(bare, contact_id=None, left_at=datetime(2026, 1, 1, tzinfo=UTC))
    facts.mentor(facts.organisation("none", portal=None), contact_id=None)

    result = here("-q")

    assert (result.returncode, result.stderr) == (3, "certjob check: 14 ok, 4 warnings\n")
    assert [line.removeprefix("warn  organisations: ") for line in result.stdout.splitlines()] == [
        "bare has no coordinator, so nobody gets its daily mail; "
        "`certjob organisation set bare --coordinator 'NAME <MAIL>'`",
        "bare has no contact for its mentors' questions; `certjob organisation set bare --contact-email ADDRESS`",
        "1 mentor has no contact ID in bare, so their pushes are blocked; "
        "`certjob list --without-contact-id --organisation bare` names them; give them one each, "
        "in the app or with `certjob load`",
        "none has no coordinator, so nobody gets its daily mail; "
        "`certjob organisation set none --coordinator 'NAME <MAIL>'`",
    ]


# The portal.


def test_a_portal_without_its_address_is_a_warning_where_somebody_needs_it(check: Check, complete: Facts) -> None:
    """Its hides would wait for ever; without a database it is not known."""
    unset = {"CERTJOB_PORTAL_URL": "", "CERTJOB_PORTAL_KEY": ""}

    message = "warn: CERTJOB_PORTAL_URL is not set, but hlf has a portal: pushes stay queued"
    step = "set it and CERTJOB_PORTAL_KEY, or `certjob organisation set hlf --portal none`"
    assert check(**unset) == (3, {"portal": [f"{message}; {step}"]})
    _, in_the_dark = check(CERTJOB_DATABASE_URL="postgresql://u@127.0.0.1:1/x", **unset)
    assert in_the_dark["portal"][0].startswith("skip: not checked: CERTJOB_PORTAL_URL is not set, and the database")
    complete.connection.execute("UPDATE organisations SET portal = NULL")
    assert check(**unset) == (0, {})


AGAIN = "try `certjob check` again"


def test_what_the_portal_answers_has_a_next_step(check: Check, complete: Facts, portal: PortalServer) -> None:
    """A wrong setting is exit 2, something that is away exit 1; a function may take pushes and be too old to list."""
    there = answer(200, {"ok": True})
    for behaviours, code, phrases in (
        ([answer(403, b"no")], 2, ["403", "CERTJOB_PORTAL_KEY and what stands before"]),
        ([html(404)], 2, ["404", "not by the function", "that it is deployed"]),
        ([answer(404, {"code": "NOT_FOUND"})], 2, ["404", "check CERTJOB_PORTAL_URL and that it is deployed"]),
        ([html(200)], 2, ["something answered that is not the function", "the function's own address"]),
        ([answer(200, {"ok": False})], 2, ["something answered that is not the function"]),
        ([redirect("https://elsewhere.example/")], 2, ["302", "a redirect"]),
        ([error(500, "misconfigured")], 2, ["misconfigured", "check the function's secrets"]),
        ([error(503, "token_unavailable")], 1, ["503", AGAIN]),
        ([reset()], 1, ["connection to the portal lost", AGAIN]),
        ([there, there], 2, ["too old to list contacts; deploy it again (docs/edge-function.md)"]),
        ([there, error(500, "misconfigured", message="no such column")], 2, ["misconfigured", "no such column"]),
        ([there, error(502, "dynamics_unavailable")], 1, ["502", AGAIN]),
        ([there, answer(200, {"visible": []})], 1, ["not what the contract says"]),
    ):
        portal.then(*behaviours)
        got, said = check()
        name = "portal reading" if behaviours[0] is there else "portal"
        assert (got, list(said)) == (code, [name])
        assert all(phrase in said[name][0] for phrase in phrases), (said, phrases)

    code, said = check(CERTJOB_PORTAL_KEY="another")  # the server looks at the key first, as the function does
    assert code == 2
    assert said["portal"][0].startswith("fail: the portal answered 401 unauthorized")
    assert "; check CERTJOB_PORTAL_KEY" in said["portal"][0]


# Mail.


def smtp(port: int, **more: str) -> dict[str, str]:
    return {"CERTJOB_NOTIFY_URL": f"smtp://localhost:{port}", "CERTJOB_MAIL_FROM": "certjob@example.org"} | more


def test_the_mail_server_is_tried_up_to_the_login(check: Check, complete: Facts) -> None:
    """TLS and the login, and not one message."""
    mailbox = Mailbox()
    with real_server(mailbox, tls_context=server_tls(), authenticator=mailbox.authenticate) as server:
        login = {"CERTJOB_NOTIFY_USER": "post", "SSL_CERT_FILE": str(CERTIFICATE)}
        good = check(**smtp(server.port, CERTJOB_NOTIFY_PASSWORD="blåbær-9", **login))
        code, said = check(**smtp(server.port, CERTJOB_NOTIFY_PASSWORD=SECRET, **login))

    assert good == (0, {})
    assert code == 2
    assert "fail: the mail server refused the login" in said["mail"][0]
    assert "correct CERTJOB_NOTIFY_USER and CERTJOB_NOTIFY_PASSWORD" in said["mail"][0]
    assert mailbox.envelopes == []


def test_the_look_at_the_mail_server_is_polite_and_tells_who_does_not_answer_so(check: Check, complete: Facts) -> None:
    """A greeting, NOOP, QUIT; else what it said."""
    with scripted_server({"NOOP": b"250 fine"}) as server:
        assert check(**smtp(server.port)) == (0, {})
    assert [command.partition(" ")[0].upper() for command in server.commands] == ["EHLO", "NOOP", "QUIT"]

    scripts: list[tuple[dict[str, bytes | Fault], int, str]] = [
        ({"GREETING": Fault.CUT}, 1, "the mail server cannot be used"),
        ({"GREETING": b"554 go away"}, 1, "554 go away"),
        ({"NOOP": Fault.CUT}, 1, "the connection to the mail server broke"),
        ({"NOOP": b"500 what?"}, 2, "takes no commands (500 what?)"),
    ]
    for answers, code, phrase in scripts:
        with scripted_server(answers) as server:
            got, said = check(**smtp(server.port))
        assert (got, list(said)) == (code, ["mail"])
        assert phrase in said["mail"][0]


def test_mail_settings_that_cannot_work_are_named(
    check: Check, here: Certjob, complete: Facts, portal: PortalServer, tmp_path: Path
) -> None:
    """No sender, a login without a password, a folder that is a file, no way out; a webhook is not called."""
    (tmp_path / "letters").write_text("")
    for settings, phrase in (
        ({"CERTJOB_MAIL_FROM": "nobody"}, "CERTJOB_MAIL_FROM"),
        (smtp(25, CERTJOB_NOTIFY_USER="post"), "CERTJOB_NOTIFY_PASSWORD"),
        ({"CERTJOB_NOTIFY_URL": f"maildir:{tmp_path}/letters/deep"}, "the Maildir folder cannot be written"),
    ):
        code, said = check(**settings)
        assert code == 2
        assert phrase in said["mail"][0]

    unset = "warn: CERTJOB_NOTIFY_URL is not set, so reminders stay queued; set it"
    assert check(CERTJOB_NOTIFY_URL="") == (3, {"mail": [unset]})
    webhook = "ok    mail: a webhook (http), which only a message can try; --send-test ADDRESS sends one"
    assert webhook in here(CERTJOB_NOTIFY_URL=portal.url + "/hook").stdout
    assert {request.method for request in portal.requests} == {"GET"}


def test_a_test_message_is_sent_only_when_asked_for(here: Certjob, check: Check, complete: Facts) -> None:
    """To that address, and it says what it is; refused by the server or with nowhere to go, why."""
    mailbox = Mailbox()
    to = ("--send-test", "drift@example.org")
    with real_server(mailbox) as server:
        result = here(*to, **smtp(server.port))
    with scripted_server({"NOOP": b"250 fine", "RCPT": b"550 no such user"}) as server:
        code, refused = check(*to, **smtp(server.port))
    nowhere = check(*to, CERTJOB_NOTIFY_URL="")[1]

    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1] == "ok    test message: handed over; look whether it arrives, and not as spam"
    (envelope,) = mailbox.envelopes
    assert envelope.rcpt_tos == ["drift@example.org"]
    assert b"Subject: certjob: test" in envelope.content
    assert complete.rows("SELECT count(*) FROM cert_notification_log") == [(0,)]
    assert code == 2
    assert "550 no such user" in refused["test message"][0]
    assert "CERTJOB_NOTIFY_URL is not set" in nowhere["test message"][0]
    assert json.loads(here("--json", "--send-test", "nobody").stdout)["error"]["code"] == "usage"


# Templates.


def test_a_folder_of_templates_that_cannot_be_used_is_said_so(
    check: Check, complete: Facts, templates: Path, tmp_path: Path
) -> None:
    """Absent; broken, by file and line, although a night would go on in certjob's own words; open to everybody."""
    code, said = check(CERTJOB_TEMPLATES_DIR=str(tmp_path / "nowhere"))
    assert code == 2
    assert "cannot be read" in said["templates"][0]

    template = templates / "reminder.nb.txt"
    template.write_text("Emne\n\n{{ naem }}\n")
    code, said = check()
    assert (code, list(said)) == (2, ["templates"])
    assert said["templates"][0].startswith("fail: reminder.nb.txt line 3: ")

    template.write_text("Emne\n\nHei\n")
    template.chmod(0o666)
    code, said = check()
    assert code == 3
    assert said["templates"][0] == (
        f"warn: everybody on this machine can change your messages: {template}; take that right away (chmod -R o-w)"
    )


ALONE = "stays in other words; add"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            ["hlff/digest.en.txt", "hlff/digest.en.html"],
            "no organisation has the short name hlff: nobody gets its messages; did you mean hlf?",
        ),
        (["reminders.nb.txt"], "no message is made from reminders.nb.txt; did you mean reminder.nb.txt?"),
        (
            ["hlf/reminder.nn.txt", "reminder.nn.html", "reminder.nn.txt"],
            "hlf/reminder.nn.txt stands alone: the part that a mail program shows first "
            + ALONE
            + " hlf/reminder.nn.html",
        ),
        (
            ["digest.nb.html"],
            "digest.nb.html stands alone: the part for mail programs that show no HTML " + ALONE + " digest.nb.txt",
        ),
        (["reminder.nb.txt", "reminder.nb.html", "reminder.nb.txt.bak", "hlf/footer.txt", "pieces/logo.html"], None),
    ],
)
def test_a_template_that_was_meant_otherwise_is_a_warning(
    check: Check, complete: Facts, templates: Path, files: list[str], said: str | None
) -> None:
    """A folder of an organisation that there is not, a slip in a name, one half of a mail without the other."""
    for name in files:
        file = templates / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("Emne\n\nHei\n")

    assert check() == (3 if said else 0, {"templates": [f"warn: {said}"]} if said else {})


def test_a_piece_that_a_template_includes_may_be_named_as_it_likes(
    check: Check, complete: Facts, templates: Path
) -> None:
    """Also much like a message."""
    (templates / "reminders.nb.txt").write_text("Hei\n")
    (templates / "reminder.nb.txt").write_text("Emne\n\n{% include 'reminders.nb.txt' %}\n")
    (templates / "reminder.nb.html").write_text("<p>Hei\n")

    assert check() == (0, {})


# External monitoring.


def test_without_a_monitor_nobody_would_notice(check: Check, complete: Facts, tmp_path: Path) -> None:
    """None at all; one for attention alone, which hears nothing of a run that failed; a file that cannot be written."""
    code, said = check(CERTJOB_METRICS_FILE="")
    assert (code, list(said)) == (3, ["monitoring"])
    assert said["monitoring"][0].startswith("warn: no external monitor is configured; set CERTJOB_PING_URL or ")

    attention = {"CERTJOB_METRICS_FILE": "", "CERTJOB_ATTENTION_PING_URL": "https://hc.example/attention"}
    code, said = check(**attention)
    assert (code, list(said)) == (3, ["ping"])

    absent = check(CERTJOB_METRICS_FILE=str(tmp_path / "nowhere" / "certjob.prom"))
    with full_disk():
        full = check()
    for code, said in (absent, full):
        assert code == 2
        assert said["metrics"][0].startswith("fail: no file can be written in the folder of CERTJOB_METRICS_FILE: ")
        assert "; make the folder, give this user the right to write there, make room, or name" in said["metrics"][0]
    assert not list(tmp_path.glob(".certjob.prom*"))
