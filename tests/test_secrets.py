"""No output has a secret or an address, even if everything fails and servers quote what they were sent."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from aiosmtpd.smtp import AuthResult

from certjob.settings import load_settings
from tests.conftest import Certjob
from tests.support.command_line import Finished, today
from tests.support.facts import Facts
from tests.support.portal_answers import Behaviour, answer, error
from tests.support.portal_server import PortalServer
from tests.support.smtp_server import CERTIFICATE, Mailbox, real_server, server_tls

DATABASE_PASSWORD = "planted-database-5Q"
PORTAL_KEY = "planted-portal-7W"
NOTIFY_PASSWORD = "planted-notify-9E"
NOTIFY_USER = "planted-user-3R"
SECRETS = (DATABASE_PASSWORD, PORTAL_KEY, NOTIFY_PASSWORD, NOTIFY_USER)
PEOPLE = ("kari.hemmelig", "ola.hemmelig", "eva.hemmelig")
"""The local parts of all addresses in the database."""


def assert_nothing_private(*results: Finished | str) -> None:
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
    """Return the environment of ``here``: every setting with a secret, without the servers."""
    return bare_environment | {
        "CERTJOB_DATABASE_URL": psycopg.conninfo.make_conninfo(worker_url, password=DATABASE_PASSWORD),
        "CERTJOB_PORTAL_KEY": PORTAL_KEY,
        "CERTJOB_NOTIFY_URL": "maildir:mail",
        "CERTJOB_NOTIFY_USER": NOTIFY_USER,
        "CERTJOB_NOTIFY_PASSWORD": NOTIFY_PASSWORD,
        "CERTJOB_MAIL_FROM": "post@hlf.example",
        "SSL_CERT_FILE": str(CERTIFICATE),
    }


def everything_stored(facts: Facts) -> str:
    """Return everything that certjob has stored about its work, as text."""
    queues = ("portal_sync_events", "cert_notification_log", "coordinator_digests")
    tables = ("job_runs", "dynamics_sync_failures", *queues)
    return json.dumps([facts.rows(f"SELECT to_jsonb(t)::text FROM {table} AS t") for table in tables])


SAID = f"Bearer {PORTAL_KEY} may not touch kari.hemmelig@example.org"


@pytest.mark.parametrize(
    "quote",
    [
        pytest.param(error(401, "unauthorized", message=SAID), id="the key is rejected"),
        pytest.param(error(422, "dynamics_rejected", message=SAID), id="the contact is rejected"),
        pytest.param(answer(302, headers={"Location": f"https://x.example/?key={PORTAL_KEY}"}), id="redirect"),
        pytest.param(answer(200, {"contact_id": PORTAL_KEY, "visible": SAID}), id="wrong confirmation"),
    ],
)
def test_portal_that_quotes_secrets_is_not_quoted(here: Certjob, facts: Facts, quote: Behaviour) -> None:
    """The lines and the stored rows have neither the key nor an address."""
    with PortalServer(key=PORTAL_KEY, default=quote) as portal:
        result = here("run", "-v", CERTJOB_PORTAL_URL=portal.url)

    assert (result.returncode, len(portal.requests) > 0) == (3, True)
    assert_nothing_private(result, here("alerts", "-v"), everything_stored(facts))


def test_run_in_which_everything_fails_prints_no_secret(here: Certjob, facts: Facts) -> None:
    """The portal rejects the key, the mail server rejects the login and quotes it. Later commands show the errors."""

    def reject(*_login: object) -> AuthResult:
        said = f"535 no {NOTIFY_USER} {NOTIFY_PASSWORD} for kari.hemmelig@example.org"
        return AuthResult(success=False, handled=False, message=said)

    with (
        PortalServer(key="another") as portal,
        real_server(Mailbox(), tls_context=server_tls(), authenticator=reject) as mail,
    ):
        settings = {"CERTJOB_PORTAL_URL": portal.url, "CERTJOB_NOTIFY_URL": f"smtp://localhost:{mail.port}"}
        run, alerts = here("run", "-v", **settings), here("alerts", "--json", "-v", **settings)
        check, status = here("check", "-v", **settings), here("status", "--json", "-v", **settings)

    assert run.returncode == 3
    for why in ("check CERTJOB_PORTAL_KEY", "rejected the login", "CERTJOB_NOTIFY_PASSWORD"):
        assert why in run.stderr
    assert_nothing_private(run, alerts, check, status, everything_stored(facts))


def test_bad_rows_are_not_quoted(here: Certjob, tmp_path: Path) -> None:
    """The problems of a file have its lines and columns, not its cells."""
    address = "kari.hemmelig@example.org"
    lines = [
        "organisation,member_no,full_name,email,dynamics_contact_id,kind,issued_on,expires_on",
        f"{address},M1,Kari,,,likeperson,2024-01-01,2026-01-01",
        f"hlf,M1,Kari,,{address},likeperson,2024-01-01,2026-01-01",
        f"hlf,M1,Kari,,,likeperson,{address},2026-01-01",
        "hlf,M1,Kari,kari.hemmelig@@example.org,,likeperson,2024-01-01,2026-01-01",
        address,
    ]
    (tmp_path / "people.csv").write_text("\n".join(lines))

    result = here("load", "people.csv", "-v", "--json")

    assert (result.returncode, "rows were skipped" in result.stderr) == (3, True)
    assert_nothing_private(result)


def test_printed_settings_have_no_secret(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A log line or a debugger may print the object."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    settings = load_settings()

    secrets = {PORTAL_KEY, NOTIFY_PASSWORD, DATABASE_PASSWORD}
    assert secrets <= {*settings.secrets()}
    assert not any(secret in f"{settings} {settings!r} {settings.model_dump()}" for secret in secrets)


@pytest.mark.parametrize(
    "broken",
    [
        "certjob.portal.hlf_dynamics.HLFDynamicsSyncService.update_portal_visibility",
        "certjob.review.certification.decide_each",
        "certjob.database.connect",
    ],
)
def test_unexpected_error_has_no_secret(
    here: Certjob, facts: Facts, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """Its text and its traceback are printed without secrets, and stored without them."""
    address = "@".join(("kari" + ".hemmelig", "example.org"))  # Python 3.13 shows this source in a traceback

    def crash(*_arguments: Any, **_keywords: Any) -> None:
        message = f"it broke with {SECRETS[:3]} for {address}"
        raise RuntimeError(message)

    monkeypatch.setattr(broken, crash)
    with PortalServer(key=PORTAL_KEY) as portal:
        result = here("run", "-v", "--json", CERTJOB_PORTAL_URL=portal.url)

    assert result.returncode == 1, result
    assert "it broke with" in result.stdout + result.stderr
    assert_nothing_private(result, everything_stored(facts))
