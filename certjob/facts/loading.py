"""Loads mentors and certificates from a CSV file: read and checked whole, then written by 1,000 rows.

A file may tell of one certificate on its first and its last line. Applied in the file's order, a second load would
first undo what the last line says and then do it again, re-arming reminders on the way; so the lines are merged first.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import psycopg

from certjob import database
from certjob.database import CONTENTION, Connection
from certjob.errors import DatabaseUnavailableError, MentorBusyError, StoppedBySignalError
from certjob.facts.csv_rows import CsvFile, open_csv
from certjob.facts.roster import WHOLE_LINE, Cost, LoadOptions, Problem, Roster, RosterRow
from certjob.stopping import StopFlag

_AGAIN = "load the same file again, which is safe"
ROWS_PER_BATCH = 1_000

_LOCK_TIMEOUT_MS = 500
_TRIES = 3
_BUSY_LIMIT = 30
"""A load gives up after so many writes that failed on another session's locks: most of a minute."""

_ONE_CONTACT = "mentors_one_per_contact"

_BOUNDS = "certjob_"
"""How the bounds of migration 0009 begin."""

_REFUSED = (psycopg.DataError, psycopg.IntegrityError, psycopg.errors.RaiseException)
"""What a constraint, a domain or somebody's trigger says about a value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What a load found and did.

    Without --strict ``rows = loaded + repeated + rejected`` and
    ``loaded = certificates_added + certificates_changed + unchanged``. A strict load with a bad row loads nothing: all
    but ``rows``, ``repeated`` and ``rejected`` are 0.
    """

    rows: int
    """Rows of the file, without the header and blank ones."""
    loaded: int
    """Certificates of the file that the database now holds as the file has them; mentors in a file of mentors alone."""
    rejected: int
    """Rows that were not loaded."""
    repeated: int
    """Valid rows about a certificate (organisation, member_no, kind, issued_on) that a later valid row is about too."""
    mentors_added: int
    mentors_changed: int
    """Known mentors of whom a name, e-mail, locale, contact ID or departure was changed."""
    certificates_added: int
    certificates_changed: int
    """Certificates whose expiry or revocation was changed in place."""
    unchanged: int
    """Certificates that were so already; in a file of mentors alone, mentors."""
    problems: Sequence[Problem] = field(default=(), compare=False)
    """All that was wrong, by line."""
    header: str = field(default="", compare=False)
    """The line with the column names, as it stands in the file."""
    delimiter: str = field(default=",", compare=False)


def load(
    connection: Connection,
    path: Path,
    *,
    options: LoadOptions,
    stop: StopFlag | None = None,
    on_read: Callable[[int], None] = lambda _rows: None,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> LoadReport:
    """Upsert the mentors and certificates of a CSV file.

    The file is read to its end before the first row is written, so the last line about a certificate or a mentor
    decides wherever it stands, and loading a file again changes nothing. It commits by 1,000 rows, under
    ``options.strict`` once at the end, and only if no row was bad. A value that only the database refuses costs its own
    row. A file of mentors alone changes those who are known, and adds nobody. ``on_read`` gets the number of rows
    read so far, ``on_progress`` that of rows written, and of all.

    Raises InputError when the file is no CSV, lacks a column or an option is wrong (nothing is loaded then),
    StoppedBySignalError when ``stop`` is set, MentorBusyError when other sessions hold the mentors for too long,
    DatabaseUnavailableError when the connection breaks. What was committed stays; loading again is safe.
    """
    stop = stop or StopFlag()
    organisation_ids = dict(database.fetch(connection, "list_organisation_ids"))
    with open_csv(path) as file:
        roster = Roster(file, options, organisation_ids=organisation_ids)
        reading = _Reading(file, roster, stop=stop, on_read=on_read)
    contact_column = roster.label("dynamics_contact_id")
    writing = _Writing(connection, strict=options.strict, contact_column=contact_column, stop=stop)
    if not (options.strict and any(problem.cost is not Cost.NOTHING for problem in reading.problems)):
        writing.write(reading.merged(), total=len(reading.certificates), on_progress=on_progress)
    problems = sorted([*reading.problems, *writing.problems], key=lambda problem: problem.line)
    undone = options.strict and any(problem.cost is not Cost.NOTHING for problem in problems)
    counts = Counter[str]() if undone else writing.counts
    written = ("mentors_changed",) if roster.mentors_alone else ("certificates_added", "certificates_changed")
    return LoadReport(
        rows=reading.rows,
        loaded=counts["rows"],
        rejected=len({problem.line for problem in problems if problem.cost is Cost.ROW}),
        repeated=reading.valid - len(reading.certificates),
        mentors_added=counts["mentors_added"],
        mentors_changed=counts["mentors_changed"],
        certificates_added=counts["certificates_added"],
        certificates_changed=counts["certificates_changed"],
        unchanged=counts["rows"] - sum(counts[what] for what in written),
        problems=problems,
        header=roster.header.text,
        delimiter=file.delimiter,
    )


class _Reading:
    """The first half: every row of the file is checked, and merged with those about the same certificate."""

    def __init__(self, file: CsvFile, roster: Roster, *, stop: StopFlag, on_read: Callable[[int], None]) -> None:
        self.rows = 0
        self.valid = 0
        self.problems: list[Problem] = []
        self.certificates: dict[tuple[str | None, ...], tuple[str | None, str | None, int, str]] = {}
        self._mentors: dict[tuple[str | None, ...], tuple[str | None, ...]] = {}
        for record in file:
            row, problems = roster.read(record)
            self.rows += 1
            self.problems += problems
            if row is not None:
                self._add(row)
            if self.rows % ROWS_PER_BATCH:
                continue
            on_read(self.rows)
            if stop.is_set():
                message = f"stopped by {stop.signal_name} while the file was read"
                raise StoppedBySignalError(message, next_step="nothing was loaded, load it again")

    def _add(self, row: RosterRow) -> None:
        """An empty cell leaves what an earlier line said."""
        self.valid += 1
        mentor, facts = row[:2], row[2:7]
        known = self._mentors.get(mentor, facts)
        self._mentors[mentor] = tuple(new or old for new, old in zip(facts, known, strict=True))
        key = (*mentor, row.kind, row.issued_on)
        before = self.certificates.get(key)
        revoked_on = row.revoked_on or (before[1] if before else None)
        self.certificates[key] = (row.expires_on, revoked_on, row.line, row.text)

    def merged(self) -> Iterator[RosterRow]:
        """Yield the rows by mentor, so that every load meets the mentors in one order."""
        for key in sorted(self.certificates):
            yield RosterRow._make((*key[:2], *self._mentors[key[:2]], *key[2:], *self.certificates[key]))


class _Writing:
    """The second half: the merged rows are written batch by batch."""

    def __init__(self, connection: Connection, *, strict: bool, contact_column: str, stop: StopFlag) -> None:
        self.counts = Counter[str]()
        self.problems: list[Problem] = []
        self._connection = connection
        self._strict = strict
        self._contact_column = contact_column
        self._stop = stop
        self._busy = 0

    def write(self, rows: Iterator[RosterRow], *, total: int, on_progress: Callable[[int, int], None]) -> None:
        whole = database.transaction(self._connection) if self._strict else nullcontext()
        done = 0
        try:
            with whole:
                while batch := list(islice(rows, ROWS_PER_BATCH)):
                    self._write_or_take_apart(batch)
                    done += len(batch)
                    on_progress(done, total)
                if self._strict and self.problems:
                    raise psycopg.Rollback  # the transaction takes it
        except psycopg.OperationalError as error:
            if not self._connection.broken:
                raise
            raise DatabaseUnavailableError(self._unfinished("the database went away"), next_step=_AGAIN) from error

    def _write_or_take_apart(self, batch: Sequence[RosterRow]) -> None:
        """Write a batch; if that fails, its tenths, until the rows that are to blame stand alone."""
        if self._stop.is_set():
            raise StoppedBySignalError(self._unfinished(f"stopped by {self._stop.signal_name}"), next_step=_AGAIN)
        try:
            counts, unknown = database.persist(
                self._connection, lambda: self._write_batch(batch), lock_timeout_ms=_LOCK_TIMEOUT_MS, tries=_TRIES
            )
        except (*CONTENTION, *_REFUSED) as error:
            self._busy += isinstance(error, CONTENTION)
            if self._busy > _BUSY_LIMIT:
                message = self._unfinished("other sessions kept the mentors of this file locked, end them")
                raise MentorBusyError(message, next_step=_AGAIN) from None
            if len(batch) == 1:
                self._blame(batch[0], error)
                return
            size = max(len(batch) // 10, 1)
            for first in range(0, len(batch), size):
                self._write_or_take_apart(batch[first : first + size])
        else:
            self.counts.update(counts, rows=len(batch) - len(unknown))
            reason = "no such mentor; somebody new comes with a certificate"
            self.problems += [self._problem(row, reason) for row in batch if row.line in unknown]

    def _write_batch(self, batch: Sequence[RosterRow]) -> tuple[dict[str, int], set[int]]:
        """Write a batch, inside a transaction; return what that did, and the lines with mentors who are not known."""
        connection = self._connection
        database.execute(connection, "create_load_rows")
        database.execute(connection, "truncate_load_rows")
        with connection.cursor() as cursor, cursor.copy(database.query("copy_load_rows")) as copy:
            for row in batch:
                copy.write_row(row[:-1])  # all but its text
        mentors_added = database.execute(connection, "insert_loaded_mentors")
        database.execute(connection, "resolve_load_rows")
        unknown = {line for (line,) in database.fetch(connection, "list_unknown_load_rows")}
        database.execute(connection, "lock_loaded_certificates")
        database.execute(connection, "lock_loaded_mentors")
        mentors_changed = database.execute(connection, "update_loaded_mentors")
        ((added, changed),) = database.fetch(connection, "upsert_loaded_certificates")
        counts = {
            "mentors_added": mentors_added,
            "mentors_changed": mentors_changed,
            "certificates_added": added,
            "certificates_changed": changed,
        }
        return counts, unknown

    def _blame(self, row: RosterRow, error: psycopg.Error) -> None:
        """Report a row by the rule it broke; the database's own words may hold names and addresses."""
        rule = error.diag.constraint_name or type(error).__name__
        if rule == _ONE_CONTACT and row.dynamics_contact_id:
            reason = "another mentor of the organisation has this contact ID"
            self.problems.append(self._problem(row, reason, column=self._contact_column, cost=Cost.CELL))
            self._write_or_take_apart([row._replace(dynamics_contact_id=None)])
            return
        reason = f"the database refuses it ({rule})"
        if isinstance(error, CONTENTION):
            reason = "another session keeps this mentor locked; load the file again"
        elif rule.startswith(_BOUNDS):  # these name the column or the mentor's id, and the limit
            reason = error.diag.message_primary or reason
        self.problems.append(self._problem(row, reason))

    @staticmethod
    def _problem(row: RosterRow, reason: str, *, column: str = WHOLE_LINE, cost: Cost = Cost.ROW) -> Problem:
        return Problem(line=row.line, column=column, reason=reason, cost=cost, text=row.text)

    def _unfinished(self, why: str) -> str:
        done = 0 if self._strict else self.counts["rows"]
        return f"{why}; {f'{done:,} rows of the file are loaded' if done else 'nothing was loaded'}"
