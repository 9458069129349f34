"""What tests of ``certjob load`` share: a loader that keeps what was rejected, and files of any size."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from certjob.database import Connection
from certjob.facts.loading import LoadOptions, LoadReport, RejectedRow, load

REQUIRED = "organisation,member_no,kind,issued_on,expires_on"
"""The header of the shortest file."""


@dataclass
class Loader:
    """Writes a file and loads it; the rejected rows are kept."""

    connection: Connection
    directory: Path
    rejected: list[RejectedRow] = field(default_factory=list)

    def __call__(
        self,
        text: str,
        *,
        options: LoadOptions | None = None,
        stop: threading.Event | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> LoadReport:
        path = self.directory / "roster.csv"
        path.write_bytes(text.encode())
        self.rejected.clear()
        return load(
            self.connection,
            path,
            options=options or LoadOptions(),
            on_reject=self.rejected.append,
            stop=stop,
            on_progress=on_progress,
        )

    def rows(self, *rows: str, header: str = REQUIRED, options: LoadOptions | None = None) -> LoadReport:
        return self("\n".join([header, *rows]), options=options)


def many(mentors: int, *, expires_on: str = "2027-01-01", certificates: int = 1) -> str:
    """A file with so many mentors, in an order of its own."""
    numbers = sorted(range(mentors), key=lambda number: (number * 7919) % mentors)
    return "\n".join(
        [REQUIRED]
        + [
            f"hlf,M{number:06},likeperson,{2024 - back}-02-01,{expires_on if back == 0 else f'{2025 - back}-02-01'}"
            for number in numbers
            for back in range(certificates)
        ]
    )
