"""Find a mentor by id, member number, address or part of a name, and an organisation by slug."""

from collections.abc import Collection
from typing import NamedTuple
from uuid import UUID

from certjob import database
from certjob.database import Connection
from certjob.errors import ConfigurationError, UnknownMentorError

_CANDIDATES = 10
_SHORTEST_PART = 2


def find_mentor(connection: Connection, name: str, *, organisation: str | None) -> UUID:
    """Return the mentor with this id, member number or e-mail address, or otherwise with this text in the name.

    Raises UnknownMentorError unless exactly one mentor matches, and ConfigurationError for an unknown slug.
    """
    rows = database.fetch(connection, "find_mentors", {"name": name, "organisation": organisation})
    if not rows:
        rows = _find_by_name(connection, " ".join(name.split()), organisation=organisation)
    if len(rows) == 1:
        mentor_id: UUID = rows[0][0]
        return mentor_id
    if not rows:
        if organisation:
            find_organisation(connection, organisation)  # reports a mistyped slug
        where = f" in {organisation}" if organisation else ""
        message = f"no mentor matches {name!r}{where}"
        raise UnknownMentorError(message, next_step="give an id, a member number, an e-mail address or part of a name")
    candidates = ", ".join(f"{member_no} of {slug}" for _, member_no, slug in rows[:_CANDIDATES])
    rest = f" and {len(rows) - _CANDIDATES} more" if len(rows) > _CANDIDATES else ""
    step = "add --organisation" if len({member_no for _, member_no, _ in rows}) == 1 else "give the member number"
    message = f"{name!r} matches {len(rows)} mentors: {candidates}{rest}"
    raise UnknownMentorError(message, next_step=step)


def _find_by_name(connection: Connection, part: str, *, organisation: str | None) -> list[tuple[UUID, str, str]]:
    """Return (id, member number, slug) of mentors whose name contains this text in any case."""
    if len(part) < _SHORTEST_PART:
        return []
    letters = (f"\\{each}" if each in "%_\\" else each if each.isascii() else "_" for each in part.lower())
    rows = database.fetch(
        connection, "find_mentors_by_name", {"pattern": f"%{''.join(letters)}%", "organisation": organisation}
    )
    return [row[:3] for row in rows if part.casefold() in " ".join(row[3].split()).casefold()]


class MentorName(NamedTuple):
    """The number, organisation and name of a mentor."""

    member_no: str
    organisation: str
    """The slug."""
    full_name: str | None


def name_mentors(connection: Connection, mentor_ids: Collection[UUID]) -> dict[UUID, MentorName]:
    """Return the names of these mentors, without deleted ones."""
    rows = database.fetch(connection, "name_mentors", {"ids": list(mentor_ids)})
    return {mentor_id: MentorName(*name) for mentor_id, *name in rows}


def find_organisation(connection: Connection, slug: str) -> UUID:
    """Return the id of an organisation. Raises ConfigurationError naming the slug."""
    organisation_id: UUID | None = dict(database.fetch(connection, "list_organisation_ids")).get(slug)
    if organisation_id is None:
        message = f"no organisation {slug!r}"
        raise ConfigurationError(message, next_step="see `certjob organisation show`")
    return organisation_id
