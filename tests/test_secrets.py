"""No secret and nobody's address in anything that certjob says, whatever goes wrong, however much it is asked to say.

Every setting that holds a secret has a planted one, and every server quotes what it was sent.
"""

import json
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from aiosmtpd.smtp import AuthResult

from certjob import redaction
from certjob.settings import Settings
from tests.conftest import Certjob, installed_command
from tests.support.command_line import Finished, run_in_process, today
from tests.support.facts import Facts
from tests.support.portal_answers import Behaviour, answer, hang
from tests.support.portal_server import PortalServer
from tests.support.smtp_server import CERTIFICATE, Mailbox, real_server, server_tls

DATABASE_PASSWORD = "planted-database-5Q"
PORTAL_KEY = "planted-portal-7W"
NOTIFY_PASSWORD = "planted-notify-9E"
NOTIFY_USER = "planted-user-3R"
SECRETS = (DATABASE_PASSWORD, PORTAL_KEY, NOTIFY_PASSWORD, NOTIFY_USER)
PEOPLE = ("kari.hemmelig", "ola.hemmelig", "eva.hemmelig")
"""The local parts of every address in the database."""


def assert_says_nothing(*results: Finished | str) -> None:
    """Neither a secret nor an address is in any of them."""
    for result in results:
        text = result if isinstance(result, str) else result.stdout + result.stderr
        for word in (*SECRETS, *PEOPLE):
            assert word not in text, text


@pytest.fixture
def people(facts: Facts) -> None:
    """A mentor to hide, two to remind, a coordinator to be told; all of them with an address."""
    organisation_id = facts.organisation()
    for name, ends in (("kari", -1), ("ola", 5), ("kari", 5)):
        facts.certified_mentor(
            organisation_id,
            today() + timedelta(days=ends),
            full_name=f"{name.title()} Hemmelig",
            email=f"{name}.hemmelig@example.org",
        )
    facts.connection.execute(
        "INSERT INTO coordinators (organisation_id, full_name, email) VALUES (%s, 'Eva', 'eva.hemmelig@example.org')",
        (organisation_id,),
    )


@pytest.fixture
def planted(worker_url: str, bare_environment: dict[str, str]) -> dict[str, str]:
    """Every secret setting; the servers are still to be named."""
    return bare_environment | {
        "CERTJOB_DATABASE_URL": psycopg.conninfo.make_conninfo(worker_url, password=DATABASE_PASSWORD),
        "CERTJOB_PORTAL_KEY": PORTAL_KEY,
        "CERTJOB_NOTIFY_URL": "maildir:mail",
        "CERTJOB_NOTIFY_USER": NOTIFY_USER,
        "CERTJOB_NOTIFY_PASSWORD": NOTIFY_PASSWORD,
        "CERTJOB_MAIL_FROM": "post@hlf.example",
        "CERTJOB_PORTAL_ATTEMPTS": "1",
        "SSL_CERT_FILE": str(CERTIFICATE),
    }


@pytest.fixture
def here(planted: dict[str, str], tmp_path: Path) -> Certjob:
    """Run a command in this process, with everything planted; keyword arguments are more settings."""

    def run(*arguments: str, **settings: str) -> Finished:
        return run_in_process(*arguments, environment=planted | settings, folder=tmp_path)

    return run


def quoting(status: int, code: str) -> Behaviour:
    """Refuse, and quote key and address, as a careless function would."""
    said = f"Bearer {PORTAL_KEY} may not touch kari.hemmelig@example.org"
    return answer(status, {"error": {"code": code, "message": said}}, headers={"X-Correlation-Id": f"of {PORTAL_KEY}"})


PORTAL_FAULTS: dict[str, Behaviour] = {
    "key refused": quoting(401, "unauthorized"),
    "contact refused": quoting(422, "dynamics_rejected"),
    "misconfigured": quoting(500, "misconfigured"),
    "down": answer(503, f"<p>{PORTAL_KEY} kari.hemmelig@example.org".encode()),
    "redirect": answer(302, headers={"Location": f"https://elsewhere.example/?key={PORTAL_KEY}"}),
    "no contract": answer(200, {"contact_id": PORTAL_KEY, "visible": "kari.hemmelig@example.org"}),
}


def everything_stored(facts: Facts) -> str:
    """All that certjob wrote about its work, as text."""
    tables = (
        "job_runs",
        "dynamics_sync_failures",
        "portal_sync_events",
        "cert_notification_log",
        "coordinator_digests",
    )
    return json.dumps([facts.rows(f"SELECT to_jsonb(t)::text FROM {table} AS t") for table in tables])


@pytest.mark.usefixtures("people")
def test_a_portal_that_quotes_what_it_was_sent_is_not_quoted(here: Certjob, facts: Facts) -> None:
    """Neither on the terminal nor in the rows that alerts and the app show later."""
    with PortalServer(key=PORTAL_KEY) as portal:
        here("run", "--no-deliver")
        for number, (fault, portal.default) in enumerate(PORTAL_FAULTS.items(), start=1):
            pushed = here("resync", "M1001", "-v", CERTJOB_PORTAL_URL=portal.url)
            alerts = here("alerts", "-v")

            assert (pushed.returncode, alerts.returncode, len(portal.requests)) == (3, 3, number), fault
            assert_says_nothing(pushed, alerts, everything_stored(facts))


@pytest.mark.parametrize(
    ("log_format", "commands"),
    [
        ("text", ("run", "resync M1001", "alerts", "check")),
        ("json", ("run", "reconcile", "resync M1001", "alerts --retry-all", "status", "check")),
    ],
    ids=["text", "json"],
)
@pytest.mark.usefixtures("people")
def test_a_night_in_which_everything_fails_says_no_secret_in_any_format(
    log_format: str, commands: tuple[str, ...], certjob: Certjob, facts: Facts, planted: dict[str, str]
) -> None:
    """The portal refuses the key, the mail server refuses the login and quotes it; then what shows it is asked."""
    logins: list[object] = []

    def refuse(*login: object) -> AuthResult:
        logins.append(login)
        said = f"535 no {NOTIFY_USER} {NOTIFY_PASSWORD} for kari.hemmelig@example.org"
        return AuthResult(success=False, handled=False, message=said)

    with (
        PortalServer(key="another") as portal,
        real_server(Mailbox(), tls_context=server_tls(), authenticator=refuse) as mail,
    ):
        settings = planted | {
            "CERTJOB_PORTAL_URL": portal.url,
            "CERTJOB_NOTIFY_URL": f"smtp://localhost:{mail.port}",
            "CERTJOB_LOG_FORMAT": log_format,
        }
        options = ["-v", "--json"] if log_format == "json" else ["-v"]
        results = [certjob(*command.split(), *options, **settings) for command in commands]

    assert results[0].returncode == 3
    assert len(logins) > 0
    for why in ("check CERTJOB_PORTAL_KEY", "refused the login", "CERTJOB_NOTIFY_PASSWORD"):
        assert why in results[0].stderr
    assert facts.rows("SELECT DISTINCT status FROM cert_notification_log") == [("pending",)]
    assert_says_nothing(*results, everything_stored(facts))


@pytest.mark.parametrize("status", [401, 302, 422, 500])
@pytest.mark.usefixtures("people")
def test_a_webhook_that_quotes_what_it_was_sent_is_not_quoted(status: int, here: Certjob, facts: Facts) -> None:
    """Its address may hold a secret, too."""
    said = f"Bearer {NOTIFY_PASSWORD} kari.hemmelig@example.org".encode()
    with PortalServer(key=NOTIFY_PASSWORD, default=answer(status, said, headers={"Location": "/x"})) as webhook:
        settings = {"CERTJOB_NOTIFY_USER": "", "CERTJOB_NOTIFY_URL": f"{webhook.url}?token={NOTIFY_USER}"}
        result = here("run", "-v", **settings)
        assert len(webhook.requests) > 0

    assert result.returncode == 3
    assert_says_nothing(result, everything_stored(facts))


@pytest.mark.parametrize("broken", ["{{ 1 / 0 }}", "{% if %}", "{{ undefined_word }}"])
@pytest.mark.usefixtures("people")
def test_a_broken_template_does_not_tell_whom_it_was_for(broken: str, here: Certjob, tmp_path: Path) -> None:
    """By id and file name only."""
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "reminder.nb.txt").write_text(broken)

    result = here("run", "-v", CERTJOB_TEMPLATES_DIR=str(tmp_path / "templates"))

    assert result.returncode == 3
    assert "reminder.nb.txt" in result.stderr
    assert_says_nothing(result)


def test_a_file_with_bad_rows_names_lines_not_people(here: Certjob, facts: Facts, tmp_path: Path) -> None:
    """Only the rejects file has the rows themselves, and is for this user alone."""
    facts.organisation()
    lines = ["organisation,member_no,full_name,email,dynamics_contact_id,kind,issued_on,expires_on"]
    good = ["hlf", "M1", "Kari", "kari.hemmelig@example.org", "", "likeperson", "2024-01-01", "2026-01-01"]
    lines += [",".join([*good[:at], "kari.hemmelig@example.org", *good[at + 1 :]]) for at in (0, 4, 6, 7)]
    lines.append(",".join([*good[:3], "kari.hemmelig@@example.org", *good[4:]]))
    lines.append("kari.hemmelig@example.org")
    (tmp_path / "people.csv").write_text("\n".join(lines))

    for options in (("-v",), ("-v", "--json")):
        result = here("load", "people.csv", "--rejects", "rejects.csv", *options)

        assert result.returncode == 3
        assert "rows were rejected" in result.stderr
        assert_says_nothing(result)
        assert (tmp_path / "rejects.csv").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://certjob:{}@localhost:1/certjob",
        "postgresql://certjob:{}@no-such-host.invalid/certjob",
        "postgresql://certjob:a/{}@localhost/certjob",
        "postgresql://certjob:%zz{}@localhost/certjob",
        "postgresql://certjob:{}@localhost:port/certjob",
        "postgresql://localhost/certjob?password={}&port=x",
        "postgresql://localhost/certjob?passwrod={}",
        "host=localhost port=1 password={}",
        "host=localhost port=1 password='{}",
        "host=localhost {}",
        "mysql://certjob:{}@localhost/certjob",
        "{}",
    ],
)
def test_a_url_that_does_not_work_is_not_repeated(url: str, bare_environment: dict[str, str], tmp_path: Path) -> None:
    """Nor the piece of it that libpq stumbled over."""
    environment = bare_environment | {"CERTJOB_DATABASE_URL": url.format(DATABASE_PASSWORD)}

    result = run_in_process("run", "-v", "--json", environment=environment, folder=tmp_path)

    assert result.returncode in (1, 2)
    assert_says_nothing(result)


def test_no_form_of_the_settings_shows_a_secret_or_an_address() -> None:
    """A debugger, a log line, a core dump of the settings object."""
    settings = Settings(
        _env_file=None,
        database_url=f"postgresql://certjob:{DATABASE_PASSWORD}@localhost/certjob",
        portal_url="https://portal.example",
        portal_key=PORTAL_KEY,
        notify_url=f"https://hook.example/{NOTIFY_PASSWORD}",
        notify_user=NOTIFY_USER,
        notify_password=NOTIFY_PASSWORD,
        mail_from="kari.hemmelig@example.org",
        ping_url=f"https://hc.example/{PORTAL_KEY}",
    )

    assert_says_nothing(repr(settings), str(settings), f"{settings!r:>400}", repr([settings]))
    secret = {name for name, value in settings.model_dump().items() if "planted" in str(value)}
    assert secret <= {"notify_user"}
    webhook = f"https://hook.example/{NOTIFY_PASSWORD}"
    assert {PORTAL_KEY, NOTIFY_PASSWORD, DATABASE_PASSWORD, webhook} <= set(settings.secrets())


def test_a_wrong_setting_is_named_and_not_repeated(here: Certjob) -> None:
    """Whoever pastes a password into the wrong line reads the name of that line; ``check`` goes on to the next."""
    wrong = {
        "CERTJOB_PORTAL_KEY": f"{PORTAL_KEY} with spaces",
        "CERTJOB_PORTAL_URL": f"https://user:{PORTAL_KEY}@portal.example",
        "CERTJOB_NOTIFY_URL": f"gopher://{NOTIFY_PASSWORD}",
        "CERTJOB_TIME_ZONE": NOTIFY_PASSWORD,
        "CERTJOB_PORTAL_ATTEMPTS": NOTIFY_PASSWORD,
        "CERTJOB_LOG_FORMAT": NOTIFY_PASSWORD,
    }

    for command in ("run", "check"):
        result = here(command, "-v", **wrong)

        assert result.returncode == 2
        for variable in wrong:
            assert variable in result.stdout + result.stderr
        assert_says_nothing(result)


def test_ps_shows_no_secret_while_it_runs(planted: dict[str, str], facts: Facts, tmp_path: Path) -> None:
    """The command line is everybody's to read, unlike the environment; a child's would be, too."""
    facts.certified_mentor(facts.organisation(), today() - timedelta(days=1))
    with PortalServer(key=PORTAL_KEY, default=hang()) as portal:
        environment = planted | {"CERTJOB_PORTAL_URL": portal.url}
        command = [str(installed_command()), "run", "-v"]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True)
        try:
            portal.wait_until(lambda: len(portal.requests) == 1, timeout_seconds=60)
            shown = [
                path.read_bytes().decode(errors="replace").replace("\0", " ")
                for folder in Path("/proc").glob("[0-9]*")
                if (path := folder / "cmdline").exists() and _is_of(process.pid, folder)
            ]
            titles = facts.rows("SELECT query FROM pg_stat_activity WHERE datname = current_database()")
        finally:
            process.kill()
            out, err = process.communicate(timeout=60)

    assert any("certjob run -v" in line for line in shown)
    assert_says_nothing(*shown, str(titles), out, err)


def _is_of(pid: int, folder: Path) -> bool:
    """Whether a process is this one or a child of it."""
    try:
        parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
    except OSError:  # gone meanwhile
        return False
    return pid in (int(folder.name), int(parent))


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("certjob.portal.hlf_dynamics.HLFDynamicsSyncService._call", RuntimeError),
        ("certjob.review.certification.decide_each", KeyError),
        ("certjob.database.connect", ValueError),
        ("certjob.mail.stage.MailStage.run", AssertionError),
    ],
)
@pytest.mark.usefixtures("people")
def test_a_crash_whose_text_is_full_of_secrets_is_not_printed(
    where: str, error: type[Exception], here: Certjob, facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it happened, and nothing of what was in the variables; nor is it kept in the database."""
    address = "@".join(("kari" + ".hemmelig", "example.org"))  # Python 3.13 shows this source in a traceback

    def crash(*_arguments: Any, **_keywords: Any) -> None:
        message = f"it broke with {SECRETS[:3]} for {address}"
        raise error(message)

    monkeypatch.setattr(where, crash)
    with PortalServer(key=PORTAL_KEY) as portal:
        for options, log_format in ((["-v"], "text"), (["-v", "--json"], "json")):
            facts.connection.execute("UPDATE mentors SET review_on = '-infinity'")
            facts.connection.execute("UPDATE portal_sync_events SET next_attempt_at = now()")

            result = here("run", *options, CERTJOB_PORTAL_URL=portal.url, CERTJOB_LOG_FORMAT=log_format)

            assert result.returncode == 1, result
            assert "it broke with" in result.stdout + result.stderr
            assert_says_nothing(result, everything_stored(facts))


def test_the_secrets_of_earlier_settings_are_forgotten() -> None:
    """They would mask words of a command that never knew them."""
    redaction.keep(["another"])
    redaction.keep(["planted"])

    assert redaction.without_secrets("name another one, planted") == "name another one, <secret>"

    redaction.keep([])
