"""The small pieces of what people and programs see: harmless text, plan lines, totals, log lines, error texts."""

import io
import json
import logging
import logging.config
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import psycopg
import pytest
from rich.console import Console
from rich.text import Text

from certjob.cli import entry
from certjob.cli.options import parse_day, parse_duration
from certjob.cli.pages.night import show_plan, show_resync, show_totals
from certjob.cli.terminal.lines import PageLine, fit, wrap
from certjob.cli.terminal.logs import log_configuration, traceback_lines
from certjob.cli.terminal.output import Output, clean, show_rows
from certjob.cli.terminal.plain import harmless, print_error, print_json
from certjob.database import Connection
from certjob.domain import rules
from certjob.domain.models import Mentor, Status
from certjob.mail.stage import MailCounts
from certjob.night.report import PlannedChange, RunReport
from certjob.night.resync import MentorState
from certjob.review.attention import Attention, Count, Kind
from certjob.review.plan import ReviewCounts
from tests.support.facts import TODAY, Facts
from tests.support.people import certificate, expiring_in, mentor, organisation, own_pause


@pytest.fixture
def certjob_logger() -> Iterator[logging.Logger]:
    """certjob's logger, put back as it was."""
    logger = logging.getLogger("certjob")
    kept = logger.handlers[:], logger.propagate, logger.level
    yield logger
    logger.handlers[:], logger.propagate = kept[:2]
    logger.setLevel(kept[2])


# Text that came from somebody.


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Zoë Ødegård-Nuñez 北京 \U0001f600", "Zoë Ødegård-Nuñez 北京 \U0001f600"),
        ("a\tb\nc\rd\u2028e\xa0f", "a b c d e f"),
        ("\x1b[31mred\x1b[0m", "\ufffd[31mred\ufffd[0m"),
        ("\x9b31m\x07\x00\x7f", "\ufffd31m\ufffd\ufffd\ufffd"),
        ("\u202egnp.exe\u200f\ufeff\xad", "\ufffdgnp.exe\ufffd\ufffd\ufffd"),
    ],
)
def test_any_text_becomes_one_harmless_line(text: object, shown: str) -> None:
    """Letters stay, spaces are spaces, and what a terminal obeys or nobody sees is marked."""
    assert harmless(text) == shown
    assert harmless(text).isprintable()


@pytest.mark.parametrize("text", ["[red]M1[/red]", "[/]", "\\[x]", "a\\", ":smile:"])
def test_rich_shows_a_text_as_it_is_written(text: str) -> None:
    """No markup, no emoji, no style."""
    shown = Text.from_markup(f"[bold]{clean(text)}[/]", emoji=False)

    assert shown.plain == text
    assert [(span.start, span.end, span.style) for span in shown.spans] == [(0, len(text), "bold")]


def test_a_document_is_json_without_anything_a_terminal_obeys(capsys: pytest.CaptureFixture[str]) -> None:
    """Readable letters stay readable; dates are ISO; what goes in comes out."""
    name = "Ærlig\u202e\u2028\x85\x9b\x7f\x1b\ufeff\U0001f600"
    moment = datetime(2026, 3, 10, 4, 5, tzinfo=UTC)

    print_json({"name": name, "on": TODAY, "at": moment, "id": UUID(int=1), "none": None})

    text = capsys.readouterr().out
    assert json.loads(text) == {
        "name": name,
        "on": "2026-03-10",
        "at": "2026-03-10T04:05:00+00:00",
        "id": str(UUID(int=1)),
        "none": None,
    }
    assert "Ærlig" in text
    assert all(character.isprintable() or character == "\n" for character in text)


def test_an_error_is_one_line_whatever_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Line ends are folded and orders to the terminal marked."""
    print_error("certjob run", "the server said:\n\tgo  away\x1b[2J")

    assert capsys.readouterr() == ("", "certjob run: the server said: go away\ufffd[2J\n")


# Logs.


def test_a_traceback_leaves_out_the_row_that_the_database_quotes(facts: Facts) -> None:
    """The DETAIL of a constraint holds names and addresses; where it happened and the rule are enough."""
    organisation_id = facts.organisation()
    facts.mentor(organisation_id, member_no="M1", full_name="Ola Hemmelig")

    def break_a_rule() -> None:
        try:
            facts.mentor(organisation_id, member_no="M1", full_name="Ola Hemmelig", email="ola@example.org")
        except psycopg.Error as error:
            message = "could not be written"
            raise RuntimeError(message) from error

    with pytest.raises(RuntimeError) as caught:
        break_a_rule()
    text = "\n".join(traceback_lines(caught.value))

    assert "mentors_organisation_id_member_no_key" in text
    assert "UniqueViolation" in text
    assert "in break_a_rule" in text
    assert text.endswith("RuntimeError: could not be written")
    assert "(M1)" not in text
    assert str(organisation_id) not in text


def test_a_logged_crash_is_whole_in_both_formats(
    capsys: pytest.CaptureFixture[str], certjob_logger: logging.Logger
) -> None:
    """Lines of text, or the key of the one JSON line."""
    for log_format in ("text", "json"):
        logging.config.dictConfig(log_configuration(verbose=False, log_format=log_format))
        try:
            _ = 1 // 0
        except ZeroDivisionError:
            certjob_logger.exception("a stage crashed")

    *text, line = capsys.readouterr().err.splitlines()
    assert text[0].endswith("ERROR a stage crashed")
    assert text[-1].startswith("ZeroDivisionError: ")
    assert json.loads(line)["traceback"].splitlines()[-1] == text[-1]


# Plans and totals.


def planned(person: Mentor) -> PlannedChange:
    decision = rules.decide(person, TODAY)
    return PlannedChange(decision=decision, new_reminders=decision.reminders)


def report_of(*people: Mentor) -> RunReport:
    report = RunReport(command="run", today=TODAY, dry_run=True, review=ReviewCounts())
    report.changes = [planned(person) for person in people]
    return report


@pytest.mark.parametrize(
    ("person", "line"),
    [
        (
            mentor(expiring_in(0), organisation=organisation(slug="nhf", thresholds=[0], has_portal=False)),
            "nhf M1001: certificates: expiring; reminder: on the last day",
        ),
        (
            mentor(
                replace(certificate(TODAY + timedelta(days=400)), status=Status.EXPIRED),
                pauses=[own_pause()],
                portal_visible=False,
            ),
            "hlf M1001: certificates: expired → valid; pause: lift; portal: show",
        ),
    ],
)
def test_a_plan_line_says_what_would_change(capsys: pytest.CaptureFixture[str], person: Mentor, line: str) -> None:
    """Only what changes, in the same words as the table."""
    show_plan(Output(quiet=False), report_of(person))

    assert capsys.readouterr().out.splitlines()[0] == line


def terminal(columns: int) -> tuple[Output, Callable[[], str]]:
    """An output on a terminal of so many columns, and how to read what it shows."""
    output = Output(quiet=False)
    output.on_terminal = True
    output.out = Console(
        file=io.StringIO(), width=columns, force_terminal=True, color_system=None, emoji=False, highlight=False
    )
    return output, output.out.file.getvalue  # type: ignore[attr-defined]


def test_a_long_plan_is_cut_on_a_terminal_and_whole_off_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody reads 60 rows; a file gets them all."""
    report = report_of(*[replace(mentor(expiring_in(-1)), member_no=f"N{number}") for number in range(60)])
    output, shown = terminal(100)

    show_plan(output, report)
    rest = capsys.readouterr().out
    show_plan(Output(quiet=False), report)
    whole = capsys.readouterr().out

    assert "N49" in shown()
    assert "N50" not in shown()
    assert rest == "… and 10 more; --json lists all of them\n"
    assert whole.count("hlf N") == 60


def test_totals_name_what_is_not_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Zeros are left out, thousands are separated; on a terminal with a title, and the digests where there are any."""
    counts = ReviewCounts(reviewed=12345, paused=1, transitions=Counter({Status.EXPIRED: 1}))
    report = RunReport(command="run", today=TODAY, review=counts, reminders_pending=2)

    show_totals(Output(quiet=False), report)

    assert capsys.readouterr().out == (
        "mentors: 12,345 reviewed, 1 paused; certificates: 1 expired; reminders: 2 pending; portal: nothing\n"
    )
    for command, digests, title in (("run", MailCounts(), "Night of"), ("deliver", MailCounts(sent=2), "Delivery of")):
        output, shown = terminal(100)
        show_totals(output, RunReport(command=command, today=TODAY, digests=digests))
        assert shown().startswith(f"{title} 2026-03-10")
        assert ("digests" in shown()) is (digests.sent > 0)


def test_skipped_mentors_are_said_in_a_line_that_fits_one_and_several() -> None:
    """The reason is each one's in the document, and all of theirs in the line."""
    for number, begins in ((1, "1 mentor was skipped ("), (7, "7 mentors were skipped (")):
        review = ReviewCounts(skipped=[UUID(int=i) for i in range(number)])

        (line,) = RunReport(command="run", today=TODAY, review=review).reasons

        assert line.startswith(begins)
        assert line.count("-0000-0000-0000-") == min(number, 5)
        assert line.endswith(" and 2 more") is (number == 7)
        assert "the next one" not in line
        assert "the next run does this review" in line


def test_mentors_whom_this_run_has_named_are_not_counted_beside_it() -> None:
    """Others whom no run could review are."""
    review = ReviewCounts(broken={UUID(int=0): "bad date"})
    for number, lines in ((1, 1), (2, 2)):
        counts = dict.fromkeys(Kind, Count()) | {Kind.NEVER_REVIEWED: Count(number=number)}
        attention = Attention(counts=counts, read_at=datetime.now(UTC))

        report = RunReport(command="run", today=TODAY, review=review, attention=attention)

        assert len(report.reasons) == lines


def test_mentors_that_broke_for_different_reasons_are_not_said_to_share_one() -> None:
    """A line for each reason; of very many the last stands for the rest."""
    few = ReviewCounts(broken={UUID(int=0): "bad date", UUID(int=1): "no kind", UUID(int=2): "bad date"})
    many = ReviewCounts(broken={UUID(int=i): f"reason {i}" for i in range(9)})

    assert [line.partition(":")[0] for line in RunReport(command="run", today=TODAY, review=few).reasons] == [
        "2 mentors are broken (bad date)",
        "1 mentor is broken (no kind)",
    ]
    lines = RunReport(command="run", today=TODAY, review=many).reasons
    assert len(lines) == 5
    assert lines[-1].startswith("5 mentors are broken (other reasons; --json has them): ")


STATE = MentorState(
    member_no="M1",
    has_portal=True,
    desired=False,
    acknowledged=None,
    open_push="pending",
    pauses=["certification_expired"],
    certificates=["likeperson expired until 2026-03-09"],
)


def test_a_resync_shows_before_and_after(capsys: pytest.CaptureFixture[str]) -> None:
    """Certificates, pauses, what the portal should have and has; on a terminal wrapped under their indent."""
    after = replace(STATE, open_push=None, acknowledged=False)
    elsewhere = replace(STATE, has_portal=False, pauses=[], certificates=[])

    show_resync(Output(quiet=False), STATE, after)
    show_resync(Output(quiet=False), elsewhere, elsewhere)

    person = "M1: likeperson expired until 2026-03-09; paused: no valid certificate; portal wanted hidden"
    assert capsys.readouterr().out.splitlines() == [
        f"before: {person}, confirmed unknown, push pending",
        f"after:  {person}, confirmed hidden",
        "before: M1: no certificate; not paused; no portal",
        "after:  M1: no certificate; not paused; no portal",
    ]
    output, shown = terminal(40)
    show_resync(output, STATE, STATE)
    assert shown().startswith("before: M1: likeperson expired until\n")
    assert all(line.startswith((" " * 8, "before: ", "after:  ")) and len(line) <= 40 for line in shown().splitlines())


def test_a_command_stays_whole_where_it_fits_a_line_and_is_parted_at_its_spaces_where_not() -> None:
    """Never inside a word."""
    line = PageLine(text="give one: `certjob organisation set hlf --portal none`")

    wide, narrow = (
        [text.plain for text in wrap(Console(width=columns, file=io.StringIO()), [line])] for columns in (48, 30)
    )

    assert wide == ["give one:", "`certjob organisation set hlf --portal none`"]
    assert narrow == ["give one: `certjob", "organisation set hlf --portal", "none`"]


def test_a_page_is_cut_where_the_terminal_ends() -> None:
    """The last line says how many alerts are cut off."""
    lines = [PageLine(text=f"line {number}", alerts=1) for number in range(3)]

    whole, cut = (
        [text.plain for text in fit(Console(width=40, file=io.StringIO()), lines, height=height, rest="see there")]
        for height in (3, 2)
    )

    assert whole == ["line 0", "line 1", "line 2"]
    assert cut == ["line 0", "… and 2 more; see there"]


def test_progress_tells_how_many_are_done_and_of_how_many_where_that_is_known() -> None:
    """A night does not count beforehand: no "0/?"."""
    output, shown = terminal(80)
    output.err, output.interactive = output.out, True

    with output.progress() as progress:
        progress.phase("Reviewing mentors")(1200)
        progress.phase("Pushing", total=3000)(2)

    assert "1,200" in shown()
    assert "2 of 3,000" in shown()
    assert "/?" not in shown()


def test_rows_are_tabs_off_a_terminal_and_a_table_on_it(capsys: pytest.CaptureFixture[str]) -> None:
    """A tab inside a cell would shift the columns: it is a space."""
    output, shown = terminal(30)
    rows = [("a\tb", 1), ("[x]", None)]

    show_rows(Output(quiet=False), ("Name", "Number"), rows)
    show_rows(output, ("Name", "Number"), rows)

    assert capsys.readouterr().out == "a b\t1\n[x]\tNone\n"
    assert "[x]   None" in shown()
    assert "Number" in shown()


def test_nobody_is_told_anything_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Output and progress are for people who watch."""
    output = Output(quiet=False)

    output.line("the schema is up to date")
    with output.progress() as progress:
        progress.phase("Reviewing mentors")(5)

    assert not output.interactive
    assert capsys.readouterr() == ("", "")


# Arguments and errors.


def test_durations_and_days_are_read_as_people_write_them() -> None:
    """Hours, minutes, seconds; a bare number is seconds; a day is ISO."""
    texts = {"90": 90, "90s": 90, "30m": 1800, "1h30m": 5400, " 2H ": 7200, "0": 0}

    assert {text: parse_duration(text) for text in texts} == texts
    assert parse_day("2026-03-10") == TODAY


@pytest.mark.parametrize(
    ("error", "code", "name", "phrase"),
    [
        (psycopg.errors.AdminShutdown("terminating connection"), 1, "database_unavailable", "went away"),
        (psycopg.OperationalError("server closed the connection"), 1, "database_unavailable", "went away"),
        (psycopg.errors.QueryCanceled("canceling statement"), 1, "database", "could not do it now"),
        (psycopg.errors.QueryCanceled("due to statement timeout"), 1, "database", "SET statement_timeout"),
        (psycopg.errors.DiskFull("could not extend file"), 1, "database", "could not do it now"),
        (psycopg.errors.LockNotAvailable("lock timeout"), 1, "database", "could not do it now"),
        (psycopg.errors.InsufficientPrivilege("denied"), 2, "configuration", "lacks a right"),
        (psycopg.errors.ReadOnlySqlTransaction("no INSERT"), 1, "database_unavailable", "read-only"),
        (psycopg.errors.UndefinedColumn("no column"), 1, "database", "refused a statement"),
        (OSError(28, "No space left on device"), 1, "disk_full", "make room"),
        (ZeroDivisionError("division by zero"), 1, "internal", "run it again with -v"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_a_foreign_error_gets_a_code_and_a_next_step(error: Exception, code: int, name: str, phrase: str) -> None:
    """Whatever slipped through to the last line of defence."""
    ours = entry._as_ours(error, ["run"])

    assert (ours.exit_code, ours.code) == (code, name)
    assert phrase in str(ours)
    assert ours.next_step


def test_a_rule_of_the_database_is_quoted_without_its_row(connection: Connection) -> None:
    """The first line of the server's message, not its DETAIL."""
    with pytest.raises(psycopg.errors.NotNullViolation) as caught:
        connection.execute("INSERT INTO organisations (slug, name) VALUES ('secret-slug', NULL)")

    message = entry._as_ours(caught.value, ["run"]).message

    assert "violates not-null constraint" in message
    assert "secret-slug" not in message
