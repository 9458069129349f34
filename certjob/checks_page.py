"""`certjob check`: one line per thing that was looked at, the verdict first."""

from collections.abc import Iterable

from rich.text import Text

from certjob.console import Talk
from certjob.findings import Finding, Verdict
from certjob.plain import harmless

_STYLES = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "bold red", Verdict.SKIP: "dim"}


def show_findings(talk: Talk, findings: Iterable[Finding], *, quiet: bool) -> None:
    """Print each as soon as it is known; ``quiet`` leaves out what is well."""
    for finding in findings:
        if not (quiet and finding.verdict is Verdict.OK):
            show_finding(talk, finding)


def show_finding(talk: Talk, finding: Finding) -> None:
    """Print one line: coloured and wrapped on a terminal, whole off it."""
    if not talk.on_terminal:
        talk.result(f"{finding.verdict:<4}  {finding.check}: {finding.text}")
        return
    said = Text(f"{harmless(finding.check)}: ", style="bold").append(harmless(finding.text), style="not bold")
    lines = said.wrap(talk.out, max(talk.out.width - 6, 20))
    for number, line in enumerate(lines):
        head = Text(f"{finding.verdict:<4}  ", style=_STYLES[finding.verdict]) if number == 0 else Text(" " * 6)
        line.rstrip()
        talk.out.print(head.append_text(line), soft_wrap=True)


def closing_line(findings: Iterable[Finding]) -> str | None:
    """Return why the command does not end with 0; None when it does."""
    verdicts = [finding.verdict for finding in findings]
    parts = [
        f"{number} {word}"
        for verdict, word in ((Verdict.FAIL, "failed"), (Verdict.WARN, "to look at"), (Verdict.SKIP, "not checked"))
        if (number := verdicts.count(verdict))
    ]
    return f"{', '.join(parts)} of {len(verdicts)}" if parts else None
