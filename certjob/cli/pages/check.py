"""`certjob check`: one line per thing that was looked at, the verdict first."""

from collections.abc import Iterable

from certjob.cli.terminal.lines import PageLine, wrap
from certjob.cli.terminal.output import Output
from certjob.views.check.findings import Finding, Verdict

_STYLES = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "bold red", Verdict.SKIP: "dim"}


def show_finding(output: Output, finding: Finding) -> None:
    """Print one line: coloured and wrapped on a terminal, whole off it."""
    if not output.on_terminal:
        output.result(f"{finding.verdict:<4}  {finding.check}: {finding.text}")
        return
    line = PageLine(bullet=f"{finding.verdict:<4}  ", head=f"{finding.check}: ", text=finding.text)
    for number, text in enumerate(wrap(output.out, [line])):
        if number == 0:
            text.stylize(_STYLES[finding.verdict], 0, len(finding.verdict))
        output.out.print(text, soft_wrap=True)


def closing_line(findings: Iterable[Finding]) -> str | None:
    """Return why the command does not end with 0; None when it does."""
    verdicts = [finding.verdict for finding in findings]
    counts = {verdict: verdicts.count(verdict) for verdict in (Verdict.OK, Verdict.WARN, Verdict.FAIL, Verdict.SKIP)}
    if counts[Verdict.OK] == len(verdicts):
        return None
    words = {
        Verdict.OK: "ok",
        Verdict.WARN: "warning" if counts[Verdict.WARN] == 1 else "warnings",
        Verdict.FAIL: "failed",
        Verdict.SKIP: "not checked",
    }
    return ", ".join(f"{number} {words[verdict]}" for verdict, number in counts.items() if number)
