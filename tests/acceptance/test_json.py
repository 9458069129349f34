"""docs/json.md is held to the code: every key that a command prints is on the page, and the page promises no other.

The documents come from the door, the command itself, in a programme in which everything happens that one can tell of.
"""

import itertools
import json
import re
import shlex
from collections.abc import Iterator
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
"""The parts of the page by their titles."""
COMMON = {"outcome", "error.code", "error.message", "error.next_step"}
"""What the page says once, for the documents of all commands."""
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?\+00:00")
IDS = ("run_id", "mentor_id", "certificate_id", "organisation_id", "contact_id")
NEVER_AN_END = (errors.DeliveryError,)
"""No command ends by these."""


def rows(title: str) -> Iterator[tuple[str, set[str]]]:
    """The keys of one part, each with the names that its row is for (none: for all); ``a.{b,c}`` is two keys."""
    for keys, only_in in re.findall(r"^\| (`[^|]+`) \|(?: (in .+?) \|)?", SECTIONS[title], flags=re.MULTILINE):
        for key in re.findall("`([^`]+)`", keys):
            pieces = [piece.split(",") for piece in re.split(r"[{}]", key)]
            for words in itertools.product(*pieces):
                yield "".join(words), set(re.findall(r"`([^`]+)`", only_in))


def promised() -> dict[str, set[str]]:
    """The keys on the page by command."""
    found: dict[str, set[str]] = {}
    for title in SECTIONS:
        titled = set(re.findall(r"`certjob ([^`]+)`", title))
        for key, only_in in rows(title) if titled else ():
            assert only_in <= titled, f"{key} in {only_in}"
            for command in only_in or titled:
                found.setdefault(command, set()).add(key)
    return found


PROMISED = promised()


def places(value: object, path: str = "", key: str = "") -> Iterator[tuple[str, str, Any]]:
    """What stands where, such as at ``mentors.reviewed`` and ``changes[].pause``, and under which key; null, too."""
    yield path, key, value
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from places(inner, f"{path}.{name}" if path else name, name)
    elif isinstance(value, list):
        yield f"{path}[]", key, None
        for inner in value:
            yield from places(inner, f"{path}[]", key)


def key_paths(document: object) -> set[str]:
    return {path for path, _, _ in places(document) if path}


def containers(paths: set[str]) -> set[str]:
    """What holds others. The page may have something to say of it, such as when it is null."""
    return {path[: found.start()] for path in paths for found in re.finditer(r"\.|\[\]", path)}


def assert_form(document: object) -> None:
    """What holds for every document and all that is in it: see the top of the page."""
    for _, key, value in places(document):
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


class Programme:
    """Types commands as certjob_worker, and keeps the places in their documents by the commands' names on the page."""

    def __init__(self, here: Certjob, worker_url: str) -> None:
        self._here = here
        self._settings = {"CERTJOB_DATABASE_URL": worker_url}
        self.printed: dict[str, set[str]] = {}

    def run(self, *lines: str, **settings: str) -> Any:
        """Run these commands; the last one's document."""
        for line in lines:
            finished = self._here(*shlex.split(line), "--json", **self._settings | settings)
            document = json.loads(finished.stdout)
            assert finished.returncode == {"ok": 0, "attention": 3}[document["outcome"]], finished
            assert_form(document)
            name = max((name for name in PROMISED if f"{line} ".startswith(f"{name} ")), key=len)
            self.printed.setdefault(name, set()).update(key_paths(document))
        return document


@pytest.fixture
def programme(here: Certjob, worker_url: str) -> Programme:
    return Programme(here, worker_url)


def furnish(facts: Facts) -> None:
    """A programme in which a pause, reminders, a push, a digest, too much at once and a broken mentor are due."""
    much = facts.organisation("much")
    for _ in range(21):
        facts.certified_mentor(much, today() - timedelta(days=1))
    hlf = facts.organisation("hlf", optional_kinds=["kursleder"])
    facts.certified_mentor(hlf, today() - timedelta(days=1), member_no="M1")
    facts.certified_mentor(hlf, today() + timedelta(days=7), member_no="M2", email=None)
    facts.certified_mentor(hlf, today() + timedelta(days=30), member_no="BROKEN")
    facts.pause(facts.certified_mentor(hlf, today() + timedelta(days=400), member_no="M4"))
    facts.insert("coordinators", organisation_id=hlf, email="no address")


LATER = """
    -- A reminder has been deferred for two days; each was about another date before, as after an extension in place.
    INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on, queued_at, next_attempt_at)
        SELECT mentor_id, 99, c.id, expires_on, now() - interval '2 days', now() + interval '1 hour'
        FROM certificates AS c JOIN mentors AS m ON m.id = c.mentor_id WHERE m.member_no = 'M4';
    UPDATE cert_notification_log SET history = jsonb_build_array(jsonb_build_object('expires_on', '2020-01-01',
        'status', 'sent', 'queued_at', now(), 'sent_at', now(), 'attempts', 1, 'maybe_sent', false,
        'last_error', null));
"""
CROWD = """
    -- A mentor with more certificates than certjob reads, from before there was a bound.
    SET LOCAL session_replication_role = replica;
    INSERT INTO certificates (mentor_id, kind, issued_on, expires_on)
        SELECT m.id, 'kurs' || n, '2024-01-01', '2099-01-01' FROM mentors AS m, generate_series(1, 201) AS n
        WHERE member_no = 'M5';
"""
READ_DAYS_AGO = "UPDATE portal_last_reading SET read_at = now() - interval '4 days'"


def reconcile_in_every_way(programme: Programme, facts: Facts, portal: PortalServer) -> None:
    """The portal cannot be read; it shows somebody unknown; and too many are to be shown at once."""
    run = programme.run
    run("reconcile")
    nhf = facts.organisation("nhf")
    contacts = [uuid4() for _ in range(22)]
    for contact_id in contacts:
        facts.certified_mentor(nhf, today() + timedelta(days=400), contact_id=contact_id)
    run("run")
    portal.default = ok()
    unknown = uuid4()
    portal.visible = {unknown: True}
    assert run("reconcile --dry-run")["held"]
    assert run("reconcile")["held"]
    portal.visible |= dict.fromkeys(contacts, True) | {contacts[0]: False}
    assert run("reconcile --dry-run")["changes"]
    portal.visible[uuid4()] = True
    run("reconcile")


def test_the_page_has_every_key_that_is_printed_and_no_other(
    programme: Programme,
    portal: PortalServer,
    facts: Facts,
    here: Certjob,
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One morning of one programme: every command, in every form that has a document of its own."""
    run, decide = programme.run, rules.decide

    def decide_or_break(mentor: Mentor, today: date) -> Decision:
        if mentor.member_no == "BROKEN":
            raise ValueError
        return decide(mentor, today)

    monkeypatch.setattr(rules, "decide", decide_or_break)
    portal.default = error(503, "dynamics_unavailable")
    furnish(facts)
    (tmp_path / "people.csv").write_text(
        "organisation,member_no,kind,issued_on,expires_on\nhlf,M9,likeperson,2024-01-01,2099-01-01\n"
    )

    run("run --dry-run", "run")
    facts.connection.execute(LATER)
    run("resync M1", "resync BROKEN", "explain M1", "explain M2", "preview M2")
    facts.mentor(facts.organisation("lhf", portal=None), member_no="M5")
    facts.connection.execute(CROWD)
    run("alerts", "forecast", "list", "organisation list", "status", "bounces")
    run("check", CERTJOB_PORTAL_URL="")
    run("deliver", "alerts --retry-all")
    reconcile_in_every_way(programme, facts, portal)
    facts.connection.execute(READ_DAYS_AGO)
    alerts = run("alerts", "alerts --retry-all", "load people.csv", "alerts")["alerts"]
    run(f"acknowledge '{alerts[0]['alert_id']}' --because read --until {today()}", "alerts --acknowledged")
    run("organisation set lhl --coordinator 'Kari <kari@example.org>' --optional-kind kurs", "organisation show lhl")
    run("organisation set lhl --thresholds 90")
    run("db prune --older-than 3y", "edge-function functions")
    run("db migrate", CERTJOB_DATABASE_URL=database_url)

    assert set(programme.printed) == set(PROMISED)
    for command, keys in PROMISED.items():
        paths = programme.printed[command]
        assert paths - containers(paths) - keys <= COMMON, f"printed by certjob {command} and not on the page"
        assert keys - paths == set(), f"on the page and not printed by certjob {command}"
    with_json = {name.removeprefix("certjob ") for name, options in commands().items() if "--json" in options}
    assert {re.sub(r" --.*", "", command) for command in PROMISED} == with_json, "a new command has its place"
    assert key_paths(json.loads(here("run", "--json", CERTJOB_TIME_ZONE="Mars").stdout)) - {"error"} == COMMON


def test_the_page_has_every_error_code_and_every_cause() -> None:
    """Those of the tree in errors.py, that of a stage which crashed and that of a copy which was not taken."""

    def codes(kind: type[errors.CertjobError]) -> set[str]:
        below = [child for child in kind.__subclasses__() if child not in NEVER_AN_END]
        return {kind.code}.union(*map(codes, below))

    assert {key for key, _ in rows("Errors")} == codes(errors.CertjobError) | {"crash"}
    assert [key for key, _ in rows("Causes")] == [cause.value for cause in errors.Cause]


def test_the_log_lines_on_the_monitoring_page_have_the_keys_of_the_log(
    facts: Facts, here: Certjob, portal: PortalServer
) -> None:
    """Line by line: an event has these keys, in this order."""
    facts.certified_mentor(facts.organisation(), date(2025, 1, 1))
    portal.default = error(404, "contact_not_found")

    result = here("run", "-v", CERTJOB_LOG_FORMAT="json")

    written = {line["event"]: line for line in map(json.loads, result.stderr.splitlines())}
    page = read("docs/monitoring.md").splitlines()
    examples = [json.loads(line) for line in page if line.startswith('    {"time"')]
    assert [line["event"] for line in examples] == ["event_failed", "attention"]
    for line in examples:
        assert list(line) == list(written[line["event"]])


def test_the_page_has_the_webhooks_body_and_headers(programme: Programme, facts: Facts, httpserver: HTTPServer) -> None:
    """As a receiver gets them, for a reminder and for a digest."""
    furnish(facts)
    facts.connection.execute("UPDATE coordinators SET email = 'ola@example.org'")
    httpserver.expect_request("/").respond_with_data("")

    programme.run(
        "run", CERTJOB_PORTAL_URL="", CERTJOB_NOTIFY_URL=httpserver.url_for("/"), CERTJOB_NOTIFY_PASSWORD="planted"
    )

    received = {request.json["kind"]: request for request, _ in httpserver.log}
    assert set(received) == {"reminder", "digest"}
    for kind, request in received.items():
        assert set(request.json) == {key for key, only_in in rows("The webhook") if kind in only_in or not only_in}
        assert {"Authorization", "Idempotency-Key"} <= set(dict(request.headers))
