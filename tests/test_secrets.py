"""No secret and nobody's address in anything that certjob says, whatever goes wrong, however much it is asked to say.

Every setting that holds a secret has a planted one, and every server quotes what it was sent.
"""

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
"""The local parts of every address in the database."""


def assert_says_nothing(*results: Finished | str) -> None:
    """Neither a secret nor an address is in any of them."""
    for result in results:
        text = result if isinstance(result, str) else result.stdout + result.stderr
        for word in (*SECRETS, *PEOPLE):
            assert word not in text, text


@pytest.fixture(autouse=True)
def people(facts: Facts) -> None:
    """A mentor to hide, two to remind, a coordinator to be told; all of them with an address."""
    organisation_id = facts.organisation()
    for name, ends in (("kari", -1), ("ola", 5), ("kari", 5)):
        who = {"full_name": f"{name.title()} Hemmelig", "email": f"{name}.hemmelig@example.org"}
        facts.certified_mentor(organisation_id, today() + timedelta(days=ends), **who)
    who = {"full_name": "Eva", "email": "eva.hemmelig@example.org"}
    facts.insert("coordinators", organisation_id=organisation_id, **who)


@pytest.fixture
def environment(worker_url: str, bare_environment: dict[str, str]) -> dict[str, str]:
    """Every secret setting; the servers are still to be named."""
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
    """Refuse, and quote key and address, as a careless function would."""
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
    """All that certjob wrote about its work, as text."""
    tables = ("job_runs", "dynamics_sync_failures", *INTENTS)
    return json.dumps([facts.rows(f"SELECT to_jsonb(t)::text FROM {table} AS t") for table in tables])


def make_all_due(facts: Facts) -> None:
    """As on another day, on which everything is still to be done."""
    facts.connection.execute("DELETE FROM job_runs; UPDATE mentors SET review_on = '-infinity'")
    for table in INTENTS:
        facts.connection.execute(f"UPDATE {table} SET status = 'pending', next_attempt_at = now()".encode())


def test_a_server_that_quotes_what_it_was_sent_is_not_quoted(here: Certjob, facts: Facts) -> None:
    """Neither on the terminal nor in the rows that alerts and the app show later; a webhook's address is a secret."""
    with PortalServer(key=PORTAL_KEY) as portal:
        night(facts.connection, today(), deliver=False)
        for fault, portal.default in PORTAL_FAULTS.items():
            before = len(portal.requests)
            pushed = here("resync", "M1001", "-v", CERTJOB_PORTAL_URL=portal.url)
            alerts = here("alerts", "-v")

            assert (pushed.returncode, alerts.returncode, len(portal.requests) > before) == (3, 3, True), fault
            assert_says_nothing(pushed, alerts, everything_stored(facts))

    said = f"Bearer {NOTIFY_PASSWORD} kari.hemmelig@example.org".encode()
    with PortalServer(key=NOTIFY_PASSWORD) as webhook:
        settings = {"CERTJOB_NOTIFY_USER": "", "CERTJOB_NOTIFY_URL": f"{webhook.url}?token={NOTIFY_USER}"}
        for status in (401, 302, 422, 500):
            asked = len(webhook.requests)
            make_all_due(facts)
            webhook.default = answer(status, said, headers={"Location": "/x"})
            result = here("run", "-v", **settings)

            assert (result.returncode, len(webhook.requests) > asked) == (3, True), status
            assert_says_nothing(result, everything_stored(facts))


@pytest.mark.parametrize(
    ("log_format", "commands"),
    [
        ("text", "run; resync M1001; alerts; check"),
        ("json", "run --json; reconcile --json; resync M1001 --json; alerts --retry-all --json; status --json"),
    ],
)
def test_a_night_in_which_everything_fails_says_no_secret_in_any_format(
    log_format: str, commands: str, here: Certjob, facts: Facts
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
        urls = {"CERTJOB_PORTAL_URL": portal.url, "CERTJOB_NOTIFY_URL": f"smtp://localhost:{mail.port}"}
        settings = urls | {"CERTJOB_LOG_FORMAT": log_format}
        results = [here(*command.split(), "-v", **settings) for command in commands.split("; ")]

    assert (results[0].returncode, len(logins) > 0) == (3, True)
    for why in ("check CERTJOB_PORTAL_KEY", "refused the login", "CERTJOB_NOTIFY_PASSWORD"):
        assert why in results[0].stderr
    assert facts.rows("SELECT DISTINCT status FROM cert_notification_log") == [("pending",)]
    assert_says_nothing(*results, everything_stored(facts))


def test_a_file_with_bad_rows_names_lines_not_people(here: Certjob, tmp_path: Path) -> None:
    """Neither the lines on stderr nor the document repeat anything from the file."""
    lines = ["organisation,member_no,full_name,email,dynamics_contact_id,kind,issued_on,expires_on"]
    good = ["hlf", "M1", "Kari", "kari.hemmelig@example.org", "", "likeperson", "2024-01-01", "2026-01-01"]
    lines += [",".join([*good[:at], "kari.hemmelig@example.org", *good[at + 1 :]]) for at in (0, 4, 6, 7)]
    lines.append(",".join([*good[:3], "kari.hemmelig@@example.org", *good[4:]]))
    lines.append("kari.hemmelig@example.org")
    (tmp_path / "people.csv").write_text("\n".join(lines))

    for options in (("-v",), ("-v", "--json")):
        result = here("load", "people.csv", *options)

        assert (result.returncode, "rows were skipped" in result.stderr) == (3, True)
        assert_says_nothing(result)


def test_no_form_of_the_settings_shows_a_secret_or_an_address() -> None:
    """A debugger, a log line, a core dump of the settings object."""
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

    assert_says_nothing(repr(settings), str(settings), f"{settings!r:>400}", repr([settings]))
    assert {name for name, value in settings.model_dump().items() if "planted" in str(value)} <= {"notify_user"}
    assert {PORTAL_KEY, NOTIFY_PASSWORD, DATABASE_PASSWORD, webhook} <= set(settings.secrets())


def test_a_wrong_setting_is_named_and_not_repeated(here: Certjob) -> None:
    """Whoever pastes a password into the wrong line reads the name of that line; ``check`` goes on to the next."""
    wrong = {"CERTJOB_PORTAL_KEY": f"{PORTAL_KEY} with spaces", "CERTJOB_TIME_ZONE": NOTIFY_PASSWORD}
    later = {"CERTJOB_PORTAL_URL": f"https://{NOTIFY_PASSWORD}\x7f.example"}  # only what opens it finds that

    for command, settings in (("check", wrong), ("run", later)):
        result = here(command, "-v", **settings)

        assert result.returncode == 2
        assert [variable for variable in settings if variable not in result.stdout + result.stderr] == []
        assert_says_nothing(result)


@pytest.mark.proc
def test_ps_shows_no_secret_while_it_runs(environment: dict[str, str], facts: Facts, tmp_path: Path) -> None:
    """The command line is everybody's to read, unlike the environment; so is what the database's sessions do."""
    with PortalServer(key=PORTAL_KEY, default=hang()) as portal:
        environment |= {"CERTJOB_PORTAL_URL": portal.url}
        with started("run", environment=environment, folder=tmp_path, program=[str(installed_command())]) as child:
            portal.wait_until(lambda: len(portal.requests) == 1, timeout_seconds=60)
            shown = Path(f"/proc/{child.process.pid}/cmdline").read_text().replace("\0", " ")
            queries = facts.rows("SELECT query FROM pg_stat_activity WHERE datname = current_database()")
            child.process.kill()
            result = child.finish()

    assert "certjob run" in shown
    assert_says_nothing(shown, str(queries), result)


def test_a_crash_whose_text_is_full_of_secrets_is_not_printed(
    here: Certjob, facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it happened, and nothing of what was in the variables; nor is it kept in the database."""
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
                assert_says_nothing(result, everything_stored(facts))


def test_the_secrets_of_earlier_settings_are_forgotten() -> None:
    """They would mask words of a command that never knew them."""
    redaction.keep(["another"])
    redaction.keep(["planted"])

    assert redaction.without_secrets("name another one, planted") == "name another one, <secret>"

    redaction.keep([])
