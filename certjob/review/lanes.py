"""Two connections for a long review: while one chunk is written and committed, the next is locked, read and decided.

A chunk stays what it is, one transaction on one connection, and only one chunk is being written at any time. The thread
that owns the review does all the rest, in the chunks' order: it locks, reads, decides, asks the guard, counts.
"""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from uuid import UUID

import psycopg

from certjob.database import Connection, transaction
from certjob.domain.models import Decision
from certjob.errors import CertjobError
from certjob.review.decision_writer import DecisionWriter, Written

logger = logging.getLogger(__name__)

Key = tuple[UUID, str]
"""A mentor's place in the walk through all who are due: the id and review_on as text."""

MOST_OPENINGS = 5
"""So often the second connection is opened in one review, should the server end it."""
_CANCEL_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """A connection, and what writes on it."""

    connection: Connection
    writer: DecisionWriter


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Mentors who are locked, read and decided about, in a transaction that is still open."""

    lane: Lane
    keys: Sequence[Key]
    decisions: Sequence[Decision]
    transaction: ExitStack
    """Leaving it commits; leaving it by an error rolls back."""

    def write(self, admitted: Sequence[Decision]) -> Written:
        """Write these of its decisions, and commit."""
        with self.transaction:
            return self.lane.writer.write(admitted)

    def abandon(self) -> None:
        """Let go of its mentors."""
        with suppress(psycopg.Rollback), self.transaction:
            raise psycopg.Rollback


class SecondLane:
    """The other connection of a long review; a context manager that closes it."""

    def __init__(self, connect: Callable[[], Connection] | None, *, writer: DecisionWriter) -> None:
        """``writer`` is the first lane's; without ``connect`` there is no second one."""
        self._connect = connect
        self._writer = writer
        self._lane: Lane | None = None
        self._opened = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lane is not None:
            self._lane.connection.close()

    def get(self) -> Lane | None:
        """Open it if need be. None where there is none, or the server has no connection to give: one does it, too."""
        if self._lane is not None and not self._lane.connection.closed:
            return self._lane
        if self._connect is None or self._opened == MOST_OPENINGS:
            return None
        self._opened += 1
        try:
            connection = self._connect()
        except (CertjobError, psycopg.Error) as error:
            about = {"event": "no_second_connection"}
            logger.debug("no second connection, going on with one: %s", error, extra=about)
            self._connect = None
            return None
        self._lane = Lane(connection=connection, writer=self._writer.on(connection))
        return self._lane


class Lanes:
    """Two lanes that take turns; a context manager. On the way out what was begun is let go, what is written ends."""

    def __init__(self, first: Lane, second: Lane, *, lock_timeout_ms: int) -> None:
        self._first = first
        self._second = second
        self._lock_timeout_ms = lock_timeout_ms
        self._begun: Chunk | None = None
        self._writing: tuple[Chunk, Future[Written]] | None = None
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="writing")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._begun is not None:
                self._begun.abandon()
            if self._writing is not None and error is not None and not isinstance(error, Exception):
                # A signal's grace is over: the other thread's statement is broken off, too.
                self._writing[0].lane.connection.cancel_safe(timeout=_CANCEL_SECONDS)
        finally:
            self._executor.shutdown()

    def begin(self, read: Callable[[Connection], tuple[Sequence[Key], Sequence[Decision]]]) -> Sequence[Key]:
        """Begin a chunk on the lane that is free, and return its keys; ``read`` locks it and decides. None: the end."""
        lane = self._free
        with ExitStack() as stack:
            stack.enter_context(transaction(lane.connection, lock_timeout_ms=self._lock_timeout_ms, by_index=True))
            keys, decisions = read(lane.connection)
            if keys:
                self._begun = Chunk(lane=lane, keys=keys, decisions=decisions, transaction=stack.pop_all())
        return keys

    def write(self, admit: Callable[[Sequence[Decision]], Sequence[Decision]]) -> None:
        """Have what was begun written and committed, as far as it is admitted; ``settle`` says how it went."""
        if self._begun is None:
            message = "no chunk was begun"
            raise RuntimeError(message)
        admitted = admit(self._begun.decisions)
        chunk, self._begun = self._begun, None
        self._writing = chunk, self._executor.submit(chunk.write, admitted)

    def settle(self) -> Written | None:
        """Wait for the chunk that is being written, if any; return what was committed, or raise what came instead."""
        if self._writing is None:
            return None
        future = self._writing[1]
        wait([future])
        self._writing = None
        return future.result()

    @property
    def _free(self) -> Lane:
        if self._writing is not None and self._writing[0].lane is self._first:
            return self._second
        return self._first
