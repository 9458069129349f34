"""CertificationManagementService: brings certificates and mentors to the state that the rules ask for.

The unit of work and of locking is one mentor. Several runs at once share the work, nobody waits for anybody's fact row,
and each chunk commits state, audit and intents together.
"""

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
from certjob.review.guards import MassChangeGuard
from certjob.review.plan import LOCKED, ReviewCounts, decide_each
from certjob.stopping import StopFlag

LOCK_TIMEOUT_MS = 500
"""The net under apply: a chunk that waits longer for anything is redone mentor by mentor."""
WAIT_FOR_LOCKS_SECONDS = 30.0
"""How long a run goes on after its first pass for mentors who are still due."""
_POLL_SECONDS = 0.25
MOST_REASON = 500
"""Characters of a reason that are stored."""

_BROKEN_DATA = (psycopg.IntegrityError, psycopg.DataError, psycopg.errors.RaiseException)
"""What the database says to one mentor's data, not to the whole night."""

Key = tuple[UUID, str]
"""A mentor's place in the walk through all who are due: the id, and review_on as text."""


class CertificationManagementService:
    """Reviews mentors and applies what the rules decide."""

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
        self._staying_due: set[UUID] = set()
        """Mentors who were reviewed and stay due on purpose: the guard holds their reminders."""
        self.counts = ReviewCounts()

    def apply_due(self, organisation_id: UUID | None = None) -> ReviewCounts:
        """Review every due mentor, chunk by chunk, each chunk in one transaction.

        One pass reviews all whom no other session holds. Those who are still due after it are tried again for a
        bounded time, then counted as skipped. What was held, and whom nobody could review, is written down. Raises
        StoppedBySignalError between chunks.
        """
        self._guard.store(run_id=self._run_id)
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
        self._store_problems(organisation_id)
        return self.counts

    def apply_open_pushes(self) -> None:
        """Review the due mentors who have an open push, once. Raises StoppedBySignalError between chunks."""
        with transaction(self._connection, lock_timeout_ms=LOCK_TIMEOUT_MS):
            rows = database.fetch(self._connection, "find_due_open_pushes", {"today": self._today})
            if rows:
                self._guard.examine(None)  # all due mentors count, or a few held changes would pass with each delivery
        if rows:
            self._guard.store(run_id=self._run_id)
            self._pass(None, ids=[mentor_id for (mentor_id,) in rows])

    def review_one(self, mentor_id: UUID, *, then: Callable[[Decision], None]) -> bool:
        """Review one mentor, due or not, in its own transaction; ``then`` writes in it too, last.

        False when another session has locked the mentor or one of its fact rows; nothing is written then.
        A broken mentor is noted, and ``then`` is not called.
        """
        try:
            with transaction(self._connection, lock_timeout_ms=LOCK_TIMEOUT_MS, by_index=True):
                database.execute(self._connection, "lock_mentor", {"id": mentor_id})
                written = self._review_locked([mentor_id])
                if not written.decisions and mentor_id not in self.counts.broken:
                    return False
                for decision in written.decisions:
                    database.execute(self._connection, "forget_review_problem", {"id": mentor_id})
                    then(decision)
        except CONTENTION:
            return False
        self._count(written)
        return True

    def _pass(self, organisation_id: UUID | None, *, ids: Sequence[UUID] | None = None) -> None:
        """Review the due mentors, or those of them with these ids, chunk by chunk in the order of their keys.

        Each is met once, so a pass ends even if some stay due.
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
        """Lock a chunk, decide, write, commit. Return the keys that were locked.

        When another session's lock or one mentor's data are in the way, the chunk is redone mentor by mentor; when the
        server was restarted meanwhile, as a whole.
        """
        keys: list[Key] = []

        def lock_and_review() -> Written:
            nonlocal keys
            keys = []
            with transaction(self._connection, lock_timeout_ms=LOCK_TIMEOUT_MS, by_index=True):
                keys = database.fetch(self._connection, "lock_due_mentors", due)
                return self._review_locked([mentor_id for mentor_id, _ in keys])

        give_up_at = time.monotonic() + WAIT_FOR_LOCKS_SECONDS
        while True:
            try:
                self._count(lock_and_review())
            except (*CONTENTION, *_BROKEN_DATA) as error:
                if keys:
                    break
                if time.monotonic() > give_up_at:
                    message = "the table mentors is locked by another session"
                    raise DatabaseUnavailableError(message, next_step="end that session and run again") from error
                self._stop.sleep(_POLL_SECONDS)
            else:
                return keys
        for mentor_id, _ in keys:
            self._stop.check()
            self._review_alone(mentor_id)
        return keys

    def _review_alone(self, mentor_id: UUID) -> None:
        """Review one mentor of a chunk that failed. Whose row another session has locked stays due."""

        def lock_and_review() -> Written:
            with transaction(self._connection, lock_timeout_ms=LOCK_TIMEOUT_MS, by_index=True):
                locked = database.fetch(self._connection, "lock_due_mentor", {"id": mentor_id, "today": self._today})
                return self._review_locked([mentor_id for (mentor_id,) in locked])

        try:
            self._count(lock_and_review())
        except CONTENTION:
            return  # it stays due: a later pass finds it, or the run names it as skipped
        except _BROKEN_DATA as error:
            self.counts.broken[mentor_id] = f"{type(error).__name__}: {error.diag.message_primary or error}"

    def _review_locked(self, ids: Sequence[UUID]) -> Written:
        """Read the facts in a newer snapshot than the lock's, decide, write what the guard admits.

        A mentor of whom another session has locked a fact row is left out and stays due.
        """
        if not ids:
            return Written(decisions=())
        read = reading.read(self._connection, ids, lock=True)
        decisions, broken = decide_each(read, self._today)
        self.counts.broken |= broken
        admitted = self._guard.admit(decisions)
        self._guard.count(admitted)
        return write_decisions(self._connection, admitted, today=self._today, run_id=self._run_id, guard=self._guard)

    def _count(self, written: Written) -> None:
        """Count what is committed now."""
        counts = self.counts
        for decision in written.decisions:
            counts.add(decision)
        counts.reminders_queued += len(written.queued_for)
        self._staying_due |= written.staying_due
        self._guard.record(written.decisions, queued_reminders=written.queued_for)
        self._guard.store(run_id=self._run_id)
        if self._on_progress:
            self._on_progress(counts.reviewed)

    def _still_due(self, organisation_id: UUID | None) -> list[UUID]:
        """Mentors whom this run should have reviewed and has not: locked by another session, or changed since."""
        rows = database.fetch(
            self._connection,
            "find_due_mentors",
            {
                "today": self._today,
                "organisation_id": organisation_id,
                "held": [organisation_id for organisation_id, _ in self._guard.held],
                "done": [*self.counts.broken, *self._staying_due],
            },
        )
        return [mentor_id for (mentor_id,) in rows]

    def _store_problems(self, organisation_id: UUID | None) -> None:
        """Write down whom this run could not review, and why; delete what it would have held, or found, and did not."""
        problems = {**dict.fromkeys(self.counts.skipped, LOCKED), **self.counts.broken}
        found = {
            "ids": list(problems),
            "reasons": [reason[:MOST_REASON] for reason in problems.values()],
            "today": self._today,
            "run_id": self._run_id,
        }
        held = {
            "organisation_id": organisation_id,
            "held": [organisation_id for organisation_id, _ in self._guard.held],
            "whats": [what for _, what in self._guard.held],
        }
        over = {"organisation_id": organisation_id, "found": list(problems)}

        def store() -> None:
            if problems:
                database.execute(self._connection, "store_review_problems", found)
            database.execute(self._connection, "forget_held_reviews", held)
            database.execute(self._connection, "forget_guard_counts")
            database.execute(self._connection, "forget_review_problems", over)

        database.persist(self._connection, store)
