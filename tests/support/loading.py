"""What tests of ``certjob load`` share: a loader that keeps what was rejected, and files of any size."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from certjob.database import Connection
from certjob.facts.loading import LoadReport, load
from certjob.facts.roster import Cost, LoadOptions, Problem
from tests.support.facts import Facts

REQUIRED = "organisation,member_no,kind,issued_on,expires_on"
"""The header of the shortest file."""


def row(number: str = "M1", *more: str, kind: str = "likeperson", begins: str = "2024-02-01", ends: str) -> str:
    """A line of the shortest file, and what follows."""
    return ",".join(["hlf", number, kind, begins, ends, *more])


def many(mentors: int, *, expires_on: str = "2027-01-01", certificates: int = 1) -> str:
    """A file with so many mentors, in an order of its own."""
    rows = [
        f"hlf,M{number:06},likeperson,{2024 - back}-02-01,{f'{2025 - back}-02-01' if back else expires_on}"
        for number in sorted(range(mentors), key=lambda number: (number * 7919) % mentors)
        for back in range(certificates)
    ]
    return "\n".join([REQUIRED, *rows])


def report(**counts: int) -> LoadReport:
    """A report of these counts, and none else."""
    names = "rows loaded rejected repeated mentors_added mentors_changed certificates_added certificates_changed"
    return LoadReport(**dict.fromkeys([*names.split(), "unchanged"], 0) | counts)  # type: ignore[arg-type]


@dataclass
class Loader:
    """Writes a file and loads it; what was wrong is kept."""

    connection: Connection
    directory: Path
    problems: list[Problem] = field(default_factory=list)

    @property
    def rejected(self) -> list[Problem]:
        """What cost a row."""
        return [problem for problem in self.problems if problem.cost is Cost.ROW]

    def __call__(self, text: str, *, options: LoadOptions | None = None, **more: Any) -> LoadReport:
        path = self.directory / "roster.csv"
        path.write_bytes(text.encode())
        report = load(self.connection, path, options=options or LoadOptions(), **more)
        self.problems = list(report.problems)
        return report

    def rows(self, *rows: str, header: str = REQUIRED, options: LoadOptions | None = None) -> LoadReport:
        return self("\n".join([header, *rows]), options=options)

    def found(self, statement: str) -> list[tuple[Any, ...]]:
        """What the database holds now."""
        return Facts(self.connection).rows(statement)

    def settle(self) -> None:
        """Everybody has been reviewed."""
        self.connection.execute("UPDATE mentors SET review_on = '2026-01-01'")

    def due(self) -> list[str]:
        """The numbers of those whom the next night looks at."""
        return [row[0] for row in self.found("SELECT member_no FROM mentors WHERE review_on = '-infinity' ORDER BY 1")]

    def versions(self) -> list[tuple[Any, ...]]:
        """Which transaction wrote or locked each row last."""
        ids = "SELECT id, xmin::text, xmax::text FROM"
        return self.found(f"{ids} mentors UNION ALL {ids} certificates ORDER BY id")
