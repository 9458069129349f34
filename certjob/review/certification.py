"""CertificationManagementService: brings certificates and mentors to the state that the rules ask for.

The unit of work and of locking is one mentor. Several runs at once share the work, nobody waits for anybody's fact row,
and each chunk commits state, audit and intents together.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from uuid import UUID

import psycopg

from certjob import database
from certjob.database import CONTENTION, Connection, transaction
from certjob.domain.models import Decision
from certjob.errors import DatabaseUnavailableError, TooManyBrokenMentorsError
from certjob.facts import reading
from certjob.mail.reminders import CertificationReminderService
from certjob.portal.sync import PortalSyncService
from certjob.review.decision_writer import DecisionWriter, Written
from certjob.review.guards import MassChangeGuard
from certjob.review.lanes import Key, Lane, Lanes, SecondLane
from certjob.review.plan import CHUNK_SIZE, ReviewCounts, decide_each
from certjob.stopping import StopFlag

logger = logging.getLogger(__name__)

LOCK_TIMEOUT_MS = 500
"""The net under apply: a chunk that waits longer for anything is redone mentor by mentor."""
WAIT_FOR_LOCKS_SECONDS = 30.0
"""How long a run waits at its end for mentors whom somebody else holds."""
MOST_PASSES = 10
MOST_BROKEN_MENTORS = 1_000
_POLL_SECONDS = 0.25

_BROKEN_DATA = (psycopg.IntegrityError, psycopg.DataError, psycopg.errors.RaiseException)
"""What the database says to one mentor's data, not to the whole night."""


@dataclass(slots=True, kw_only=True)
class _Progress:
    applied: int = 0
    left: set[UUID] = field(default_factory=set)
    """Mentors whom somebody held."""


class CertificationManagementService:
    """Reviews mentors and applies what the rules decide."""

    def __init__(
        self,
        connection: Connection,
        *,
        today: date,
        run_id: UUID,
        guard: MassChangeGuard,
        reminders: CertificationReminderService,
        portal: PortalSyncService,
        stop: StopFlag,
        connect: Callable[[], Connection] | None = None,
        on_progress: Callable[[int], None] | None = None,
        wait_for_locks_seconds: float = WAIT_FOR_LOCKS_SECONDS,
        chunk_size: int = CHUNK_SIZE,
    ) -> None:
        """``connect`` opens a second connection, should there be more to do than one chunk."""
        self._connection = connection
        self._today = today
        self._guard = guard
        writer = DecisionWriter(connection, today=today, run_id=run_id, guard=guard, reminders=reminders, portal=portal)
        self._lane = Lane(connection=connection, writer=writer)
        self._second = SecondLane(connect, writer=writer)
        self._stop = stop
        self._on_progress = on_progress
        self._wait_for_locks_seconds = wait_for_locks_seconds
        self._chunk_size = chunk_size
        self.counts = ReviewCounts()

    def apply_due(self, organisation_id: UUID | None = None) -> ReviewCounts:
        """Review every due mentor, chunk by chunk, each chunk in one transaction.

        Passes go by key and repeat until one applies nothing. Mentors whom somebody else holds are waited for at the
        end, then counted as skipped. Raises StoppedBySignalError between chunks.
        """
        with self._second:
            for number in range(MOST_PASSES):
                progress = self._pass(organisation_id, first=number == 0)
                if not progress.applied:
                    break
        self._wait_for_locked(organisation_id, progress.left)
        return self.counts

    def review_one(self, mentor_id: UUID, *, then: Callable[[Decision], None]) -> bool:
        """Review one locked mentor in its own transaction; ``then`` writes in it too, last.

        False when somebody holds the mentor or one of its fact rows; nothing is written then. A broken mentor is noted,
        and ``then`` is not called.
        """
        try:
            with transaction(self._connection, lock_timeout_ms=LOCK_TIMEOUT_MS, by_index=True):
                database.execute(self._connection, "lock_mentor", {"id": mentor_id})
                read = reading.read(self._connection, [mentor_id], lock=True)
                if not (read.mentors or read.broken):
                    return False
                decisions, problems = decide_each(read, self._today)
                self._note_broken({problem.mentor_id: problem.reason for problem in problems})
                written = self._lane.writer.write(decisions)
                for decision in decisions:
                    then(decision)
        except CONTENTION:
            return False
        self._count(written, first=True)
        return True

    def _pass(self, organisation_id: UUID | None, *, first: bool) -> _Progress:
        progress = _Progress()
        first_review, first_id = reading.BEFORE_EVERY_MENTOR
        place: Key = (first_id, first_review)
        while True:
            self._stop.check()
            parameters = self._due_after(place, organisation_id)
            keys = self._apply_chunk("lock_due_mentors", parameters, progress, first=first)
            if not keys:
                return progress
            place = keys[-1]
            if len(keys) == self._chunk_size:
                place = self._read_ahead(place, organisation_id, progress, first=first)

    def _due_after(self, place: Key, organisation_id: UUID | None) -> dict[str, object]:
        after_id, after_review = place
        return {
            "today": self._today,
            "after_review": after_review,
            "after_id": after_id,
            "organisation_id": organisation_id,
            "held": list(self._guard.held),
            "broken": list(self.counts.broken),
            "limit": self._chunk_size,
        }

    def _read_ahead(self, place: Key, organisation_id: UUID | None, progress: _Progress, *, first: bool) -> Key:
        """Go on with two connections until the end, or until something is in the way; return the place reached.

        Whatever fails here is left to the caller, who does that chunk once more, on one connection, and knows what to
        do about it.
        """
        second = self._second.get()
        if second is None:
            return place
        reached = place

        def read(connection: Connection) -> tuple[Sequence[Key], Sequence[Decision]]:
            keys = database.fetch(connection, "lock_due_mentors", self._due_after(reached, organisation_id))
            return keys, self._decide_locked(connection, [key[0] for key in keys], progress)

        with Lanes(self._lane, second, lock_timeout_ms=LOCK_TIMEOUT_MS) as lanes:
            while True:
                keys: Sequence[Key] = ()
                try:
                    keys = lanes.begin(read)
                except psycopg.Error as error:
                    about = {"event": "read_ahead_failed"}
                    logger.debug("nothing was read ahead: %s", type(error).__name__, extra=about)
                try:
                    written = lanes.settle()
                except psycopg.Error as error:
                    about = {"event": "chunk_redone"}
                    logger.debug("a chunk is done again: %s", type(error).__name__, extra=about)
                    return place
                if written is not None:
                    progress.applied += self._count(written, first=first)
                place = reached
                if not keys:
                    return place
                self._stop.check()
                lanes.write(self._guard.admit)
                reached = keys[-1]

    def _apply_chunk(self, lock: str, parameters: dict[str, object], progress: _Progress, *, first: bool) -> list[Key]:
        """Lock a chunk, decide, write, commit. Return the keys that were locked.

        When somebody's lock or one mentor's data are in the way, the chunk is redone mentor by mentor; when the server
        was restarted meanwhile, as a whole.
        """
        keys: list[Key] = []

        def write_chunk() -> Written:
            nonlocal keys
            with transaction(self._connection, lock_timeout_ms=LOCK_TIMEOUT_MS, by_index=True):
                keys = database.fetch(self._connection, lock, parameters)
                return self._review_locked([key[0] for key in keys], progress)

        give_up_at = time.monotonic() + WAIT_FOR_LOCKS_SECONDS
        while True:
            try:
                written = database.repeated(self._connection, write_chunk)
                if not keys:
                    return []
            except (*CONTENTION, *_BROKEN_DATA) as error:
                if keys:
                    break
                if time.monotonic() > give_up_at:
                    message = "the table mentors is locked by another session; end that session and run again"
                    raise DatabaseUnavailableError(message) from error
                self._stop.sleep(_POLL_SECONDS)
            else:
                progress.applied += self._count(written, first=first)
                return keys
        for mentor_id, _ in keys:
            self._stop.check()
            self._apply_single(mentor_id, progress, first=first)
        return keys

    def _apply_single(self, mentor_id: UUID, progress: _Progress, *, first: bool) -> None:
        def write_mentor() -> Written:
            with transaction(self._connection, lock_timeout_ms=LOCK_TIMEOUT_MS, by_index=True):
                locked = database.fetch(self._connection, "lock_mentors", {"ids": [mentor_id], "today": self._today})
                # None: held by somebody, or not due any more; found again at the end
                return self._review_locked([key[0] for key in locked], progress)

        try:
            written = database.repeated(self._connection, write_mentor)
        except CONTENTION:
            progress.left.add(mentor_id)
        except _BROKEN_DATA as error:
            self._note_broken({mentor_id: f"{type(error).__name__}: {error.diag.message_primary or error}"})
        else:
            progress.applied += self._count(written, first=first)

    def _review_locked(self, ids: Sequence[UUID], progress: _Progress) -> Written:
        """Decide about locked mentors, and write what the guard admits."""
        return self._lane.writer.write(self._guard.admit(self._decide_locked(self._connection, ids, progress)))

    def _decide_locked(self, connection: Connection, ids: Sequence[UUID], progress: _Progress) -> list[Decision]:
        """Read the facts in a newer snapshot than the lock's, and decide."""
        if not ids:
            return []
        read = reading.read(connection, ids, lock=True)
        progress.left.update(read.incomplete)
        decisions, problems = decide_each(read, self._today)
        self._note_broken({problem.mentor_id: problem.reason for problem in problems})
        return decisions

    def _count(self, written: Written, *, first: bool) -> int:
        """Count what is committed now; return how many mentors it moved on."""
        counts = self.counts
        moved = 0
        for decision in written.decisions:
            changed = bool(decision.transitions or decision.pause or decision.push)
            moves = changed or decision.mentor_id not in written.staying_due
            moved += moves
            if moves or first:
                counts.add(decision)
        counts.reminders_queued += len(written.queued_for)
        counts.portal_queued += written.pushed
        counts.may_stay_visible += written.may_stay_visible
        self._guard.record(written.decisions, queued_reminders=written.queued_for)
        if self._on_progress:
            self._on_progress(counts.reviewed)
        return moved

    def _note_broken(self, broken: dict[UUID, str]) -> None:
        self.counts.broken.update(broken)
        if len(self.counts.broken) > MOST_BROKEN_MENTORS:
            message = (
                f"more than {MOST_BROKEN_MENTORS:,} mentors could not be reviewed, so the cause is not in their data; "
                f"the last one: {next(reversed(self.counts.broken.values()))}"
            )
            raise TooManyBrokenMentorsError(message)

    def _wait_for_locked(self, organisation_id: UUID | None, left: set[UUID]) -> None:
        """Try mentors whom somebody held again and again, for a bounded time; who stays due is skipped."""
        remaining = left | self._still_due(organisation_id)
        give_up_at = time.monotonic() + self._wait_for_locks_seconds
        while remaining:
            progress = _Progress()
            parameters: dict[str, object] = {"ids": sorted(remaining), "today": self._today}
            self._apply_chunk("lock_mentors", parameters, progress, first=False)
            remaining = (progress.left | self._still_due(organisation_id)) - self.counts.broken.keys()
            if not remaining:
                return
            if time.monotonic() > give_up_at:
                self.counts.skipped = sorted(remaining)
                return
            self._stop.sleep(_POLL_SECONDS)

    def _still_due(self, organisation_id: UUID | None) -> set[UUID]:
        """Mentors that this run should have reviewed and did not, as far as the database can tell."""
        staying_due = list(self._guard.held_reminders)
        rows = database.fetch(
            self._connection,
            "find_due_mentors",
            {
                "today": self._today,
                "organisation_id": organisation_id,
                "held": [*self._guard.held, *staying_due],
                "broken": list(self.counts.broken),
            },
        )
        if staying_due:
            with transaction(self._connection, lock_timeout_ms=LOCK_TIMEOUT_MS, by_index=True):
                parameters = {"today": self._today, "organisations": staying_due}
                rows += database.fetch(self._connection, "find_locked_mentors", parameters)
        return {row[0] for row in rows}
