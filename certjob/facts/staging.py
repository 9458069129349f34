"""The checked rows of a file, sorted and merged outside memory: one entry for each certificate and each mentor.

A file may tell of one certificate on its first and its last line. Applied in the file's order, a second load would
first undo what the last line says and then do it again, re-arming reminders on the way; so the lines are merged first.
SQLite does it in a private temporary file that has no name and is gone with the process.
"""

import sqlite3
from collections.abc import Iterator, Sequence

from certjob.errors import CertjobError
from certjob.facts.roster import RosterRow

MENTORS_PER_BATCH = 1_000
ROWS_PER_BATCH = 10_000
"""A batch ends here too: a mentor with very many certificates is written in several."""

_CACHE_KIB = 16_384

# SQLite's own dialect, and nobody else's business: not among the statements of sql/.
_SET_UP = f"""
    PRAGMA journal_mode = OFF;
    PRAGMA synchronous = OFF;
    PRAGMA cache_size = -{_CACHE_KIB};
    CREATE TABLE mentors (
        organisation_id TEXT, member_no TEXT, full_name TEXT, email TEXT, locale TEXT, dynamics_contact_id TEXT,
        PRIMARY KEY (organisation_id, member_no)
    ) WITHOUT ROWID;
    CREATE TABLE certificates (
        organisation_id TEXT, member_no TEXT, kind TEXT, issued_on TEXT, expires_on TEXT, revoked_on TEXT, line INTEGER,
        PRIMARY KEY (organisation_id, member_no, kind, issued_on)
    ) WITHOUT ROWID;
    BEGIN;
"""

# An empty cell leaves what an earlier line said.
_ADD_MENTOR = """
    INSERT INTO mentors (organisation_id, member_no, full_name, email, locale, dynamics_contact_id)
    VALUES (?, ?, ?, ?, ?, ?)
    ON CONFLICT DO UPDATE SET
        full_name = coalesce(excluded.full_name, full_name),
        email = coalesce(excluded.email, email),
        locale = coalesce(excluded.locale, locale),
        dynamics_contact_id = coalesce(excluded.dynamics_contact_id, dynamics_contact_id)
"""
_ADD_CERTIFICATE = """
    INSERT INTO certificates (organisation_id, member_no, kind, issued_on, expires_on, revoked_on, line)
    VALUES (?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT DO UPDATE SET
        expires_on = excluded.expires_on,
        revoked_on = coalesce(excluded.revoked_on, revoked_on),
        line = excluded.line
"""
# In the order of both keys: no sorting, and every load meets the mentors in one order.
_READ = """
    SELECT c.organisation_id, c.member_no, m.full_name, m.email, m.locale, m.dynamics_contact_id,
        c.kind, c.issued_on, c.expires_on, c.revoked_on, c.line
    FROM certificates AS c CROSS JOIN mentors AS m USING (organisation_id, member_no)
    ORDER BY c.organisation_id, c.member_no, c.kind, c.issued_on
"""


class Stage:
    """Rows go in as they stand in the file and come out merged, by mentor."""

    def __init__(self) -> None:
        self._connection = sqlite3.connect("", isolation_level=None)
        self._connection.executescript(_SET_UP)

    def close(self) -> None:
        """Drop everything."""
        self._connection.close()

    def add(self, rows: Sequence[RosterRow]) -> None:
        """Merge more rows of the file into what is there."""
        try:
            self._connection.executemany(_ADD_MENTOR, [row[:6] for row in rows])
            self._connection.executemany(_ADD_CERTIFICATE, [row[:2] + row[6:] for row in rows])
        except sqlite3.OperationalError as error:
            message = "no room to sort the file in the temporary directory; free some space there, or set TMPDIR"
            raise CertjobError(message) from error

    @property
    def certificates(self) -> int:
        """The number of different certificates."""
        count: int = self._connection.execute("SELECT count(*) FROM certificates").fetchone()[0]
        return count

    def batches(self) -> Iterator[list[RosterRow]]:
        """Yield the merged rows by up to 1,000 mentors and 10,000 certificates; ``line`` is the last one about each."""
        batch: list[RosterRow] = []
        mentors = 0
        mentor: tuple[str, str] | None = None
        for row in map(RosterRow._make, self._connection.execute(_READ)):
            is_next = (row.organisation_id, row.member_no) != mentor
            if len(batch) >= ROWS_PER_BATCH or (is_next and mentors == MENTORS_PER_BATCH):
                yield batch
                batch, mentors = [], 0
            if is_next or not batch:
                mentors += 1
                mentor = (row.organisation_id, row.member_no)
            batch.append(row)
        if batch:
            yield batch
