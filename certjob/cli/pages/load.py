"""The page of `certjob load`: the numbers, and the problems on stderr by line, mentor and column."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, Final

from certjob.cli.terminal import plain
from certjob.cli.terminal.output import Output
from certjob.domain.explanations import number
from certjob.facts.roster import Problem
from certjob.jobs.load import Loaded
from certjob.jobs.report import RunReport

COMMAND = "certjob load"
MOST_LINES: Final = 20
"""Lines of one kind of problem. --json has all of them."""
_NUMBERS = ("rows", "skipped", "mentors_added", "mentors_changed", "certificates_added", "certificates_changed")


def show_load(output: Output, loaded: Loaded, *, json: bool, dry_run: bool) -> None:
    """Print the result of a load, the problems of the file, and what the next run will do."""
    report = loaded.report
    document = asdict(report) | _next_run(loaded.next_run)
    document |= {"problems": list(map(_problem, report.problems)), "dry_run": dry_run}
    if json:
        plain.print_json({"outcome": "attention" if report.skipped else "ok"} | document)
    elif output.interactive or dry_run:
        rows = [(name.replace("_", " "), f"{document[name]:,}") for name in _NUMBERS if document[name]]
        output.show_rows(("What", ">Number"), rows)
    _show_problems(report.problems)
    if report.skipped:
        numbers = f"{report.skipped:,} of {report.rows:,} rows were skipped, {report.rows - report.skipped:,} loaded"
        plain.print_attention(COMMAND, numbers)
    for line in _foreseen(loaded.next_run, always=dry_run):
        plain.print_note(COMMAND, line)
    if dry_run:
        plain.print_note(COMMAND, "--dry-run: nothing was loaded")


def _foreseen(next_run: RunReport, *, always: bool) -> Iterator[str]:
    """Yield lines about the next run: a sum if it pauses anyone, and each hold with the command that permits it."""
    numbers = _next_run(next_run)
    paused, back = numbers["paused_next_run"], numbers["brought_back_next_run"]
    if paused or next_run.held or always:
        reminders = number(numbers["reminders_next_run"], "reminder")
        yield f"the next run will pause {number(paused, 'mentor')}, reinstate {back:,} and queue {reminders}"
    yield from (f"the next run will hold {line}" for line in next_run.held)


def _next_run(next_run: RunReport) -> dict[str, Any]:
    """Return the numbers of the next run, without held changes."""
    document = next_run.to_document()
    return {
        "paused_next_run": document["mentors"]["paused"],
        "brought_back_next_run": document["mentors"]["resumed"],
        "reminders_next_run": document["reminders"]["queued"],
        "held_next_run": next_run.held,
    }


def _show_problems(problems: Sequence[Problem]) -> None:
    """Print the first lines of each kind of problem, then the number of the others."""
    shown: Counter[tuple[str, str, bool]] = Counter()
    for problem in problems:
        kind = (problem.column, problem.reason, problem.loaded)
        shown[kind] += 1
        if shown[kind] <= MOST_LINES:
            where = [f"line {problem.line}", *([problem.mentor[1]] if problem.mentor else []), problem.column]
            _say(problem.is_warning, f"{': '.join(where)}: {problem.reason} ({_result(loaded=problem.loaded)})")
    for (column, reason, loaded), count in shown.items():
        if count > MOST_LINES:
            more = f"… and {count - MOST_LINES:,} more: {column}: {reason} ({_result(loaded=loaded)})"
            _say(loaded, more)


def _say(is_warning: bool, text: str) -> None:
    say = plain.print_warning if is_warning else plain.print_attention
    say(COMMAND, text)


def _result(*, loaded: bool) -> str:
    return "loaded" if loaded else "skipped"


def _problem(problem: Problem) -> dict[str, Any]:
    """Return the entry of ``problems``."""
    document = asdict(problem) | {"member_no": problem.mentor[1] if problem.mentor else None}
    del document["mentor"]
    return document
