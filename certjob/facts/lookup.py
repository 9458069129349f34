"""Whom a person means: a mentor by id, member number or e-mail address, an organisation by its slug."""

from uuid import UUID

from certjob import database
from certjob.database import Connection
from certjob.errors import (
    ConfigurationError,
    UnknownMentorError,
)


def find_mentor(connection: Connection, name: str, *, organisation: str | None) -> UUID:
    """Return the one mentor with this id, member number or e-mail address.

    Raises UnknownMentorError, with the candidates when there are several.
    """
    rows = database.fetch(connection, "find_mentors", {"name": name, "organisation": organisation})
    if len(rows) == 1:
        return UUID(str(rows[0][0]))
    if not rows:
        where = f" in {organisation}" if organisation else ""
        message = f"no mentor {name!r}{where}; give an id, a member number or an e-mail address"
        raise UnknownMentorError(message)
    candidates = ", ".join(f"{member_no} of {slug} ({mentor_id})" for mentor_id, member_no, slug in rows)
    message = f"{name!r} fits {len(rows)} mentors: {candidates}; give the id, or add --organisation"
    raise UnknownMentorError(message)


def find_organisation(connection: Connection, slug: str) -> UUID:
    """Return the id of an organisation. Raises ConfigurationError naming the slug."""
    organisation_id = database.fetch_value(connection, "find_organisation", {"slug": slug})
    if organisation_id is None:
        message = f"no organisation {slug!r}; see `certjob organisation list`"
        raise ConfigurationError(message)
    return UUID(str(organisation_id))
