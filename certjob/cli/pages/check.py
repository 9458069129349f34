"""`certjob check`: one line per thing that was looked at, the verdict first."""

from collections import Counter
from collections.abc import Iterable

from certjob.cli.terminal.lines import PageLine
from certjob.cli.terminal.output import Output
from certjob.reports.check.findings import Finding, Verdict

_STYLES = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "bold red", Verdict.SKIP: "dim"}


def show_finding(output: Output, finding: Finding) -> None:
    """Print one line: coloured and wrapped on a terminal, whole off it."""
    bullet, style = f"{finding.verdict:<4}  ", _STYLES[finding.verdict]
    line = PageLine(bullet=bullet, bullet_style=style, head=f"{finding.check}: ", text=finding.text)
    output.show_lines([line])


def closing_line(findings: Iterable[Finding]) -> str | None:
    """Return why the command does not end with 0; None when it does."""
    counts = Counter(finding.verdict for finding in findings)
    if not counts.keys() - {Verdict.OK}:
        return None
    words = {
        Verdict.OK: "ok",
        Verdict.WARN: "warning" if counts[Verdict.WARN] == 1 else "warnings",
        Verdict.FAIL: "failed",
        Verdict.SKIP: "not checked",
    }
    return ", ".join(f"{counts[verdict]} {word}" for verdict, word in words.items() if counts[verdict])
