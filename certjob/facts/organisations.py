"""The member organisations with their rules, contact data and coordinators."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Final, TypeVar
from urllib.parse import urlsplit
from uuid import UUID

from certjob import database
from certjob.database import CONTENTION, Connection
from certjob.domain.addresses import parse_sender
from certjob.errors import ConfigurationError, MentorBusyError
from certjob.facts import cells

NONE: Final = "none"
"""The option value that means no thresholds, no optional kinds, or no portal."""

_SLUG = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,5}")
_UUID = r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
_COORDINATOR = re.compile(
    rf"(?:\[?(?P<id>{_UUID})\]?\s++)?(?:(?P<name>[^<>]*)<(?P<framed>[^<>]*)>|(?P<bare>\S+))"
    rf"(?:\s+(?P<locale>{'|'.join(cells.LOCALES)}))?"
)
_LOCK_TIMEOUT_MS = 10_000

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Coordinator:
    """A person who receives an organisation's daily mail."""

    id: UUID | None
    """The app's user id, if known."""
    full_name: str | None
    email: str
    locale: str | None = None
    """The language of the mail; None keeps the stored one, which is ``nb`` at first."""

    def __str__(self) -> str:
        return f"{self.full_name or ''} <{self.email}> {self.locale} ({self.id})".strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganisationDetails:
    """All options of an organisation."""

    id: UUID
    slug: str
    name: str
    portal: str | None
    thresholds: list[int]
    """Days before the expiry in descending order; negative days are after it. Empty: no reminders."""
    optional_kinds: list[str]
    contact_email: str | None
    contact_phone: str | None
    renewal_url: str | None
    sender: str | None
    """The sender of its mails; None: CERTJOB_MAIL_FROM."""
    mentors: int
    """The number of mentors who have not left."""
    coordinators: Sequence[Coordinator] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionChange:
    """A changed option, with its values as printed. Of coordinators, those who were removed and added."""

    option: str
    old: str
    new: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganisationChange:
    """The result of ``set_organisation``."""

    created: bool
    changes: Sequence[OptionChange]
    open_hides: int
    """With ``portal="none"``: the number of hides that certjob will withdraw."""


def read_thresholds(text: str) -> list[int]:
    """Return the reminder thresholds in a text such as ``60,30,14,7,1,-1``, in descending order, each once.

    >>> read_thresholds("7, 30,-1,7")
    [30, 7, -1]
    >>> read_thresholds("none")
    []
    """
    if text.lower() == NONE:
        return []
    parts = [part.strip() for part in text.split(",")]
    days = {int(part) for part in parts if _WHOLE_NUMBER.fullmatch(part)}
    if not all(map(_WHOLE_NUMBER.fullmatch, parts)) or len(days) > 50 or max(map(abs, days)) > 3_650:
        message = "not a list of at most 50 days between -3650 and 3650, such as 60,30,14,7,1,-1, or none"
        raise ValueError(message)
    return sorted(days, reverse=True)


def read_coordinator(text: str) -> Coordinator:
    """Return the coordinator in a text such as ``[UUID] Kari Nordmann <kari@example.org> nn``; only the mail is needed.

    >>> read_coordinator("Kari Nordmann <kari@example.org> nn")
    Coordinator(id=None, full_name='Kari Nordmann', email='kari@example.org', locale='nn')
    """
    match = _COORDINATOR.fullmatch(text)
    if match is None:
        message = f"not of the form '[UUID] NAME <MAIL> [{'|'.join(cells.LOCALES)}]'"
        raise ValueError(message)
    name = " ".join((match["name"] or "").split()).strip('"')
    return Coordinator(
        id=UUID(match["id"]) if match["id"] else None,
        full_name=cells.read_name(name) if name else None,
        email=cells.read_email((match["framed"] or match["bare"] or "").strip()),
        locale=match["locale"],
    )


def _read_sender(text: str) -> str:
    """Return a sender of mails: an address, or a name and an address."""
    try:
        parse_sender(text)
    except ValueError:
        message = "not an address, or a name and <address> such as 'LHL Likeperson <likeperson@lhl.example>'"
        raise ValueError(message) from None
    return text


def _read_url(text: str) -> str:
    """Return a web address."""
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and text.isprintable() and " " not in text
    except ValueError:
        usable = False
    if not usable:
        message = "not a web address such as https://example.org/renew"
        raise ValueError(message)
    return text


_READERS: Final[dict[str, Callable[[str], object]]] = {
    "name": cells.read_name,
    "portal": str,
    "thresholds": read_thresholds,
    "contact_email": cells.read_email,
    "contact_phone": partial(cells.read_text, limit=50),
    "renewal_url": _read_url,
    "sender": _read_sender,
}
"""The options of ``certjob organisation set`` that take one text."""
_IF_EMPTY: Final = {"thresholds": [], **dict.fromkeys(("contact_email", "contact_phone", "renewal_url", "sender"), "")}


def set_organisation(
    connection: Connection,
    slug: str,
    *,
    optional_kinds: Sequence[str] | None = None,
    coordinators: Sequence[str] = (),
    remove_coordinators: Sequence[str] = (),
    **options: str | None,
) -> OrganisationChange:
    """Create an organisation, or change the options that are not None, in one transaction.

    An empty text removes contact data or the sender, and ``["none"]`` the optional kinds. The default name is the slug
    in capitals. Coordinators are found by e-mail in any case, or by id. Raises ConfigurationError if a value is wrong,
    and MentorBusyError if rows are locked.
    """
    if not _SLUG.fullmatch(slug):
        message = "an organisation's slug has only a-z, 0-9, - and _, and at most 63 of them, such as hlf"
        raise ConfigurationError(message)
    if slug == "all":
        message = "an organisation's slug is not `all`, because the ids of alerts that concern everyone begin with it"
        raise ConfigurationError(message)
    values = dict.fromkeys(_READERS) | {
        option: _IF_EMPTY[option] if option in _IF_EMPTY and not text.strip() else _read(option, text, _READERS[option])
        for option, text in options.items()
        if text is not None
    }
    kinds = None if optional_kinds is None else [text for text in optional_kinds if text.strip().lower() != NONE]
    values["optional_kinds"] = kinds and sorted({_read("optional_kind", text, cells.read_key) for text in kinds})
    people = [_read("coordinator", text, read_coordinator) for text in coordinators]
    try:
        with database.transaction(connection, lock_timeout_ms=_LOCK_TIMEOUT_MS):
            created = database.execute(connection, "insert_organisation", {"slug": slug, "name": values["name"]}) > 0
            organisation_id: UUID = database.fetch_value(connection, "lock_organisation", {"slug": slug})
            (before,) = read_organisation_details(connection, slug)
            database.execute(connection, "update_organisation", values | {"slug": slug})
            for person in people:
                _set_coordinator(connection, person, organisation_id)
            for text in remove_coordinators:
                _remove_coordinator(connection, text.strip(), slug=slug, organisation_id=organisation_id)
            (after,) = read_organisation_details(connection, slug)
            if database.fetch_value(connection, "no_kind_counts", {"slug": slug}):
                message = f"every kind of certificate in {slug} would be optional, so no mentor could be shown"
                raise ConfigurationError(message, next_step="leave out the kind that mentors need")
            none = options.get("portal") == NONE
            open_hides = len(database.fetch(connection, "list_open_hides", {"slug": slug})) if none else 0
    except CONTENTION:
        message = f"organisation {slug}: another session has locked it or its mentors"
        raise MentorBusyError(message, next_step="nothing was changed; try again") from None
    return OrganisationChange(created=created, changes=list(_changes(before, after)), open_hides=open_hides)


def read_organisation_details(connection: Connection, slug: str | None = None) -> list[OrganisationDetails]:
    """Return the options of the organisation with this slug, or of all, sorted by slug.

    Raises ConfigurationError for an unknown slug.
    """
    with database.read_only_snapshot(connection):
        found = database.fetch(connection, "read_organisation_details", {"slug": slug}, into=OrganisationDetails)
        people: dict[UUID, list[Coordinator]] = defaultdict(list)
        for person in database.fetch(connection, "list_coordinators", {"slug": slug}, into=dict):
            people[person.pop("organisation_id")].append(Coordinator(**person))
    if slug is not None and not found:
        message = f"no organisation {slug!r}"
        raise ConfigurationError(message, next_step="see `certjob organisation show`")
    return [replace(each, coordinators=people[each.id]) for each in found]


def value_words(value: object) -> str:
    """Return the value of an option as it is printed."""
    words = ",".join(map(str, value)) if isinstance(value, list) else value
    return NONE if words in (None, "") else str(words)


def _changes(before: OrganisationDetails, after: OrganisationDetails) -> Iterator[OptionChange]:
    values = {name: (getattr(before, name), getattr(after, name)) for name in (*_READERS, "optional_kinds")}
    removed, added = (
        [each for each in one.coordinators if each not in other.coordinators]
        for one, other in ((before, after), (after, before))
    )
    for name, (old, new) in (values | {"coordinator": (removed, added)}).items():
        if old != new:
            yield OptionChange(option=name.replace("_", "-"), old=value_words(old), new=value_words(new))


def _read(option: str, text: str, read: Callable[[str], Value]) -> Value:
    """Return the value of an option. Raises ConfigurationError with its name and the reason."""
    try:
        if text.strip():
            return read(text.strip())
        reason = "empty"
    except ValueError as error:
        reason = str(error)
    message = f"--{option.replace('_', '-')}: {reason}"
    raise ConfigurationError(message, next_step="nothing was changed")


def _set_coordinator(connection: Connection, person: Coordinator, organisation_id: UUID) -> None:
    """Insert or change a coordinator."""
    values = asdict(person) | {"organisation_id": organisation_id}
    found = dict(database.fetch(connection, "lock_coordinators", values))
    if found.get(person.id, organisation_id) != organisation_id:
        message = f"user {person.id} already coordinates another organisation"
        raise ConfigurationError(message, next_step="use a separate user for this organisation")
    by_email = next((each for each in found if each != person.id), None)
    known = person.id if person.id in found else by_email
    if known is None:
        database.execute(connection, "insert_coordinator", values)
        return
    if by_email not in (None, known):  # the same person with an old and a new address
        database.execute(connection, "remove_coordinator", values | {"email_or_id": str(by_email)})
    database.execute(connection, "update_coordinator", values | {"known_id": known})


def _remove_coordinator(connection: Connection, text: str, *, slug: str, organisation_id: UUID) -> None:
    values = {"organisation_id": organisation_id, "email_or_id": text}
    if not database.execute(connection, "remove_coordinator", values):
        message = f"organisation {slug} has no coordinator with this address or id"
        raise ConfigurationError(message, next_step=f"see `certjob organisation show {slug}`")
