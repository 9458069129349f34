"""docs/json.md has every key that a command prints, and no other."""

import itertools
import json
import re
import shlex
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from pytest_httpserver import HTTPServer

from certjob import errors
from certjob.domain import rules
from certjob.domain.models import Decision, Mentor
from tests.conftest import Certjob
from tests.support.command_line import commands, today
from tests.support.docs import read
from tests.support.facts import Facts
from tests.support.portal_answers import error, ok
from tests.support.portal_server import PortalServer

SECTIONS = dict(re.findall(r"^## (.+)\n((?:(?!## ).*\n)*)", read("docs/json.md"), flags=re.MULTILINE))
IN_EVERY_DOCUMENT = {"outcome", "error.code", "error.message", "error.next_step"}
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?\+00:00")
IDS = ("run_id", "mentor_id", "certificate_id", "organisation_id", "contact_id")


def rows(title: str) -> Iterator[tuple[str, set[str]]]:
    """Yield the keys of a section, each with the commands of its row (none: all); ``a.{b,c}`` is two keys."""
    for keys, only_in in re.findall(r"^\| (`[^|]+`) \|(?: (in .+?) \|)?", SECTIONS[title], flags=re.MULTILINE):
        for key in re.findall("`([^`]+)`", keys):
            for words in itertools.product(*(piece.split(",") for piece in re.split(r"[{}]", key))):
                yield "".join(words), set(re.findall(r"`([^`]+)`", only_in))


def documented_keys() -> dict[str, set[str]]:
    """Return the keys on the page by command."""
    found: dict[str, set[str]] = defaultdict(set)
    for title in SECTIONS:
        titled = set(re.findall(r"`certjob ([^`]+)`", title))
        for key, only_in in rows(title) if titled else ():
            assert only_in <= titled, f"{key} in {only_in}"
            for command in only_in or titled:
                found[command].add(key)
    return found


DOCUMENTED = documented_keys()


def items(value: object, path: str = "", key: str = "") -> Iterator[tuple[str, str, Any]]:
    """Yield each value of a document with its path, such as ``changes[].pause``, and its key."""
    yield path, key, value
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from items(inner, f"{path}.{name}" if path else name, name)
    elif isinstance(value, list):
        yield f"{path}[]", key, None
        for inner in value:
            yield from items(inner, f"{path}[]", key)


def paths(document: object) -> set[str]:
    return {path for path, _, _ in items(document) if path}


def containers(found: set[str]) -> set[str]:
    return {path[: dot.start()] for path in found for dot in re.finditer(r"\.|\[\]", path)}


def assert_form(document: object) -> None:
    """Check the forms that the top of the page promises for every document."""
    for _, key, value in items(document):
        if isinstance(value, dict):
            assert value.get("mentor_id") is None or {"member_no", "organisation"} <= value.keys(), value
            assert "organisation_id" not in value or "organisation" in value, value
        elif value is None or isinstance(value, list):
            continue
        elif key.endswith("_on"):
            assert date.fromisoformat(str(value)).isoformat() == value, (key, value)
        elif key in IDS:
            assert str(UUID(str(value))) == value, (key, value)
        elif key.endswith("_at") or re.match(r"\d{4}-\d\d-\d\d[T ]\d\d:", str(value)):
            assert TIME.fullmatch(str(value)), (key, value)


@pytest.fixture
def printed() -> dict[str, set[str]]:
    """The printed keys by command."""
    return defaultdict(set)


@pytest.fixture
def run(here: Certjob, worker_url: str, printed: dict[str, set[str]]) -> Callable[..., Any]:
    """Run commands as certjob_worker; return the last document."""

    def run(*lines: str, **settings: str) -> Any:
        for line in lines:
            finished = here(*shlex.split(line), "--json", **{"CERTJOB_DATABASE_URL": worker_url} | settings)
            document = json.loads(finished.stdout)
            assert finished.returncode == {"ok": 0, "attention": 3}[document["outcome"]], finished
            assert_form(document)
            printed[max((name for name in DOCUMENTED if f"{line} ".startswith(f"{name} ")), key=len)] |= paths(document)
        return document

    return run


def add_mentors(facts: Facts) -> None:
    """Add mentors with a pause, reminders, a push and a digest that are due, one whom the rules break, and too many."""
    much = facts.organisation("much")
    for _ in range(21):
        facts.certified_mentor(much, today() - timedelta(days=1))
    hlf = facts.organisation("hlf", optional_kinds=["kursleder"])
    facts.certified_mentor(hlf, today() - timedelta(days=1), member_no="M1")
    facts.certified_mentor(hlf, today() + timedelta(days=7), member_no="M2", email=None)
    facts.certified_mentor(hlf, today() + timedelta(days=30), member_no="BROKEN")
    facts.pause(facts.certified_mentor(hlf, today() + timedelta(days=400), member_no="M4"))
    facts.insert("coordinators", organisation_id=hlf, email="no address")


DEFER_AND_EXTEND = """
    -- A reminder was deferred for two days. Each reminder was about another date before the certificate was extended.
    INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on, queued_at, next_attempt_at)
        SELECT mentor_id, 99, c.id, expires_on, now() - interval '2 days', now() + interval '1 hour'
        FROM certificates AS c JOIN mentors AS m ON m.id = c.mentor_id WHERE m.member_no = 'M4';
    UPDATE cert_notification_log SET history = jsonb_build_array(jsonb_build_object('expires_on', '2020-01-01',
        'status', 'sent', 'queued_at', now(), 'sent_at', now(), 'attempts', 1, 'maybe_sent', false,
        'last_error', null));
"""
ADD_TOO_MANY_CERTIFICATES = """
    -- certjob reads at most 200, and a trigger rejects more.
    SET LOCAL session_replication_role = replica;
    INSERT INTO certificates (mentor_id, kind, issued_on, expires_on)
        SELECT m.id, 'kurs' || n, '2024-01-01', '2099-01-01' FROM mentors AS m, generate_series(1, 201) AS n
        WHERE member_no = 'M5';
"""


def reconcile_in_every_way(run: Callable[..., Any], facts: Facts, portal: PortalServer) -> None:
    """Reconcile with a portal that cannot be read, with an unknown contact, and with too many contacts to show."""
    run("reconcile")
    nhf = facts.organisation("nhf")
    contacts = [uuid4() for _ in range(22)]
    for contact_id in contacts:
        facts.certified_mentor(nhf, today() + timedelta(days=400), contact_id=contact_id)
    run("run")
    portal.default, portal.visible = ok(), {uuid4(): True}
    assert run("reconcile --dry-run")["held"]
    assert run("reconcile")["held"]
    portal.visible |= dict.fromkeys(contacts, True) | {contacts[0]: False}
    assert run("reconcile --dry-run")["changes"]
    portal.visible[uuid4()] = True
    run("reconcile")


def test_page_has_every_printed_key_and_no_other(
    run: Callable[..., Any],
    printed: dict[str, set[str]],
    portal: PortalServer,
    facts: Facts,
    here: Certjob,
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every command runs in every form that has a document of its own."""
    decide = rules.decide

    def decide_or_break(mentor: Mentor, today: date) -> Decision:
        if mentor.member_no == "BROKEN":
            raise ValueError
        return decide(mentor, today)

    monkeypatch.setattr(rules, "decide", decide_or_break)
    portal.default = error(503, "dynamics_unavailable")
    add_mentors(facts)
    (tmp_path / "people.csv").write_text(
        "organisation,member_no,kind,issued_on,expires_on\nhlf,M9,likeperson,2024-01-01,2099-01-01\n"
    )

    run("run --dry-run", "run")
    facts.connection.execute(DEFER_AND_EXTEND)
    run("resync M1", "resync BROKEN", "explain M1", "explain M2", "preview M2")
    facts.mentor(facts.organisation("lhf", portal=None), member_no="M5")
    facts.connection.execute(ADD_TOO_MANY_CERTIFICATES)
    run("alerts", "forecast", "list", "organisation list", "status", "bounces")
    run("check", CERTJOB_PORTAL_URL="")
    run("deliver", "alerts --retry-all")
    reconcile_in_every_way(run, facts, portal)
    facts.connection.execute("UPDATE portal_last_reading SET read_at = now() - interval '4 days'")
    alerts = run("alerts", "alerts --retry-all", "load people.csv", "alerts")["alerts"]
    run(f"acknowledge '{alerts[0]['alert_id']}' --because read --until {today()}", "alerts --acknowledged")
    run("organisation set lhl --coordinator 'Kari <kari@example.org>' --optional-kind kurs", "organisation show lhl")
    run("organisation set lhl --thresholds 90", "db prune --older-than 3y", "edge-function functions")
    run("db migrate", CERTJOB_DATABASE_URL=database_url)

    assert printed.keys() == DOCUMENTED.keys()
    for command, keys in DOCUMENTED.items():
        found = printed[command]
        assert found - containers(found) - keys <= IN_EVERY_DOCUMENT, f"certjob {command} prints more"
        assert keys - found == set(), f"certjob {command} does not print all keys"
    with_json = {name.removeprefix("certjob ") for name, options in commands().items() if "--json" in options}
    assert {re.sub(r" --.*", "", command) for command in DOCUMENTED} == with_json
    assert paths(json.loads(here("run", "--json", CERTJOB_TIME_ZONE="Mars").stdout)) - {"error"} == IN_EVERY_DOCUMENT


def test_page_has_every_error_code_and_every_cause() -> None:
    """No command ends with a DeliveryError; ``crash`` is an error without a class."""

    def codes(kind: type[errors.CertjobError]) -> set[str]:
        return {kind.code}.union(*(codes(each) for each in kind.__subclasses__() if each is not errors.DeliveryError))

    assert {key for key, _ in rows("Errors")} == codes(errors.CertjobError) | {"crash"}
    assert [key for key, _ in rows("Causes")] == [cause.value for cause in errors.Cause]


def test_log_lines_of_the_monitoring_page_have_the_keys_of_the_log(
    facts: Facts, here: Certjob, portal: PortalServer
) -> None:
    facts.certified_mentor(facts.organisation(), date(2025, 1, 1))
    portal.default = error(404, "contact_not_found")

    result = here("run", "-v", CERTJOB_LOG_FORMAT="json")

    written = {line["event"]: [*line] for line in map(json.loads, result.stderr.splitlines())}
    page = read("docs/monitoring.md").splitlines()
    examples = [json.loads(line) for line in page if line.startswith('    {"time"')]
    assert [(line["event"], [*line]) for line in examples] == [
        (event, written[event]) for event in ("event_failed", "attention")
    ]


def test_page_has_the_body_and_the_headers_of_the_webhook(
    run: Callable[..., Any], facts: Facts, httpserver: HTTPServer
) -> None:
    """For a reminder and for a digest."""
    add_mentors(facts)
    facts.connection.execute("UPDATE coordinators SET email = 'ola@example.org'")
    httpserver.expect_request("/").respond_with_data("")

    run("run", CERTJOB_PORTAL_URL="", CERTJOB_NOTIFY_URL=httpserver.url_for("/"), CERTJOB_NOTIFY_PASSWORD="planted")

    received = {request.json["kind"]: request for request, _ in httpserver.log}
    assert received.keys() == {"reminder", "digest"}
    for kind, request in received.items():
        assert set(request.json) == {key for key, only_in in rows("The webhook") if kind in only_in or not only_in}
        assert {"Authorization", "Idempotency-Key"} <= set(dict(request.headers))
