"""What a load prints: every problem on stderr by line and column, and the numbers."""

from dataclasses import asdict

from certjob.cli.terminal import output as console
from certjob.cli.terminal import plain
from certjob.cli.terminal.output import Output
from certjob.facts.loading import LoadReport

COMMAND = "certjob load"


def show(output: Output, report: LoadReport, *, json: bool) -> None:
    """Print what a load did, and what is wrong with the file."""
    document = asdict(report)
    if json:
        plain.print_json({"outcome": "attention" if report.skipped else "ok"} | document)
    elif output.interactive:
        rows = [(name.replace("_", " "), f"{number:,}") for name, number in document.items() if isinstance(number, int)]
        rows = [row for row in rows if row[1] != "0"]
        console.show_rows(output, ("What", ">Number"), rows)
    for problem in report.problems:
        say = plain.print_warning if problem.is_warning else plain.print_attention
        say(COMMAND, f"line {problem.line}: {problem.column}: {problem.reason}")
    if report.skipped:
        others = "nothing was loaded" if report.skipped == report.rows else "the others were loaded"
        plain.print_attention(COMMAND, f"{report.skipped:,} of {report.rows:,} rows were skipped; {others}")
