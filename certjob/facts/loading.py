"""Load mentors and certificates from a CSV file in one transaction."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from uuid import UUID

import psycopg

from certjob import database
from certjob.database import CONTENTION, Connection
from certjob.errors import ConfigurationError, InputError, MentorBusyError
from certjob.facts.kinds import NewKind, find_new_kinds
from certjob.facts.roster import MENTOR, Problem, Roster, read_roster

_LOCK_TIMEOUT_MS = 5_000
_TRIES = 3
_CLEARED = {"full_name": "\x01", "email": "\x01", "dynamics_contact_id": UUID(int=0), "left_on": date.min}
"""Values that no cell can have: they remove the stored value."""
_REJECTED = (psycopg.DataError, psycopg.IntegrityError, psycopg.errors.RaiseException)
"""Errors of constraints and triggers that the load does not check in advance, or that another session has caused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FactChange:
    """A change of a fact by a load."""

    organisation: str
    """The slug."""
    member_no: str
    what: str
    """The column; ``mentor``, ``certificate``: a new one; ``stays``: a certificate that is not in the file."""
    kind: str | None
    """The certificate's."""
    issued_on: date | None
    old: str | None
    new: str | None
    """A new mentor's name, or a new certificate's last day."""
    number: int
    """The number of changes of this kind, of which some may be left out."""


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
    changes: Sequence[FactChange]
    """Of a dry run, or with ``exact``; otherwise empty."""
    problems: Sequence[Problem]
    """Sorted by line."""


def load_file(
    connection: Connection,
    content: bytes,
    *,
    today: date,
    dry_run: bool = False,
    exact: bool = False,
    most_changes: int | None = None,
    before_rollback: Callable[[], None] = lambda: None,
) -> LoadReport:
    """Add or change the mentors and certificates of a CSV file. It deletes no rows.

    A mentor with a bad line is skipped with all their lines. Raises InputError if the content is not such a file or the
    database rejects it, ConfigurationError if the facts are copied from an app, and MentorBusyError if another session
    has locked one of its rows. With an error, and with ``dry_run``, the database stays unchanged.
    ``before_rollback`` is called in a dry run, while the database is changed.

    ``exact``: an empty cell removes the stored value, unless another line of the mentor or certificate has one. A
    language stays. ``most_changes`` limits the changes of each kind in the report.
    """
    if database.fetch_value(connection, "is_mirrored"):
        message = "certjob_mirror copies the facts from the app, and would undo this load"
        raise ConfigurationError(message, next_step="correct them in the app; the next `certjob run` copies them")
    organisation_ids = dict(database.fetch(connection, "list_organisation_ids"))
    roster = read_roster(content, organisation_ids=organisation_ids, today=today)

    slugs = {organisation_id: slug for slug, organisation_id in organisation_ids.items()}

    def write() -> LoadReport:
        with database.transaction(connection, force_rollback=dry_run):
            found = _stage(connection, roster, today=today, exact=exact)
            changes: Sequence[FactChange] = ()
            if dry_run or exact:
                asked = {"most": most_changes, "stays": exact and "kind" in roster.columns}
                changes = database.fetch(connection, "read_load_changes", asked, into=FactChange)
            report = _write(connection, roster, found, changes=changes, slugs=slugs)
            if dry_run:
                before_rollback()
            return report

    try:
        return database.persist(connection, write, lock_timeout_ms=_LOCK_TIMEOUT_MS, tries=_TRIES)
    except CONTENTION:
        message = "another session has locked mentors of this file; nothing was loaded"
        raise MentorBusyError(message, next_step="load it again") from None
    except _REJECTED as error:
        rule = error.diag.constraint_name or type(error).__name__
        message = f"the database rejects this file ({rule}); nothing was loaded"
        raise InputError(message, next_step="correct the file and load it again") from None


def _stage(connection: Connection, roster: Roster, *, today: date, exact: bool) -> list[Problem]:
    """Copy the file into temporary tables, without the mentors that the database rejects.

    Returns the reasons, and warnings about probable typing errors.
    """
    cleared = {name: value for name, value in _CLEARED.items() if exact and name in roster.columns}
    not_revoked = date.min if exact and "revoked_on" in roster.columns else None
    database.execute(connection, "create_load_tables")
    with connection.cursor() as cursor:
        with cursor.copy(database.query("copy_load_mentors")) as copy:
            for key, mentor in roster.mentors.items():
                values = (mentor.get(name, cleared.get(name)) for name in MENTOR)
                copy.write_row((mentor["line"], *key, *values, mentor.get("mentor_id")))
        with cursor.copy(database.query("copy_load_certificates")) as copy:
            for (key, kind, issued_on), (expires_on, revoked_on) in roster.certificates.items():
                dates = (issued_on, expires_on, revoked_on or not_revoked)
                copy.write_row((roster.mentors[key]["line"], kind, *dates))
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


def _write(
    connection: Connection,
    roster: Roster,
    found: Sequence[Problem],
    *,
    changes: Sequence[FactChange],
    slugs: Mapping[UUID, str],
) -> LoadReport:
    """Write the staged mentors and certificates."""
    new_kinds, similar = find_new_kinds(connection, roster, slugs=slugs)
    mentors_added = database.execute(connection, "insert_loaded_mentors")
    database.execute(connection, "find_load_mentors")
    ((certificates_added, certificates_changed),) = database.fetch(connection, "upsert_loaded_certificates")
    mentors_changed = database.execute(connection, "update_loaded_mentors")
    rejected = {problem.mentor for problem in found if not problem.is_warning}
    loaded = roster.mentors.keys() - rejected
    problems = [
        # A warning without a mentor is about the whole file.
        replace(each, loaded=each.is_warning if each.mentor is None else each.mentor in loaded)
        for each in sorted((*roster.problems, *found, *similar), key=lambda problem: problem.line)
    ]
    return LoadReport(
        rows=roster.rows,
        skipped=roster.skipped + sum(mentor["rows"] for key, mentor in roster.mentors.items() if key in rejected),
        mentors_added=mentors_added,
        mentors_changed=mentors_changed,
        certificates_added=certificates_added,
        certificates_changed=certificates_changed,
        new_kinds=new_kinds,
        changes=changes,
        problems=problems,
    )
