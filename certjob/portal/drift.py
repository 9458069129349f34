"""Pushing every portal mentor's wanted value again, for the day when somebody edited the portal by hand.

A slice at a time: what a new night wants meanwhile never waits behind thousands of repeats, and a portal that fails
leaves only one slice waiting.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from uuid import UUID

from certjob import database
from certjob.database import persist
from certjob.outbox.claims import StageStop
from certjob.portal.sync import PortalSyncService

SLICE = 100
"""So many are queued at once: one claim."""
FIRST_SLICE = 5
"""A portal that is down shows it with these; nobody else becomes an alert."""
_UUID_BYTES = 16


@dataclass(slots=True, kw_only=True)
class DriftCounts:
    """How far it came, for the report."""

    queued: int = 0
    waiting_for_review: int = 0
    """Due for a review and wanted visible: whether they still should be, only a run can say. They are left to it."""
    never_certified: int = 0
    """Without a certificate in force, and never shown by certjob, which never shows whom it did not hide."""


class PortalDrift:
    """The portal mentors to push again: hides before shows, those confirmed longest ago first."""

    def __init__(self, connection: database.Connection, *, run_id: UUID, today: date) -> None:
        self._connection = connection
        self._service = PortalSyncService(connection, run_id=run_id)
        self._today = today
        self._ids = bytearray()  # a million are 16 MB
        self._next = 0
        self._open_from = 0  # where those begin whose push is open anyway
        self._held: list[UUID] = []  # by another session, when their turn came
        self._second_try = False
        self.counts = DriftCounts()

    def begin(self) -> int:
        """Read whom to push and return how many they are."""
        with self._connection.transaction():
            for mentor_id, is_open in self._read_mentors():
                self._ids += mentor_id.bytes
                self._open_from += 0 if is_open else _UUID_BYTES
            left_out = database.fetch(self._connection, "count_left_out_portal_mentors", {"today": self._today})
            self.counts.waiting_for_review, self.counts.never_certified = left_out[0]
        return self.total

    @property
    def total(self) -> int:
        """How many there are to push."""
        return len(self._ids) // _UUID_BYTES

    def queue_more(self) -> bool:
        """Queue the next slice, committed on return; False when there is none."""
        while slice_ := self._next_slice():
            queued, held = persist(self._connection, partial(self._queue, slice_))
            self._held += held
            self.counts.queued += queued
            # Facts that changed since the beginning: the next review looks at them.
            self.counts.waiting_for_review += len(slice_) - queued - len(held)
            if queued:
                return True
        return False

    def end(self, stopped: StageStop | None) -> StageStop | None:
        """Return why the stage ended early, if it did, with what that left out."""
        left = self.total - self._next // _UUID_BYTES + len(self._held)
        if not left:
            return stopped
        rest = f"{left:,} of {self.total:,} mentors were not pushed again"
        if stopped is not None:
            return replace(stopped, reason=f"{stopped.reason}; {rest}")
        return StageStop(stage="portal", code="held", reason=f"{rest}: another session holds them")

    def _read_mentors(self) -> Iterator[tuple[UUID, bool]]:
        with self._connection.cursor(name="portal_mentors") as cursor:
            cursor.itersize = 10_000
            cursor.execute(database.query("find_portal_mentors"), {"today": self._today})
            yield from cursor

    def _next_slice(self) -> list[UUID]:
        if self._next < len(self._ids):
            size = SLICE if self._next else min(FIRST_SLICE, SLICE)
            end = self._next + size * _UUID_BYTES
            if self._next < self._open_from:  # never together: in a slice there is no order
                end = min(end, self._open_from)
            part = bytes(self._ids[self._next : end])
            self._next = min(end, len(self._ids))
            return [UUID(bytes=part[at : at + _UUID_BYTES]) for at in range(0, len(part), _UUID_BYTES)]
        if self._second_try:
            return []
        self._second_try = True
        held, self._held = self._held, []
        return held

    def _queue(self, mentor_ids: list[UUID]) -> tuple[int, list[UUID]]:
        """Queue what is wanted of these now: their rows are locked first and read later, as a review does.

        Without the lock a review could commit a hide between our reading and our writing, and be undone by us.
        """
        locked = [row[0] for row in database.fetch(self._connection, "lock_portal_mentors", {"ids": mentor_ids})]
        wishes = database.fetch(self._connection, "read_wanted_values", {"ids": locked, "today": self._today})
        return self._service.queue(wishes), sorted(set(mentor_ids) - set(locked))
