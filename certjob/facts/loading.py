"""Load mentors and certificates from a CSV file in one transaction, and take the last load back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import TypeVar
from uuid import uuid4

import psycopg

from certjob import database
from certjob.database import CONTENTION, Connection
from certjob.domain.rules import COURSE_DAYS
from certjob.errors import ConfigurationError, InputError, MentorBusyError
from certjob.facts.kinds import NewKind, find_new_kinds
from certjob.facts.roster import MENTOR, Problem, Roster, read_roster

Result = TypeVar("Result")

_LOCK_TIMEOUT_MS = 5_000
_TRIES = 3
_REJECTED = (psycopg.DataError, psycopg.IntegrityError, psycopg.errors.RaiseException)
"""Errors of constraints and triggers that the load does not check in advance, or that another session has caused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FactChange:
    """A change of a fact by a load."""

    organisation: str
    """The slug."""
    member_no: str
    what: str
    """The column; ``mentor``, ``certificate``: a new one."""
    kind: str | None
    """The certificate's."""
    issued_on: date | None
    old: str | None
    new: str | None
    """A new mentor's name, or a new certificate's last day."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OldCertificate:
    """A new certificate that began long ago."""

    member_no: str
    kind: str
    issued_on: date
    number: int
    """The number of such certificates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """The result of a load."""

    rows: int
    """Rows of the file, without the header and blank rows."""
    skipped: int
    """Rows that were not loaded: bad rows, and the other rows of their mentors."""
    mentors_added: int
    mentors_changed: int
    """Known mentors with another name, e-mail address, language, contact ID or departure."""
    certificates_added: int
    certificates_changed: int
    """Known certificates with another last day or revocation."""
    new_kinds: Sequence[NewKind]
    old_certificates: Sequence[OldCertificate]
    """Three of the new certificates of known mentors that began more than COURSE_DAYS ago."""
    changes: Sequence[FactChange]
    """Of a dry run; otherwise empty."""
    problems: Sequence[Problem]
    """Sorted by line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRow:
    """A mentor, or a certificate, that the undoing of a load left as it is."""

    organisation: str
    member_no: str
    full_name: str | None
    kind: str | None
    issued_on: date | None
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Undone:
    """A load that was undone."""

    loaded_at: datetime
    loaded_by: str
    changes: Sequence[FactChange]
    """The changes of the load."""
    kept: Sequence[KeptRow]


def load_file(
    connection: Connection,
    content: bytes,
    *,
    today: date,
    by: str = "certjob",
    dry_run: bool = False,
    before_rollback: Callable[[], None] = lambda: None,
) -> LoadReport:
    """Add or change the mentors and certificates of a CSV file, signed with ``by``. It deletes no rows.

    A mentor with a bad line is skipped with all their lines. Raises InputError if the content is not such a file or the
    database rejects it, ConfigurationError if the facts are copied from an app, and MentorBusyError if another session
    has locked one of its rows. With an error, and with ``dry_run``, the database stays unchanged.
    ``before_rollback`` is called in a dry run, while the database is changed.
    """
    _require_own_facts(connection)
    organisation_ids = dict(database.fetch(connection, "list_organisation_ids"))
    roster = read_roster(content, organisation_ids=organisation_ids, today=today)
    slugs = {organisation_id: slug for slug, organisation_id in organisation_ids.items()}
    load = {"load_id": uuid4(), "by": by}

    def write() -> LoadReport:
        with database.transaction(connection, force_rollback=dry_run):
            found = _stage(connection, roster, today=today)
            new_kinds, similar = find_new_kinds(connection, roster, slugs=slugs)
            database.execute(connection, "begin_load", load)
            for statement in (
                "insert_loaded_mentors",
                "find_load_mentors",
                "upsert_loaded_certificates",
                "update_loaded_mentors",
            ):
                database.execute(connection, statement)
            database.execute(connection, "end_load", load)
            report = _report(connection, roster, [*found, *similar], new_kinds, load=load, today=today)
            if dry_run:
                report = replace(report, changes=_changes(connection, load))
                before_rollback()
            return report

    return _persist(connection, write, what="this file", not_done="nothing was loaded")


def undo_load(
    connection: Connection, *, by: str, dry_run: bool = False, before_rollback: Callable[[], None] = lambda: None
) -> Undone:
    """Delete the rows that the last load added and restore its changes, except in rows that were changed since.

    Raises InputError without a load to undo; otherwise like ``load_file``.
    """
    _require_own_facts(connection)

    def write() -> Undone:
        with database.transaction(connection, force_rollback=dry_run):
            last = next(iter(database.fetch(connection, "lock_last_load")), None)
            if last is None:
                message = "no load is recorded"
                raise InputError(message, next_step="`certjob db prune` deletes the records after 90 days")
            load_id, loaded_at, loaded_by, undone_at, undone_by = last
            if undone_at is not None:
                message = f"the last load, by {loaded_by}, has been undone already, by {undone_by}"
                raise InputError(message, next_step="only the last load can be undone; load a correct file")
            load = {"load_id": load_id, "by": by}
            changes = _changes(connection, load)
            database.execute(connection, "defer_contacts")
            for statement in ("undo_certificates", "undo_mentors", "mark_undone"):
                database.execute(connection, statement, load)
            added = [mentor_id for (mentor_id,) in database.fetch(connection, "forget_added_mentors", load)]
            database.execute(connection, "delete_mentors", {"ids": added})
            kept = database.fetch(connection, "list_kept_rows", load, into=KeptRow)
            if dry_run:
                before_rollback()
            return Undone(loaded_at=loaded_at, loaded_by=loaded_by, changes=changes, kept=kept)

    return _persist(connection, write, what="the earlier values", not_done="nothing was undone")


def _require_own_facts(connection: Connection) -> None:
    if database.fetch_value(connection, "is_mirrored"):
        message = "certjob_mirror copies the facts from the app, and would undo this load"
        raise ConfigurationError(message, next_step="correct them in the app; the next `certjob run` copies them")


def _persist(connection: Connection, write: Callable[[], Result], *, what: str, not_done: str) -> Result:
    try:
        return database.persist(connection, write, lock_timeout_ms=_LOCK_TIMEOUT_MS, tries=_TRIES)
    except CONTENTION:
        message = f"another session has locked mentors of {what}; {not_done}"
        raise MentorBusyError(message, next_step="try again") from None
    except _REJECTED as error:
        rule = error.diag.constraint_name or type(error).__name__
        message = f"the database rejects {what} ({rule}); {not_done}"
        raise InputError(message, next_step="correct the rows and try again") from None


def _stage(connection: Connection, roster: Roster, *, today: date) -> list[Problem]:
    """Copy the file into temporary tables, without the mentors that the database rejects.

    Returns the reasons, and warnings about probable typing errors.
    """
    database.execute(connection, "create_load_tables")
    with connection.cursor() as cursor:
        with cursor.copy(database.query("copy_load_mentors")) as copy:
            for key, mentor in roster.mentors.items():
                copy.write_row((mentor["line"], *key, *map(mentor.get, MENTOR), mentor.get("mentor_id")))
        with cursor.copy(database.query("copy_load_certificates")) as copy:
            for (key, kind, issued_on), (expires_on, revoked_on, _) in roster.certificates.items():
                copy.write_row((roster.mentors[key]["line"], kind, issued_on, expires_on, revoked_on))
    database.execute(connection, "find_load_mentors")
    found: list[tuple[int, str, str, bool]] = []
    while rejected := database.fetch(connection, "reject_load_mentors"):
        found += rejected
    found += database.fetch(connection, "find_load_doubts", {"today": today})
    by_line = {mentor["line"]: key for key, mentor in roster.mentors.items()}
    return [
        Problem(line=line, mentor=by_line[line], column=column, reason=reason, is_warning=is_warning)
        for line, column, reason, is_warning in found
    ]


def _changes(connection: Connection, load: Mapping[str, object]) -> list[FactChange]:
    return database.fetch(connection, "read_load_changes", load, into=FactChange)


def _report(
    connection: Connection,
    roster: Roster,
    found: Sequence[Problem],
    new_kinds: Sequence[NewKind],
    *,
    load: Mapping[str, object],
    today: date,
) -> LoadReport:
    (numbers,) = database.fetch(connection, "count_load_changes", load, into=dict)
    since = {"since": today - timedelta(days=COURSE_DAYS)}
    rejected = {problem.mentor for problem in found if not problem.is_warning}
    loaded = roster.mentors.keys() - rejected
    problems = [
        # A warning without a mentor is about the whole file.
        replace(each, loaded=each.is_warning if each.mentor is None else each.mentor in loaded)
        for each in sorted((*roster.problems, *found), key=lambda problem: problem.line)
    ]
    return LoadReport(
        rows=roster.rows,
        skipped=roster.skipped + sum(mentor["rows"] for key, mentor in roster.mentors.items() if key in rejected),
        **numbers,
        new_kinds=new_kinds,
        old_certificates=database.fetch(connection, "find_old_certificates", {**load, **since}, into=OldCertificate),
        changes=(),
        problems=problems,
    )
