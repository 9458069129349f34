"""The page of `certjob check`: one line for each finding, problems first."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from certjob.cli.terminal.lines import PageLine
from certjob.cli.terminal.output import Output
from certjob.cli.terminal.plain import ERROR_STYLE, WARNING_STYLE
from certjob.reports.check.findings import Finding, Verdict

_STYLES: Final = {Verdict.FAIL: ERROR_STYLE, Verdict.WARN: WARNING_STYLE}
_ORDER: Final = (Verdict.FAIL, Verdict.WARN, Verdict.SKIP, Verdict.OK)


def show_findings(output: Output, findings: Sequence[Finding]) -> None:
    """Print the findings, the worst first."""
    for finding in sorted(findings, key=lambda finding: _ORDER.index(finding.verdict)):
        bullet, style, head = f"{finding.verdict:<4}  ", _STYLES.get(finding.verdict, ""), f"{finding.check}: "
        output.show_lines([PageLine(bullet=bullet, bullet_style=style, head=head, text=finding.text)])


def summary_line(findings: Iterable[Finding]) -> str | None:
    """Return the number of findings of each verdict, or None if all are ok."""
    counts = Counter(finding.verdict for finding in findings)
    if not counts.keys() - {Verdict.OK}:
        return None
    warnings = "warning" if counts[Verdict.WARN] == 1 else "warnings"
    words = {Verdict.FAIL: "failed", Verdict.WARN: warnings, Verdict.SKIP: "not checked", Verdict.OK: "ok"}
    return ", ".join(f"{counts[verdict]} {word}" for verdict, word in words.items() if counts[verdict])
