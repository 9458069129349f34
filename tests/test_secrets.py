"""No secret and nobody's address in anything that certjob says, whatever goes wrong, however much it is asked to say.

Every setting that holds a secret has a planted one, and every server quotes what it was sent.
"""

import json
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path

import psycopg
import pytest
from aiosmtpd.smtp import AuthResult

from certjob import redaction
from certjob.settings import Settings
from tests.conftest import Certjob, installed_command
from tests.support.command_line import run_in_process, today
from tests.support.facts import Facts
from tests.support.own_server import guarded_login
from tests.support.portal_answers import Behaviour, answer, hang
from tests.support.portal_server import PortalServer
from tests.support.smtp_server import CERTIFICATE, Mailbox, real_server, server_tls
from tests.support.waiting import until

DATABASE_PASSWORD = "planted-database-5Q"
PORTAL_KEY = "planted-portal-7W"
NOTIFY_PASSWORD = "planted-notify-9E"
NOTIFY_USER = "planted-user-3R"
SECRETS = (DATABASE_PASSWORD, PORTAL_KEY, NOTIFY_PASSWORD, NOTIFY_USER)
PEOPLE = ("kari.hemmelig", "ola.hemmelig", "eva.hemmelig")
"""The local parts of every address in the database."""

SAYING_MUCH = [("-v",), ("-v", "--json")]

Finished = subprocess.CompletedProcess[str]


def assert_says_nothing(*texts: str, beside: tuple[str, ...] = ()) -> None:
    """Neither a secret nor an address is in any of the texts."""
    for text in texts:
        for word in (*SECRETS, *PEOPLE):
            assert word in beside or word not in text, text


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
def planted(worker_url: str) -> dict[str, str]:
    """Every secret setting; the servers are still to be named."""
    return {
        "CERTJOB_DATABASE_URL": psycopg.conninfo.make_conninfo(worker_url, password=DATABASE_PASSWORD),
        "CERTJOB_PORTAL_KEY": PORTAL_KEY,
        "CERTJOB_NOTIFY_USER": NOTIFY_USER,
        "CERTJOB_NOTIFY_PASSWORD": NOTIFY_PASSWORD,
        "CERTJOB_MAIL_FROM": "post@hlf.example",
        "CERTJOB_PORTAL_ATTEMPTS": "1",
        "SSL_CERT_FILE": str(CERTIFICATE),
    }


@pytest.fixture
def here(worker_url: str, bare_environment: dict[str, str], tmp_path: Path) -> Certjob:
    """Like ``certjob``, but in this process: for many cases of what another test shows of the installed command."""

    def run(*arguments: str, **settings: str) -> Finished:
        environment = bare_environment | {"CERTJOB_DATABASE_URL": worker_url} | settings
        return run_in_process(*arguments, environment=environment, folder=tmp_path)

    return run


@pytest.fixture(autouse=True)
def log_format(request: pytest.FixtureRequest, bare_environment: dict[str, str]) -> None:
    """The log is in JSON where the result is."""
    callspec = getattr(request.node, "callspec", None)
    if callspec is not None and "--json" in callspec.params.get("options", ()):
        bare_environment["CERTJOB_LOG_FORMAT"] = "json"


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


class TestAFailingNight:
    """Everything fails at once, and every command is asked about it."""

    @pytest.mark.parametrize("fault", PORTAL_FAULTS)
    @pytest.mark.usefixtures("people")
    def test_a_portal_that_quotes_what_it_was_sent_is_not_quoted(
        self, fault: str, certjob: Certjob, facts: Facts, planted: dict[str, str]
    ) -> None:
        """Neither on the terminal nor in the rows that alerts and the app show later."""
        with PortalServer(key=PORTAL_KEY, default=PORTAL_FAULTS[fault]) as portal:
            settings = planted | {"CERTJOB_PORTAL_URL": portal.url, "CERTJOB_NOTIFY_URL": "maildir:mail"}
            night = certjob("run", "-v", "--json", **settings)
            alerts = certjob("alerts", "-v", **settings)
            assert len(portal.requests) > 0

        assert (night.returncode, alerts.returncode) == (3, 3)
        assert_says_nothing(night.stdout, night.stderr, alerts.stdout, alerts.stderr, everything_stored(facts))

    @pytest.mark.parametrize("options", SAYING_MUCH, ids=" ".join)
    @pytest.mark.usefixtures("people")
    def test_a_night_in_which_everything_fails_says_no_secret_in_any_format(
        self, options: tuple[str, ...], certjob: Certjob, facts: Facts, planted: dict[str, str]
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
            }
            results = [
                certjob(*command, *options, **settings)
                for command in (
                    ("run",),
                    ("deliver",),
                    ("reconcile",),
                    ("resync", "M1001"),
                    ("alerts",),
                    ("alerts", "--retry-all"),
                    ("status",),
                    ("check",),
                    ("db", "status"),
                )
            ]

        assert results[0].returncode == 3
        assert len(logins) > 0
        assert_says_nothing(*(text for result in results for text in (result.stdout, result.stderr)))
        assert_says_nothing(everything_stored(facts))

    @pytest.mark.parametrize("options", SAYING_MUCH, ids=" ".join)
    @pytest.mark.parametrize("status", [401, 302, 422, 500])
    @pytest.mark.usefixtures("people")
    def test_a_webhook_that_quotes_what_it_was_sent_is_not_quoted(
        self, status: int, options: tuple[str, ...], here: Certjob, facts: Facts, planted: dict[str, str]
    ) -> None:
        """Its address may hold a secret, too."""
        del planted["CERTJOB_NOTIFY_USER"]
        said = f"Bearer {NOTIFY_PASSWORD} kari.hemmelig@example.org".encode()
        with PortalServer(key=NOTIFY_PASSWORD, default=answer(status, said, headers={"Location": "/x"})) as webhook:
            url = f"{webhook.url}?token={NOTIFY_USER}"
            result = here("run", *options, **planted | {"CERTJOB_NOTIFY_URL": url})
            assert len(webhook.requests) > 0

        assert result.returncode == 3
        assert_says_nothing(result.stdout, result.stderr, everything_stored(facts))

    @pytest.mark.parametrize("options", SAYING_MUCH, ids=" ".join)
    @pytest.mark.parametrize(
        "broken", ["{{ mentor.name.no_such_thing() }}", "{{ 1 / 0 }}", "{% if %}", "{{ undefined_word }}"]
    )
    @pytest.mark.usefixtures("people")
    def test_a_broken_template_does_not_tell_whom_it_was_for(
        self, broken: str, options: tuple[str, ...], here: Certjob, planted: dict[str, str], tmp_path: Path
    ) -> None:
        """By id and file name only."""
        (tmp_path / "templates").mkdir()
        (tmp_path / "templates" / "reminder.nb.txt").write_text(broken)
        result = here(
            "run",
            *options,
            **planted | {"CERTJOB_NOTIFY_URL": "maildir:mail", "CERTJOB_TEMPLATES_DIR": str(tmp_path / "templates")},
        )

        assert result.returncode == 3
        assert "reminder.nb.txt" in result.stderr
        assert_says_nothing(result.stdout, result.stderr)

    @pytest.mark.parametrize("options", SAYING_MUCH, ids=" ".join)
    def test_a_file_with_bad_rows_names_lines_not_people(
        self, options: tuple[str, ...], certjob: Certjob, facts: Facts, planted: dict[str, str], tmp_path: Path
    ) -> None:
        """Only the rejects file has the rows themselves, and is for this user alone."""
        facts.organisation()
        lines = ["organisation,member_no,full_name,email,dynamics_contact_id,kind,issued_on,expires_on"]
        good = ["hlf", "M1", "Kari", "kari.hemmelig@example.org", "", "likeperson", "2024-01-01", "2026-01-01"]
        for place, bad in enumerate(["kari.hemmelig@example.org"] * len(good)):
            if place not in (1, 2, 3, 5):
                lines.append(",".join([*good[:place], bad, *good[place + 1 :]]))
        lines.append(",".join([*good[:3], "kari.hemmelig@@example.org", *good[4:]]))
        lines.append("kari.hemmelig@example.org")
        (tmp_path / "people.csv").write_text("\n".join(lines))

        result = certjob("load", "people.csv", "--rejects", "rejects.csv", *options, **planted)

        assert result.returncode == 3
        assert "rows were rejected" in result.stderr
        assert_says_nothing(result.stdout, result.stderr)
        assert (tmp_path / "rejects.csv").stat().st_mode & 0o777 == 0o600


class TestTheDatabase:
    """Its password is in the URL, and libpq likes to repeat what it did not understand."""

    def test_a_wrong_password_is_not_repeated(self, certjob: Certjob) -> None:
        """In any format."""
        with guarded_login(password="another") as url:
            wrong = psycopg.conninfo.make_conninfo(url, password=DATABASE_PASSWORD)
            results = [certjob("run", *options, CERTJOB_DATABASE_URL=wrong) for options in SAYING_MUCH]

        assert {result.returncode for result in results} == {2}
        assert_says_nothing(*(text for result in results for text in (result.stdout, result.stderr)))

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
    @pytest.mark.parametrize("options", [("-v",), ("-v", "--json")], ids=" ".join)
    def test_a_url_that_does_not_work_is_not_repeated(self, url: str, options: tuple[str, ...], here: Certjob) -> None:
        """Nor the piece of it that libpq stumbled over."""
        result = here("run", *options, CERTJOB_DATABASE_URL=url.format(DATABASE_PASSWORD))

        assert result.returncode in (1, 2)
        assert_says_nothing(result.stdout, result.stderr)


class TestSettings:
    """Nothing that prints the settings prints their secrets."""

    def test_no_form_of_the_settings_shows_a_secret_or_an_address(self) -> None:
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
        )

        assert_says_nothing(repr(settings), str(settings), f"{settings!r:>400}", repr([settings]))
        secret = {name for name, value in settings.model_dump().items() if "planted" in str(value)}
        assert secret <= {"notify_user"}

    @pytest.mark.parametrize(
        ("variable", "value"),
        [
            ("CERTJOB_PORTAL_KEY", f"{PORTAL_KEY} with spaces"),
            ("CERTJOB_PORTAL_URL", f"https://user:{PORTAL_KEY}@portal.example"),
            ("CERTJOB_PORTAL_URL", f"http://portal.example/?key={PORTAL_KEY}"),
            ("CERTJOB_NOTIFY_URL", f"smtp://{NOTIFY_USER}:{NOTIFY_PASSWORD}@mail.example"),
            ("CERTJOB_NOTIFY_URL", f"gopher://{NOTIFY_PASSWORD}"),
            ("CERTJOB_TIME_ZONE", NOTIFY_PASSWORD),
            ("CERTJOB_PORTAL_ATTEMPTS", NOTIFY_PASSWORD),
            ("CERTJOB_LOG_FORMAT", NOTIFY_PASSWORD),
        ],
    )
    @pytest.mark.parametrize("command", ["run", "check"])
    def test_a_wrong_setting_is_named_and_not_repeated(
        self, command: str, variable: str, value: str, here: Certjob, planted: dict[str, str]
    ) -> None:
        """Whoever pastes a password into the wrong line reads the name of that line."""
        result = here(command, "-v", **planted | {variable: value})

        assert result.returncode == 2
        assert variable in result.stdout + result.stderr
        assert_says_nothing(result.stdout, result.stderr)

    def test_ps_shows_no_secret_while_it_runs(
        self, planted: dict[str, str], bare_environment: dict[str, str], facts: Facts, tmp_path: Path
    ) -> None:
        """The command line is everybody's to read, unlike the environment; a child's would be, too."""
        facts.certified_mentor(facts.organisation(), date(2025, 1, 1))
        with PortalServer(key=PORTAL_KEY, default=hang()) as portal:
            environment = bare_environment | planted | {"CERTJOB_PORTAL_URL": portal.url}
            process = subprocess.Popen(
                [installed_command(), "run", "-v"],
                env=environment,
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            try:
                until(lambda: len(portal.requests) == 1, seconds=60)
                shown = [
                    path.read_bytes().decode(errors="replace").replace("\0", " ")
                    for folder in Path("/proc").glob("[0-9]*")
                    if (path := folder / "cmdline").exists() and _is_of(process.pid, folder)
                ]
                titles = facts.rows("SELECT query FROM pg_stat_activity WHERE datname = current_database()")
            finally:
                process.terminate()
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


CRASH = """
import os, sys
import {module} as module
from certjob.cli import entry

def crash(*arguments, **keywords):
    secrets = [value for name, value in os.environ.items() if name.endswith(("_KEY", "_PASSWORD", "_URL"))]
    address = "@".join(("kari" + ".hemmelig", "example.org"))  # Python 3.13 shows this source in a traceback
    raise {error}(f"it broke with {{secrets}} for {{address}}")

module.{name} = crash
sys.argv = ["certjob", *sys.argv[1:]]
entry.main()
"""


class TestACrash:
    """A bug somewhere, with -v: where it happened, and nothing of what was in the variables."""

    @pytest.mark.parametrize("options", SAYING_MUCH, ids=" ".join)
    @pytest.mark.parametrize(
        ("module", "name", "error"),
        [
            ("certjob.portal.hlf_dynamics", "HLFDynamicsSyncService._call", "RuntimeError"),
            ("certjob.review.certification", "decide_each", "KeyError"),
            ("certjob.database", "connect", "ValueError"),
            ("certjob.mail.stage", "MailStage.run", "AssertionError"),
        ],
    )
    @pytest.mark.usefixtures("people")
    def test_even_a_text_full_of_secrets_is_not_printed(
        self,
        module: str,
        name: str,
        error: str,
        options: tuple[str, ...],
        planted: dict[str, str],
        bare_environment: dict[str, str],
        facts: Facts,
        tmp_path: Path,
    ) -> None:
        """Nor kept in the database."""
        with PortalServer(key=PORTAL_KEY) as portal:
            environment = {
                **bare_environment,
                **planted,
                "CERTJOB_PORTAL_URL": portal.url,
                "CERTJOB_NOTIFY_URL": "maildir:mail",
                "PYTHONPATH": str(Path(__file__).parent.parent),
            }
            result = subprocess.run(
                [sys.executable, "-c", CRASH.format(module=module, name=name, error=error), "run", *options],
                env=environment,
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )

        assert result.returncode == 1, result
        assert "it broke with" in result.stdout + result.stderr
        assert_says_nothing(result.stdout, result.stderr, everything_stored(facts))


def test_the_secrets_of_earlier_settings_are_forgotten() -> None:
    """They would mask words of a command that never knew them."""
    redaction.keep(["another"])
    redaction.keep(["planted"])

    assert redaction.without_secrets("name another one, planted") == "name another one, <secret>"

    redaction.keep([])
