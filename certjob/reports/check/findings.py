"""The findings of `certjob check`."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from certjob.errors import CertjobError


class Verdict(StrEnum):
    """The result of one test."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skip"
    """The test was not possible."""


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
