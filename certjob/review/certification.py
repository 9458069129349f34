"""CertificationManagementService reviews mentors and applies the decisions of the rules.

The unit of work is one mentor, who is locked during the review. Parallel runs share the work. A run does not wait for a
certificate or pause that another session has locked; it skips the mentor. Each chunk is one transaction.
"""

import gc
import time
from collections.abc import Callable, Sequence
from datetime import date
from uuid import UUID

import psycopg

from certjob import database
from certjob.database import CONTENTION, Connection, transaction
from certjob.domain.models import Decision
from certjob.errors import DatabaseUnavailableError
from certjob.facts import reading
from certjob.facts.reading import CHUNK_SIZE
from certjob.review.decision_writer import Written, write_decisions
from certjob.review.guards import Admitted, CountedElsewhereError, MassChangeGuard
from certjob.review.plan import ReviewCounts, decide_each
from certjob.stopping import StopFlag

LOCK_TIMEOUT_MS = 500
"""A chunk that waits longer than this for a lock is repeated one mentor at a time."""
WAIT_FOR_LOCKS_SECONDS = 30.0
"""How long a run keeps retrying mentors who are still due after its first pass."""
_POLL_SECONDS = 0.25
_GARBAGE_THRESHOLD = 200_000
"""A chunk has no reference cycles, and with the default of 700 the collector goes through it a hundred times."""
_LONGEST_REASON = 500
"""Maximum length of a stored reason in characters."""

_BROKEN_DATA = (psycopg.IntegrityError, psycopg.DataError, psycopg.errors.RaiseException)
"""Database errors that come from one mentor's data and do not stop the run."""

Key = tuple[UUID, str]
"""A mentor's position in the order of due mentors: the id, and ``review_on`` as text."""


class CertificationManagementService:
    """Reviews mentors and applies the decisions of the rules."""

    def __init__(
        self,
        connection: Connection,
        *,
        today: date,
        run_id: UUID,
        guard: MassChangeGuard,
        stop: StopFlag,
        on_progress: Callable[[int], None] | None = None,
    ) -> None:
        self._connection = connection
        self._today = today
        self._run_id = run_id
        self._guard = guard
        self._stop = stop
        self._on_progress = on_progress
        self._held: set[UUID] = set()
        """Mentors who stay due because the guard holds them."""
        self.counts = ReviewCounts()
        self.has_new_holds = False
        """Whether a mentor is held for the first time."""

    def apply_due(self, organisation_id: UUID | None = None) -> ReviewCounts:
        """Review every due mentor in chunks, one transaction per chunk, and return the counts.

        The first pass skips locked mentors. Mentors who are still due after it are retried for WAIT_FOR_LOCKS_SECONDS
        and then counted as skipped. Mentors without a review are stored for the alerts. Raises StoppedBySignalError
        between chunks.
        """
        gc.set_threshold(_GARBAGE_THRESHOLD)
        database.persist(self._connection, self._guard.release_reminders)
        self._pass(organisation_id)
        give_up_at = time.monotonic() + WAIT_FOR_LOCKS_SECONDS
        while remaining := self._still_due(organisation_id):
            if time.monotonic() > give_up_at:
                self.counts.skipped = sorted(remaining)
                break
            before = self.counts.reviewed
            self._pass(organisation_id, ids=remaining)
            if self.counts.reviewed == before:
                self._stop.sleep(_POLL_SECONDS)
        self._store_problems()
        return self.counts

    def apply_open_pushes(self) -> None:
        """Review the due mentors with an open push, once. Raises StoppedBySignalError between chunks."""
        with transaction(self._connection, lock_timeout_ms=LOCK_TIMEOUT_MS):
            rows = database.fetch(self._connection, "find_due_open_pushes", {"today": self._today})
            if rows:
                self._guard.examine(None)  # all due mentors count, or a few held changes would pass with each delivery
        if rows:
            self._pass(None, ids=[mentor_id for (mentor_id,) in rows])

    def review_one(self, mentor_id: UUID, *, then: Callable[[Decision], None]) -> bool:
        """Review one mentor, due or not, and call ``then`` at the end of the same transaction.

        Returns False, without any change, if another session has locked the mentor or one of its certificates or
        pauses. If the mentor's data are broken, ``then`` is not called and ``counts.broken`` has the reason.
        """
        try:
            with transaction(self._connection, lock_timeout_ms=LOCK_TIMEOUT_MS, by_index=True):
                database.execute(self._connection, "lock_mentor", {"id": mentor_id})
                written = self._review_locked([mentor_id])
                if not written.admitted.decisions and mentor_id not in self.counts.broken:
                    return False
                for decision in written.admitted.decisions:
                    then(decision)
        except CONTENTION:
            return False
        self._count(written)
        return True

    def _pass(self, organisation_id: UUID | None, *, ids: Sequence[UUID] | None = None) -> None:
        """Review the due mentors, or only those in ``ids``, in chunks and in the order of their keys.

        A pass visits each mentor once, so it ends even if some stay due.
        """
        after_review, after_id = reading.BEFORE_EVERY_MENTOR
        while True:
            self._stop.check()
            keys = self._review_chunk(
                {
                    "today": self._today,
                    "after_review": after_review,
                    "after_id": after_id,
                    "organisation_id": organisation_id,
                    "ids": None if ids is None else list(ids),
                    "limit": CHUNK_SIZE,
                }
            )
            if len(keys) < CHUNK_SIZE:
                return
            after_id, after_review = keys[-1]

    def _review_chunk(self, due: dict[str, object]) -> list[Key]:
        """Review and commit one chunk; return the keys of the locked mentors.

        If another run counts the changes of an organisation, the whole chunk is repeated. After another lock conflict,
        or an error in one mentor's data, it is repeated one mentor at a time.
        """
        keys: list[Key] = []
        give_up_at = time.monotonic() + WAIT_FOR_LOCKS_SECONDS
        while True:
            try:
                with transaction(self._connection, lock_timeout_ms=LOCK_TIMEOUT_MS, by_index=True):
                    keys = database.fetch(self._connection, "lock_due_mentors", due)
                    written = self._review_locked([mentor_id for mentor_id, _ in keys])
            except CountedElsewhereError:
                if time.monotonic() > give_up_at:
                    break
                self._stop.check()
            except (*CONTENTION, *_BROKEN_DATA) as error:
                if keys:
                    break
                if time.monotonic() > give_up_at:
                    message = "the table mentors is locked by another session"
                    raise DatabaseUnavailableError(message, next_step="end that session and run again") from error
                self._stop.sleep(_POLL_SECONDS)
            else:
                self._count(written)
                return keys
        for mentor_id, _ in keys:
            self._stop.check()
            self._review_alone(mentor_id)
        return keys

    def _review_alone(self, mentor_id: UUID) -> None:
        """Review one mentor of a failed chunk. A locked mentor stays due: a later pass retries, or the run names it."""
        try:
            with transaction(self._connection, lock_timeout_ms=LOCK_TIMEOUT_MS, by_index=True):
                locked = database.fetch(self._connection, "lock_due_mentor", {"id": mentor_id, "today": self._today})
                written = self._review_locked([mentor_id for (mentor_id,) in locked])
        except CONTENTION:
            return
        except _BROKEN_DATA as error:
            self.counts.broken[mentor_id] = f"{type(error).__name__}: {error.diag.message_primary or error}"
        else:
            self._count(written)

    def _review_locked(self, ids: Sequence[UUID]) -> Written:
        """Read the facts of locked mentors, decide, and write the decisions that the guard admits.

        Another statement than the locking one reads the facts, because facts read with it could be older than the lock.
        A mentor with a locked certificate or pause is skipped and stays due.
        """
        if not ids:
            return Written(admitted=Admitted(decisions=()))
        read = reading.read(self._connection, ids, lock=True)
        decisions, broken = decide_each(read, self._today)
        self.counts.broken |= broken
        admitted = self._guard.admit(decisions)
        return write_decisions(self._connection, admitted, today=self._today, run_id=self._run_id)

    def _count(self, written: Written) -> None:
        """Count a committed transaction."""
        counts, admitted = self.counts, written.admitted
        counts.add(admitted.decisions)
        counts.reminders_queued += written.queued
        counts.reminders_held_back += written.held
        self.has_new_holds |= written.has_new_holds
        self._held |= {each.mentor_id for each in admitted.held}
        counts.held_back = len(self._held)
        self._guard.note_permitted(admitted)
        if self._on_progress:
            self._on_progress(counts.reviewed)

    def _still_due(self, organisation_id: UUID | None) -> list[UUID]:
        """Return the mentors who are still due without a hold: locked by another session, or changed since."""
        asked = {
            "today": self._today,
            "organisation_id": organisation_id,
            "done": [*self.counts.broken, *self._held],
        }
        return [mentor_id for (mentor_id,) in database.fetch(self._connection, "find_due_mentors", asked)]

    def _store_problems(self) -> None:
        """Store the mentors without a review and the reasons."""
        problems = dict(self.counts.problems)
        found = {
            "ids": list(problems),
            "reasons": [reason[:_LONGEST_REASON] for reason in problems.values()],
            "broken": list(self.counts.broken),
            "today": self._today,
        }

        def store() -> None:
            database.execute(self._connection, "forget_guard_counts")
            if problems:
                database.execute(self._connection, "store_not_reviewed", found)

        database.persist(self._connection, store)
