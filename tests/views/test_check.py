"""`certjob check`: everything that a night depends on, each with its verdict and the next step, changing nothing."""

import json
import os
import resource
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from certjob.database import Connection
from certjob.database.clocks import Clocks
from certjob.views.check import in_database
from certjob.views.check.findings import Verdict
from tests.conftest import Certjob, installed_command
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
from tests.support.ping_host import ping_host
from tests.support.portal_answers import Behaviour, answer, error, html, redirect, reset
from tests.support.portal_server import PortalServer
from tests.support.smtp_server import CERTIFICATE, Fault, Mailbox, real_server, scripted_server, server_tls
from tests.support.waiting import until


@pytest.fixture
def portal() -> Iterator[PortalServer]:
    with PortalServer(key=SECRET) as server:
        yield server


@pytest.fixture
def environment(
    bare_environment: dict[str, str], database_url: str, portal: PortalServer, tmp_path: Path
) -> dict[str, str]:
    """Everything that can be set is set, and right; other tests' logins have no way in."""
    with psycopg.connect(database_url) as owner:
        owner.execute(f"REVOKE CONNECT ON DATABASE {owner.info.dbname} FROM PUBLIC".encode())
    templates = tmp_path / "templates"
    templates.mkdir()
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
def complete(facts: Facts) -> Facts:
    """An organisation that lacks nothing."""
    organisation = facts.organisation()
    facts.connection.execute(
        "INSERT INTO coordinators (organisation_id, email) VALUES (%s, 'k@example.org')", (organisation,)
    )
    facts.mentor(organisation)
    return facts


def found(result: Finished) -> dict[str, list[str]]:
    """What was said about each thing that is not well: the verdict and the whole text."""
    said: dict[str, list[str]] = {}
    for entry in json.loads(result.stdout)["checks"]:
        if entry["verdict"] != "ok":
            said.setdefault(entry["check"], []).append(
                f"{entry['verdict']}: {entry['message']}" + (f"; {entry['next_step']}" if entry["next_step"] else "")
            )
    return said


# All is well.


def test_all_is_well(here: Certjob, complete: Facts, portal: PortalServer, tmp_path: Path) -> None:
    """Exit 0, a line for each thing, and not a word on stderr; the portal is asked with GET and nobody is touched."""
    result = here()

    assert (result.returncode, result.stderr) == (0, ""), result
    lines = result.stdout.splitlines()
    assert {line[:6] for line in lines} == {"ok    "}
    checks = [line[6:].partition(":")[0] for line in lines]
    assert checks == [
        "settings",
        "settings",
        "time zone",
        "database",
        "writable",
        "clock",
        "schema",
        "rights",
        "last run",
        "organisations",
        "portal",
        "portal reading",
        "mail",
        "templates",
        "metrics",
    ]
    assert [(request.method, request.body) for request in portal.requests] == [("GET", b"")] * 2
    assert not (tmp_path / "maildir").exists()


def test_it_works_without_writing_anything(
    here: Certjob, complete: Facts, connection: Connection, database_url: str
) -> None:
    """On a database that takes no write only that is said; nothing that was looked at needed one."""
    name = connection.info.dbname
    connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on".encode())

    result = here("--json")

    assert result.returncode == 1
    assert list(found(result)) == ["writable"]
    assert "fail: the database is read-only; use the primary" in found(result)["writable"][0]
    assert result.stderr == "certjob check: 14 ok, 1 failed\n"


def test_the_document_has_a_verdict_a_message_and_a_next_step(here: Certjob, facts: Facts) -> None:
    """One document; where all is well there is no next step."""
    result = here("--json")

    document = json.loads(result.stdout)
    assert (result.returncode, document["outcome"]) == (3, "attention")
    assert list(document) == ["outcome", "checks"]
    for entry in document["checks"]:
        assert list(entry) == ["check", "verdict", "message", "next_step"]
        assert (entry["verdict"] == "ok") == (entry["next_step"] is None)


def test_quiet_says_only_what_is_not_well(here: Certjob, facts: Facts) -> None:
    """Fit for a cron line: nothing at all when all is well."""
    result = here("-q")

    assert result.stdout.splitlines() == [
        "warn  organisations: there is none; create one with `certjob organisation set SLUG`"
    ]


def test_on_a_terminal_it_is_coloured_and_fits(environment: dict[str, str], facts: Facts, tmp_path: Path) -> None:
    """NO_COLOR takes the colour, and only that."""
    settings = environment | {"CERTJOB_PORTAL_ULR": "x"}

    code, shown = on_terminal(["check"], environment=settings, folder=tmp_path, columns=60)
    _, plain = on_terminal(["check"], environment=settings | {"NO_COLOR": "1"}, folder=tmp_path, columns=60)

    assert code == 3
    assert "\x1b[33mwarn" in shown
    assert "\x1b[3" not in plain
    lines = without_escapes(shown).splitlines()
    assert without_escapes(plain).splitlines() == lines
    assert all(len(line) <= 60 for line in lines[:-1])
    assert "warn  settings: CERTJOB_PORTAL_ULR is not a setting of" in lines
    assert "      certjob; did you mean CERTJOB_PORTAL_URL?" in lines


# Settings.


def test_every_wrong_setting_is_named_and_everything_else_is_looked_at(
    here: Certjob, complete: Facts, portal: PortalServer
) -> None:
    """By its variable, never its value; the database and the templates are still looked at."""
    result = here(
        "--json",
        CERTJOB_TIME_ZONE=SECRET,
        CERTJOB_PORTAL_KEY="",
        CERTJOB_NOTIFY_URL="smtp://mail.example",
        CERTJOB_PORTAL_RATE="-1",
    )

    said = found(result)
    assert result.returncode == 2
    assert set(said) == {"settings", "portal", "mail"}
    for variable, clause in zip(
        ("CERTJOB_TIME_ZONE", "CERTJOB_PORTAL_RATE", "CERTJOB_PORTAL_KEY", "CERTJOB_MAIL_FROM"),
        said["settings"],
        strict=True,
    ):
        assert clause.startswith(f"fail: {variable}"), clause
    assert said["portal"] == ["skip: not checked: its settings are wrong"]
    assert said["mail"] == ["skip: not checked: its settings are wrong"]
    assert portal.requests == []


def test_without_a_database_the_rest_is_looked_at(here: Certjob, portal: PortalServer) -> None:
    """What cannot be looked at says why."""
    result = here("--json", CERTJOB_DATABASE_URL="")

    said = found(result)
    assert result.returncode == 2
    assert said["settings"] == [
        "fail: CERTJOB_DATABASE_URL is not set; "
        "give a PostgreSQL URL or the word embedded, or name a file that does (--env-file)"
    ]
    assert said["schema"] == ["skip: not checked: CERTJOB_DATABASE_URL is not set"]
    assert len(portal.requests) == 2


def test_the_word_embedded_makes_no_database(here: Certjob, bare_environment: dict[str, str]) -> None:
    """A look creates nothing."""
    home = Path(bare_environment["HOME"])

    result = here("--json", CERTJOB_DATABASE_URL="embedded", XDG_DATA_HOME=str(home))

    assert found(result)["database"] == ["fail: there is no embedded database yet; run `certjob db migrate`"]
    assert list(home.iterdir()) == []


def test_an_env_file_that_cannot_be_read_is_said_so(here: Certjob, complete: Facts, tmp_path: Path) -> None:
    """And the environment's own variables count."""
    (tmp_path / "certjob.env").write_bytes(b"CERTJOB_PORTAL_KEY=bl\xe5\n")

    result = here("--json", CERTJOB_ENV_FILE="certjob.env")

    assert result.returncode == 2
    assert list(found(result)) == ["settings"]
    assert found(result)["settings"] == [
        "fail: the settings file certjob.env cannot be read: it is no text in UTF-8; "
        "correct --env-file or CERTJOB_ENV_FILE"
    ]


# The database.


def test_a_server_that_nobody_answers_at_is_out_of_reach(here: Certjob, portal: PortalServer) -> None:
    """Exit 1, as every command's; the portal is asked all the same."""
    result = here("--json", CERTJOB_DATABASE_URL=f"postgresql://certjob:{SECRET}@127.0.0.1:1/certjob")

    said = found(result)
    assert result.returncode == 1
    assert said["database"][0].startswith("fail: the database cannot be reached")
    assert said["rights"] == ["skip: not checked: the database did not answer"]
    assert len(portal.requests) == 2


def test_a_schema_that_is_not_there_names_the_command(here: Certjob, empty_database_url: str) -> None:
    """Nothing about rights or organisations can be said."""
    result = here("--json", CERTJOB_DATABASE_URL=empty_database_url)

    said = found(result)
    assert result.returncode == 2
    assert said["schema"] == ["fail: certjob's tables are not there yet; run `certjob db migrate`"]
    assert [len(said[name]) for name in ("rights", "last run", "organisations")] == [1, 1, 1]


def test_an_older_schema_names_the_command(here: Certjob, connection: Connection) -> None:
    """After an upgrade of certjob."""
    connection.execute("DELETE FROM certjob_migrations WHERE version = (SELECT max(version) FROM certjob_migrations)")

    result = here("--json")

    expected = "fail: older than this certjob, 1 migration is pending; run `certjob db migrate`"
    assert (result.returncode, found(result)["schema"]) == (2, [expected])


def test_a_newer_schema_wants_the_newer_certjob(here: Certjob, connection: Connection) -> None:
    """An old certjob left on some machine."""
    connection.execute("INSERT INTO certjob_migrations (version, name, sha256) VALUES (9999, 'future', 'x')")

    result = here("--json")

    assert result.returncode == 2
    assert "newer than this certjob (migration 9999_future); install the newer certjob" in found(result)["schema"][0]


def test_a_user_without_rights_is_told_which(here: Certjob, complete: Facts, database_url: str) -> None:
    """The tables are seen, all rows of them too, and one right is missing."""
    role = f"certjob_clerk_{uuid4().hex[:8]}"
    connection = complete.connection
    connection.execute(f"CREATE ROLE {role} LOGIN BYPASSRLS PASSWORD '{SECRET}'".encode())
    try:
        connection.execute(f"GRANT CONNECT ON DATABASE {connection.info.dbname} TO {role}".encode())
        connection.execute(f"GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO {role}".encode())
        connection.execute(f"REVOKE INSERT ON job_runs FROM {role}".encode())
        url = psycopg.conninfo.make_conninfo(database_url, user=role, password=SECRET)

        result = here("--json", CERTJOB_DATABASE_URL=url)

        assert result.returncode == 2
        assert found(result) == {
            "rights": [
                f"fail: the database user {role} lacks INSERT on job_runs; "
                f"GRANT certjob_worker TO {role}, or connect as the tables' owner"
            ]
        }
    finally:
        connection.execute(f"DROP OWNED BY {role}".encode())
        connection.execute(f"DROP ROLE {role}".encode())


def test_row_level_security_that_may_hide_mentors_is_a_failure(
    here: Certjob, complete: Facts, database_url: str
) -> None:
    """Unless a policy shows that user every row; a night would take the hidden ones for none."""
    role = f"certjob_clerk_{uuid4().hex[:8]}"
    connection = complete.connection
    connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{SECRET}'".encode())
    try:
        connection.execute(f"GRANT CONNECT ON DATABASE {connection.info.dbname} TO {role}".encode())
        connection.execute(f"GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO {role}".encode())
        for (table,) in connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
        ).fetchall():
            condition = "member_no <> 'M1'" if table == "mentors" else "true"
            statement = f"CREATE POLICY clerk ON {table} TO {role} USING ({condition}) WITH CHECK (true)"
            connection.execute(statement.encode())
        url = psycopg.conninfo.make_conninfo(database_url, user=role, password=SECRET)

        result = here("--json", CERTJOB_DATABASE_URL=url)

        assert result.returncode == 2
        (said,) = found(result)["rights"]
        assert said.startswith(f"fail: row-level security may hide rows from the database user {role}: mentors; ")
    finally:
        connection.execute(f"DROP OWNED BY {role}".encode())
        connection.execute(f"DROP ROLE {role}".encode())


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ("SELECT 1", "ok"),
        ('DROP POLICY "worker works here" ON mentors', "row-level security may hide rows"),
        ('ALTER POLICY "worker works here" ON job_runs WITH CHECK (false)', "row-level security may hide rows"),
        ("REVOKE INSERT ON job_runs FROM certjob_worker", "lacks INSERT on job_runs"),
        ("REVOKE SELECT ON portal_alerts FROM certjob_worker", "lacks SELECT on portal_alerts"),
    ],
)
def test_a_login_that_is_a_worker_may_do_what_a_night_needs(
    here: Certjob, complete: Facts, database_url: str, change: str, verdict: str
) -> None:
    """As docs/database-roles.md says to set it up; and anything that was taken away from the role is noticed."""
    role = f"certjob_cron_{uuid4().hex[:8]}"
    connection = complete.connection
    connection.execute(f"CREATE ROLE {role} LOGIN IN ROLE certjob_worker PASSWORD '{SECRET}'".encode())
    try:
        connection.execute(f"GRANT CONNECT ON DATABASE {connection.info.dbname} TO {role}".encode())
        connection.execute(change.encode())

        result = here("--json", CERTJOB_DATABASE_URL=psycopg.conninfo.make_conninfo(database_url, user=role))

        said = found(result).get("rights", ["ok"])
        assert len(said) == 1
        assert verdict in said[0]
        assert result.returncode == (0 if verdict == "ok" else 2)
    finally:
        connection.execute(f"DROP OWNED BY {role}".encode())
        connection.execute(f"DROP ROLE {role}".encode())


def test_a_login_of_a_role_that_came_after_the_migration_is_told_what_sets_it_up(
    certjob: Certjob, complete: Facts, database_url: str
) -> None:
    """It has the role, which has no rights here yet: another GRANT of it would change nothing."""
    role = f"certjob_cron_{uuid4().hex[:8]}"
    connection = complete.connection
    connection.execute(f"CREATE ROLE {role} LOGIN IN ROLE certjob_worker".encode())
    try:
        connection.execute("DROP OWNED BY certjob_worker")  # in this database it is as new
        url = psycopg.conninfo.make_conninfo(database_url, user=role)
        before = certjob("check", "--json", CERTJOB_DATABASE_URL=url)
        (step,) = {text.partition("; ")[2] for text in found(before)["schema"]}
        assert step == "as the tables' owner, `SELECT certjob_private.set_up_roles()`"

        connection.execute(step.partition("`")[2].rstrip("`").encode())
        after = certjob("check", "--json", CERTJOB_DATABASE_URL=url)

        assert "fail" not in str(found(after).get("rights"))
    finally:
        connection.execute(f"DROP OWNED BY {role}".encode())
        connection.execute(f"DROP ROLE {role}".encode())


@pytest.fixture
def logins(complete: Facts) -> Iterator[tuple[str, str]]:
    """Of two programmes with a database each on one server: ours and theirs, both certjob_worker."""
    connection = complete.connection
    names = f"certjob_ours_{uuid4().hex[:8]}", f"certjob_theirs_{uuid4().hex[:8]}"
    for name in names:
        connection.execute(f"CREATE ROLE {name} LOGIN IN ROLE certjob_worker".encode())
    connection.execute(f"GRANT CONNECT ON DATABASE {connection.info.dbname} TO PUBLIC".encode())
    yield names
    for name in names:
        connection.execute(f"DROP OWNED BY {name}".encode())
        connection.execute(f"DROP ROLE {name}".encode())


def test_the_login_of_another_programme_on_the_server_is_warned_of_until_it_has_no_way_in(
    here: Certjob, complete: Facts, logins: tuple[str, str], database_url: str
) -> None:
    """certjob_worker belongs to the whole server, and everybody may connect to a new database."""
    ours, theirs = logins
    as_ours = psycopg.conninfo.make_conninfo(database_url, user=ours)
    name = complete.connection.info.dbname
    with psycopg.connect(database_url, user=theirs) as stranger:
        assert stranger.execute("SELECT count(*) FROM mentors").fetchone() == (1,)

    before = here("--json", CERTJOB_DATABASE_URL=as_ours)
    for statement in (f"REVOKE CONNECT ON DATABASE {name} FROM PUBLIC", f"GRANT CONNECT ON DATABASE {name} TO {ours}"):
        complete.connection.execute(statement.encode())
    after = here("--json", CERTJOB_DATABASE_URL=as_ours)

    (said,) = found(before)["rights"]
    assert said.startswith("warn: other logins in certjob_worker may read this programme's data: ")
    assert theirs in said or " more" in said
    assert f"; REVOKE CONNECT ON DATABASE {name} FROM PUBLIC, then grant it to those that belong here" in said
    assert (before.returncode, after.returncode, found(after)) == (3, 0, {})


@pytest.mark.parametrize(
    ("setting", "code", "phrase"),
    [
        (
            "synchronous_commit = off",
            3,
            "warn: synchronous_commit is off: after a crash of the server a call or a mail",
        ),
        ("session_replication_role = replica", 2, "fail: session_replication_role is replica: what `certjob load`"),
    ],
)
def test_a_setting_that_the_promises_do_not_bear_is_said(
    here: Certjob, complete: Facts, setting: str, code: int, phrase: str
) -> None:
    """Wherever it is set: for the role, the database or the server."""
    connection = complete.connection
    connection.execute(f"ALTER DATABASE {connection.info.dbname} SET {setting}".encode())

    result = here("--json")

    (said,) = found(result)["database"]
    assert said.startswith(phrase)
    assert result.returncode == code


def test_a_table_that_somebody_holds_is_said_and_not_waited_for(
    here: Certjob, complete: Facts, app: psycopg.Connection[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A migration that hangs, say: exit 1, and the portal and the mail are looked at all the same."""
    monkeypatch.setattr(in_database, "STATEMENT_TIMEOUT_MS", 200)
    app.execute("LOCK TABLE organisations IN ACCESS EXCLUSIVE MODE")

    result = here("--json")

    said = found(result)
    assert result.returncode == 1
    assert "it did not answer a question (canceling statement due to statement timeout)" in said["database"][0]
    assert said["organisations"] == ["skip: not checked: the database did not answer"]
    assert set(said) == {"database", "organisations"}


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


def test_a_clock_that_went_back_is_a_failure(here: Certjob, complete: Facts) -> None:
    """As the night would say it."""
    complete.connection.execute(
        "INSERT INTO job_runs (id, command, as_of, host, version, finished_at, outcome)"
        " VALUES (gen_random_uuid(), 'run', '2999-01-01', 'h', '1', now(), 'ok')"
    )

    result = here("--json")

    assert result.returncode == 2
    assert "the last night was run for 2999-01-01" in found(result)["last run"][0]


@pytest.mark.parametrize(
    ("server_is_ahead_by", "verdict", "phrase"),
    [
        (timedelta(), "ok", "agree"),
        (timedelta(seconds=59), "ok", "agree"),
        (timedelta(hours=1), "warn", "the database server is 3,600 s ahead of this machine; set both by NTP"),
        (-timedelta(seconds=90), "warn", "the database server is 90 s behind this machine"),
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


def test_a_run_that_ended_in_the_future_is_a_warning(here: Certjob, complete: Facts) -> None:
    """The server's clock was wrong once, and `status` must not take that run for the last good one."""
    complete.connection.execute(
        "INSERT INTO job_runs (id, command, as_of, host, version, finished_at, outcome)"
        " VALUES (gen_random_uuid(), 'run', '2026-01-01', 'h', '1', now() + interval '20 days', 'ok')"
    )

    result = here("--json")

    assert result.returncode == 3
    assert found(result)["last run"][0].startswith("warn: 1 run has ended in the future, the last at ")


@pytest.mark.parametrize(
    ("number", "verdict"), [(140_012, Verdict.FAIL), (150_000, Verdict.OK), (180_004, Verdict.OK), (190_001, "warn")]
)
def test_a_server_version_has_to_be_one_that_was_tried(number: int, verdict: str) -> None:
    """Too old fails, too new is a warning."""
    server = in_database.Server(
        version_number=number,
        version="x",
        encoding="UTF8",
        in_recovery=False,
        read_only=False,
        user_name="certjob",
        synchronous_commit="on",
        replication_role="origin",
    )

    version, writable = in_database.check_server(server)

    assert (version.verdict, writable.verdict) == (verdict, "ok")


@pytest.mark.parametrize(
    ("change", "check", "phrase"),
    [({"in_recovery": True}, "writable", "in recovery"), ({"encoding": "LATIN1"}, "database", "LATIN1")],
)
def test_a_standby_and_a_narrow_encoding_fail(change: dict[str, object], check: str, phrase: str) -> None:
    """What this test server is not."""
    facts: dict[str, object] = {
        "version_number": 150_000,
        "version": "15",
        "encoding": "UTF8",
        "in_recovery": False,
        "read_only": True,
        "user_name": "certjob",
        "synchronous_commit": "on",
        "replication_role": "origin",
    }
    server = in_database.Server(**(facts | {"read_only": False} | change))  # type: ignore[arg-type]

    failures = [finding for finding in in_database.check_server(server) if finding.verdict is Verdict.FAIL]

    assert [finding.check for finding in failures] == [check]
    assert phrase in failures[0].message


def test_what_an_organisation_lacks_is_said_with_the_command(here: Certjob, facts: Facts) -> None:
    """Exit 3: a coordinator, a contact, contact ids; those who have left need none."""
    bare = facts.organisation("bare")
    facts.connection.execute("UPDATE organisations SET contact_email = NULL WHERE id = %s", (bare,))
    facts.mentor(bare, contact_id=None)
    facts.mentor(bare, contact_id=None, left_at=datetime(2026, 1, 1, tzinfo=UTC))
    facts.mentor(facts.organisation("none", portal=None), contact_id=None)

    result = here("--json")

    assert result.returncode == 3
    assert found(result) == {
        "organisations": [
            "warn: bare has no coordinator, so nobody gets its daily mail; "
            "`certjob organisation set bare --coordinator 'NAME <MAIL>'`",
            "warn: bare has no contact for its mentors' questions; "
            "`certjob organisation set bare --contact-email ADDRESS`",
            "warn: 1 mentor has no dynamics_contact_id in bare, so their pushes are blocked; "
            "give them one each, in the app or with `certjob load`",
            "warn: none has no coordinator, so nobody gets its daily mail; "
            "`certjob organisation set none --coordinator 'NAME <MAIL>'`",
        ]
    }


def test_a_portal_without_its_address_is_a_warning(here: Certjob, complete: Facts) -> None:
    """Its hides would wait for ever."""
    result = here("--json", CERTJOB_PORTAL_URL="", CERTJOB_PORTAL_KEY="")

    assert result.returncode == 3
    assert found(result)["portal"] == [
        "warn: CERTJOB_PORTAL_URL is not set, but hlf has a portal: pushes stay queued; "
        "set it and CERTJOB_PORTAL_KEY, or `certjob organisation set hlf --portal none`"
    ]
    assert "hlf has a portal" not in str(found(result).get("organisations"))


def test_a_portal_that_nobody_needs_may_be_unset(here: Certjob, facts: Facts) -> None:
    """One verdict, which depends on the organisations; without a database it is not known."""
    facts.organisation("nordlys", portal=None)

    unset = {"CERTJOB_PORTAL_URL": "", "CERTJOB_PORTAL_KEY": ""}

    result = here("--json", **unset)
    in_the_dark = here("--json", CERTJOB_DATABASE_URL="postgresql://u@127.0.0.1:1/x", **unset)

    (said,) = (entry for entry in json.loads(result.stdout)["checks"] if entry["check"] == "portal")
    assert (said["verdict"], said["message"]) == (
        "ok",
        "CERTJOB_PORTAL_URL is not set, and no organisation has a portal",
    )
    (unknown,) = found(in_the_dark)["portal"]
    assert unknown.startswith("skip: not checked: CERTJOB_PORTAL_URL is not set, and the database did not tell")


# The portal.


@pytest.mark.parametrize(
    ("behaviour", "code", "phrases"),
    [
        (error(401, "unauthorized"), 2, ["401 unauthorized", "check CERTJOB_PORTAL_KEY"]),
        (answer(403, b"no"), 2, ["403", "CERTJOB_PORTAL_KEY and what stands before"]),
        (html(404), 2, ["404", "not by the function", "that it is deployed"]),
        (answer(404, {"code": "NOT_FOUND"}), 2, ["404", "check CERTJOB_PORTAL_URL and that it is deployed"]),
        (html(200), 2, ["something answered that is not the function", "the function's own address"]),
        (answer(200, {"ok": False}), 2, ["something answered that is not the function"]),
        (redirect("https://elsewhere.example/"), 2, ["302", "a redirect"]),
        (error(500, "misconfigured"), 2, ["misconfigured", "check the function's secrets"]),
        (error(503, "token_unavailable"), 1, ["503", "try `certjob check` again"]),
        (html(502), 1, ["502", "try `certjob check` again"]),
        (reset(), 1, ["connection to the portal lost", "try `certjob check` again"]),
    ],
)
def test_what_the_portal_answers_has_a_next_step(
    here: Certjob, complete: Facts, portal: PortalServer, behaviour: Behaviour, code: int, phrases: list[str]
) -> None:
    """A wrong setting is exit 2, something that is away exit 1."""
    portal.then(behaviour)

    result = here("--json")

    assert (result.returncode, list(found(result))) == (code, ["portal"])
    for phrase in phrases:
        assert phrase in found(result)["portal"][0]


def test_a_wrong_key_is_told_from_a_missing_function(here: Certjob, complete: Facts, portal: PortalServer) -> None:
    """The server looks at the key first, as the function does."""
    result = here("--json", CERTJOB_PORTAL_KEY="another")

    assert result.returncode == 2
    (said,) = found(result)["portal"]
    assert said.startswith("fail: the portal answered 401 unauthorized; check CERTJOB_PORTAL_KEY")


@pytest.mark.parametrize(
    ("behaviour", "code", "phrases"),
    [
        (answer(200, {"ok": True}), 2, ["too old to list contacts; deploy it again (docs/edge-function.md)"]),
        (error(500, "misconfigured", message="no such column"), 2, ["misconfigured", "no such column"]),
        (error(502, "dynamics_unavailable"), 1, ["502", "try `certjob check` again"]),
        (answer(200, {"visible": []}), 1, ["not what the contract says"]),
    ],
)
def test_a_function_that_takes_pushes_and_cannot_list(
    here: Certjob, complete: Facts, portal: PortalServer, behaviour: Behaviour, code: int, phrases: list[str]
) -> None:
    """An older one, or one whose rights in Dynamics are too narrow; the next step is said."""
    portal.then(answer(200, {"ok": True}), behaviour)

    result = here("--json")

    assert (result.returncode, list(found(result))) == (code, ["portal reading"])
    for phrase in phrases:
        assert phrase in found(result)["portal reading"][0]


# Mail.


def smtp(port: int, **more: str) -> dict[str, str]:
    return {"CERTJOB_NOTIFY_URL": f"smtp://localhost:{port}", "CERTJOB_MAIL_FROM": "certjob@example.org"} | more


def test_the_mail_server_is_tried_up_to_the_login(here: Certjob, complete: Facts) -> None:
    """TLS and the login, and not one message."""
    mailbox = Mailbox()
    with real_server(mailbox, tls_context=server_tls(), authenticator=mailbox.authenticate) as server:
        login = {"CERTJOB_NOTIFY_USER": "post", "SSL_CERT_FILE": str(CERTIFICATE)}
        good = here("--json", **smtp(server.port, CERTJOB_NOTIFY_PASSWORD="blåbær-9", **login))
        bad = here("--json", **smtp(server.port, CERTJOB_NOTIFY_PASSWORD=SECRET, **login))

    assert (good.returncode, found(good)) == (0, {})
    assert bad.returncode == 2
    assert "fail: the mail server refused the login" in found(bad)["mail"][0]
    assert "correct CERTJOB_NOTIFY_USER and CERTJOB_NOTIFY_PASSWORD" in found(bad)["mail"][0]
    assert mailbox.envelopes == []


def test_the_look_at_the_mail_server_is_polite(here: Certjob, complete: Facts) -> None:
    """A greeting, NOOP, QUIT."""
    with scripted_server({"NOOP": b"250 fine"}) as server:
        result = here("--json", **smtp(server.port))

    assert result.returncode == 0
    assert [command.partition(" ")[0].upper() for command in server.commands] == ["EHLO", "NOOP", "QUIT"]


@pytest.mark.parametrize(
    ("answers", "code", "phrase"),
    [
        ({"GREETING": Fault.CUT}, 1, "the mail server cannot be used"),
        ({"GREETING": b"554 go away"}, 1, "554 go away"),
        ({"NOOP": Fault.CUT}, 1, "the connection to the mail server broke"),
        ({"NOOP": b"500 what?"}, 2, "takes no commands (500 what?)"),
    ],
)
def test_a_mail_server_that_is_none_is_said_so(
    here: Certjob, complete: Facts, answers: dict[str, bytes | Fault], code: int, phrase: str
) -> None:
    """Who it was and what it said."""
    with scripted_server(answers) as server:
        result = here("--json", **smtp(server.port))

    assert (result.returncode, list(found(result))) == (code, ["mail"])
    assert phrase in found(result)["mail"][0]


def test_settings_of_mail_that_do_not_go_together_are_named(here: Certjob, complete: Facts) -> None:
    """A sender that is none; a login without a password; no way out at all."""
    sender = here("--json", CERTJOB_MAIL_FROM="nobody")
    login = here("--json", **smtp(25, CERTJOB_NOTIFY_USER="post"))
    nothing = here("--json", CERTJOB_NOTIFY_URL="")

    assert sender.returncode == login.returncode == 2
    assert "CERTJOB_MAIL_FROM" in found(sender)["mail"][0]
    assert "CERTJOB_NOTIFY_PASSWORD" in found(login)["mail"][0]
    assert nothing.returncode == 3
    assert found(nothing)["mail"] == ["warn: CERTJOB_NOTIFY_URL is not set, so reminders stay queued; set it"]


def test_a_folder_that_is_a_file_is_no_maildir(here: Certjob, complete: Facts, tmp_path: Path) -> None:
    """Nor is a place below it."""
    (tmp_path / "letters").write_text("")

    result = here("--json", CERTJOB_NOTIFY_URL=f"maildir:{tmp_path}/letters/deep")

    assert result.returncode == 2
    assert "the Maildir folder cannot be written" in found(result)["mail"][0]


def test_a_webhook_is_not_called(here: Certjob, complete: Facts, portal: PortalServer) -> None:
    """A POST would be a message; only --send-test makes one."""
    url = portal.url + "/hook"

    result = here(CERTJOB_NOTIFY_URL=url)

    assert result.returncode == 0
    assert "ok    mail: a webhook (http), which only a message can try; --send-test ADDRESS sends one" in result.stdout
    assert [request.method for request in portal.requests] == ["GET"] * 2


def test_a_test_message_is_sent_only_when_asked_for(here: Certjob, complete: Facts) -> None:
    """To that address, and it says what it is."""
    mailbox = Mailbox()
    with real_server(mailbox) as server:
        result = here("--send-test", "drift@example.org", **smtp(server.port))

    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1] == "ok    test message: handed over; look whether it arrives, and not as spam"
    (envelope,) = mailbox.envelopes
    assert envelope.rcpt_tos == ["drift@example.org"]
    assert b"Subject: certjob: test" in envelope.content
    assert complete.rows("SELECT count(*) FROM cert_notification_log") == [(0,)]


def test_a_test_message_that_is_not_taken_says_why(here: Certjob, complete: Facts) -> None:
    """Refused by the server; nowhere to go; no address at all."""
    with scripted_server({"NOOP": b"250 fine", "RCPT": b"550 no such user"}) as server:
        refused = here("--json", "--send-test", "drift@example.org", **smtp(server.port))
    nowhere = here("--json", "--send-test", "drift@example.org", CERTJOB_NOTIFY_URL="")
    nobody = here("--json", "--send-test", "nobody")

    assert refused.returncode == 2
    assert "550 no such user" in found(refused)["test message"][0]
    assert "CERTJOB_NOTIFY_URL is not set" in found(nowhere)["test message"][0]
    assert json.loads(nobody.stdout)["error"]["code"] == "usage"


# Templates.


def test_a_broken_template_is_named_by_file_and_line(here: Certjob, complete: Facts, tmp_path: Path) -> None:
    """Exit 2, although a night would go on in certjob's own words."""
    (tmp_path / "templates" / "reminder.nb.txt").write_text("Emne\n\n{{ naem }}\n")

    result = here("--json")

    assert (result.returncode, list(found(result))) == (2, ["templates"])
    assert found(result)["templates"][0].startswith("fail: reminder.nb.txt line 3: ")


def test_a_folder_of_templates_that_is_not_there_is_said_so(here: Certjob, complete: Facts, tmp_path: Path) -> None:
    """With what to do."""
    result = here("--json", CERTJOB_TEMPLATES_DIR=str(tmp_path / "nowhere"))

    assert result.returncode == 2
    assert "cannot be read" in found(result)["templates"][0]


def test_templates_that_everybody_can_change_are_a_warning(here: Certjob, complete: Facts, tmp_path: Path) -> None:
    """They could put another link into every mail."""
    template = tmp_path / "templates" / "reminder.nb.txt"
    template.write_text("Emne\n\nHei\n")
    template.chmod(0o666)

    result = here("--json")

    assert result.returncode == 3
    assert found(result)["templates"][0] == (
        f"warn: everybody on this machine can change your messages: {template}; take that right away (chmod -R o-w)"
    )


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            ["hlff/digest.en.txt", "hlff/digest.en.html"],
            "no organisation has the short name hlff: nobody gets its messages; did you mean hlf?",
        ),
        (["reminders.nb.txt"], "no message is made from reminders.nb.txt; did you mean reminder.nb.txt?"),
        (["hlf/reminder.nb.htm"], "no message is made from hlf/reminder.nb.htm; did you mean reminder.nb.html?"),
        (
            ["hlf/reminder.nn.txt", "reminder.nn.html", "reminder.nn.txt"],
            "hlf/reminder.nn.txt stands alone: the part that a mail program shows first stays in other words; "
            "add hlf/reminder.nn.html",
        ),
        (
            ["digest.nb.html"],
            "digest.nb.html stands alone: the part for mail programs that show no HTML stays in other words; "
            "add digest.nb.txt",
        ),
        (["reminder.nb.txt", "reminder.nb.html", "reminder.nb.txt.bak", "hlf/footer.txt", "pieces/logo.html"], None),
    ],
)  # fmt: skip
def test_a_template_that_was_meant_otherwise_is_a_warning(
    certjob: Certjob, environment: dict[str, str], complete: Facts, tmp_path: Path, files: list[str], said: str | None
) -> None:
    """A folder of an organisation that there is not, a slip in a name, one half of a mail without the other."""
    for name in files:
        file = tmp_path / "templates" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("Emne\n\nHei\n")

    result = certjob("check", "--json", **environment)

    assert found(result).get("templates") == ([f"warn: {said}"] if said else None)
    assert result.returncode == (3 if said else 0)


def test_a_piece_that_a_template_includes_may_be_named_as_it_likes(
    here: Certjob, complete: Facts, tmp_path: Path
) -> None:
    """Also much like a message."""
    folder = tmp_path / "templates"
    (folder / "reminders.nb.txt").write_text("Hei\n")
    (folder / "reminder.nb.txt").write_text("Emne\n\n{% include 'reminders.nb.txt' %}\n")
    (folder / "reminder.nb.html").write_text("<p>Hei\n")

    assert found(here("--json")) == {}


# Outside eyes.


def test_outside_eyes_are_looked_at_and_not_told(here: Certjob, complete: Facts, tmp_path: Path) -> None:
    """A ping would say that a night had run; of the trial in the metrics' folder nothing stays."""
    folder = tmp_path / "metrics"
    folder.mkdir()
    with ping_host() as host:
        result = here(CERTJOB_PING_URL=host.url, CERTJOB_METRICS_FILE=str(folder / "certjob.prom"))

    assert result.returncode == 0
    assert "ok    metrics: the file can be written" in result.stdout
    assert "ok    ping: its address has the right shape; only `certjob run` calls it" in result.stdout
    assert host.pings == []
    assert list(folder.iterdir()) == []


def test_nobody_outside_is_a_warning(certjob: Certjob, environment: dict[str, str], complete: Facts) -> None:
    """When no run happens, nobody would notice."""
    result = certjob("check", "--json", **environment | {"CERTJOB_METRICS_FILE": ""})

    assert (result.returncode, list(found(result))) == (3, ["monitoring"])
    assert found(result)["monitoring"][0].startswith(
        "warn: no external monitor is configured; set CERTJOB_PING_URL or "
    )


def test_a_check_for_attention_alone_is_a_warning(
    certjob: Certjob, environment: dict[str, str], complete: Facts
) -> None:
    """A run that failed is not told to it, so nobody would notice."""
    settings = {"CERTJOB_METRICS_FILE": "", "CERTJOB_ATTENTION_PING_URL": "https://hc.example/attention"}

    result = certjob("check", "--json", **environment | settings)

    assert (result.returncode, list(found(result))) == (3, ["ping"])


def test_a_metrics_file_that_cannot_be_written_is_a_failure(
    here: Certjob, environment: dict[str, str], complete: Facts, tmp_path: Path
) -> None:
    """A night would only warn: no such folder, or no room for the file."""
    absent = here("--json", CERTJOB_METRICS_FILE=str(tmp_path / "nowhere" / "certjob.prom"))
    full = subprocess.run(
        [str(installed_command()), "check", "--json"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512)),  # a full disk
    )

    assert (absent.returncode, full.returncode) == (2, 2)
    for result in (absent, full):
        (said,) = found(result)["metrics"]
        assert said.startswith("fail: no file can be written in the folder of CERTJOB_METRICS_FILE: ")
        assert "; make the folder, give this user the right to write there, make room, or name another folder" in said
    assert not list(tmp_path.glob(".certjob.prom*"))


def test_it_is_the_installed_command(certjob: Certjob, complete: Facts) -> None:
    """In cron's bare environment: no terminal, no colour, the exit code of the worst."""
    result = certjob("check", CERTJOB_NOTIFY_URL="smtp://127.0.0.1:1", CERTJOB_MAIL_FROM="a@example.org")

    assert result.returncode == 1
    assert result.stderr.endswith(" ok, 2 warnings, 1 failed\n")
    assert "\x1b" not in result.stdout
    assert os.linesep.join(line for line in result.stdout.splitlines() if line.startswith("fail")).startswith(
        "fail  mail: the mail server cannot be used: "
    )
