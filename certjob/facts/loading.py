"""Load mentors and certificates from a CSV file in one transaction."""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence, Set
from dataclasses import dataclass, replace
from datetime import date
from difflib import get_close_matches
from uuid import UUID

import psycopg

from certjob import database
from certjob.database import CONTENTION, Connection
from certjob.errors import ConfigurationError, InputError, MentorBusyError
from certjob.facts.roster import MENTOR, Problem, Roster, read_roster

_LOCK_TIMEOUT_MS = 5_000
_TRIES = 3
_SIMILAR = 0.85
"""The ratio of ``difflib`` above which a new kind may be a typing error."""
_REFUSED = (psycopg.DataError, psycopg.IntegrityError, psycopg.errors.RaiseException)
"""Errors of constraints and triggers that the load does not check in advance, or that another session has caused."""


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
    problems: Sequence[Problem]
    """Sorted by line."""


def load(
    connection: Connection,
    content: bytes,
    *,
    today: date,
    dry_run: bool = False,
    before_rollback: Callable[[], None] = lambda: None,
) -> LoadReport:
    """Add or change the mentors and certificates of a CSV file. It deletes no rows.

    A mentor with a bad line is skipped with all their lines. Raises InputError if the content is not such a file or the
    database rejects it, ConfigurationError if the facts are copied from an app, and MentorBusyError if another session
    has locked one of its rows. With an error, and with ``dry_run``, the database stays unchanged.
    ``before_rollback`` is called in a dry run, while the database is changed.
    """
    if database.fetch_value(connection, "is_mirrored"):
        message = "certjob_mirror copies the facts from the app, and would undo this load"
        raise ConfigurationError(message, next_step="correct them in the app; the next `certjob run` copies them")
    organisation_ids = dict(database.fetch(connection, "list_organisation_ids"))
    roster = read_roster(content, organisation_ids=organisation_ids, today=today)

    def write() -> LoadReport:
        with database.transaction(connection, force_rollback=dry_run):
            report = _write(connection, roster)
            if dry_run:
                before_rollback()
            return report

    try:
        return database.persist(connection, write, lock_timeout_ms=_LOCK_TIMEOUT_MS, tries=_TRIES)
    except CONTENTION:
        message = "another session has locked mentors of this file; nothing was loaded"
        raise MentorBusyError(message, next_step="load it again") from None
    except _REFUSED as error:
        rule = error.diag.constraint_name or type(error).__name__
        message = f"the database rejects this file ({rule}); nothing was loaded"
        raise InputError(message, next_step="correct the file and load it again") from None


def _write(connection: Connection, roster: Roster) -> LoadReport:
    """Write the mentors that the database accepts, inside a transaction."""
    database.execute(connection, "create_load_tables")
    with connection.cursor() as cursor:
        with cursor.copy(database.query("copy_load_mentors")) as copy:
            for key, mentor in roster.mentors.items():
                copy.write_row((mentor["line"], *key, *(mentor.get(name) for name in MENTOR)))
        with cursor.copy(database.query("copy_load_certificates")) as copy:
            for (key, kind, issued_on), dates in roster.certificates.items():
                copy.write_row((roster.mentors[key]["line"], kind, issued_on, *dates))
    database.execute(connection, "find_load_mentors")
    by_line = {mentor["line"]: key for key, mentor in roster.mentors.items()}
    refused: list[Problem] = []
    while found := database.fetch(connection, "refuse_load_mentors"):
        refused += [Problem(line=line, mentor=by_line[line], column=column, reason=why) for line, column, why in found]
    lines = {problem.line for problem in refused}
    problems = [*roster.problems, *refused, *_find_similar_kinds(connection, roster)]
    mentors_added = database.execute(connection, "insert_loaded_mentors")
    database.execute(connection, "find_load_mentors")
    ((certificates_added, certificates_changed),) = database.fetch(connection, "upsert_loaded_certificates")
    mentors_changed = database.execute(connection, "update_loaded_mentors")
    return LoadReport(
        rows=roster.rows,
        skipped=roster.skipped + sum(mentor["rows"] for mentor in roster.mentors.values() if mentor["line"] in lines),
        mentors_added=mentors_added,
        mentors_changed=mentors_changed,
        certificates_added=certificates_added,
        certificates_changed=certificates_changed,
        problems=sorted(
            (replace(each, loaded=_is_loaded(each, roster, lines)) for each in problems), key=lambda each: each.line
        ),
    )


def _is_loaded(problem: Problem, roster: Roster, refused_lines: Set[int]) -> bool:
    """Return whether the mentor of the line was loaded; a warning without a mentor is about the whole file."""
    if problem.mentor is None:
        return problem.is_warning
    mentor = roster.mentors.get(problem.mentor)
    return mentor is not None and mentor["line"] not in refused_lines


def _find_similar_kinds(connection: Connection, roster: Roster) -> list[Problem]:
    """Return a warning about each kind that is new in an organisation and similar to another one there.

    A kind that is spelled in two ways is two kinds, and a mentor must have both. Of two new ones, the rarer is named.
    """
    rows = Counter((organisation_id, kind) for (organisation_id, _), kind, _ in roster.certificates)
    known: dict[UUID, set[str]] = defaultdict(set)
    for organisation_id, kind in database.fetch(connection, "list_known_kinds") if rows else ():
        known[organisation_id].add(kind)
    found = []
    for (organisation_id, kind), _count in rows.most_common():
        others = known[organisation_id]
        if kind not in others and (like := _find_similar(kind, others)):
            line, mentor = min(
                (line, key) for (key, its), line in roster.kinds.items() if (key[0], its) == (organisation_id, kind)
            )
            reason = f"{kind!r} is a new kind, similar to {like!r}; correct it if it is a typing error"
            found.append(Problem(line=line, mentor=mentor, column="kind", reason=reason, is_warning=True))
        others.add(kind)
    return found


def _find_similar(kind: str, others: Collection[str]) -> str | None:
    """Return the most similar of the other kinds, in any case of letters.

    >>> _find_similar("Likeperson", ["kurs", "likeperson"]), _find_similar("kurs 2", ["kurs 1"])
    ('likeperson', None)
    """
    by_letters = {other.casefold(): other for other in others}
    close = get_close_matches(kind.casefold(), by_letters, n=1, cutoff=_SIMILAR)
    return by_letters[close[0]] if close else None
