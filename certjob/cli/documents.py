"""The JSON documents about mentors: beside each id are the member number and the organisation."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID

import psycopg

from certjob.database import Connection
from certjob.errors import DatabaseUnavailableError
from certjob.facts.lookup import MentorName, name_mentors


def add_names(connection: Connection, entries: Sequence[dict[str, Any]]) -> None:
    """Add ``member_no`` and ``organisation`` to objects with a ``mentor_id``. They are null for a deleted mentor."""
    names: dict[UUID, MentorName] = {}
    if entries:
        with suppress(psycopg.Error, DatabaseUnavailableError):  # the document is printed even without the names
            names = name_mentors(connection, {UUID(str(each["mentor_id"])) for each in entries})
    for each in entries:
        name = names.get(UUID(str(each["mentor_id"])))
        each["member_no"], each["organisation"] = (name.member_no, name.organisation) if name else (None, None)


def left_out(connection: Connection, broken: Mapping[UUID, str]) -> dict[str, Any]:
    """Return the outcome of a report on all mentors, and the mentors that are missing in it."""
    problems: list[dict[str, Any]] = [
        {"mentor_id": mentor_id, "reason": reason} for mentor_id, reason in broken.items()
    ]
    add_names(connection, problems)
    return {"outcome": "attention" if broken else "ok", "problems": problems}
