"""certjob, the real Edge Function under Deno, and a stand-in of Microsoft's services: the whole way, over real HTTP."""

import json
import re
import socket
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import httpx
import pytest
from deno import find_deno_bin

from tests.conftest import Certjob
from tests.support.command_line import Finished, run_in_process
from tests.support.edge_function import FUNCTION, OFFLINE, EdgeFunction, deno_environment
from tests.support.facts import Facts
from tests.support.fake_dynamics import CLIENT_ID, FIELD, PERSON, TENANT, FakeDynamics, no_token, refusal
from tests.support.intents import make_due
from tests.support.waiting import until

KEY = "planted-sync-key-7-of-thirty-two-letters"
NEW_KEY = "planted-new-key-8-of-thirty-two-letters"
SENTENCE = "Dynamics sync pending — mentor may still be visible on portal"
EVENTS = "SELECT status, attempts, visible FROM portal_sync_events"
FAILURES = "SELECT kind, attempts, error, correlation_id FROM dynamics_sync_failures WHERE resolved_at IS NULL"


@pytest.fixture
def dynamics() -> Iterator[FakeDynamics]:
    with FakeDynamics() as dynamics:
        yield dynamics


@pytest.fixture
def function(dynamics: FakeDynamics, tmp_path: Path) -> Iterator[EdgeFunction]:
    """The function, still asleep."""
    settings = {
        "HLF_SYNC_KEY": KEY,
        "AZURE_TENANT_ID": TENANT,
        "AZURE_CLIENT_ID": CLIENT_ID,
        "AZURE_CLIENT_SECRET": dynamics.client_secret,
        "AZURE_AUTHORITY": dynamics.url,
        "DYNAMICS_URL": dynamics.url,
        "DYNAMICS_VISIBILITY_FIELD": FIELD,
    }
    with EdgeFunction(settings, folder=tmp_path) as function:
        yield function


@pytest.fixture
def settings(function: EdgeFunction, database_url: str, tmp_path: Path) -> dict[str, str]:
    """A cron line with everything set."""
    return {
        "CERTJOB_DATABASE_URL": database_url,
        "CERTJOB_PORTAL_URL": function.url,
        "CERTJOB_PORTAL_KEY": KEY,
        "CERTJOB_NOTIFY_URL": f"maildir:{tmp_path / 'mail'}",
    }


@pytest.fixture
def here(settings: dict[str, str], bare_environment: dict[str, str], tmp_path: Path) -> Certjob:
    """The command in this process."""

    def run(*arguments: str, **changes: str) -> Finished:
        return run_in_process(*arguments, environment=bare_environment | settings | changes, folder=tmp_path)

    return run


@pytest.fixture
def expired(facts: Facts, dynamics: FakeDynamics) -> list[UUID]:
    """The contacts of ten mentors, M1 to M10, whose certificates ended five days ago; Dynamics still shows them."""
    organisation = facts.organisation()
    ended_on = datetime.now(UTC).astimezone(ZoneInfo("Europe/Oslo")).date() - timedelta(days=5)
    contacts = [uuid4() for _ in range(10)]
    for number, contact_id in enumerate(contacts, start=1):
        facts.certified_mentor(organisation, ended_on, contact_id=contact_id, member_no=f"M{number}")
    dynamics.contacts = dict.fromkeys(contacts, True)
    return contacts


def test_the_functions_own_tests_pass(tmp_path: Path) -> None:
    """`deno test`, without a network beyond loopback, a file or a variable; `make lint` looks at the types."""
    ended = subprocess.run(
        [find_deno_bin(), "test", *OFFLINE, "--no-check", "--allow-net=127.0.0.1"],
        cwd=FUNCTION,
        env=deno_environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert re.search(r"\b\d{3,} passed \| 0 failed", ended.stdout), ended.stdout


def test_a_night_wakes_the_function_and_a_resync_puts_right_what_was_done_by_hand(
    certjob: Certjob, settings: dict[str, str], function: EdgeFunction, dynamics: FakeDynamics, expired: list[UUID]
) -> None:
    """Four calls meet the cold start at once, and Entra is asked for one token; one that ends is replaced."""
    night = certjob("run", "--json", **settings)
    again = certjob("run", "--json", **settings)

    assert (night.returncode, again.returncode) == (0, 0), night.stderr
    assert json.loads(night.stdout)["portal"]["delivered"] == 10
    assert dynamics.contacts == dict.fromkeys(expired, False)
    assert (function.cold_starts, dynamics.token_requests, len(dynamics.patches)) == (1, 1, 10)
    assert len({line["correlation_id"] for line in function.log}) == 10
    assert {line["idempotency_key"] for line in function.log} == {f"{number}-1" for number in range(1, 11)}

    dynamics.contacts[expired[2]] = dynamics.contacts[expired[3]] = True
    dynamics.expire_tokens()
    assert certjob("resync", "M3", **settings).returncode == 0
    assert (function.cold_starts, dynamics.token_requests) == (1, 2)
    function.fall_asleep()
    assert certjob("resync", "M4", **settings).returncode == 0
    assert (function.cold_starts, dynamics.token_requests) == (2, 3)
    assert dynamics.contacts == dict.fromkeys(expired, False)
    assert {line["status"] for line in function.log} == {200}


def test_throttling_and_a_short_outage_slow_a_night_down_and_fail_nothing(
    here: Certjob, function: EdgeFunction, dynamics: FakeDynamics, facts: Facts, expired: list[UUID]
) -> None:
    """Dataverse's Retry-After reaches certjob, which waits; what may succeed in a moment the function repeats."""
    dynamics.faults = [refusal(429, "0x80072322", retry_after="1")] * 2 + [refusal(503, "")] * 3

    night = here("run", "--json", CERTJOB_PORTAL_CONCURRENCY="1")

    assert night.returncode == 0, night.stderr
    assert dynamics.contacts == dict.fromkeys(expired, False)
    assert [line["code"] for line in function.log if line["status"] != 200] == ["throttled"] * 2
    assert (len(function.log), len(dynamics.patches)) == (12, 15)
    assert facts.rows(FAILURES) == []


def test_whoever_asks_for_a_long_wait_gets_it(
    here: Certjob, function: EdgeFunction, dynamics: FakeDynamics, facts: Facts, expired: list[UUID]
) -> None:
    """Entra's reaches certjob as 503 token_unavailable and is asked once, however many wait; no attempt is counted."""
    dynamics.entra_outage = no_token(429, "temporarily_unavailable", 90055, retry_after="700")
    night = here("run")
    assert night.returncode == 3
    assert "asked to wait 700 s" in night.stderr
    assert (dynamics.token_requests, dynamics.patches) == (1, [])
    assert set(facts.rows(EVENTS)) == {("pending", 0, False)}
    assert {row[3] for row in facts.rows(FAILURES)} < {line["correlation_id"] for line in function.log}

    function.fall_asleep()  # it remembers how long Entra asked to wait
    dynamics.entra_outage, dynamics.outage = None, refusal(429, "0x80072321", retry_after="1900")
    result = here("resync", "M1")
    assert result.returncode == 3
    assert "429 throttled" in result.stderr
    assert len(dynamics.patches) == 1
    assert set(facts.rows(EVENTS)) == {("pending", 0, False)}
    assert facts.rows(
        "SELECT max(round(extract(epoch FROM next_attempt_at - now()) / 100)) FROM portal_sync_events"
    ) == [(19,)]


def test_an_outage_of_dataverse_leaves_alerts_that_the_next_delivery_resolves(
    here: Certjob, function: EdgeFunction, dynamics: FakeDynamics, facts: Facts, expired: list[UUID]
) -> None:
    """Our state stays, each failure is found in the function's log by its id, and nothing is lost."""
    dynamics.outage = refusal(503, "0x80044151")

    night = here("run", CERTJOB_PORTAL_ATTEMPTS="1")

    assert night.returncode == 3
    assert set(dynamics.contacts.values()) == {True}
    assert facts.rows("SELECT count(*) FROM mentor_pauses WHERE lifted_at IS NULL") == [(10,)]
    failures = [row for row in facts.rows(FAILURES) if row[0] == "transient"]
    assert len(failures) >= 5  # the breaker's; the others were not tried
    assert {row[1:3] for row in failures} == {
        (1, "the portal answered 502 dynamics_unavailable (Dataverse does not work (503 0x80044151))")
    }
    known = {line["correlation_id"]: line["upstream"] for line in function.log}
    assert {known[str(row[3])] for row in facts.rows(FAILURES)} == {"dataverse 503 0x80044151"}
    assert SENTENCE in here("alerts").stdout

    dynamics.outage = None
    make_due(facts)
    delivered = here("deliver")

    assert delivered.returncode == 0, delivered.stderr
    assert dynamics.contacts == dict.fromkeys(expired, False)
    assert facts.rows(FAILURES) == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"AZURE_CLIENT_SECRET": "planted-old-secret"}, "AADSTS7000215"),
        ({"DYNAMICS_URL": None}, "DYNAMICS_URL is not set"),
        ({"HLF_SYNC_KEY": None}, "check CERTJOB_PORTAL_KEY"),
        ({"HLF_SYNC_KEY": f"{KEY},short"}, "HLF_SYNC_KEY has fewer than 32 characters"),
        ({"DYNAMICS_VISIBILITY_FIELD": "hlf_VisibleOnPortal"}, "check DYNAMICS_VISIBILITY_FIELD"),
    ],
    ids=["secret", "no address", "no key", "a key that could be guessed", "column"],
)
def test_a_wrong_setting_stops_the_stage_and_blocks_nobody(
    here: Certjob,
    function: EdgeFunction,
    dynamics: FakeDynamics,
    facts: Facts,
    expired: list[UUID],
    wrong: dict[str, str | None],
    said: str,
) -> None:
    """It concerns everybody: said once, no attempt counted; mended, everything goes out."""
    right = dict(function.settings)
    function.settings.update({name: value for name, value in wrong.items() if value})
    for name in wrong.keys() - {name for name, value in wrong.items() if value}:
        del function.settings[name]

    stopped = here("run")

    assert stopped.returncode == 3
    assert said in stopped.stderr
    assert set(dynamics.contacts.values()) == {True}
    assert set(facts.rows(EVENTS)) == {("pending", 0, False)}
    failures = facts.rows(FAILURES)
    assert {row[:2] for row in failures} == {("stage", 0)}
    [correlation_id] = {row[3] for row in failures}  # one answer ended the stage; the function's log has it
    assert any(line.get("correlation_id") == correlation_id for line in function.log)

    function.fall_asleep()
    function.settings.update(right)
    assert here("run").returncode == 0
    assert dynamics.contacts == dict.fromkeys(expired, False)
    assert facts.rows(FAILURES) == []


def test_one_contact_that_is_refused_holds_up_nobody_else(
    here: Certjob, function: EdgeFunction, dynamics: FakeDynamics, facts: Facts, expired: list[UUID]
) -> None:
    """Dynamics does not know one, and it is not created; another belongs to a business unit of others."""
    dynamics.faults = [refusal(403, "0x80048306")]
    del dynamics.contacts[expired[6]]

    night = here("run")

    assert night.returncode == 3
    assert expired[6] not in dynamics.contacts
    assert sorted(map(bool, dynamics.contacts.values())) == [False] * 8 + [True]
    assert facts.rows(EVENTS + " WHERE status <> 'delivered'") == [("blocked", 1, False)] * 2
    [line] = [line for line in function.log if line["status"] == 404]
    error = "the portal answered 404 contact_not_found (Dynamics has no contact with this id)"
    assert ("permanent", 1, error, line["correlation_id"]) in facts.rows(FAILURES)
    alerts = here("alerts").stdout
    assert "M7" in alerts
    assert alerts.count(SENTENCE) == 2


def test_both_keys_work_while_they_are_changed_and_then_only_the_new_one(
    here: Certjob, function: EdgeFunction, expired: list[UUID]
) -> None:
    """No push is lost at any step of the rotation."""
    function.settings["HLF_SYNC_KEY"] = f"{KEY},{NEW_KEY}"
    assert here("resync", "M1").returncode == 0
    assert here("resync", "M2", CERTJOB_PORTAL_KEY=NEW_KEY).returncode == 0

    function.fall_asleep()
    function.settings["HLF_SYNC_KEY"] = NEW_KEY
    late = here("resync", "M3")

    assert late.returncode == 3
    assert "; check CERTJOB_PORTAL_KEY" in late.stderr
    assert here("deliver", CERTJOB_PORTAL_KEY=NEW_KEY).returncode == 0


def test_the_function_answers_whoever_only_looks(function: EdgeFunction, dynamics: FakeDynamics) -> None:
    """GET with the key is 200 and touches nobody; without it, 401; both have an id."""
    with httpx.Client(trust_env=False) as client:
        answers = [client.get(function.url, headers={"Authorization": f"Bearer {key}"}) for key in (KEY, "wrong")]

    assert [answer.status_code for answer in answers] == [200, 401]
    assert answers[0].json() == {"ok": True}
    assert all(UUID(answer.headers["X-Correlation-Id"]) for answer in answers)
    assert dynamics.token_requests == 0


def test_nothing_is_repeated_for_a_caller_who_is_gone(function: EdgeFunction, dynamics: FakeDynamics) -> None:
    """certjob gave the call up; by the time of a repeat it may have sent a newer value."""
    dynamics.outage = refusal(503, "", retry_after="2")
    body = json.dumps({"contact_id": str(uuid4()), "visible": True}).encode()
    head = (
        f"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )

    with socket.create_connection(("127.0.0.1", urlsplit(function.url).port or 0)) as caller:
        caller.sendall(head.encode() + body)
        dynamics.wait_for_patches(1)
    until(lambda: function.log)

    assert len(dynamics.patches) == 1
    assert function.log[0]["code"] == "dynamics_unavailable"


def test_no_secret_and_no_person_reaches_a_log_or_a_terminal(
    here: Certjob, function: EdgeFunction, dynamics: FakeDynamics, facts: Facts, expired: list[UUID]
) -> None:
    """A night in which much goes wrong, on both sides of the function."""
    dynamics.faults = [refusal(412, "0x80060882"), refusal(500, "0x80040216")]
    del dynamics.contacts[expired[9]]
    outputs = [here("run", "-v"), here("alerts", "--json")]
    for number, fault in enumerate([refusal(400, "0x80040265"), refusal(403, "0x80040220")], start=1):
        dynamics.faults = [fault]
        outputs.append(here("resync", f"M{number}", "-v"))

    written = "\n".join([*function.output, *(text for output in outputs for text in (output.stdout, output.stderr))])

    assert {line["code"] for line in function.log if "code" in line} == {
        "contact_not_found",
        "dynamics_rejected",
        "dynamics_unavailable",
        "misconfigured",
    }
    for secret in (KEY, dynamics.client_secret, CLIENT_ID, "planted-token"):
        assert secret not in written
    said = "\n".join([*function.output, *(str(row) for row in facts.rows(FAILURES))])
    for person in (PERSON, "example.org", *map(str, expired)):
        assert person not in said
