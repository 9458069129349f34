"""The findings of `certjob check`."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from certjob.errors import CertjobError
from certjob.page import Line


class Verdict(StrEnum):
    """The result of one test, the worst first."""

    FAIL = "fail"
    WARN = "warn"
    SKIP = "skip"
    """The test was not possible."""
    OK = "ok"


@dataclass(frozen=True, slots=True)
class Finding:
    """One test and its result. No text contains the value of a setting or data about people."""

    check: str
    """The subject, in one or two words."""
    verdict: Verdict
    message: str
    next_step: str | None = None
    exit_code: int = 0

    @property
    def text(self) -> str:
        """The message with its next step."""
        return f"{self.message}; {self.next_step}" if self.next_step else self.message

    def to_document(self) -> dict[str, str | None]:
        """Return the entry of ``checks`` in the JSON document."""
        return {"check": self.check, "verdict": self.verdict, "message": self.message, "next_step": self.next_step}


def ok(check: str, message: str) -> Finding:
    """Return a passed test."""
    return Finding(check, Verdict.OK, message)


def warn(check: str, message: str, *, next_step: str) -> Finding:
    """Return a problem that does not stop a run."""
    return Finding(check, Verdict.WARN, message, next_step, exit_code=3)


def fail(check: str, message: str, *, next_step: str | None, exit_code: int = 2) -> Finding:
    """Return a problem that stops a run or a part of it: 2 for a wrong configuration, 1 for something out of reach."""
    return Finding(check, Verdict.FAIL, message, next_step, exit_code)


def skip(check: str, because: str) -> Finding:
    """Return a test that was not possible."""
    return Finding(check, Verdict.SKIP, f"not checked: {because}", exit_code=3)


def failed_with(check: str, error: CertjobError, *, exit_code: int | None = None) -> Finding:
    """Return an error as a finding."""
    return fail(check, error.message, next_step=error.next_step, exit_code=exit_code or error.exit_code)


def exit_code_of(findings: Iterable[Finding]) -> int:
    """Return the exit code of the command: 2 before 1 before 3 before 0.

    >>> exit_code_of([warn("mail", "no sender", next_step="set it")]), exit_code_of([])
    (3, 0)
    """
    codes = {finding.exit_code for finding in findings}
    return next((code for code in (2, 1, 3) if code in codes), 0)


def check_page(findings: Iterable[Finding]) -> Iterator[Line]:
    """Yield the findings, the worst first."""
    order = list(Verdict)
    for finding in sorted(findings, key=lambda finding: order.index(finding.verdict)):
        yield Line(finding.text, head=f"{finding.check}: ", indent=f"{finding.verdict:<4}  ")


def summary_line(findings: Iterable[Finding]) -> str | None:
    """Return the number of findings of each verdict, or None if all are ok."""
    counts = Counter(finding.verdict for finding in findings)
    if not counts.keys() - {Verdict.OK}:
        return None
    warnings = "warning" if counts[Verdict.WARN] == 1 else "warnings"
    words = {Verdict.FAIL: "failed", Verdict.WARN: warnings, Verdict.SKIP: "not checked", Verdict.OK: "ok"}
    return ", ".join(f"{counts[verdict]} {word}" for verdict, word in words.items() if counts[verdict])
