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
from tests.conftest import Certjob
from tests.support.command_line import commands, today
from tests.support.docs import read
from tests.support.facts import Facts
from tests.support.portal_answers import error, ok
from tests.support.portal_server import PortalServer

SECTIONS = dict(re.findall(r"^## (.+)\n((?:(?!## ).*\n)*)", read("docs/json.md"), flags=re.MULTILINE))
IN_EVERY_DOCUMENT = {"outcome", "error.code", "error.message", "error.next_step"}
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?\+00:00")


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


def paths(value: object, path: str = "") -> Iterator[str]:
    """Yield the path of each key of a document, such as ``changes[].pause``."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield f"{path}.{name}" if path else name
            yield from paths(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        yield f"{path}[]"
        for inner in value:
            yield from paths(inner, f"{path}[]")


def containers(found: set[str]) -> set[str]:
    """Return the objects and lists that have one of these keys."""
    return {path[: dot.start()] for path in found for dot in re.finditer(r"\.|\[\]", path)}


def checked(each: dict[str, Any]) -> dict[str, Any]:
    """Check the forms of an object that the top of the page promises; ``json.loads`` calls this for every object."""
    assert each.get("mentor_id") is None or {"member_no", "organisation"} <= each.keys(), each
    for key, value in each.items():
        if value is not None and key.endswith("_on"):
            assert date.fromisoformat(value).isoformat() == value, (key, value)
        if value is not None and key.endswith("_at"):
            assert TIME.fullmatch(value), (key, value)
        if value is not None and key in ("run_id", "mentor_id", "certificate_id", "organisation_id"):
            assert str(UUID(value)) == value, (key, value)
    return each


@pytest.fixture
def printed() -> dict[str, set[str]]:
    """The printed keys by command."""
    return defaultdict(set)


@pytest.fixture
def run(here: Certjob, worker_url: str, printed: dict[str, set[str]]) -> Callable[..., Any]:
    """Run a command as certjob_worker, and note the printed keys; return the document."""

    def run(line: str, **settings: str) -> Any:
        result = here(*shlex.split(line), "--json", **{"CERTJOB_DATABASE_URL": worker_url} | settings)
        document = json.loads(result.stdout, object_hook=checked)
        assert result.returncode == {"ok": 0, "attention": 3}[document["outcome"]], result
        command = max((name for name in DOCUMENTED if f"{line} ".startswith(f"{name} ")), key=len)
        printed[command] |= {*paths(document)}
        return document

    return run


def add_mentors(facts: Facts) -> None:
    """Add 21 mentors whose expiry a guard holds, and mentors with a pause, reminders, a push and a digest."""
    many = facts.organisation("many")
    for _ in range(21):
        facts.certified_mentor(many, today() - timedelta(days=1))
    hlf = facts.organisation("hlf", optional_kinds=["kursleder"])
    facts.certified_mentor(hlf, today() - timedelta(days=1), member_no="M1")
    facts.certified_mentor(hlf, today() + timedelta(days=7), member_no="M2", email=None)
    facts.pause(facts.certified_mentor(hlf, today() + timedelta(days=400), member_no="M4"))
    facts.insert("coordinators", organisation_id=hlf, email="no address")


ADD_TOO_MANY_CERTIFICATES = """
    -- A mentor with more than 200 cannot be reviewed. This setting turns off the trigger that rejects them.
    SET LOCAL session_replication_role = replica;
    INSERT INTO certificates (mentor_id, kind, issued_on, expires_on)
        SELECT m.id, 'kurs' || n, '2024-01-01', '2099-01-01' FROM mentors AS m, generate_series(1, 201) AS n
        WHERE member_no = 'M5';
"""
DEFER_AND_EXTEND = """
    -- One reminder has been in the queue for two days. Each reminder was sent once before, for an earlier last day.
    INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on, queued_at, next_attempt_at)
        SELECT mentor_id, 99, c.id, expires_on, now() - interval '2 days', now() + interval '1 hour'
        FROM certificates AS c JOIN mentors AS m ON m.id = c.mentor_id WHERE m.member_no = 'M4';
    UPDATE cert_notification_log SET history = jsonb_build_array(jsonb_build_object('expires_on', '2020-01-01',
        'status', 'sent', 'queued_at', now(), 'sent_at', now(), 'attempts', 1, 'maybe_sent', false,
        'last_error', null));
    INSERT INTO held_mentors (mentor_id, kind, reason)
        SELECT m.id, h.what, 'ended' FROM held_reviews AS h JOIN mentors AS m USING (organisation_id)
        ON CONFLICT DO NOTHING;
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
    assert run("reconcile")["changes"]


def test_page_has_every_printed_key_and_no_other(
    run: Callable[..., Any],
    printed: dict[str, set[str]],
    portal: PortalServer,
    facts: Facts,
    database_url: str,
    tmp_path: Path,
) -> None:
    """Every command runs in every form that has a document of its own."""
    header = "organisation,member_no,kind,issued_on,expires_on"
    (tmp_path / "people.csv").write_text(f"{header}\nhlf,M9,likeperson,2024-01-01,2099-01-01\n")
    portal.default = error(404, "contact_not_found")
    add_mentors(facts)
    facts.mentor(facts.organisation("without", portal=None), member_no="M5")
    facts.connection.execute(ADD_TOO_MANY_CERTIFICATES)

    run("run --dry-run")
    run("run")
    facts.connection.execute(DEFER_AND_EXTEND)
    run("resync M1")
    run("resync M5")
    for line in ("pause M1 --because leave", "pause M5 --because leave", "unpause M1 --reason leave", "unpause M5"):
        run(line)
    for command in ("explain M1", "explain M2", "preview M2", "forecast", "list", "organisation list", "bounces"):
        run(command)
    run("changes --since 2020-01-01")
    run("check", CERTJOB_PORTAL_URL="")
    for command in ("status", "deliver", "alerts --retry-all"):
        run(command)
    reconcile_in_every_way(run, facts, portal)
    facts.connection.execute("UPDATE portal_last_reading SET read_at = now() - interval '4 days'")
    alerts = run("alerts")["alerts"]
    run(f"acknowledge '{alerts[0]['alert_id']}' --because read --until {today()}")
    run("alerts --acknowledged")
    (tmp_path / "new.csv").write_text(f"{header}\nhlf,M10,kurs,2024-01-01,2025-01-01\n")
    run("load new.csv --dry-run")
    run("load people.csv")
    run("organisation set lhl --coordinator 'Kari <kari@example.org>' --optional-kind kurs")
    for command in ("organisation show lhl", "db prune --older-than 3y", "edge-function functions"):
        run(command)
    run("db migrate", CERTJOB_DATABASE_URL=database_url)
    run("db migrate --sql")

    assert printed.keys() == DOCUMENTED.keys()
    for command, keys in DOCUMENTED.items():
        found = printed[command]
        assert found - containers(found) - keys <= IN_EVERY_DOCUMENT, f"certjob {command} prints more"
        assert keys - found == set(), f"certjob {command} does not print all keys"


def test_page_has_every_command_with_a_document() -> None:
    with_json = {name.removeprefix("certjob ") for name, options in commands().items() if "--json" in options}

    assert {re.sub(r" --.*", "", command) for command in DOCUMENTED} == with_json


def test_failed_command_prints_the_error_alone(here: Certjob) -> None:
    document = json.loads(here("run", "--json", CERTJOB_TIME_ZONE="Mars").stdout)

    assert {*paths(document)} - {"error"} == IN_EVERY_DOCUMENT


def test_page_has_every_error_code_and_every_cause() -> None:
    """No command ends with a DeliveryError; ``crash`` is an error without a class."""

    def codes(kind: type[errors.CertjobError]) -> set[str]:
        return {kind.code}.union(*(codes(each) for each in kind.__subclasses__() if each is not errors.DeliveryError))

    assert {key for key, _ in rows("Errors")} == codes(errors.CertjobError) | {"crash"}
    assert [key for key, _ in rows("Causes")] == [cause.value for cause in errors.Cause]


def test_page_has_the_body_of_the_webhook(run: Callable[..., Any], facts: Facts, httpserver: HTTPServer) -> None:
    """For a reminder and for a digest, whose coordinator needs a valid address."""
    add_mentors(facts)
    facts.connection.execute("UPDATE coordinators SET email = 'ola@example.org'")
    httpserver.expect_request("/").respond_with_data("")

    run("run", CERTJOB_PORTAL_URL="", CERTJOB_NOTIFY_URL=httpserver.url_for("/"))

    received = {request.json["kind"]: set(request.json) for request, _ in httpserver.log}
    assert received.keys() == {"reminder", "digest"}
    for kind, keys in received.items():
        assert keys == {key for key, only_in in rows("The webhook") if kind in only_in or not only_in}
