"""A loader for tests of ``certjob load``."""

from dataclasses import dataclass
from typing import Any

from certjob.database import Connection
from certjob.facts.loading import LoadReport, load_file
from tests.support.facts import TODAY, Facts

REQUIRED = "organisation,member_no,kind,issued_on,expires_on"
"""The header of the shortest file."""


@dataclass
class Loader:
    """Loads texts into a database."""

    connection: Connection

    def __call__(self, text: str) -> LoadReport:
        return load_file(self.connection, text.encode(), today=TODAY)

    def rows(self, *rows: str, more_columns: str = "") -> dict[str, int]:
        """Load these rows without a problem; return the numbers of written rows that are not zero."""
        report = self("\n".join([REQUIRED + more_columns, *rows]))
        assert (report.rows, report.problems) == (len(rows), [])
        return written(report)

    def found(self, statement: str) -> list[tuple[Any, ...]]:
        """Return rows of the database."""
        return Facts(self.connection).rows(statement)

    def due(self) -> list[str]:
        """Return the member numbers that the next run reviews because of a change."""
        return [row[0] for row in self.found("SELECT member_no FROM mentors WHERE review_on = '-infinity' ORDER BY 1")]


def written(report: LoadReport) -> dict[str, int]:
    """Return the numbers of written rows that are not zero."""
    names = ("mentors_added", "mentors_changed", "certificates_added", "certificates_changed")
    return {name: number for name in names if (number := getattr(report, name))}
