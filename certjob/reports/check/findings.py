"""What `certjob check` finds: one line per thing that was looked at, with the next step where there is one."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from certjob.errors import CertjobError


class Verdict(StrEnum):
    """How one thing stands."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skip"
    """It could not be looked at, because of something else that failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at; no text holds a setting's value or a person's data."""

    check: str
    """What was looked at, in a word or two."""
    verdict: Verdict
    message: str
    next_step: str | None = None
    """What to do; None: nothing."""
    exit_code: int = 0
    """Of a failure: 2 for a wrong configuration, 1 for something that could not be reached."""

    @property
    def text(self) -> str:
        """The message with its next step."""
        return f"{self.message}; {self.next_step}" if self.next_step else self.message

    def to_document(self) -> dict[str, str | None]:
        """Return the entry of ``checks``."""
        return {
            "check": self.check,
            "verdict": str(self.verdict),
            "message": self.message,
            "next_step": self.next_step,
        }


def ok(check: str, message: str) -> Finding:
    """Return that all is well."""
    return Finding(check=check, verdict=Verdict.OK, message=message)


def warn(check: str, message: str, *, next_step: str) -> Finding:
    """Return something that will not stop a night, but that somebody should know of."""
    return Finding(check=check, verdict=Verdict.WARN, message=message, next_step=next_step)


def fail(check: str, message: str, *, next_step: str, exit_code: int = 2) -> Finding:
    """Return something that stops a night, or a part of it."""
    return Finding(check=check, verdict=Verdict.FAIL, message=message, next_step=next_step, exit_code=exit_code)


def skip(check: str, because: str) -> Finding:
    """Return that something could not be looked at."""
    return Finding(check=check, verdict=Verdict.SKIP, message=f"not checked: {because}")


def failed_with(check: str, error: CertjobError, *, exit_code: int | None = None) -> Finding:
    """Return one of our errors as a finding."""
    code = error.exit_code if exit_code is None else exit_code
    return Finding(check=check, verdict=Verdict.FAIL, message=error.message, next_step=error.next_step, exit_code=code)


def exit_code_of(findings: Iterable[Finding]) -> int:
    """Return 2 for a wrong configuration, else 1 for something out of reach, else 3 for a warning, else 0.

    >>> exit_code_of([warn("mail", "no sender", next_step="set it")]), exit_code_of([])
    (3, 0)
    """
    found = list(findings)
    failures = {finding.exit_code for finding in found if finding.verdict is Verdict.FAIL}
    if failures:
        return 2 if 2 in failures else 1
    return 3 if any(finding.verdict is not Verdict.OK for finding in found) else 0
