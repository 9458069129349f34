"""The parts of the output: harmless texts, errors, plans, progress, lines and tables."""

import io
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from rich.cells import cell_len
from rich.console import Console

from certjob.cli import entry
from certjob.cli.pages.jobs import show_report
from certjob.cli.terminal.lines import PageLine, wrap
from certjob.cli.terminal.logs import JsonFormatter, TextFormatter, traceback_lines
from certjob.cli.terminal.output import Output
from certjob.cli.terminal.plain import print_error, print_json
from certjob.database import Connection
from certjob.domain import rules
from certjob.domain.models import Mentor, Status
from certjob.facts.lookup import MentorName
from certjob.jobs.report import PlannedChange, RunReport
from certjob.redaction import harmless
from certjob.review.plan import ReviewCounts
from certjob.stopping import StopFlag
from tests.conftest import Certjob
from tests.support.command_line import flat, on_terminal, run_in_process, terminal, today, without_escapes
from tests.support.facts import TODAY, Facts
from tests.support.nights import night
from tests.support.people import certificate, expiring_in, mentor, organisation, own_pause

OFF = Output(quiet=False)
"""An output that is not a terminal."""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("Zoë Ødegård-Nuñez 北京 \U0001f600", "Zoë Ødegård-Nuñez 北京 \U0001f600", id="letters"),
        pytest.param("a\tb\nc\rd\u2028e\xa0f", "a b c d e f", id="spaces"),
        pytest.param("\x1b[31mred\x1b[0m", "\ufffd[31mred\ufffd[0m", id="escapes"),
        pytest.param("\x9b31m\x07\x00\x7f", "\ufffd31m\ufffd\ufffd\ufffd", id="controls"),
        pytest.param("\u202egnp.exe\u200f\ufeff\xad", "\ufffdgnp.exe\ufffd\ufffd\ufffd", id="invisible"),
    ],
)
def test_any_text_becomes_one_harmless_line(text: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Letters are kept. Characters that control a terminal or are invisible become a mark, also in errors."""
    print_error("certjob run", f"it said:\n\t{text}")

    assert harmless(text) == shown
    assert capsys.readouterr() == ("", f"certjob run: it said: {shown}\n")


def test_json_document_has_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    """Letters are readable, dates are ISO, and the document has the values that were printed."""
    name = "Ærlig\u202e\u2028\x85\x9b\x7f\x1b\ufeff\U0001f600"

    print_json({"name": name, "on": TODAY, "at": datetime(2026, 3, 10, 4, 5, tzinfo=UTC), "id": UUID(int=1)})

    text = capsys.readouterr().out
    plain = {"on": "2026-03-10", "at": "2026-03-10T04:05:00+00:00", "id": str(UUID(int=1))}
    assert json.loads(text) == {"name": name} | plain
    assert "Ærlig" in text
    assert all(character.isprintable() or character == "\n" for character in text)


def test_errors_and_tracebacks_do_not_quote_database_rows(facts: Facts) -> None:
    """The DETAIL of a constraint has names and addresses. Both log formats have the place and the constraint."""
    facts.organisation("hlf")
    with pytest.raises(psycopg.Error) as caught:
        facts.organisation("hlf")
    crash = RuntimeError("could not be written")
    crash.__cause__ = caught.value

    text = "\n".join(traceback_lines(crash))

    for shown in (text, entry.to_certjob_error(caught.value, ["run"]).message):
        assert ("organisations_slug_key" in shown, "(hlf)" in shown) == (True, False)
    assert "in test_errors_and_tracebacks" in text
    assert text.endswith("RuntimeError: could not be written")
    record = logging.makeLogRecord({"msg": "a stage crashed", "exc_info": (RuntimeError, crash, None)})
    assert TextFormatter("%(message)s").format(record) == f"a stage crashed\n{text}"
    assert json.loads(JsonFormatter().format(record))["traceback"] == text


@pytest.mark.parametrize(
    ("error", "exit_code", "code", "phrase"),
    [
        (psycopg.errors.AdminShutdown("terminating connection"), 1, "database_unavailable", "went away"),
        (psycopg.OperationalError("server closed the connection"), 1, "database_unavailable", "went away"),
        (psycopg.errors.QueryCanceled("canceling statement"), 1, "database", "could not do it now"),
        (psycopg.errors.InsufficientPrivilege("denied"), 2, "configuration", "lacks a right"),
        (psycopg.errors.ReadOnlySqlTransaction("no INSERT"), 1, "database_unavailable", "read-only"),
        (psycopg.errors.UndefinedColumn("no column"), 1, "database", "refused a statement"),
        (OSError(28, "No space left on device"), 1, "disk_full", "make room"),
        (ZeroDivisionError("division by zero"), 1, "internal", "run it again with -v"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_foreign_error_gets_a_code_and_a_next_step(error: Exception, exit_code: int, code: str, phrase: str) -> None:
    """An error of a library or of Python becomes one of certjob's own."""
    ours = entry.to_certjob_error(error, ["run"])

    assert (ours.exit_code, ours.code, phrase in str(ours)) == (exit_code, code, True)
    assert ours.next_step


def report_of(*people: Mentor) -> RunReport:
    decisions = [rules.decide(person, TODAY) for person in people]
    changes = [PlannedChange(decision=decision, new_reminders=decision.reminders) for decision in decisions]
    return RunReport(command="run", today=TODAY, dry_run=True, review=ReviewCounts(reviewed=12_345), changes=changes)


def names(ids: Sequence[UUID]) -> dict[UUID, MentorName]:
    return {ids[0]: MentorName("M1001", "hlf", "Kari Nordmann")}


def test_plan_is_cut_on_a_terminal_only(capsys: pytest.CaptureFixture[str]) -> None:
    """A table has 50 mentors and counts equal statuses. Plain lines have all mentors and no names."""
    elsewhere = organisation(slug="nhf", thresholds=[0], has_portal=False)
    renewed = replace(certificate(TODAY + timedelta(days=400)), status=Status.EXPIRED)
    back = mentor(renewed, pauses=[own_pause()], portal_visible=False)
    ended = [replace(expiring_in(-400 - days), id=UUID(int=days)) for days in range(7)]
    often = mentor(*ended, replace(expiring_in(4), kind="kurs", id=UUID(int=9)))
    people = [replace(mentor(expiring_in(-1)), member_no=f"N{number}") for number in range(57)]
    report = report_of(often, back, *people, mentor(expiring_in(0), organisation=elsewhere))
    output, shown = terminal(120)

    show_report(OFF, report, find_names=names)
    whole = capsys.readouterr().out
    show_report(output, report, find_names=names)
    cut = flat(shown.getvalue())

    assert whole.splitlines()[1:3] == [
        "hlf M1001: certificates: valid; pause: ends; portal: show",
        "hlf N0: certificates: expired; pause: starts; reminder: 1 d after; portal: hide",
    ]
    assert "nhf M1001: certificates: expiring; reminder: last day\n" in whole
    assert (whole.count("hlf N"), whole.splitlines()[-1][:25]) == (57, "mentors: 12,345 reviewed;")
    assert ("N47" in cut, "N48" in cut) == (True, False)
    assert capsys.readouterr().out == "… and 10 more; --json lists all of them\n"
    assert ("for hlf" in cut, "Org" in cut) == (False, True)  # nhf is not in the table
    assert "M1001 Kari Nordmann expired, 6 renewed, expiring starts 7 d before hide hlf" in cut


def watched(stop: StopFlag | None = None) -> Output:
    """Return an output on a terminal of 80 columns."""
    output = Output(quiet=False, stop=stop)
    output.interactive, output.err = True, terminal(80)[0].out
    return output


def test_progress_leaves_space_for_ctrl_c_and_shows_stopping() -> None:
    """The line has at most 74 columns. It has no total until that is known."""
    stop = StopFlag()
    output = watched(stop)

    with output.progress() as progress:
        progress.phase("Reading rows")(120_000)
        progress.phase("Loading rows", count=lambda: 120_000)(20_000)
        stop.set()

    text = without_escapes(output.err.file.getvalue())  # type: ignore[attr-defined]
    assert 40 < max(map(cell_len, text.splitlines())) <= 74
    assert any("Loading rows" in line and "20,000 of 120,000, stopping" in line for line in text.splitlines())
    assert "/?" not in text


def test_finished_phase_keeps_its_number() -> None:
    """A phase ends when the next one begins. The total is shown if it was not reached."""
    with watched().progress() as progress:
        progress.phase("Reviewing mentors")(120)
        progress.phase("Sending reminders", count=lambda: 91)(89)
        progress.phase("Sending digests")
        reviewing, reminders, digests = progress.tasks
        shown = [progress.make_tasks_table([task]).columns[-1] for task in (reviewing, reminders)]
        texts = [str(next(iter(column.cells))) for column in shown]

    assert (reviewing.finished, reminders.stop_time is not None, digests.stop_time) == (True, True, None)
    assert texts == ["120", "89 of 91"]


def test_skipped_and_broken_mentors_are_named() -> None:
    """The first five of each, broken ones with the reason."""

    def reason(**review: Any) -> str:
        (line,) = RunReport(command="run", today=TODAY, review=ReviewCounts(**review)).reasons
        return line

    one, seven = (reason(skipped=[UUID(int=i) for i in range(number)]) for number in (1, 7))
    assert one.startswith("1 mentor was skipped (")
    assert seven.startswith("7 mentors were skipped (")
    assert (seven.endswith(" and 2 more"), seven.count("-0000-0000-0000-")) == (True, 5)
    broken = reason(broken={UUID(int=i): f"reason {i}" for i in range(9)})
    assert f": {UUID(int=0)} (reason 0), {UUID(int=1)} (reason 1), " in broken
    assert broken.endswith(f"{UUID(int=4)} (reason 4) and 4 more")


@pytest.mark.parametrize(
    ("columns", "lines"),
    [
        (48, ["give one:", "`certjob organisation set hlf --portal none`"]),
        (30, ["give one: `certjob", "organisation set hlf --portal", "none`"]),
    ],
    ids=["command fits", "command is too long"],
)
def test_command_is_broken_only_if_it_fits_no_line(columns: int, lines: list[str]) -> None:
    """Then it is broken at its spaces."""
    line = PageLine(text="give one: `certjob organisation set hlf --portal none`")

    assert [text.plain for text in wrap(Console(width=columns, file=io.StringIO()), [line])] == lines


def test_rows_are_a_table_on_a_terminal_only(capsys: pytest.CaptureFixture[str]) -> None:
    """Otherwise they have tabs. A tab in a cell becomes a space."""
    output, shown = terminal(80)
    for each in (OFF, output):
        each.show_rows(("Name", ">Number"), [("a\tb", 1), ("[x]", None)])

    assert capsys.readouterr().out == "a b\t1\n[x]\t\n"
    assert flat(shown.getvalue()).startswith("Name Number")
    assert "[x]" in shown.getvalue()


@pytest.mark.parametrize("columns", [50, 80, 120])
def test_table_never_breaks_numbers_and_dates(columns: int) -> None:
    """It wraps or cuts long texts, and leaves a column free, because some letters are wider than expected."""
    output, shown = terminal(columns)
    headings = ("=Last day", ">Days", "=No.", "Name", "Kind", "Org")
    rows = [
        ("2026-12-31", "1,234 ago", "M1001234", "Zebulon Østenfjellheim-Kristoffersen", "k" * 40, "personforbund-" * 4),
        ("2026-01-01", "5", "M1", "北京" * 12, "likeperson", "hlf"),
    ]

    output.show_table(headings, rows)

    lines = shown.getvalue().splitlines()
    assert all(cell_len(line) < columns for line in lines)
    for whole in ("2026-12-31", "1,234 ago", "M1001234", "2026-01-01"):
        assert sum(whole in line for line in lines) == 1


def test_names_are_cut_before_words_are_broken() -> None:
    """A status stays readable beside long names, kinds and slugs."""
    output, shown = terminal(80)
    long = "personforbundet-for-hoerselshemmede"
    rows = [("2025-01-01", "698 ago", "expired, paused", "PERSON-000000000000", long, long, long)]

    output.show_table(("=Last day", ">Days", "Status", "=No.", "~Name", "~Kind", "~Org"), rows)

    assert "698 ago  expired,  PERSON-000000000000  person" in shown.getvalue()


def test_held_changes_are_marked_beside_long_member_numbers() -> None:
    """The plan has a column for holds, and does not cut the number."""
    report = report_of(replace(mentor(expiring_in(-1)), member_no="PERSON-000000000000"))
    report.changes = [replace(change, is_held=True) for change in report.changes]
    output, shown = terminal(80)

    show_report(output, report, find_names=names)

    assert "PERSON-000000000000  Kari" in shown.getvalue()
    assert "hide    held" in shown.getvalue()


WORDS = {
    "status": "Last runs attention backlog hides reminders digests Oldest Mentors",
    "organisation list": "hlf dynamics Thresholds Coordinators Mentors",
    "list": "expired Zebulon likeperson kursleder hlf",
    f"run --dry-run --accept-date {today()}": "mentors certificates reminders portal pending",
}
"""Words that the page of each command has, unbroken."""


@pytest.fixture
def long_names(connection: Connection, facts: Facts) -> None:
    """Two organisations with long words, after a night that could not push."""
    for slug in ("hlf", "personforbund"):
        organisation_id = facts.organisation(slug, optional_kinds=["kursleder"])
        mentor_id = facts.certified_mentor(organisation_id, TODAY, full_name="Zebulon Østenfjellheim-Kristoffersen")
        facts.certificate(mentor_id, TODAY, kind="kursleder")
        facts.insert("coordinators", organisation_id=organisation_id, email=f"k@{slug}.example")
    night(connection)


@pytest.mark.usefixtures("long_names")
@pytest.mark.parametrize("columns", [80, 100, 200])
def test_pages_break_no_word(environment: dict[str, str], tmp_path: Path, columns: int) -> None:
    """No line is wider than the terminal."""
    for command, words in WORDS.items():
        text = run_in_process(*command.split(), environment=environment, folder=tmp_path, columns=columns).stdout

        assert all(cell_len(line) <= columns for line in text.splitlines()), text
        assert [word for word in words.split() if word.lower() not in text.lower()] == [], text


@pytest.mark.usefixtures("long_names")
def test_error_is_wrapped_and_coloured_on_a_terminal_only(
    environment: dict[str, str], here: Certjob, tmp_path: Path
) -> None:
    """Only the word `error:` is coloured. The line begins over an echoed ^C."""
    _, shown = on_terminal(["explain", "zebulon"], environment=environment, folder=tmp_path, columns=60)
    plain = here("explain", "zebulon").stderr

    assert shown.startswith("\rcertjob explain: \x1b[")
    assert all(cell_len(line) <= 60 for line in without_escapes(shown).splitlines())
    assert flat(without_escapes(shown)) == plain.rstrip().replace("explain: ", "explain: error: ")
    assert plain.count("\n") == 1
