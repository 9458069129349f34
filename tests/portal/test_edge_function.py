"""certjob, the real Edge Function under Deno, and a stand-in of Microsoft's services, over real HTTP.

The function is started once for all tests. Its details have their own tests in supabase/.
"""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from deno import find_deno_bin

from tests.portal.edge_function import FUNCTION, OFFLINE, EdgeFunction, deno_environment
from tests.portal.fake_dynamics import DAY_FIELD, PERSON, FakeDynamics, refusal
from tests.support.command_line import Finished
from tests.support.facts import Facts

KEY = "planted-sync-key-7-of-thirty-two-letters"
NEW_KEY = "planted-new-key-8-of-thirty-two-letters"
EVENTS = "SELECT status, attempts, visible FROM portal_sync_events"
FAILURES = "SELECT kind, attempts, error, correlation_id FROM dynamics_sync_failures WHERE resolved_at IS NULL"

Run = Callable[..., Finished]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[EdgeFunction, FakeDynamics]]:
    with FakeDynamics() as dynamics:
        settings = dynamics.settings | {"HLF_SYNC_KEY": KEY}
        with EdgeFunction(settings, folder=tmp_path_factory.mktemp("deno")) as function:
            yield function, dynamics


@pytest.fixture
def dynamics(running: tuple[EdgeFunction, FakeDynamics]) -> FakeDynamics:
    running[1].begin_anew()
    return running[1]


@pytest.fixture
def function(running: tuple[EdgeFunction, FakeDynamics]) -> Iterator[EdgeFunction]:
    """The running function with the right settings."""
    function, _ = running
    function.forget()
    yield function
    if function.changes:
        function.restart()


@pytest.fixture
def certjob(function: EdgeFunction, here: Run, tmp_path: Path) -> Run:
    """The command in this process, with all settings."""
    settings = {"CERTJOB_PORTAL_URL": function.url, "CERTJOB_PORTAL_KEY": KEY}
    settings["CERTJOB_NOTIFY_URL"] = f"maildir:{tmp_path / 'mail'}"

    def run(*arguments: str, code: int = 0, **changes: str) -> Finished:
        ended = here(*arguments, **settings | changes)
        assert ended.returncode == code, ended.stderr
        return ended

    return run


@pytest.fixture
def expired(facts: Facts, dynamics: FakeDynamics) -> list[UUID]:
    """The contacts of ten mentors, M1 to M10, whose certificates ended five days ago; Dynamics still shows them."""
    organisation = facts.organisation()
    ended_on = datetime.now(UTC).date() - timedelta(days=5)
    contacts = [uuid4() for _ in range(10)]
    for number, contact_id in enumerate(contacts, start=1):
        facts.certified_mentor(organisation, ended_on, contact_id=contact_id, member_no=f"M{number}")
    dynamics.contacts = dict.fromkeys(contacts, True)
    return contacts


def test_own_tests_of_the_function_pass(tmp_path: Path) -> None:
    """They need no file, no variable, and no network except loopback. `make lint` checks the types."""
    command = [find_deno_bin(), "test", *OFFLINE, "--no-check", "--allow-net=127.0.0.1"]
    environment = deno_environment(tmp_path)

    ended = subprocess.run(command, cwd=FUNCTION, env=environment, capture_output=True, text=True, check=False)

    assert ended.returncode == 0, ended.stdout[ended.stdout.find(" ERRORS ") :] + ended.stderr
    assert re.search(r"\b\d{3,} passed \| 0 failed", ended.stdout), ended.stdout


def test_run_hides_expired_mentors_and_reconcile_corrects_manual_changes(
    certjob: Run, function: EdgeFunction, dynamics: FakeDynamics, expired: list[UUID]
) -> None:
    """Four calls meet a cold start, and Entra gets one request. An expired token is replaced."""
    function.restart()

    night = certjob("run", "--json")
    certjob("run")

    assert json.loads(night.stdout)["portal"]["delivered"] == 10
    assert dynamics.contacts == dict.fromkeys(expired, False)
    assert (dynamics.token_requests, len(dynamics.patches)) == (1, 10)
    assert len({line["correlation_id"] for line in function.log}) == 10
    assert {line["idempotency_key"] for line in function.log} == {f"{number}-1" for number in range(1, 11)}

    dynamics.contacts = dict.fromkeys(expired, True)
    dynamics.tokens.clear()
    certjob("resync", "M3")
    assert (dynamics.contacts[expired[2]], dynamics.token_requests) == (False, 2)
    certjob("reconcile")
    assert dynamics.contacts == dict.fromkeys(expired, False)
    assert {line["status"] for line in function.log} == {200}


def test_wrong_setting_of_the_function_blocks_no_one(
    certjob: Run, function: EdgeFunction, dynamics: FakeDynamics, facts: Facts, expired: list[UUID]
) -> None:
    """No attempt is counted, and the next run delivers. During a change of keys both keys work."""
    for wrong, said in (
        ({"AZURE_CLIENT_SECRET": "planted-old-secret"}, "AADSTS7000215"),
        ({"HLF_SYNC_KEY": f"{KEY},short"}, "HLF_SYNC_KEY has fewer than 32 characters"),
        ({"DYNAMICS_VISIBILITY_FIELD": "hlf_VisibleOnPortal"}, "check DYNAMICS_VISIBILITY_FIELD"),
        ({"HLF_SYNC_KEY": NEW_KEY}, "check CERTJOB_PORTAL_KEY"),
    ):
        function.restart(**wrong)
        certjob("run", code=3)
        assert set(dynamics.contacts.values()) == {True}
        assert set(facts.rows(EVENTS)) == {("pending", 0, False)}
        ((kind, attempts, error, correlation_id),) = set(facts.rows(FAILURES))
        assert (kind, attempts, said in str(error)) == ("stage", 0, True)  # of the answer that ended the stage
        if said != "check CERTJOB_PORTAL_KEY":  # the log has one line a minute for wrong keys
            assert any(line.get("correlation_id") == correlation_id for line in function.log)

    function.restart(HLF_SYNC_KEY=f"{KEY},{NEW_KEY}")
    certjob("resync", "M1")
    certjob("run", CERTJOB_PORTAL_KEY=NEW_KEY)
    assert dynamics.contacts == dict.fromkeys(expired, False)
    assert facts.rows(FAILURES) == []


def test_push_sets_the_last_visible_day_in_dynamics(
    certjob: Run, function: EdgeFunction, dynamics: FakeDynamics, facts: Facts
) -> None:
    """A hide clears it. `certjob check` reports that the portal can hide on time."""
    contact_id, expires_on = uuid4(), datetime.now(UTC).date() + timedelta(days=300)
    facts.pause(facts.certified_mentor(facts.organisation(), expires_on, contact_id=contact_id))
    dynamics.contacts, dynamics.days = {contact_id: True}, {contact_id: "2026-01-01"}
    function.restart(DYNAMICS_VISIBLE_UNTIL_FIELD=DAY_FIELD)
    assert "can hide them without certjob" in certjob("check", "--json", code=3).stdout

    certjob("run")
    assert (dynamics.contacts, dynamics.days) == ({contact_id: False}, {contact_id: None})
    facts.connection.execute("UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'coordinator'")
    certjob("run")

    assert (dynamics.contacts, dynamics.days) == ({contact_id: True}, {contact_id: expires_on.isoformat()})


def test_failure_of_one_contact_delays_no_other_and_names_no_person(
    certjob: Run, function: EdgeFunction, dynamics: FakeDynamics, facts: Facts, expired: list[UUID]
) -> None:
    """One contact is unknown, one belongs to another business unit, and Dynamics throttles."""
    dynamics.faults = [refusal(429, "0x80072322", retry_after="1"), refusal(503, ""), refusal(503, "")]
    dynamics.faults += [refusal(403, "0x80048306"), refusal(412, "0x80060882"), refusal(500, "0x80040216")]
    del dynamics.contacts[expired[6]]

    outputs = [certjob("run", "-v", code=3), certjob("alerts", "--json", code=3), certjob("alerts", code=3)]

    assert (len(function.log), len(dynamics.patches)) == (13, 15)  # the function repeats a change after a 503
    assert expired[6] not in dynamics.contacts
    assert sorted(map(bool, dynamics.contacts.values())) == [False] * 8 + [True]
    assert facts.rows(EVENTS + " WHERE status <> 'delivered'") == [("blocked", 1, False)] * 2
    (line,) = [line for line in function.log if line["status"] == 404]
    error = "the portal answered 404 contact_not_found (Dynamics has no contact with this id)"
    assert ("permanent", 1, error, line["correlation_id"]) in facts.rows(FAILURES)
    assert "M7" in outputs[2].stdout

    dynamics.faults = [refusal(403, "0x80040220"), refusal(429, "0x80072321", retry_after="1900")]
    outputs += [certjob("resync", mentor, "-v", code=3) for mentor in ("M1", "M2")]
    assert "429 throttled" in outputs[-1].stderr
    codes = {"contact_not_found", "dynamics_rejected", "dynamics_unavailable", "misconfigured", "throttled"}
    assert {line["code"] for line in function.log if "code" in line} == codes
    written = function.output + "".join(output.stdout + output.stderr for output in outputs)
    assert not [secret for secret in (KEY, *dynamics.secrets) if secret in written]
    stored = function.output + str(facts.rows(FAILURES))
    assert not [person for person in (PERSON, "example.org", *map(str, expired)) if person in stored]
