"""A loader for tests of ``certjob load``, and files of any size."""

from dataclasses import dataclass
from typing import Any

from certjob.database import Connection
from certjob.facts.loading import LoadReport, load
from tests.support.facts import TODAY, Facts

REQUIRED = "organisation,member_no,kind,issued_on,expires_on"
"""The header of the shortest file."""


def row(number: str = "M1", *more: str, kind: str = "likeperson", begins: str = "2024-02-01", ends: str) -> str:
    """Return a line of the shortest file, with more cells."""
    return ",".join(["hlf", number, kind, begins, ends, *more])


def many(mentors: int, *, expires_on: str = "2027-01-01", certificates: int = 1) -> str:
    """Return a file with this many mentors, in a shuffled order."""
    rows = [
        f"hlf,M{number:06},likeperson,{2024 - back}-02-01,{f'{2025 - back}-02-01' if back else expires_on}"
        for number in sorted(range(mentors), key=lambda number: (number * 7919) % mentors)
        for back in range(certificates)
    ]
    return "\n".join([REQUIRED, *rows])


@dataclass
class Loader:
    """Loads texts into a database."""

    connection: Connection

    def __call__(self, text: str) -> LoadReport:
        return load(self.connection, text.encode(), today=TODAY)

    def rows(self, *rows: str, header: str = REQUIRED) -> dict[str, int]:
        """Load these rows without a problem; return ``counts``."""
        report = self("\n".join([header, *rows]))
        assert (report.rows, report.problems) == (len(rows), [])
        return counts(report)

    def found(self, statement: str) -> list[tuple[Any, ...]]:
        """Return rows of the database."""
        return Facts(self.connection).rows(statement)

    def settle(self) -> None:
        """Store a later review for everyone."""
        self.connection.execute("UPDATE mentors SET review_on = '2026-12-01'")

    def due(self) -> list[str]:
        """Return the member numbers that the next run reviews."""
        return [row[0] for row in self.found("SELECT member_no FROM mentors WHERE review_on = '-infinity' ORDER BY 1")]

    def versions(self) -> list[tuple[Any, ...]]:
        """Return the transaction that wrote or locked each row last."""
        ids = "SELECT id, xmin::text, xmax::text FROM"
        return self.found(f"{ids} mentors UNION ALL {ids} certificates ORDER BY id")


def counts(report: LoadReport) -> dict[str, int]:
    """Return the numbers of written rows that are not zero."""
    names = ("mentors_added", "mentors_changed", "certificates_added", "certificates_changed")
    return {name: number for name in names if (number := getattr(report, name))}
