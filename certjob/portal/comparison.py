"""Compare the visible contacts on the portal with the visibility that certjob wants, and queue corrections.

The comparison reads one snapshot, without writes. A correction is queued only if the same query finds the same
difference again after the mentor has been locked.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

from certjob import database
from certjob.database import Connection, persist
from certjob.domain.holds import MOST_SHOWS, PORTAL, Hold
from certjob.domain.models import NOT_CERTIFIED
from certjob.portal.sync import PortalSyncService, Wish
from certjob.stopping import StopFlag

if TYPE_CHECKING:
    from certjob.portal.hlf_dynamics import SecretUntil  # httpx: 50 ms

SLICE = 100
"""Maximum number of corrections in one transaction."""
_LOCKED_FOR_SECONDS = 5.0
"""How long to try again for mentors that another session has locked."""
_POLL_SECONDS = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A difference between the portal and certjob about a mentor."""

    mentor_id: UUID
    member_no: str
    organisation: str
    organisation_id: UUID
    contact_id: UUID
    visible: bool
    """The visibility that certjob wants. The portal has the opposite, or another last day."""
    wanted_until: date | None
    """The last visible day that certjob wants; None for a hide."""
    read_until: date
    """The last visible day on the portal: NOT_CERTIFIED if it hides the contact, and 9999-12-31 without a day."""

    @property
    def is_urgent(self) -> bool:
        """Return whether the correction is a hide or an earlier last day. No guard holds it."""
        return self.wanted_until is None or self.wanted_until < self.read_until

    @property
    def what(self) -> Literal["hidden", "shown", "last_day", "first_day"]:
        """Return the correction in a word. The portal had no last day before the ``first_day``."""
        if not self.visible:
            return "hidden"
        if self.read_until == NOT_CERTIFIED:
            return "shown"
        return "first_day" if self.read_until == date.max else "last_day"

    def to_wish(self) -> Wish:
        """Return the value to push."""
        return Wish(
            mentor_id=self.mentor_id,
            visible=self.visible,
            wanted_until=self.wanted_until,
            read_until=self.read_until,
        )

    def to_document(self) -> dict[str, Any]:
        """Return the entry in ``changes`` of the JSON document."""
        return {
            "mentor_id": str(self.mentor_id),
            "member_no": self.member_no,
            "organisation": self.organisation,
            "contact_id": str(self.contact_id),
            "what": self.what,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """All pages of visible contacts."""

    read_at: datetime
    """The time before the first page, on the clock of the database."""
    pages: int
    visible_until: Mapping[UUID, date | None]
    """The last visible day of each visible contact."""
    dates: bool
    """Whether the portal has a column for the day."""
    secret_until: "SecretUntil" = None


@dataclass(slots=True, kw_only=True)
class Comparison:
    """The differences between a reading and the visibility that certjob wants."""

    reading: Reading
    differences: Sequence[Difference] = ()
    """All differences, also those that are held."""
    unknown: Sequence[UUID] = ()
    """Visible contacts that belong to no mentor of an organisation with a portal."""
    acknowledged: Sequence[UUID] = ()
    """Unknown contacts that someone has acknowledged. They are not in ``unknown``."""
    is_doubtful: bool = False
    """The portal lists fewer than half of the mentors who should be visible. The list may have been cut short."""
    held: list[Hold] = field(default_factory=list)
    corrected: list[Difference] = field(default_factory=list)
    """Differences with a queued correction."""
    locked: Sequence[Difference] = ()
    """Differences without a correction, because another session had locked the mentor."""

    @property
    def admitted(self) -> list[Difference]:
        """Return the differences that may be corrected."""
        held = {each.organisation_id for each in self.held}
        return [each for each in self.differences if each.is_urgent or each.organisation_id not in held]

    def counts(self) -> dict[str, int]:
        """Return ``differences`` of the JSON document."""
        number = Counter(each.what for each in self.differences)
        return {
            "shown_wrongly": number["hidden"],
            "hidden_wrongly": number["shown"],
            "with_another_day": number["last_day"],
            "without_day": number["first_day"],
            "unknown": len(self.unknown),
            "acknowledged": len(self.acknowledged),
        }


def compare(
    connection: Connection, reading: Reading, *, today: date, allow: Mapping[str, int] = Counter()
) -> Comparison:
    """Compare a reading with the database in one read-only snapshot; ``allow`` as in ``MassChangeGuard``."""
    with database.read_only_snapshot(connection):
        differences = _find(connection, reading, today=today)
        listed: dict[str, object] = {"shown": [*reading.visible_until]}
        others = database.fetch(connection, "find_unknown_contacts", listed | {"today": today})
        ((wanted, found),) = database.fetch(connection, "count_wanted_contacts", listed)
    return Comparison(
        reading=reading,
        differences=differences,
        unknown=[contact_id for contact_id, is_known in others if not is_known],
        acknowledged=[contact_id for contact_id, is_known in others if is_known],
        is_doubtful=2 * found < wanted,
        held=_hold_shows(differences, wanted=wanted, found=found, allow=allow) if 2 * found < wanted else [],
    )


def _hold_shows(differences: Sequence[Difference], *, wanted: int, found: int, allow: Mapping[str, int]) -> list[Hold]:
    """Hold the shows, because the portal lists few of the ``wanted`` mentors: a wrong column or another Dynamics.

    Up to 20 mentors are not held, because someone may have cleared the portal of a small programme by hand.
    """
    if wanted <= MOST_SHOWS:
        return []
    shows = Counter((each.organisation, each.organisation_id) for each in differences if not each.is_urgent)
    reason = f"the portal lists {found:,} of the {wanted:,} mentors who should be visible, so `reconcile` only hides"
    return [
        Hold(
            organisation_id=organisation_id,
            organisation=slug,
            what=PORTAL,
            reason=reason,
            mentors=number,
        )
        for (slug, organisation_id), number in sorted(shows.items())
        if number > allow[slug]
    ]


def _find(
    connection: Connection, reading: Reading, *, today: date, among: Sequence[Difference] | None = None
) -> list[Difference]:
    shown = reading.visible_until
    if among is not None:
        shown = {each.contact_id: shown[each.contact_id] for each in among if each.contact_id in shown}
    parameters = {
        "shown": [*shown],
        "days": [*shown.values()],
        "dates": reading.dates,
        "ids": None if among is None else [each.mentor_id for each in among],
        "read_at": reading.read_at,
        "today": today,
    }
    return database.fetch(connection, "find_portal_differences", parameters, into=Difference)


def raise_events(connection: Connection, comparison: Comparison, *, today: date, run_id: UUID, stop: StopFlag) -> None:
    """Queue a correction for each difference that is not held, hides first, and add them to the comparison.

    Raises StoppedBySignalError between two transactions after a signal.
    """
    service = PortalSyncService(connection, run_id=run_id)

    def raise_slice(part: Sequence[Difference]) -> tuple[list[Difference], set[UUID]]:
        """Lock first and read later, as a review does, because facts may have changed since the comparison."""
        ids = {"ids": [each.mentor_id for each in part]}
        locked = {row[0] for row in database.fetch(connection, "lock_portal_mentors", ids)}
        unchanged = set(_find(connection, comparison.reading, today=today, among=part))
        corrected = [each for each in part if each.mentor_id in locked and each in unchanged]
        service.queue([each.to_wish() for each in corrected])
        return corrected, locked

    left = sorted(comparison.admitted, key=lambda each: not each.is_urgent)
    give_up_at = time.monotonic() + _LOCKED_FOR_SECONDS
    while True:
        later: list[Difference] = []
        for start in range(0, len(left), SLICE):
            stop.check()
            part = left[start : start + SLICE]
            corrected, locked = persist(connection, partial(raise_slice, part))
            comparison.corrected += corrected
            later += [each for each in part if each.mentor_id not in locked]
        comparison.locked = left = later
        if not left or time.monotonic() > give_up_at:
            return
        stop.sleep(_POLL_SECONDS)


def store(connection: Connection, comparison: Comparison) -> None:
    """Store the reading, its unknown contacts and its holds. Unless it is doubtful, contacts that it lacks are gone."""
    reading = comparison.reading
    parameters = {
        "read_at": reading.read_at,
        "visible": [*reading.visible_until],
        "dates": reading.dates,
        "secret_until": reading.secret_until if isinstance(reading.secret_until, date) else None,
        "is_doubtful": comparison.is_doubtful,
    }
    contacts = {"read_at": reading.read_at, "contacts": [*comparison.unknown, *comparison.acknowledged]}
    holds = comparison.held
    held = {"held": [each.organisation_id for each in holds], "mentors": [each.mentors for each in holds]}

    def write() -> None:
        database.execute(connection, "store_portal_reading", parameters)
        if not reading.dates:
            database.execute(connection, "forget_days_on_portal", {"read_at": reading.read_at})
        database.execute(connection, "store_unknown_contacts", contacts)
        database.execute(connection, "store_portal_holds", held)
        if not comparison.is_doubtful:
            database.execute(connection, "note_gone_contacts", {"read_at": reading.read_at})

    persist(connection, write)
