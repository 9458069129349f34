"""The page of `certjob load`: the numbers, and the problems on stderr by line, mentor and column."""

from collections import Counter
from dataclasses import asdict
from typing import Any, Final

from certjob.cli.terminal import plain
from certjob.cli.terminal.output import Output
from certjob.domain.rules import MASS_CHANGE_MINIMUM
from certjob.facts.loading import LoadReport
from certjob.facts.roster import Problem

COMMAND = "certjob load"
MOST_LINES: Final = 20
"""Lines of one kind of problem. --json has all of them."""
_NUMBERS = ("rows", "skipped", "mentors_added", "mentors_changed", "certificates_added", "certificates_changed")


def show_load(output: Output, report: LoadReport, *, json: bool, dry_run: bool) -> None:
    """Print the result of a load, and the problems of the file."""
    document = asdict(report) | {"problems": list(map(_problem, report.problems)), "dry_run": dry_run}
    if json:
        plain.print_json({"outcome": "attention" if report.skipped else "ok"} | document)
    elif output.interactive or dry_run:
        rows = [(name.replace("_", " "), f"{document[name]:,}") for name in _NUMBERS if document[name]]
        output.show_rows(("What", ">Number"), rows)
    _show_problems(report)
    if report.skipped:
        loaded = report.rows - report.skipped
        numbers = f"{report.skipped:,} of {report.rows:,} rows were skipped, {loaded:,} loaded"
        plain.print_attention(COMMAND, numbers)
    if paused := report.paused_next_run:
        back = report.brought_back_next_run
        guard = ", unless a guard holds these changes" if max(paused, back) > MASS_CHANGE_MINIMUM else ""
        text = f"the next run will pause {paused:,} of this file's mentors and bring back {back:,}{guard}"
        plain.print_note(COMMAND, text)
    if dry_run:
        plain.print_note(COMMAND, "--dry-run: nothing was loaded")


def _show_problems(report: LoadReport) -> None:
    """Print the first lines of each kind of problem, then the number of the others."""
    shown: Counter[tuple[str, str, bool]] = Counter()
    for problem in report.problems:
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
