"""The page of `certjob load`: the numbers, and each problem on stderr by line and column."""

from dataclasses import asdict

from certjob.cli.terminal import plain
from certjob.cli.terminal.output import Output
from certjob.domain.rules import MASS_CHANGE_MINIMUM
from certjob.facts.loading import LoadReport

COMMAND = "certjob load"
_NUMBERS = ("rows", "skipped", "mentors_added", "mentors_changed", "certificates_added", "certificates_changed")


def show_load(output: Output, report: LoadReport, *, json: bool, dry_run: bool) -> None:
    """Print the result of a load, and the problems of the file."""
    document = asdict(report) | {"dry_run": dry_run}
    if json:
        plain.print_json({"outcome": "attention" if report.skipped else "ok"} | document)
    elif output.interactive or dry_run:
        rows = [(name.replace("_", " "), f"{document[name]:,}") for name in _NUMBERS if document[name]]
        output.show_rows(("What", ">Number"), rows)
    for problem in report.problems:
        say = plain.print_warning if problem.is_warning else plain.print_attention
        say(COMMAND, f"line {problem.line}: {problem.column}: {problem.reason}")
    if report.skipped:
        plain.print_attention(COMMAND, f"{report.skipped:,} of {report.rows:,} rows were skipped")
    if paused := report.paused_next_run:
        back = report.brought_back_next_run
        guard = ", unless a guard holds these changes" if max(paused, back) > MASS_CHANGE_MINIMUM else ""
        text = f"the next run will pause {paused:,} of this file's mentors and bring back {back:,}{guard}"
        plain.print_note(COMMAND, text)
    if dry_run:
        plain.print_note(COMMAND, "--dry-run: nothing was loaded")
