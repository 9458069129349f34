"""No output has a secret or an address, even if everything fails and servers quote what they were sent."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from aiosmtpd.smtp import AuthResult

from certjob import redaction
from certjob.settings import Settings
from tests.conftest import Certjob, installed_command
from tests.support.command_line import Finished, started, today
from tests.support.facts import Facts
from tests.support.nights import night
from tests.support.portal_answers import Behaviour, answer, hang
from tests.support.portal_server import PortalServer
from tests.support.smtp_server import CERTIFICATE, Mailbox, real_server, server_tls

DATABASE_PASSWORD = "planted-database-5Q"
PORTAL_KEY = "planted-portal-7W"
NOTIFY_PASSWORD = "planted-notify-9E"
NOTIFY_USER = "planted-user-3R"
SECRETS = (DATABASE_PASSWORD, PORTAL_KEY, NOTIFY_PASSWORD, NOTIFY_USER)
PEOPLE = ("kari.hemmelig", "ola.hemmelig", "eva.hemmelig")
"""The local parts of all addresses in the database."""


def assert_no_secret(*results: Finished | str) -> None:
    """Check that no result has a secret or an address."""
    for result in results:
        text = result if isinstance(result, str) else result.stdout + result.stderr
        for word in (*SECRETS, *PEOPLE):
            assert word not in text, text


@pytest.fixture(autouse=True)
def people(facts: Facts) -> None:
    """Add a mentor to hide, two to remind, and a coordinator, all with addresses."""
    organisation_id = facts.organisation()
    for name, ends in (("kari", -1), ("ola", 5), ("kari", 5)):
        who = {"full_name": f"{name.title()} Hemmelig", "email": f"{name}.hemmelig@example.org"}
        facts.certified_mentor(organisation_id, today() + timedelta(days=ends), **who)
    who = {"full_name": "Eva", "email": "eva.hemmelig@example.org"}
    facts.insert("coordinators", organisation_id=organisation_id, **who)


@pytest.fixture
def environment(worker_url: str, bare_environment: dict[str, str]) -> dict[str, str]:
    """Return every setting with a secret, without the servers."""
    return bare_environment | {
        "CERTJOB_DATABASE_URL": psycopg.conninfo.make_conninfo(worker_url, password=DATABASE_PASSWORD),
        "CERTJOB_PORTAL_KEY": PORTAL_KEY,
        "CERTJOB_NOTIFY_URL": "maildir:mail",
        "CERTJOB_NOTIFY_USER": NOTIFY_USER,
        "CERTJOB_NOTIFY_PASSWORD": NOTIFY_PASSWORD,
        "CERTJOB_MAIL_FROM": "post@hlf.example",
        "SSL_CERT_FILE": str(CERTIFICATE),
    }


def quoting(status: int, code: str) -> Behaviour:
    """Return an error answer that quotes the key and an address."""
    said = f"Bearer {PORTAL_KEY} may not touch kari.hemmelig@example.org"
    return answer(status, {"error": {"code": code, "message": said}}, headers={"X-Correlation-Id": f"of {PORTAL_KEY}"})


PORTAL_FAULTS: dict[str, Behaviour] = {
    "key refused": quoting(401, "unauthorized"),
    "contact refused": quoting(422, "dynamics_rejected"),
    "down": answer(503, f"<p>{PORTAL_KEY} kari.hemmelig@example.org".encode()),
    "redirect": answer(302, headers={"Location": f"https://elsewhere.example/?key={PORTAL_KEY}"}),
    "no contract": answer(200, {"contact_id": PORTAL_KEY, "visible": "kari.hemmelig@example.org"}),
}


INTENTS = ("portal_sync_events", "cert_notification_log", "coordinator_digests")


def everything_stored(facts: Facts) -> str:
    """Return everything that certjob has stored about its work, as text."""
    tables = ("job_runs", "dynamics_sync_failures", *INTENTS)
    return json.dumps([facts.rows(f"SELECT to_jsonb(t)::text FROM {table} AS t") for table in tables])


def make_all_due(facts: Facts) -> None:
    """Make every push and mail due again."""
    facts.connection.execute("DELETE FROM job_runs; UPDATE mentors SET review_on = '-infinity'")
    for table in INTENTS:
        facts.connection.execute(f"UPDATE {table} SET status = 'pending', next_attempt_at = now()".encode())


def test_portal_that_quotes_secrets_is_not_quoted(here: Certjob, facts: Facts) -> None:
    """The lines and the stored rows have none. A webhook's address is a secret, too."""
    with PortalServer(key=PORTAL_KEY) as portal:
        night(facts.connection, today(), deliver=False)
        for fault, portal.default in PORTAL_FAULTS.items():
            before = len(portal.requests)
            pushed = here("resync", "M1001", "-v", CERTJOB_PORTAL_URL=portal.url)
            alerts = here("alerts", "-v")

            assert (pushed.returncode, alerts.returncode, len(portal.requests) > before) == (3, 3, True), fault
            assert_no_secret(pushed, alerts, everything_stored(facts))

    said = f"Bearer {NOTIFY_PASSWORD} kari.hemmelig@example.org".encode()
    with PortalServer(key=NOTIFY_PASSWORD) as webhook:
        settings = {"CERTJOB_NOTIFY_USER": "", "CERTJOB_NOTIFY_URL": f"{webhook.url}?token={NOTIFY_USER}"}
        for status in (401, 302, 422, 500):
            asked = len(webhook.requests)
            make_all_due(facts)
            webhook.default = answer(status, said, headers={"Location": "/x"})
            result = here("run", "-v", **settings)

            assert (result.returncode, len(webhook.requests) > asked) == (3, True), status
            assert_no_secret(result, everything_stored(facts))


@pytest.mark.parametrize(
    ("log_format", "commands"),
    [
        ("text", "run; resync M1001; alerts; check"),
        ("json", "run --json; reconcile --json; resync M1001 --json; alerts --retry-all --json; status --json"),
    ],
)
def test_run_in_which_everything_fails_prints_no_secret(
    log_format: str, commands: str, here: Certjob, facts: Facts
) -> None:
    """The portal rejects the key, the mail server rejects the login and quotes it. Later commands show the errors."""
    logins: list[object] = []

    def refuse(*login: object) -> AuthResult:
        logins.append(login)
        said = f"535 no {NOTIFY_USER} {NOTIFY_PASSWORD} for kari.hemmelig@example.org"
        return AuthResult(success=False, handled=False, message=said)

    with (
        PortalServer(key="another") as portal,
        real_server(Mailbox(), tls_context=server_tls(), authenticator=refuse) as mail,
    ):
        urls = {"CERTJOB_PORTAL_URL": portal.url, "CERTJOB_NOTIFY_URL": f"smtp://localhost:{mail.port}"}
        settings = urls | {"CERTJOB_LOG_FORMAT": log_format}
        results = [here(*command.split(), "-v", **settings) for command in commands.split("; ")]

    assert (results[0].returncode, len(logins) > 0) == (3, True)
    for why in ("check CERTJOB_PORTAL_KEY", "refused the login", "CERTJOB_NOTIFY_PASSWORD"):
        assert why in results[0].stderr
    assert facts.rows("SELECT DISTINCT status FROM cert_notification_log") == [("pending",)]
    assert_no_secret(*results, everything_stored(facts))


def test_bad_rows_are_not_quoted(here: Certjob, tmp_path: Path) -> None:
    """The problems of a file have its lines and columns, not its cells."""
    lines = ["organisation,member_no,full_name,email,dynamics_contact_id,kind,issued_on,expires_on"]
    good = ["hlf", "M1", "Kari", "kari.hemmelig@example.org", "", "likeperson", "2024-01-01", "2026-01-01"]
    lines += [",".join([*good[:at], "kari.hemmelig@example.org", *good[at + 1 :]]) for at in (0, 4, 6, 7)]
    lines.append(",".join([*good[:3], "kari.hemmelig@@example.org", *good[4:]]))
    lines.append("kari.hemmelig@example.org")
    (tmp_path / "people.csv").write_text("\n".join(lines))

    for options in (("-v",), ("-v", "--json")):
        result = here("load", "people.csv", *options)

        assert (result.returncode, "rows were skipped" in result.stderr) == (3, True)
        assert_no_secret(result)


def test_printed_settings_have_no_secret() -> None:
    """A log line or a debugger may print the object."""
    webhook = f"https://hook.example/{NOTIFY_PASSWORD}"
    settings = Settings(
        _env_file=None,
        database_url=f"postgresql://certjob:{DATABASE_PASSWORD}@localhost/certjob",
        portal_url="https://portal.example",
        portal_key=PORTAL_KEY,
        notify_url=webhook,
        notify_user=NOTIFY_USER,
        notify_password=NOTIFY_PASSWORD,
        mail_from="kari.hemmelig@example.org",
        ping_url=f"https://hc.example/{PORTAL_KEY}",
    )

    assert_no_secret(repr(settings), str(settings), f"{settings!r:>400}", repr([settings]))
    assert {name for name, value in settings.model_dump().items() if "planted" in str(value)} <= {"notify_user"}
    assert {PORTAL_KEY, NOTIFY_PASSWORD, DATABASE_PASSWORD, webhook} <= set(settings.secrets())


def test_wrong_setting_is_not_quoted(here: Certjob) -> None:
    """The error has the name of the variable, because someone may paste a password into the wrong line."""
    wrong = {"CERTJOB_PORTAL_KEY": f"{PORTAL_KEY} with spaces", "CERTJOB_TIME_ZONE": NOTIFY_PASSWORD}
    later = {"CERTJOB_PORTAL_URL": f"https://{NOTIFY_PASSWORD}\x7f.example"}  # invalid only when it is opened

    for command, settings in (("check", wrong), ("run", later)):
        result = here(command, "-v", **settings)

        assert result.returncode == 2
        assert [variable for variable in settings if variable not in result.stdout + result.stderr] == []
        assert_no_secret(result)


@pytest.mark.proc
def test_process_and_session_lists_have_no_secret(environment: dict[str, str], facts: Facts, tmp_path: Path) -> None:
    """Other users can read the command line and the statements of sessions."""
    with PortalServer(key=PORTAL_KEY, default=hang()) as portal:
        environment |= {"CERTJOB_PORTAL_URL": portal.url}
        with started("run", environment=environment, folder=tmp_path, program=[str(installed_command())]) as child:
            portal.wait_until(lambda: len(portal.requests) == 1, timeout_seconds=60)
            shown = Path(f"/proc/{child.process.pid}/cmdline").read_text().replace("\0", " ")
            queries = facts.rows("SELECT query FROM pg_stat_activity WHERE datname = current_database()")
            child.process.kill()
            result = child.finish()

    assert "certjob run" in shown
    assert_no_secret(shown, str(queries), result)


def test_unexpected_error_has_no_secret(here: Certjob, facts: Facts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its text and its traceback are printed without secrets, and stored without them."""
    address = "@".join(("kari" + ".hemmelig", "example.org"))  # Python 3.13 shows this source in a traceback
    for where, error in (
        ("certjob.portal.hlf_dynamics.HLFDynamicsSyncService._call", RuntimeError),
        ("certjob.review.certification.decide_each", KeyError),
        ("certjob.database.connect", ValueError),
        ("certjob.mail.stage.MailStage.run", AssertionError),
    ):

        def crash(*_arguments: Any, error: type[Exception] = error, **_keywords: Any) -> None:
            message = f"it broke with {SECRETS[:3]} for {address}"
            raise error(message)

        with PortalServer(key=PORTAL_KEY) as portal, monkeypatch.context() as broken:
            broken.setattr(where, crash)
            for options, log_format in ((["-v"], "text"), (["-v", "--json"], "json")):
                make_all_due(facts)
                result = here("run", *options, CERTJOB_PORTAL_URL=portal.url, CERTJOB_LOG_FORMAT=log_format)

                assert result.returncode == 1, result
                assert "it broke with" in result.stdout + result.stderr
                assert_no_secret(result, everything_stored(facts))


def test_keep_replaces_earlier_secrets() -> None:
    """The next command has other settings."""
    redaction.keep(["another"])
    redaction.keep(["planted"])

    assert redaction.without_secrets("name another one, planted") == "name another one, <secret>"

    redaction.keep([])
