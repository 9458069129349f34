"""docs/json.md is held to the code: every key that a command prints is on the page, and the page promises no other.

The documents come from the door, the command itself, in a programme in which everything happens that one can tell of.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest
import typer
from pytest_httpserver import HTTPServer

from certjob import errors
from certjob.cli.app import app
from certjob.domain import rules
from certjob.domain.models import Decision, Mentor
from tests.support.command_line import run_in_process
from tests.support.facts import Facts
from tests.support.portal_answers import error, ok
from tests.support.portal_server import PortalServer

PAGE = (Path(__file__).parents[2] / "docs" / "json.md").read_text()
COMMON = {"outcome", "error.code", "error.message", "error.next_step"}
"""What the page says once, for the documents of all commands."""
TODAY = datetime.now(ZoneInfo("Europe/Oslo")).date()


def sections() -> dict[str, str]:
    """The parts of the page by their titles."""
    _, *parts = re.split(r"^## (.+)$", PAGE, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def rows(title: str) -> Iterator[tuple[str, set[str]]]:
    """The keys of one part, each with the names that its row is for; none: the row is for all."""
    for keys, only_in in re.findall(r"^\| (`[^|]+`) \|(?: (in .+?) \|)?", sections()[title], flags=re.MULTILINE):
        for key in re.findall("`([^`]+)`", keys):
            for each in expanded(key):
                yield each, set(re.findall(r"`([^`]+)`", only_in))


def promised() -> dict[str, set[str]]:
    """The keys on the page by command."""
    found: dict[str, set[str]] = {}
    for title in sections():
        commands = set(re.findall(r"`certjob ([^`]+)`", title))
        for key, only_in in rows(title) if commands else ():
            assert only_in <= commands, f"{key} in {only_in}"
            for command in only_in or commands:
                found.setdefault(command, set()).add(key)
    return found


def expanded(key: str) -> Iterator[str]:
    """``a.{b,c}`` is two keys."""
    before, brace, rest = key.partition("{")
    if not brace:
        yield key
        return
    words, _, after = rest.partition("}")
    for word in words.split(","):
        yield from expanded(f"{before}{word}{after}")


def key_paths(value: object, path: str = "") -> Iterator[str]:
    """Where something stands, such as ``mentors.reviewed`` and ``changes[].pause``; null is something, too."""
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from key_paths(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        yield f"{path}[]"
        for inner in value:
            yield from key_paths(inner, f"{path}[]")


def containers(paths: set[str]) -> set[str]:
    """What holds others. The page may have something to say of it, such as when it is null."""
    return {path[: found.start()] for path in paths for found in re.finditer(r"\.|\[\]", path)}


TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?\+00:00")


def assert_form(value: object, key: str = "") -> None:
    """What holds for every document and all that is in it: see the top of the page."""
    if isinstance(value, dict):
        if value.get("mentor_id") is not None:
            assert {"member_no", "organisation"} <= value.keys(), value
        if "organisation_id" in value:
            assert "organisation" in value, value
        for name, inner in value.items():
            assert_form(inner, name)
    elif isinstance(value, list):
        for inner in value:
            assert_form(inner, key)
    elif value is not None and key.endswith("_on"):
        assert date.fromisoformat(str(value)).isoformat() == value, (key, value)
    elif value is not None and key in ("run_id", "mentor_id", "certificate_id", "organisation_id", "contact_id"):
        assert str(UUID(str(value))) == value, (key, value)
    elif value is not None and (key.endswith("_at") or re.match(r"\d{4}-\d\d-\d\d[T ]\d\d:", str(value))):
        assert TIME.fullmatch(str(value)), (key, value)


@dataclass
class Printed:
    """The documents that the commands have printed."""

    environment: dict[str, str]
    folder: Path
    keys: dict[str, set[str]] = field(default_factory=dict)
    """The places in them, by the names that the commands have on the page."""

    def run(self, command: str, *arguments: str, **settings: str) -> Any:
        """Run a command; its stdout is one document."""
        environment = self.environment | settings
        finished = run_in_process(*command.split(), *arguments, "--json", environment=environment, folder=self.folder)
        document = json.loads(finished.stdout)
        assert document["outcome"] in ("ok", "attention"), finished
        assert finished.returncode == {"ok": 0, "attention": 3}[document["outcome"]]
        assert_form(document)
        self.keys.setdefault(command, set()).update(path for path in key_paths(document) if path)
        return document


@pytest.fixture
def printed(worker_url: str, bare_environment: dict[str, str], tmp_path: Path) -> Printed:
    """Nothing yet."""
    environment = bare_environment | {
        "CERTJOB_DATABASE_URL": worker_url,
        "CERTJOB_NOTIFY_URL": f"maildir:{tmp_path / 'mail'}",
        "CERTJOB_PORTAL_ATTEMPTS": "1",
    }
    return Printed(environment=environment, folder=tmp_path)


@pytest.fixture
def _one_mentor_breaks_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    decide = rules.decide

    def decide_or_break(mentor: Mentor, today: date) -> Decision:
        if mentor.member_no == "BROKEN":
            message = "no rule foresees this"
            raise ValueError(message)
        return decide(mentor, today)

    monkeypatch.setattr(rules, "decide", decide_or_break)


def furnish(facts: Facts) -> None:
    """A programme in which a pause, reminders, a push, a digest, too much at once and a broken mentor are due."""
    much = facts.organisation("much")
    for _ in range(21):
        facts.certified_mentor(much, TODAY - timedelta(days=1))
    hlf = facts.organisation("hlf", optional_kinds=["kursleder"])
    facts.certified_mentor(hlf, TODAY - timedelta(days=1), member_no="M1")
    facts.certified_mentor(hlf, TODAY + timedelta(days=7), member_no="M2", email=None)
    facts.certified_mentor(hlf, TODAY + timedelta(days=30), member_no="BROKEN")
    facts.pause(facts.certified_mentor(hlf, TODAY + timedelta(days=400), member_no="M4"))
    facts.connection.execute("INSERT INTO coordinators (organisation_id, email) VALUES (%s, 'no address')", (hlf,))


def let_mail_wait(facts: Facts) -> None:
    """Let a reminder have been deferred for two days."""
    facts.connection.execute(
        "INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on, queued_at, next_attempt_at)"
        " SELECT mentor_id, 99, c.id, expires_on, now() - interval '2 days', now() + interval '1 hour'"
        " FROM certificates AS c JOIN mentors AS m ON m.id = c.mentor_id WHERE m.member_no = 'M4'"
    )


def crowd(facts: Facts) -> None:
    """A mentor with more certificates than certjob reads, from before there was a bound."""
    crowded = facts.mentor(facts.organisation("lhf", portal=None), member_no="M5")
    with facts.connection.transaction():
        facts.connection.execute("SET LOCAL session_replication_role = replica")
        facts.connection.execute(
            "INSERT INTO certificates (mentor_id, kind, issued_on, expires_on)"
            " SELECT %s, 'kurs' || n, '2024-01-01', '2099-01-01' FROM generate_series(1, 201) AS n",
            (crowded,),
        )


def remember_an_earlier_date(facts: Facts) -> None:
    """Let each reminder have been about another date before, as after an extension in place."""
    facts.connection.execute(
        "UPDATE cert_notification_log SET history = jsonb_build_array(jsonb_build_object("
        "'expires_on', '2020-01-01', 'status', 'sent', 'queued_at', now(), 'sent_at', now(), 'attempts', 1,"
        " 'maybe_sent', false, 'last_error', null))"
    )


def reconcile_in_every_way(printed: Printed, facts: Facts, server: PortalServer, portal: dict[str, str]) -> None:
    """The portal cannot be read; it shows somebody unknown; and too many are to be shown at once."""
    printed.run("reconcile", **portal)
    nhf = facts.organisation("nhf")
    for _ in range(22):
        facts.certified_mentor(nhf, TODAY + timedelta(days=400))
    printed.run("run", **portal)
    server.default = ok()
    unknown = uuid4()
    server.visible = {unknown: True}
    for command in ("reconcile --dry-run", "reconcile"):
        assert printed.run(command, **portal)["held"]
    printed.run("reconcile --accept", str(unknown), "--because", "the programme's office")
    server.visible |= dict.fromkeys((row[0] for row in facts.rows(CONTACTS, nhf)), True)  # type: ignore[misc]
    server.visible[next(iter(set(server.visible) - {unknown}))] = False
    assert printed.run("reconcile --dry-run", **portal)["changes"]
    server.visible[uuid4()] = True
    printed.run("reconcile", **portal)
    contact = facts.rows(CONTACTS, nhf)[0][0]
    facts.connection.execute("UPDATE mentors SET dynamics_contact_id = %s WHERE member_no = 'M1'", (contact,))
    facts.connection.execute("UPDATE mentors SET portal_visible = false WHERE member_no = 'M1'")
    facts.connection.execute(
        "UPDATE portal_last_reading SET contradictory = ARRAY[%s::uuid], read_at = now() - interval '4 days'",
        (contact,),
    )
    printed.run("alerts")
    printed.run("alerts --retry-all", **portal)


CONTACTS = "SELECT dynamics_contact_id FROM mentors WHERE organisation_id = %s"


@pytest.mark.usefixtures("_one_mentor_breaks_a_rule")
def test_the_page_has_every_key_that_is_printed_and_no_other(
    printed: Printed, facts: Facts, database_url: str, tmp_path: Path
) -> None:
    """One morning of one programme: every command, in every form that has a document of its own."""
    furnish(facts)
    (tmp_path / "people.csv").write_text(
        "organisation,member_no,kind,issued_on,expires_on\nhlf,M9,likeperson,2024-01-01,2099-01-01\n"
    )
    with PortalServer(default=error(503, "dynamics_unavailable")) as server:
        portal = {"CERTJOB_PORTAL_URL": server.url, "CERTJOB_PORTAL_KEY": server.key}
        printed.run("run --dry-run")
        printed.run("run", **portal)
        let_mail_wait(facts)
        remember_an_earlier_date(facts)
        printed.run("resync", "M1", **portal)
        printed.run("resync", "BROKEN", **portal)
        printed.run("explain", "M1")
        printed.run("explain", "M2")
        printed.run("preview", "M2", "--send-to", "me@example.org")
        crowd(facts)
        for command in ("alerts", "check", "db status", "forecast", "list", "organisation list", "status"):
            printed.run(command)
        (tmp_path / "report.eml").write_text("Hello")
        printed.run("bounces", "report.eml")
        printed.run("deliver", **portal)
        printed.run("alerts --retry-all", **portal)
        reconcile_in_every_way(printed, facts, server, portal)
    printed.run("load", "people.csv")
    printed.run("organisation set", "lhl", "--coordinator", "Kari <kari@example.org>", "--optional-kind", "kurs")
    printed.run("organisation set --dry-run", "lhf", "--thresholds", "90")
    printed.run("organisation show", "lhl")
    printed.run("db migrate", CERTJOB_DATABASE_URL=database_url)
    printed.run("db prune --dry-run", "--older-than", "3y")
    printed.run("db prune", "--older-than", "3y")

    assert set(printed.keys) == set(promised())
    for command, keys in promised().items():
        paths = printed.keys[command]
        assert paths - containers(paths) - keys <= COMMON, f"printed by certjob {command} and not on the page"
        assert keys - paths == set(), f"on the page and not printed by certjob {command}"


def test_every_command_with_json_has_its_place_on_the_page() -> None:
    """A new one, too."""
    named = {re.sub(r" --.*", "", command) for command in promised()}

    def walk(command: Any, name: str) -> Iterator[str]:
        for child_name, child in getattr(command, "commands", {}).items():
            yield from walk(child, f"{name} {child_name}".strip())
        if any("--json" in parameter.opts for parameter in getattr(command, "params", ())):
            yield name

    assert named == set(walk(typer.main.get_command(app), ""))


def test_the_page_has_every_error_code() -> None:
    """Those of the tree in errors.py, that of a stage which crashed and that of a copy which was not taken."""

    def codes(kind: type[errors.CertjobError]) -> Iterator[str]:
        yield kind.code
        for child in kind.__subclasses__():
            if child not in (errors.PortalCallError, errors.NotifyError):  # no command ends by these
                yield from codes(child)

    listed = {key for key, _ in rows("Errors")}
    assert listed == {*codes(errors.CertjobError), "crash", "not_sent"}


def test_the_page_has_every_failure_code() -> None:
    """Rows and other programs hold them."""
    assert [key for key, _ in rows("Failure codes")] == [code.value for code in errors.FailureCode]


def test_a_document_of_an_error_has_these_keys_alone(printed: Printed) -> None:
    """Whatever the command."""
    finished = run_in_process(
        "run", "--json", environment=printed.environment | {"CERTJOB_TIME_ZONE": "Mars"}, folder=printed.folder
    )

    assert {path for path in key_paths(json.loads(finished.stdout)) if path} - {"error"} == COMMON


def test_the_page_has_the_webhooks_body_and_headers(printed: Printed, facts: Facts, httpserver: HTTPServer) -> None:
    """As a receiver gets them, for a reminder and for a digest."""
    furnish(facts)
    facts.connection.execute("UPDATE coordinators SET email = 'ola@example.org'")
    httpserver.expect_request("/").respond_with_data("")
    printed.run("run", CERTJOB_NOTIFY_URL=httpserver.url_for("/"), CERTJOB_NOTIFY_PASSWORD="planted")
    received = {request.json["kind"]: request for request, _ in httpserver.log}
    assert set(received) == {"reminder", "digest"}
    for kind, request in received.items():
        assert set(request.json) == {key for key, only_in in rows("The webhook") if kind in only_in or not only_in}
        assert {"Authorization", "Idempotency-Key"} <= set(dict(request.headers))
