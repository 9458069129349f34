"""What the portal shows, compared with what certjob has told it: differences, and contacts that nobody has.

Comparing reads one snapshot and writes nothing. A difference is corrected by an event, and only where the same
question, asked again under the mentor's lock, has the same answer.
"""

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import partial
from typing import Any
from uuid import UUID

from certjob import database
from certjob.database import Connection, persist
from certjob.domain import rules
from certjob.domain.holds import Hold
from certjob.portal.sync import PortalSyncService
from certjob.stopping import StopFlag

SLICE = 100
"""Events that are raised in one transaction."""
_LOCKED_FOR_SECONDS = 5.0
"""How long to wait for mentors whom another session has locked."""
_POLL_SECONDS = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A mentor whom the portal shows, or hides, unlike certjob."""

    mentor_id: UUID
    member_no: str
    organisation: str
    organisation_id: UUID
    contact_id: UUID
    visible: bool
    """What certjob wants; the portal shows the opposite, unless ``wrong_day``."""
    wrong_day: bool
    """The portal shows the mentor, but with another last day."""
    restricts: bool
    """The correction is a hide, or takes days away. No guard holds it."""

    def to_document(self) -> dict[str, Any]:
        """Return the entry of ``changes``."""
        return {
            "mentor_id": str(self.mentor_id),
            "member_no": self.member_no,
            "organisation": self.organisation,
            "portal": self.visible,
            "wrong_day": self.wrong_day,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What the portal showed, all pages of it."""

    read_at: datetime
    """When it began, by the database's clock."""
    pages: int
    visible_until: Mapping[UUID, date | None]
    """The contacts that it showed, each with its last visible day."""
    dates: bool
    """Whether the portal has a column for the day."""

    @property
    def visible(self) -> list[UUID]:
        """Return the contacts that it showed."""
        return list(self.visible_until)


@dataclass(slots=True, kw_only=True)
class Comparison:
    """What a reading showed, beside what certjob wants."""

    reading: Reading
    differences: Sequence[Difference] = ()
    """All of them, those that the guard holds as well."""
    unknown: Sequence[UUID] = ()
    """Shown, and the contact of no mentor of an organisation with a portal; nobody has acknowledged them."""
    acknowledged: Sequence[UUID] = ()
    """The same, and somebody has said that they are shown on purpose."""
    held: list[Hold] = field(default_factory=list)
    raised: int = 0
    """Events that were raised for the differences."""
    locked: Sequence[Difference] = ()
    """For whom none could be raised, because another session had locked the mentor."""

    @property
    def admitted(self) -> list[Difference]:
        """Return what may be put right: every hide, and the shows that nobody holds."""
        held = {each.organisation_id for each in self.held}
        return [each for each in self.differences if each.restricts or each.organisation_id not in held]

    def counts(self) -> dict[str, int]:
        """Return the figures of the JSON document's ``differences``."""
        days = sum(each.wrong_day for each in self.differences)
        hides = sum(not each.visible for each in self.differences)
        return {
            "shown_wrongly": hides,
            "hidden_wrongly": len(self.differences) - hides - days,
            "wrong_day": days,
            "unknown": len(self.unknown),
            "acknowledged": len(self.acknowledged),
        }


def compare(
    connection: Connection, reading: Reading, *, today: date, allow: Mapping[str, int] = Counter()
) -> Comparison:
    """Compare a reading with what certjob wants, in one read-only snapshot; ``allow`` as in ``MassChangeGuard``."""
    with database.read_only_snapshot(connection):
        differences = _find(connection, reading, today=today)
        others = database.fetch(connection, "find_unknown_contacts", {"shown": reading.visible, "today": today})
        comparison = Comparison(
            reading=reading,
            differences=differences,
            unknown=[contact_id for contact_id, is_known in others if not is_known],
            acknowledged=[contact_id for contact_id, is_known in others if is_known],
        )
        comparison.held = _hold_shows(connection, comparison, allow=allow)
    return comparison


def _hold_shows(connection: Connection, comparison: Comparison, *, allow: Mapping[str, int]) -> list[Hold]:
    """Hold the shows if the portal lists none of the mentors who should be visible: a wrong column or another Dynamics.

    With 20 such mentors or fewer nothing is held: someone may have cleared the portal of a small programme by hand.
    """
    listed = {"shown": comparison.reading.visible}
    ((wanted, found),) = database.fetch(connection, "count_wanted_contacts", listed)
    if found or wanted <= rules.MASS_CHANGE_MINIMUM:
        return []
    shows = Counter((each.organisation, each.organisation_id) for each in comparison.differences if not each.restricts)
    reason = f"the portal lists none of the {wanted:,} mentors who should be visible; no one was shown, hides went on"
    return [
        Hold(
            organisation_id=organisation_id,
            organisation=slug,
            what="portal",
            reason=reason,
            mentors=number,
            allow=number,
        )
        for (slug, organisation_id), number in sorted(shows.items())
        if number > allow[slug]
    ]


def _find(
    connection: Connection, reading: Reading, *, today: date, among: Sequence[Difference] | None = None
) -> list[Difference]:
    ids = None if among is None else [each.mentor_id for each in among]
    shown = reading.visible_until
    if among is not None:
        shown = {each.contact_id: shown[each.contact_id] for each in among if each.contact_id in shown}
    parameters = {
        "shown": [*shown],
        "days": [*shown.values()],
        "dates": reading.dates,
        "ids": ids,
        "read_at": reading.read_at,
        "today": today,
    }
    return database.fetch(connection, "find_portal_differences", parameters, into=Difference)


def raise_events(connection: Connection, comparison: Comparison, *, today: date, run_id: UUID, stop: StopFlag) -> None:
    """Raise an event for each difference that nobody holds, hides first, a hundred in a transaction.

    What it has done is noted in the comparison. A signal ends it between two transactions with StoppedBySignalError.
    """
    service = PortalSyncService(connection, run_id=run_id)

    def raise_slice(part: Sequence[Difference]) -> tuple[int, set[UUID]]:
        """Rows are locked first and read later, as in a review: facts may have changed since the comparison."""
        ids = {"ids": [each.mentor_id for each in part]}
        locked = {row[0] for row in database.fetch(connection, "lock_portal_mentors", ids)}
        unchanged = set(_find(connection, comparison.reading, today=today, among=part))
        wishes = [(each.mentor_id, each.visible) for each in part if each.mentor_id in locked and each in unchanged]
        return service.queue(wishes), locked

    left = sorted(comparison.admitted, key=lambda each: not each.restricts)
    give_up_at = time.monotonic() + _LOCKED_FOR_SECONDS
    while True:
        later: list[Difference] = []
        for start in range(0, len(left), SLICE):
            stop.check()
            part = left[start : start + SLICE]
            number, locked = persist(connection, partial(raise_slice, part))
            comparison.raised += number
            later += [each for each in part if each.mentor_id not in locked]
        comparison.locked = left = later
        if not left or time.monotonic() > give_up_at:
            return
        stop.sleep(_POLL_SECONDS)


def store(connection: Connection, comparison: Comparison, *, run_id: UUID) -> None:
    """Keep what the reading showed; unknown contacts that it no longer shows are gone, unless something was held."""
    reading = comparison.reading
    parameters = {
        "read_at": reading.read_at,
        "pages": reading.pages,
        "visible": reading.visible,
        "differences": json.dumps(comparison.counts()),
        "held": bool(comparison.held),
        "run_id": run_id,
    }
    contacts = {"read_at": reading.read_at, "contacts": [*comparison.unknown, *comparison.acknowledged]}

    def write() -> None:
        database.execute(connection, "store_portal_reading", parameters)
        database.execute(connection, "store_unknown_contacts", contacts)
        if not comparison.held:
            database.execute(connection, "note_gone_contacts", {"read_at": reading.read_at})
        database.execute(connection, "forget_acknowledged_contacts")

    persist(connection, write)
