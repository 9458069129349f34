"""What a load prints: every problem on stderr by line and column, and the numbers."""

from dataclasses import asdict

from certjob.cli.terminal import plain
from certjob.cli.terminal.output import Output
from certjob.domain.rules import MASS_CHANGE_MINIMUM
from certjob.facts.loading import LoadReport

COMMAND = "certjob load"


def show(output: Output, report: LoadReport, *, json: bool, dry_run: bool) -> None:
    """Print what a load did, and what is wrong with the file."""
    document = asdict(report) | {"dry_run": dry_run}
    if json:
        plain.print_json({"outcome": "attention" if report.skipped else "ok"} | document)
    elif output.interactive or dry_run:
        names = ("rows", "skipped", "mentors_added", "mentors_changed", "certificates_added", "certificates_changed")
        rows = [(name.replace("_", " "), f"{document[name]:,}") for name in names if document[name]]
        output.show_rows(("What", ">Number"), rows)
    for problem in report.problems:
        say = plain.print_warning if problem.is_warning else plain.print_attention
        say(COMMAND, f"line {problem.line}: {problem.column}: {problem.reason}")
    if report.skipped:
        plain.print_attention(COMMAND, f"{report.skipped:,} of {report.rows:,} rows were skipped")
    if report.paused_next_run:
        paused, back = report.paused_next_run, report.brought_back_next_run
        guard = ", unless a guard holds these changes" if max(paused, back) > MASS_CHANGE_MINIMUM else ""
        text = f"the next run will pause {paused:,} of this file's mentors and bring back {back:,}{guard}"
        plain.print_note(COMMAND, text)
    if dry_run:
        plain.print_note(COMMAND, "--dry-run: nothing was loaded")
