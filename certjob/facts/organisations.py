"""The member organisations: their rules, how to reach them, and who coordinates their mentors."""

import contextlib
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import urlsplit
from uuid import UUID

from certjob import database
from certjob.database import CONTENTION, Connection
from certjob.domain.addresses import parse_address, parse_sender
from certjob.errors import ConfigurationError, MentorBusyError
from certjob.facts.cells import LOCALES

NONE = "none"
"""The word that empties a list: no thresholds, no optional kinds, no portal."""

THRESHOLD_LIMIT_DAYS = 3_650
THRESHOLDS_LIMIT = 50

_SLUG = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,5}")
_UUID = r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
_COORDINATOR = re.compile(
    rf"(?:\[?(?P<id>{_UUID})\]?\s++)?(?:(?P<name>[^<>]*)<(?P<framed>[^<>]*)>|(?P<bare>\S+))"
    rf"(?:\s+(?P<locale>{'|'.join(LOCALES)}))?"
)

_LOCK_TIMEOUT_MS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Coordinator:
    """Somebody who gets an organisation's daily mail."""

    id: UUID | None
    """The app's user id, where it is known."""
    full_name: str | None
    email: str
    locale: str | None = None
    """The language of the mail; None: as it is, at first ``nb``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganisationDetails:
    """All that can be set of an organisation."""

    id: UUID
    slug: str
    name: str
    portal: str | None
    thresholds: list[int]
    """Days before the expiry, most first; negative = after it. Empty: no reminders."""
    optional_kinds: list[str]
    contact_email: str | None
    contact_phone: str | None
    renewal_url: str | None
    sender: str | None
    """Who its mails are from; None: CERTJOB_MAIL_FROM."""
    mentors: int
    """Those who have not left."""
    coordinators: Sequence[Coordinator] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganisationChange:
    """What ``set_organisation`` did."""

    created: bool
    changed: bool
    """Something was written; False when everything was so already."""


def parse_thresholds(text: str) -> tuple[int, ...]:
    """Return the reminder thresholds in a text such as ``60,30,14,7,1,-1``, most days first, each once.

    An empty text and ``none`` mean no reminders. Raises ConfigurationError.

    >>> parse_thresholds("7, 30,-1,7")
    (30, 7, -1)
    >>> parse_thresholds("none")
    ()
    """
    if text.strip().lower() in ("", NONE):
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(_WHOLE_NUMBER.fullmatch(part) for part in parts):
        message = f"thresholds must be whole days separated by commas, not {text[:60]!r}"
        raise ConfigurationError(message, next_step="give days such as 60,30,14,7,1,-1, or none")
    thresholds = tuple(sorted({int(part) for part in parts}, reverse=True))
    if any(abs(day) > THRESHOLD_LIMIT_DAYS for day in thresholds) or len(thresholds) > THRESHOLDS_LIMIT:
        message = (
            f"thresholds must lie between -{THRESHOLD_LIMIT_DAYS} and {THRESHOLD_LIMIT_DAYS} days, at most "
            f"{THRESHOLDS_LIMIT} of them"
        )
        raise ConfigurationError(message, next_step="remove those beyond")
    return thresholds


def parse_coordinator(text: str) -> Coordinator:
    """Return the coordinator in a text such as ``[UUID] Kari Nordmann <kari@example.org> nn``; only the mail is needed.

    Raises ConfigurationError.

    >>> parse_coordinator("Kari Nordmann <kari@example.org> nn")
    Coordinator(id=None, full_name='Kari Nordmann', email='kari@example.org', locale='nn')
    """
    match = _COORDINATOR.fullmatch(text.strip())
    email = (match["framed"] or match["bare"] or "").strip() if match else ""
    if match is None or not is_address(email):
        message = (
            f"a coordinator is written as '[UUID] Name <mail> [{'|'.join(LOCALES)}]', "
            "such as 'Kari Nordmann <kari@example.org>'"
        )
        raise ConfigurationError(message)
    name = " ".join((match["name"] or "").split()).strip('"')
    if name:
        _checked_text("a coordinator's name", name, limit=200)
    user_id = UUID(match["id"]) if match["id"] else None
    return Coordinator(id=user_id, full_name=name or None, email=email, locale=match["locale"])


def parse_kinds(kinds: Sequence[str]) -> list[str]:
    """Return the optional kinds, sorted; ``["none"]`` means that there are none. Raises ConfigurationError."""
    if [kind.strip().lower() for kind in kinds] in ([NONE], [""]):
        return []
    return sorted({_checked_text("an optional kind", kind, limit=100) for kind in kinds})


def is_address(text: str) -> bool:
    """Whether a mail could be addressed to this text; it need not exist.

    >>> is_address("kari@example.org"), is_address("kari@example.org, per@example.org")
    (True, False)
    """
    with contextlib.suppress(ValueError):
        return bool(parse_address(text))
    return False


def is_slug(text: str) -> bool:
    """Whether an organisation can be called by this text."""
    return _SLUG.fullmatch(text) is not None


def set_organisation(
    connection: Connection,
    slug: str,
    *,
    name: str | None = None,
    portal: Literal["dynamics", "none"] | None = None,
    thresholds: Sequence[int] | None = None,
    optional_kinds: Sequence[str] | None = None,
    coordinators: Sequence[str] = (),
    remove_coordinators: Sequence[str] = (),
    contact_email: str | None = None,
    contact_phone: str | None = None,
    renewal_url: str | None = None,
    sender: str | None = None,
) -> OrganisationChange:
    """Create an organisation, or change what is given of it and leave the rest; all or nothing.

    None leaves a value as it is, an empty text removes a contact, the address for renewals or the sender, ``["none"]``
    empties the optional kinds. A new organisation is named after its slug, in capitals. A coordinator is found by
    e-mail, whatever its case, or by id. Raises ConfigurationError when a value is wrong, MentorBusyError when the rows
    are locked.
    """
    if not is_slug(slug):
        message = "an organisation's slug holds a-z, 0-9, - and _ only, at most 63, such as hlf"
        raise ConfigurationError(message, next_step="choose another")
    values: dict[str, object] = {
        "slug": slug,
        "name": _checked_text("the name", name, limit=200) if name is not None else None,
        "portal": portal,
        "thresholds": list(thresholds) if thresholds is not None else None,
        "optional_kinds": parse_kinds(optional_kinds) if optional_kinds is not None else None,
        "contact_email": contact_email and _checked_email(contact_email),
        "contact_phone": contact_phone and _checked_text("the contact's phone", contact_phone, limit=50),
        "renewal_url": renewal_url and _checked_url(renewal_url),
        "sender": sender and _checked_sender(sender),
    }
    people = [parse_coordinator(text) for text in coordinators]
    try:
        with database.transaction(connection, lock_timeout_ms=_LOCK_TIMEOUT_MS):
            created = database.execute(connection, "insert_organisation", {"slug": slug, "name": values["name"]}) > 0
            organisation_id: UUID = database.fetch_value(connection, "lock_organisation", {"slug": slug})
            written = database.execute(connection, "update_organisation", values)
            for person in people:
                written += _set_coordinator(connection, person, organisation_id=organisation_id)
            for text in remove_coordinators:
                _remove_coordinator(connection, text.strip(), slug=slug, organisation_id=organisation_id)
                written += 1
    except CONTENTION:
        message = f"organisation {slug}: another session keeps it or its mentors locked"
        raise MentorBusyError(message, next_step="nothing was changed, try again") from None
    return OrganisationChange(created=created, changed=created or written > 0)


def read_organisation_details(connection: Connection, slug: str | None = None) -> list[OrganisationDetails]:
    """Return all that can be set of each organisation, by slug, or of the one with this slug.

    Raises ConfigurationError when there is none of it.
    """
    with database.read_only_snapshot(connection):
        found = database.fetch(connection, "read_organisation_details", {"slug": slug}, into=OrganisationDetails)
        people: dict[UUID, list[Coordinator]] = defaultdict(list)
        for person in database.fetch(connection, "list_coordinators", {"slug": slug}, into=dict):
            people[person.pop("organisation_id")].append(Coordinator(**person))
    if slug is not None and not found:
        message = f"no organisation {slug!r}"
        raise ConfigurationError(message, next_step="see `certjob organisation list`")
    return [replace(each, coordinators=people[each.id]) for each in found]


def _remove_coordinator(connection: Connection, text: str, *, slug: str, organisation_id: UUID) -> None:
    values = {"organisation_id": organisation_id, "email_or_id": text}
    if not database.execute(connection, "remove_coordinator", values):
        message = f"organisation {slug} has no coordinator with this address or id"
        raise ConfigurationError(message, next_step=f"see `certjob organisation show {slug}`")


def _set_coordinator(connection: Connection, person: Coordinator, *, organisation_id: UUID) -> int:
    """Insert or change one coordinator; return the number of rows written."""
    values = {
        "organisation_id": organisation_id,
        "id": person.id,
        "full_name": person.full_name,
        "email": person.email,
        "locale": person.locale,
    }
    found = database.fetch(connection, "lock_coordinators", values)
    by_id = next((row for row in found if row[0] == person.id), None)
    by_email = next((row for row in found if row[0] != person.id), None)
    if by_id is not None and by_id[1] != organisation_id:
        message = f"user {person.id} already coordinates another organisation"
        raise ConfigurationError(message, next_step="give this one a user of its own")
    known = by_id or by_email
    if known is None:
        return database.execute(connection, "insert_coordinator", values)
    written = 0
    if by_id is not None and by_email is not None:  # the same person, under the old address and the new one
        written += database.execute(connection, "delete_coordinator", {"id": by_email[0]})
    written += database.execute(connection, "update_coordinator", values | {"id": known[0]})
    if person.id is not None and known[0] != person.id:
        written += database.execute(connection, "replace_coordinator_id", {"id": known[0], "new_id": person.id})
    return written


def _checked_text(what: str, text: str, *, limit: int) -> str:
    stripped = text.strip()
    if not stripped or len(stripped) > limit or not stripped.isprintable():
        message = f"{what} must be 1 to {limit} characters long, without control characters"
        raise ConfigurationError(message, next_step="give another")
    return stripped


def _checked_email(text: str) -> str:
    if not is_address(text.strip()):
        message = "the contact's e-mail address is not valid"
        raise ConfigurationError(message, next_step="give one such as kontakt@example.org")
    return text.strip()


def _checked_sender(text: str) -> str:
    try:
        parse_sender(text)
    except ValueError as error:
        message = f"the sender {error}"
        raise ConfigurationError(
            message, next_step="give an address, or a name and <address>: 'LHL Likeperson <likeperson@lhl.example>'"
        ) from None
    return text.strip()


def _checked_url(text: str) -> str:
    try:
        parts = urlsplit(text.strip())
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        usable = False
    if not usable or not text.strip().isprintable() or " " in text.strip():
        message = "the renewal URL must be a web address such as https://example.org/renew"
        raise ConfigurationError(message)
    return text.strip()
