"""The parts of the output: harmless texts, errors, plans, progress, lines and tables."""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import psycopg
import pytest

from certjob.cli import entry
from certjob.cli.logs import TextFormatter, traceback_lines
from certjob.cli.output import Output, print_json, say
from certjob.domain import rules
from certjob.domain.models import Effect, Status
from certjob.facts.lookup import MentorName
from certjob.jobs.pages import report_page
from certjob.jobs.report import RunReport
from certjob.page import Table
from certjob.redaction import harmless
from certjob.review.plan import PlannedChange, ReviewCounts
from tests.support.command_line import flat, terminal
from tests.support.facts import TODAY, Facts
from tests.support.people import certificate, expiring_in, mentor, own_pause

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
    say("certjob run", f"it said:\n\t{text}", level="failed")

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


def test_json_of_an_iterator_is_that_of_its_list(capsys: pytest.CaptureFixture[str]) -> None:
    """A document with 200,000 mentors is printed one by one, and is the same text."""
    for entries in ([], [{"name": "a\nb", "days": [1, None], "none": {}}, {}, {"at": [{"deep": []}]}]):
        print_json({"outcome": "ok", "rows": entries, "count": 2, "empty": {}})
        at_once = capsys.readouterr().out
        print_json({"outcome": "ok", "rows": iter(entries), "count": 2, "empty": {}})

        assert capsys.readouterr().out == at_once
        document = {"outcome": "ok", "rows": entries, "count": 2, "empty": {}}
        assert at_once == json.dumps(document, indent=2) + "\n"


def test_errors_and_tracebacks_do_not_quote_database_rows(facts: Facts) -> None:
    """The DETAIL of a constraint has names and addresses. The log has the place and the constraint."""
    facts.organisation("hlf")
    with pytest.raises(psycopg.Error) as caught:
        facts.organisation("hlf")
    crash = RuntimeError("could not be written")
    crash.__cause__ = caught.value

    text = "\n".join(traceback_lines(crash))

    for shown in (text, entry.to_certjob_error(caught.value, ["run"]).message):
        assert "organisations_slug_key" in shown
        assert "(hlf)" not in shown
    assert "in test_errors_and_tracebacks" in text
    assert text.endswith("RuntimeError: could not be written")
    record = logging.makeLogRecord({"msg": "a stage crashed", "exc_info": (RuntimeError, crash, None)})
    assert TextFormatter("%(message)s").format(record) == f"a stage crashed\n{text}"


@pytest.mark.parametrize(
    ("error", "exit_code", "code", "phrase"),
    [
        (psycopg.errors.AdminShutdown("terminating connection"), 1, "database_unavailable", "went away"),
        (psycopg.OperationalError("server closed the connection"), 1, "database_unavailable", "went away"),
        (psycopg.errors.QueryCanceled("canceling statement"), 1, "database", "could not do it now"),
        (psycopg.errors.InsufficientPrivilege("denied"), 2, "configuration", "lacks a right"),
        (psycopg.errors.ReadOnlySqlTransaction("no INSERT"), 1, "database_unavailable", "read-only"),
        (psycopg.errors.UndefinedColumn("no column"), 1, "database", "rejected a statement"),
        (OSError(28, "No space left on device"), 1, "disk_full", "make room"),
        (ZeroDivisionError("division by zero"), 1, "internal", "run it again with -v"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_foreign_error_gets_a_code_and_a_next_step(error: Exception, exit_code: int, code: str, phrase: str) -> None:
    """An error of a library or of Python becomes one of certjob's own."""
    ours = entry.to_certjob_error(error, ["run"])

    assert (ours.exit_code, ours.code) == (exit_code, code)
    assert phrase in str(ours)
    assert ours.next_step


def test_plan_is_cut_on_a_terminal_only(capsys: pytest.CaptureFixture[str]) -> None:
    """A table has the first 50 of 60 mentors, held ones first. A pipe gets all of them as CSV."""
    renewed = replace(certificate(TODAY + timedelta(days=400)), status=Status.EXPIRED)
    back = mentor(renewed, pauses=[own_pause()], portal_visible=False)
    ended = [replace(mentor(expiring_in(-1)), member_no=f"N{number}") for number in range(2, 61)]
    decisions = [rules.decide(person, TODAY) for person in (back, *ended)]
    report = RunReport(today=TODAY, dry_run=True)
    for each in decisions:  # the report sorts them: the held one, then pauses by member number
        held_because = Effect.RETURNS if each is decisions[0] else None
        report.changes.append(PlannedChange(decision=each, new_reminders=each.reminders, held_because=held_because))
    report.review.held_back = 1
    output, shown = terminal(120)

    def names(ids: Sequence[UUID]) -> dict[UUID, MentorName]:
        return {ids[0]: MentorName("M1001", "hlf", "Kari Nordmann")}

    OFF.show(report_page(report, find_names=names))
    whole = capsys.readouterr().out
    output.show(report_page(report, find_names=names))
    cut = flat(shown.getvalue())

    _, header, first, *_ = whole.splitlines()
    assert header.startswith("organisation,member_no,full_name,certificates,pause,reminders,portal,held_because")
    reason = "would be active or visible again: last day none → 14 April 2027"
    assert first == f"hlf,M1001,Kari Nordmann,valid,ends,,show,{reason}"
    assert "hlf,N9,Kari Nordmann,expired,starts,1 d after,hide,\n" in whole
    assert whole.count("hlf,N") == 59
    assert "M1001 Kari Nordmann valid ends show would be active or" in cut
    assert ("N54" in cut, "N55" in cut) == (True, False)
    assert "… and 10 more; --json lists all of them `certjob resync MENTOR` permits the held changes of" in cut


def test_skipped_and_broken_mentors_are_named() -> None:
    """The first five of each, broken ones with the reason."""
    ids = [UUID(int=number) for number in range(7)]
    review = ReviewCounts(skipped=ids, broken=dict.fromkeys(ids, "rejected"))

    skipped, broken = RunReport(today=TODAY, review=review).reasons

    assert skipped.startswith("7 mentors were skipped (")
    assert skipped.endswith(" and 2 more")
    assert f": {ids[0]} (rejected), {ids[1]} (rejected), " in broken
    assert broken.endswith(f"{ids[4]} (rejected) and 2 more")


def test_rows_are_a_table_on_a_terminal_only(capsys: pytest.CaptureFixture[str]) -> None:
    """Otherwise they are CSV with one header. A tab in a cell becomes a space, and brackets are no markup."""
    output, shown = terminal(80)
    tables = [Table([{"name": text, "count": count}], {"name": "Name", "count": "Number"}) for text, count in ROWS]
    for each in (OFF, output):
        each.show(tables)

    assert capsys.readouterr().out == "name,count\na b,1000\n[x],\n"
    assert flat(shown.getvalue()).startswith("Name Number")
    assert "1,000" in shown.getvalue()
    assert "[x]" in shown.getvalue()


ROWS = [("a\tb", 1000), ("[x]", None)]


@pytest.mark.parametrize("columns", [60, 72, 80])
def test_no_column_of_a_wide_table_disappears(columns: int) -> None:
    """Texts are wrapped, and numbers, days and ids are whole."""
    output, shown = terminal(columns)
    row = {
        "day": TODAY,
        "count": 26392,
        "text": "expired, paused: illness " * 3,
        "name": "Anne-Kristine Hansen",
        "id": "M1042",
    }

    output.show([Table([row], {key: key for key in row})])

    assert all(len(line) <= columns for line in shown.getvalue().splitlines())
    for word in ("2026-03-10", "26,392", "illness", "Hansen", "M1042"):
        assert word in shown.getvalue()
