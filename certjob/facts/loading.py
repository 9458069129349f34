"""Loads mentors and certificates from a CSV file: read and checked whole, then written by 1,000 mentors."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg

from certjob import database
from certjob.database import CONTENTION, Connection
from certjob.errors import CertjobError, DatabaseUnavailableError, MentorBusyError, StoppedBySignalError
from certjob.facts.csv_rows import open_csv
from certjob.facts.roster import WHOLE_LINE, LoadOptions, RejectedRow, RosterForm, RosterRow
from certjob.facts.staging import Stage

__all__ = ["LoadOptions", "LoadReport", "RejectedRow", "load"]

_ROWS_PER_READ = 1_000

_LOCK_TIMEOUT_MS = 2_000
_WAITS_SECONDS = (0.1, 0.5)
"""Between the tries of a batch that met another session's locks, before it is taken apart."""

_PART_LOCK_TIMEOUT_MS = 200

_PATIENCE_SECONDS = 60.0
"""All the time that one load loses to other sessions' locks before it gives up."""

_RULES = {"mentors_one_per_contact": "another mentor of the organisation has this dynamics_contact_id"}
"""What a rule of the schema means, where a file can break it."""

_BOUNDS = "certjob_"
"""How the bounds of migration 0009 begin."""

_REFUSED = (psycopg.DataError, psycopg.IntegrityError, psycopg.errors.RaiseException)
"""What a constraint, a domain or somebody's trigger says about a value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What a load found and did.

    Without --strict ``rows = loaded + repeated + rejected`` and
    ``loaded = certificates_added + certificates_changed + unchanged``. A strict load with a rejected row loads nothing:
    all but ``rows``, ``repeated`` and ``rejected`` are 0.
    """

    rows: int
    """Rows of the file, without the header and blank ones."""
    loaded: int
    """Certificates of the file that the database now holds as the file has them."""
    rejected: int
    """Rows that were not loaded; each was handed to ``on_reject`` once."""
    repeated: int
    """Valid rows about a certificate (organisation, member_no, kind, issued_on) that a later valid row is about too."""
    mentors_added: int
    mentors_changed: int
    """Known mentors of whom a name, e-mail, locale or contact id was changed."""
    certificates_added: int
    certificates_changed: int
    """Certificates whose expiry or revocation was changed in place."""
    unchanged: int
    """Certificates that were so already."""


def load(
    connection: Connection,
    path: Path,
    *,
    options: LoadOptions,
    on_reject: Callable[[RejectedRow], None],
    stop: threading.Event | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> LoadReport:
    """Upsert the mentors and certificates of a CSV file.

    The file is read to its end before the first row is written, so the last line about a certificate or a mentor
    decides wherever it stands, and loading a file again changes nothing. It commits by 1,000 mentors, under
    ``options.strict`` once at the end, and only if no row was rejected. A value that only the database refuses costs
    its own row. ``on_progress`` gets the number of certificates written so far.

    Raises InputError when the file is no CSV, lacks a column or an option is wrong (nothing is loaded then),
    StoppedBySignalError when ``stop`` is set, MentorBusyError when other sessions hold the mentors for too long,
    DatabaseUnavailableError when the connection breaks. What was committed stays; loading again is safe.
    """
    organisation_ids = dict(database.fetch(connection, "list_organisation_ids"))
    form = RosterForm(options, organisation_ids=organisation_ids)
    with closing(Stage()) as stage:
        reading = _Reading(path, stage=stage, on_reject=on_reject, stop=stop)
        reading.read(form)
        writing = _Writing(connection, strict=options.strict, on_reject=on_reject, stop=stop, on_progress=on_progress)
        if not (options.strict and reading.rejected):
            writing.write(stage)
        loaded = 0 if options.strict and (reading.rejected or writing.rejected) else writing.certificates
        counts = writing.counts if loaded else _Counts()
        return LoadReport(
            rows=reading.rows,
            loaded=loaded,
            rejected=reading.rejected + writing.rejected,
            repeated=reading.rows - reading.rejected - stage.certificates,
            mentors_added=counts.mentors_added,
            mentors_changed=counts.mentors_changed,
            certificates_added=counts.certificates_added,
            certificates_changed=counts.certificates_changed,
            unchanged=loaded - counts.certificates_added - counts.certificates_changed,
        )


class _Reading:
    """The first half: every row of the file is checked and staged."""

    def __init__(
        self, path: Path, *, stage: Stage, on_reject: Callable[[RejectedRow], None], stop: threading.Event | None
    ) -> None:
        self.rows = 0
        self.rejected = 0
        self._path = path
        self._stage = stage
        self._on_reject = on_reject
        self._stop = stop

    def read(self, form: RosterForm) -> None:
        good: list[RosterRow] = []
        with open_csv(self._path) as file:
            roster = form.fit(file.read_header(score=form.score), path=self._path)
            for record in file:
                row = roster.read(record)
                self.rows += 1
                if isinstance(row, RejectedRow):
                    self.rejected += 1
                    self._on_reject(row)
                else:
                    good.append(row)
                if self.rows % _ROWS_PER_READ == 0:
                    self._stage.add(good)
                    good.clear()
                    if self._stop is not None and self._stop.is_set():
                        message = "stopped by a signal while the file was read; nothing was loaded, load it again"
                        raise StoppedBySignalError(message)
        self._stage.add(good)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Counts:
    mentors_added: int = 0
    mentors_changed: int = 0
    certificates_added: int = 0
    certificates_changed: int = 0

    def __add__(self, other: "_Counts") -> "_Counts":
        return _Counts(
            mentors_added=self.mentors_added + other.mentors_added,
            mentors_changed=self.mentors_changed + other.mentors_changed,
            certificates_added=self.certificates_added + other.certificates_added,
            certificates_changed=self.certificates_changed + other.certificates_changed,
        )


class _RollBackError(Exception):
    """A strict load met a row that only the database refused."""


class _Writing:
    """The second half: the staged rows are written batch by batch."""

    def __init__(
        self,
        connection: Connection,
        *,
        strict: bool,
        on_reject: Callable[[RejectedRow], None],
        stop: threading.Event | None,
        on_progress: Callable[[int], None] | None,
    ) -> None:
        self.counts = _Counts()
        self.certificates = 0
        self.rejected = 0
        self._connection = connection
        self._strict = strict
        self._on_reject = on_reject
        self._stop = threading.Event() if stop is None else stop
        self._on_progress = on_progress
        self._patience_seconds = _PATIENCE_SECONDS

    def write(self, stage: Stage) -> None:
        whole = self._connection.transaction() if self._strict else nullcontext()
        with suppress(_RollBackError), self._database_errors(), whole:
            for batch in stage.batches():
                self._write_or_take_apart(batch)
                if self._on_progress is not None:
                    self._on_progress(self.certificates)
            if self._strict and self.rejected:
                raise _RollBackError

    def _write_or_take_apart(self, batch: Sequence[RosterRow], *, is_part: bool = False) -> None:
        """Write a batch; if that fails, its halves, until the rows that are to blame stand alone."""
        if self._stop.is_set():
            raise StoppedBySignalError(self._unfinished("stopped by a signal"))
        try:
            counts = self._write_patiently(batch, is_part=is_part)
        except (*CONTENTION, *_REFUSED) as error:
            if len(batch) == 1:
                self._reject(batch[0], error)
                return
            middle = len(batch) // 2
            self._write_or_take_apart(batch[:middle], is_part=True)
            self._write_or_take_apart(batch[middle:], is_part=True)
        else:
            self.counts += counts
            self.certificates += len(batch)

    def _write_patiently(self, batch: Sequence[RosterRow], *, is_part: bool) -> _Counts:
        """Write a batch, again after a pause while another session is in the way; a part of one is tried once."""
        lock_timeout_ms = _PART_LOCK_TIMEOUT_MS if is_part else _LOCK_TIMEOUT_MS
        waits = iter(() if is_part else _WAITS_SECONDS)
        while True:
            began = time.monotonic()
            try:
                return self._write_batch(batch, lock_timeout_ms=lock_timeout_ms)
            except CONTENTION:
                wait = next(waits, None)
                if wait is not None:
                    self._stop.wait(wait)
                self._patience_seconds -= time.monotonic() - began
                if self._patience_seconds < 0:
                    message = self._unfinished("other sessions kept holding the mentors of this file, end them")
                    raise MentorBusyError(message) from None
                if wait is None or self._stop.is_set():
                    raise

    def _write_batch(self, batch: Sequence[RosterRow], *, lock_timeout_ms: int) -> _Counts:
        """Write a batch in a transaction, a savepoint under --strict."""
        connection = self._connection
        with database.transaction(connection, lock_timeout_ms=lock_timeout_ms):
            database.execute(connection, "create_load_rows")
            database.execute(connection, "truncate_load_rows")
            with connection.cursor() as cursor, cursor.copy(database.query("copy_load_rows")) as copy:
                for row in batch:
                    copy.write_row(row[:-1])  # all but its line
            mentors_added = database.execute(connection, "insert_loaded_mentors")
            database.execute(connection, "resolve_load_rows")
            database.execute(connection, "lock_loaded_certificates")
            database.execute(connection, "lock_loaded_mentors")
            mentors_changed = database.execute(connection, "update_loaded_mentors")
            ((added, changed),) = database.fetch(connection, "upsert_loaded_certificates")
            return _Counts(
                mentors_added=mentors_added,
                mentors_changed=mentors_changed,
                certificates_added=added,
                certificates_changed=changed,
            )

    def _reject(self, row: RosterRow, error: psycopg.Error) -> None:
        """Report a row by the rule it broke; the database's own words may hold names and addresses."""
        if isinstance(error, CONTENTION):
            reason = "another session holds this mentor; load the file again"
        else:
            rule = error.diag.constraint_name or type(error).__name__
            reason = _RULES.get(rule, f"the database refuses it ({rule})")
            if rule.startswith(_BOUNDS):  # these name the column or the mentor's id, and the limit
                reason = error.diag.message_primary or reason
        self.rejected += 1
        self._on_reject(RejectedRow(line=row.line, column=WHOLE_LINE, reason=reason))

    def _unfinished(self, why: str) -> str:
        done = 0 if self._strict else self.certificates
        kept = f"{done:,} certificates of the file are loaded" if done else "nothing was loaded"
        return f"{why}; {kept}; load the same file again, which is safe"

    @contextmanager
    def _database_errors(self) -> Iterator[None]:
        try:
            yield
        except CertjobError:
            raise
        except psycopg.OperationalError as error:
            if not self._connection.broken:
                raise
            raise DatabaseUnavailableError(self._unfinished("the database went away")) from error
