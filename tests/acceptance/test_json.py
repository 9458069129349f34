"""docs/json.md and docs/samples have every key that a command prints, and no other, and every code."""

import getpass
import itertools
import json
import re
import shlex
import socket
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from certjob import errors
from certjob.domain.alert_kinds import WORDS
from certjob.domain.causes import HELD_REASONS, advise_on_message
from tests.conftest import Certjob
from tests.support.command_line import commands, today
from tests.support.docs import ROOT, read
from tests.support.facts import Facts
from tests.support.portal_answers import error, ok
from tests.support.portal_server import PortalServer

FOLDER = ROOT / "docs/samples"
SECTIONS = dict(re.findall(r"^## (.+)\n((?:(?!## ).*\n)*)", read("docs/json.md"), flags=re.MULTILINE))
COMMANDS = {command for title in SECTIONS for command in re.findall(r"`certjob ([^`]+)`", title)}
IN_EVERY_DOCUMENT = {"outcome", "error", "error.code", "error.message", "error.next_step"}
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?\+00:00")
LONGEST = 160
"""Characters of a text in a sample."""

PLAIN_KEYS = """
acknowledged_because acknowledged_until actor age_seconds applied[] attempts by cancelled certificate_id
certificates_added certificates_changed certified_because[] check command configuration confirmed_at contact_email
contact_phone created days_left deleted delivered dry_run duration_seconds email failed finished_at folder host id
is_warning last_error last_failed_at last_run_on last_seen_at left_at lifted_at lifted_by loaded_at loaded_by
max_age_seconds mentors_added mentors_changed message name next_attempt_at next_step no_reminder_because now
older_than_day older_than_hour oldest_at optional optional_kinds[] organisation_name pages paused_at queued queued_at
read_at reason renewal_url resolved_failures review_is_due revoked_at row_id sent sent_at since sql stale started_at
thresholds[] today undone_at undone_by until version what_to_do
"""
"""Keys that the page leaves out."""


def rows(text: str) -> Iterator[str]:
    """Yield the keys before the colons of lists; ``a.{b,c}`` is two keys."""
    for keys in re.findall(r"^\* (`[^:]+`):", text, flags=re.MULTILINE):
        for key in re.findall("`([^`]+)`", keys):
            for words in itertools.product(*(piece.split(",") for piece in re.split(r"[{}]", key))):
                yield "".join(words)


def meanings(command: str) -> set[str]:
    """Return the keys with a meaning in the sections of a command and in the first list."""
    own = "".join(text for title, text in SECTIONS.items() if f"`certjob {command}`" in title)
    return {*rows(own), *rows(read("docs/json.md").partition("\n## ")[0])}


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


def types(value: object) -> set[tuple[str, str]]:
    """Return the path and the type of each value that is not null."""
    if isinstance(value, dict):
        return {(f"{key}.{path}", kind) for key, inner in value.items() for path, kind in types(inner)}
    if isinstance(value, list):
        return {(f"[].{path}", kind) for inner in value for path, kind in types(inner)}
    return {("", type(value).__name__)} if value is not None else set()


def merged(old: Any, new: Any) -> Any:
    """Return one document with the keys of both, and the fewest elements of lists that have every type."""
    if isinstance(new, dict):
        return {key: merged((old or {}).get(key), new.get(key)) for key in (old or {}) | new}
    if isinstance(new, list):
        kept: list[Any] = []
        for each in [*(old or []), *new]:
            if types([each]) - types(kept):
                kept.append(merged(None, each))
        return kept
    return old if old not in (None, "") else new


def cleaned(value: Any, private: dict[str, str]) -> Any:
    """Return a value for a sample: short texts, without names of this machine, its user or its folders."""
    if isinstance(value, dict):
        return {key: cleaned(inner, private) for key, inner in value.items()}
    if isinstance(value, list):
        return [cleaned(inner, private) for inner in value]
    for name, instead in private.items() if isinstance(value, str) else ():
        value = value.replace(name, instead)
    return f"{value[:LONGEST]} …" if isinstance(value, str) and len(value) > LONGEST else value


def is_current(sample: Any, document: Any) -> bool:
    """Whether a sample has the document's keys, and no value of another type; null is of every type."""
    before, now = types(sample), types(document)
    return {*paths(sample)} == {*paths(document)} and {path for path, _ in before}.isdisjoint(
        path for path, _ in now - before
    )


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
def printed() -> dict[str, Any]:
    """One document for each command, with every key that it printed."""
    return {}


@pytest.fixture
def run(here: Certjob, worker_url: str, printed: dict[str, Any]) -> Callable[..., Any]:
    """Run a command as certjob_worker, and note its document; return it."""

    def run(line: str, **settings: str) -> Any:
        result = here(*shlex.split(line), "--json", **{"CERTJOB_DATABASE_URL": worker_url} | settings)
        document = json.loads(result.stdout, object_hook=checked)
        assert result.returncode == {"ok": 0, "attention": 3}[document["outcome"]], result
        command = max((name for name in COMMANDS if f"{line} ".startswith(f"{name} ")), key=len)
        printed[command] = merged(printed.get(command), document)
        return document

    return run


def add_mentors(facts: Facts) -> None:
    """Add 21 mentors with a held expiry, and mentors with a pause, reminders, a push and a digest."""
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
    wanted = facts.rows(
        "SELECT dynamics_contact_id FROM mentors WHERE portal_visible AND dynamics_contact_id IS NOT NULL"
    )
    portal.visible |= {UUID(str(contact)): True for (contact,) in wanted} | {contacts[0]: False}
    assert run("reconcile --dry-run")["changes"]
    assert run("reconcile")["changes"]


def test_samples_and_page_have_every_printed_key(
    run: Callable[..., Any],
    printed: dict[str, Any],
    portal: PortalServer,
    facts: Facts,
    database_url: str,
    tmp_path: Path,
) -> None:
    """Every command runs in every form that has its own document. Writes the samples that differ."""
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
    for command in ("explain M1", "explain M2", "preview M2", "list", "bounces"):
        run(command)
    run("changes --since 2020-01-01")
    run("check", CERTJOB_PORTAL_URL="")
    for command in ("status", "deliver", "alerts --retry-all"):
        run(command)
    reconcile_in_every_way(run, facts, portal)
    facts.connection.execute("UPDATE portal_last_reading SET read_at = now() - interval '4 days'")
    alerts = run("alerts")["alerts"]
    alert_id = next(each["alert_id"] for each in alerts if each["kind"] == "failed_reminders")
    run(f"acknowledge {alert_id} --because read --until {today()}")
    run("alerts --acknowledged")
    (tmp_path / "new.csv").write_text(f"{header}\nhlf,M10,kurs,2024-01-01,2025-01-01\n")
    run("load new.csv --dry-run")
    run("load people.csv")
    facts.connection.execute("UPDATE certificates SET expires_on = '2098-01-01' WHERE expires_on = '2099-01-01'")
    run("load --undo")
    run("explain M9")
    run("organisation set lhl --coordinator 'Kari <kari@example.org>' --optional-kind kurs")
    for command in ("organisation show lhl", "db prune --older-than 3y", "edge-function functions"):
        run(command)
    run("db migrate", CERTJOB_DATABASE_URL=database_url)
    run("db migrate --sql")

    assert printed.keys() == COMMANDS
    private = {
        str(tmp_path): "/srv",
        socket.gethostname(): "night-1",
        getpass.getuser(): "eva",
        " (as the test wishes)": "",
    }
    outdated = write_samples({command: cleaned(document, private) for command, document in printed.items()})
    assert outdated == [], "these samples were out of date and have been rewritten"
    unexplained, unused = differences(printed)
    assert (unexplained, unused) == (set(), set()), "docs/json.md lacks keys, or has keys that no command prints"


def write_samples(printed: dict[str, Any]) -> list[str]:
    """Write the samples that differ from a printed document, and return their names."""
    outdated = []
    for command, document in printed.items():
        file = FOLDER / f"{re.sub('[ -]+', '-', command)}.json"
        if not file.exists() or not is_current(json.loads(file.read_text(encoding="utf-8")), document):
            file.write_text(json.dumps(document, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
            outdated.append(file.name)
    return outdated


def differences(printed: dict[str, Any]) -> tuple[set[str], set[str]]:
    """Return the printed keys without a meaning on the page, and the keys of the page that no command prints."""
    unexplained, unused = set(), {*rows(read("docs/json.md")), *PLAIN_KEYS.split()}
    for command, document in printed.items():
        found, known = {*paths(document)}, meanings(command) | {*PLAIN_KEYS.split()}
        for path in found:
            keys = {key for key in known if f".{path}".endswith(f".{key}")}
            unused -= keys
            if not keys and not any(other.startswith((f"{path}.", f"{path}[]")) for other in found):
                unexplained.add(f"{command}: {path}")
    return unexplained, unused


def test_page_has_every_command_with_a_document() -> None:
    """And a file for each command, and no other."""
    with_json = {name.removeprefix("certjob ") for name, options in commands().items() if "--json" in options}

    assert {re.sub(r" --.*", "", command) for command in COMMANDS} == with_json
    names = {re.sub("[ -]+", "-", command) for command in COMMANDS}
    assert {file.stem for file in FOLDER.glob("*.json")} == names


def test_failed_command_prints_the_error_alone(here: Certjob) -> None:
    document = json.loads(here("run", "--json", CERTJOB_TIME_ZONE="Mars").stdout)

    assert {*paths(document)} == IN_EVERY_DOCUMENT


def codes_page() -> str:
    """Return docs/samples/codes.md: alerts, causes, reasons of holds and errors, in the program's words."""

    def all_errors(kind: type[errors.CertjobError]) -> Iterator[type[errors.CertjobError]]:
        """Yield the errors that end a command. A DeliveryError does not."""
        yield kind
        for each in kind.__subclasses__():
            yield from all_errors(each) if each is not errors.DeliveryError else ()

    tables: dict[str, list[tuple[str, ...]]] = {
        "Alerts": [
            ("kind", "alert", "can be muted for"),
            *((f"`{k}`", w.one, f"{w.longest_days} days" if w.longest_days else "never") for k, w in WORDS.items()),
        ],
        "Causes": [("code", "meaning"), *((f"`{each}`", advise_on_message(each).why) for each in errors.Cause)],
        "Held mentors": [("reason", "meaning"), *((f"`{reason}`", words) for reason, words in HELD_REASONS.items())],
        "Errors": [
            ("exit code", "code", "meaning"),
            ("1", "`failed`", "Any other failure."),
            ("1", "`crash`", "One stage of a run ended with an internal error. The document is otherwise complete."),
            *(
                (str(each.exit_code), f"`{each.code}`", (each.__doc__ or "").partition("\n")[0])
                for each in sorted(all_errors(errors.CertjobError), key=lambda each: each.exit_code)
                if each is not errors.CertjobError
            ),
        ],
    }
    page = "# Codes\n\n`tests/acceptance/test_json.py` writes this page.\n"
    for title, (head, *body) in tables.items():
        lines = (head, ("---",) * len(head), *body)
        page += f"\n## {title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return page


def test_codes_page_has_every_code() -> None:
    """Writes the page if it differs."""
    page, file = codes_page(), FOLDER / "codes.md"
    before = file.read_text(encoding="utf-8") if file.exists() else ""
    file.write_text(page, encoding="utf-8")

    assert before == page, "docs/samples/codes.md was out of date and has been rewritten"
