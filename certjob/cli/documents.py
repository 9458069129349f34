"""The JSON documents about mentors: beside each id are the member number and the organisation."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any
from uuid import UUID

import psycopg

from certjob.cli.terminal import plain
from certjob.database import Connection
from certjob.errors import DatabaseUnavailableError
from certjob.facts.lookup import MentorName, name_mentors


def print_document(connection: Connection, document: dict[str, Any]) -> None:
    """Print a command's document; each object with a ``mentor_id`` gets ``member_no`` and ``organisation``."""
    unnamed = [each for each in _mentors(document) if not {"member_no", "organisation"} <= each.keys()]
    names: dict[UUID, MentorName] = {}
    if unnamed:
        with suppress(psycopg.Error, DatabaseUnavailableError):  # the document is printed even without the names
            names = name_mentors(connection, {UUID(str(each["mentor_id"])) for each in unnamed})
    for each in unnamed:
        name = names.get(UUID(str(each["mentor_id"])))  # None: deleted or unknown
        each.setdefault("member_no", name and name.member_no)
        each.setdefault("organisation", name and name.organisation)
    plain.print_json(document)


def left_out(broken: Mapping[UUID, str]) -> dict[str, Any]:
    """Return the outcome of a report on all mentors, and the mentors that are missing in it."""
    problems = [{"mentor_id": mentor_id, "reason": reason} for mentor_id, reason in broken.items()]
    return {"outcome": "attention" if broken else "ok", "problems": problems}


def _mentors(value: object) -> Iterator[dict[str, Any]]:
    """Yield every object with a ``mentor_id``."""
    if isinstance(value, dict):
        if value.get("mentor_id") is not None:
            yield value
        value = list(value.values())
    if isinstance(value, list | tuple):
        for inner in value:
            yield from _mentors(inner)
