"""Find the kinds of certificates that a file introduces, and those that may be typing errors."""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from uuid import UUID

from certjob import database
from certjob.database import Connection
from certjob.facts.roster import Problem, Roster

_DIGITS = re.compile("[0-9]+")
_SIMILAR = 0.85
"""The ratio of ``difflib`` above which a new kind may be a typing error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKind:
    """A kind of certificates that no mentor of the organisation had."""

    organisation: str
    """The slug."""
    kind: str
    certificates: int
    """The number in the file."""


def find_new_kinds(
    connection: Connection, roster: Roster, *, slugs: Mapping[UUID, str]
) -> tuple[list[NewKind], list[Problem]]:
    """Return the new kinds, and a warning about each one that is similar to another kind of its organisation.

    A kind that is spelled in two ways is two kinds, and a mentor must have both. Of two new ones, the rarer is named.
    Call it before the file is written.
    """
    rows = Counter((organisation_id, kind) for (organisation_id, _), kind, _ in roster.certificates)
    known: dict[UUID, set[str]] = defaultdict(set)
    for organisation_id, kind in database.fetch(connection, "list_known_kinds") if rows else ():
        known[organisation_id].add(kind)
    new, similar = [], []
    for (organisation_id, kind), count in rows.most_common():
        others = known[organisation_id]
        if kind in others:
            continue
        new.append(NewKind(organisation=slugs[organisation_id], kind=kind, certificates=count))
        if like := _find_similar(kind, others):
            line, mentor = min(
                (line, key) for (key, its), line in roster.kinds.items() if (key[0], its) == (organisation_id, kind)
            )
            reason = f"{kind!r} is a new kind, similar to {like!r}; correct it if it is a typing error"
            similar.append(Problem(line=line, mentor=mentor, column="kind", reason=reason, is_warning=True))
        others.add(kind)
    return new, similar


def _find_similar(kind: str, others: Collection[str]) -> str | None:
    """Return the most similar of the other kinds, in any case of letters. Another number is another course.

    >>> _find_similar("Likeperson", ["kurs", "likeperson"]), _find_similar("first_aid_2", ["first_aid_1"])
    ('likeperson', None)
    """
    letters = _DIGITS.sub("", kind)
    by_letters = {other.casefold(): other for other in others if _DIGITS.sub("", other) != letters}
    close = get_close_matches(kind.casefold(), by_letters, n=1, cutoff=_SIMILAR)
    return by_letters[close[0]] if close else None
