"""certjob, the real Edge Function under Deno, and a stand-in of Microsoft's services, over real HTTP.

The details of the function have their own tests in supabase/.
"""

import json
import re
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from deno import find_deno_bin

from tests.conftest import Certjob
from tests.portal.edge_function import FUNCTION, OFFLINE, deno_environment, edge_function
from tests.portal.fake_dynamics import CLIENT_SECRET, PERSON, TOKEN, FakeDynamics, rejection
from tests.support.command_line import today
from tests.support.facts import Facts

LOG = "function.log"
KEY = "planted-sync-key-7-of-thirty-two-letters"
FAILURES = "SELECT kind, attempts, error, correlation_id FROM dynamics_sync_failures WHERE resolved_at IS NULL"


def test_own_tests_of_the_function_pass(tmp_path: Path) -> None:
    """They need no file, no variable, and no network except loopback. `make lint` checks the types."""
    command = [find_deno_bin(), "test", "--parallel", *OFFLINE, "--no-check", "--allow-net=127.0.0.1"]
    environment = deno_environment(tmp_path)

    ended = subprocess.run(command, cwd=FUNCTION, env=environment, capture_output=True, text=True, check=False)

    assert ended.returncode == 0, ended.stdout[ended.stdout.find(" ERRORS ") :] + ended.stderr
    assert re.search(r"\b\d{3,} passed \| 0 failed", ended.stdout), ended.stdout


@pytest.fixture
def dynamics() -> Iterator[FakeDynamics]:
    with FakeDynamics() as dynamics:
        yield dynamics


@pytest.fixture
def certjob(dynamics: FakeDynamics, here: Certjob, tmp_path: Path) -> Iterator[Certjob]:
    """Run the command in this process, with the running function as its portal."""
    mail = {"CERTJOB_NOTIFY_URL": f"maildir:{tmp_path / 'mail'}"}
    with edge_function(dynamics.settings | {"HLF_SYNC_KEY": KEY}, log=tmp_path / LOG) as url:
        settings = mail | {"CERTJOB_PORTAL_URL": url, "CERTJOB_PORTAL_KEY": KEY}
        yield lambda *arguments, **changes: here(*arguments, **settings | changes)


@pytest.fixture
def expired(facts: Facts, dynamics: FakeDynamics) -> list[UUID]:
    """The contacts of M1 to M4, whose certificates ended five days ago. Dynamics still shows them."""
    organisation = facts.organisation()
    contacts = [uuid4() for _ in range(4)]
    for number, contact_id in enumerate(contacts, start=1):
        facts.certified_mentor(organisation, today() - timedelta(days=5), contact_id=contact_id, member_no=f"M{number}")
    dynamics.contacts = dict.fromkeys(contacts, True)
    return contacts


def test_run_hides_mentors_and_reconcile_corrects_manual_changes(
    certjob: Certjob, dynamics: FakeDynamics, facts: Facts, expired: list[UUID]
) -> None:
    """The first four calls meet a cold function, which asks for one token. A show has its last visible day."""
    assert certjob("run").returncode == 0
    assert dynamics.contacts == dict.fromkeys(expired, False)
    assert dynamics.token_requests == 1

    renewed, edited, *_ = expired
    until = today() + timedelta(days=300)
    facts.connection.execute(
        "UPDATE certificates SET expires_on = %s FROM mentors AS m WHERE m.id = mentor_id AND dynamics_contact_id = %s",
        (until, renewed),
    )
    assert certjob("run").returncode == 0
    dynamics.contacts[edited] = True
    assert certjob("reconcile").returncode == 0

    assert dynamics.contacts == dict.fromkeys(expired, False) | {renewed: True}
    assert dynamics.days == dict.fromkeys(expired) | {renewed: until.isoformat()}
    assert "can hide them without certjob" in certjob("check", "--json").stdout


def test_failure_in_dynamics_is_recorded_without_names_and_secrets(
    certjob: Certjob, dynamics: FakeDynamics, facts: Facts, expired: list[UUID], tmp_path: Path
) -> None:
    """A wrong secret, an unknown contact, and throttling of a resync. Dynamics puts PERSON into each error."""
    dynamics.accepts_secret = False
    outputs = [certjob("run", "-v")]
    assert {(kind, attempts) for kind, attempts, *_ in facts.rows(FAILURES)} == {("stage", 0)}
    assert "AADSTS7000215" in str(facts.rows(FAILURES))
    dynamics.accepts_secret = True
    *known, unknown = expired
    del dynamics.contacts[unknown]
    outputs.append(certjob("run", "-v"))
    assert dynamics.contacts == dict.fromkeys(known, False)
    ((kind, attempts, error, correlation_id),) = facts.rows(FAILURES)
    assert (kind, attempts) == ("permanent", 1)
    assert error == "the portal answered 404 contact_not_found (Dynamics has no contact with this id)"
    dynamics.fault = rejection(429, "0x80072321", retry_after="1900")
    outputs.append(certjob("resync", "M1", "-v"))
    assert "429 throttled" in outputs[-1].stderr

    assert [output.returncode for output in outputs] == [3, 3, 3]
    log = (tmp_path / LOG).read_text()
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert [line["correlation_id"] for line in lines if line["status"] == 404] == [correlation_id]
    for personal in (PERSON, "example.org", *map(str, expired)):
        assert personal not in log + str(error)
    written = log + "".join(output.stdout + output.stderr for output in outputs)
    for secret in (KEY, CLIENT_SECRET, TOKEN):
        assert secret not in written
