"""Why a delivery stage ended before its work was done."""

from dataclasses import dataclass

CRASH = "crash"
"""The code of a stage that ended by an error nobody foresaw: said every time, and the run failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStop:
    """One line of ``stopped`` in the report."""

    stage: str
    code: str
    """The same for the same reason, run after run, so that a background job does not repeat itself."""
    reason: str
    correlation_id: str | None = None
    """That of the answer which ended it, if one did: the other side's log has a line with it."""

    def __str__(self) -> str:
        return f"{self.stage}: {self.reason}"
