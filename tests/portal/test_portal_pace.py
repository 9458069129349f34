"""How much lies ready for the portal's threads, and that a portal out of order is not asked the more for it."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from uuid import UUID, uuid4

import pytest

from certjob.database import Connection
from certjob.errors import DynamicsSyncException, TransientPortalError
from certjob.outbox.claims import Answer, Lease
from certjob.portal.push import PortalEvent, Push
from certjob.portal.stage import PortalStage
from certjob.portal.sync import PortalCounts, PortalSyncService
from certjob.portal.threads import LARGEST_CLAIM, Pace, Task, TaskQueue
from certjob.stopping import StopFlag
from tests.support.facts import Facts
from tests.support.nights import delivery, quick_policy
from tests.support.portal_answers import Behaviour, PortalRequest, error, ok
from tests.support.portal_server import PortalServer


def event(number: int = 1) -> PortalEvent:
    return PortalEvent(
        id=number,
        mentor_id=uuid4(),
        member_no=f"M{number}",
        visible=False,
        version=1,
        attempts=1,
        claim_token=uuid4(),
        contact_id=uuid4(),
        has_portal=True,
    )


def failed() -> Push:
    cause = TransientPortalError("connection reset")
    trouble = DynamicsSyncException("failed", mentor_id=uuid4(), event_id=1, attempts=3, cause=cause, retry_at=None)
    return Push(event=event(), error=trouble)


@pytest.mark.parametrize(
    ("seconds", "ahead", "claim"), [(0.001, 1_000, 100), (0.02, 50, 100), (0.2, 5, 20), (5.0, 0, 16)]
)
def test_what_lies_ready_is_a_quarter_of_a_second_s_work_and_a_claim_a_second_s(
    seconds: float, ahead: int, claim: int
) -> None:
    """Four threads; where calls are slow nothing waits in line, and other processes find something to claim."""
    pace = Pace(threads=4)
    for _ in range(3):
        pace.note(Push(event=event()), seconds=seconds)

    assert (pace.ahead, pace.claim_limit) == (ahead, claim)


@pytest.mark.parametrize(("rate", "claim"), [(0.0, 100), (3.75, 16), (40.0, 40), (500.0, 100)])
def test_a_claim_is_no_more_than_the_rate_lets_go_in_a_second(rate: float, claim: int) -> None:
    """Slow machines would hold what fast ones could push; from the first claim on, whatever a call takes."""
    pace = Pace(threads=4, calls_per_second=rate)
    assert pace.claim_limit == claim

    pace.note(Push(event=event()), seconds=0.001)

    assert pace.claim_limit == claim


def test_nothing_lies_ready_before_the_first_answer_or_after_a_failure() -> None:
    """A portal that is down gets as many calls as there are threads, and no more."""
    pace = Pace(threads=4)
    assert (pace.ahead, pace.claim_limit) == (0, LARGEST_CLAIM)
    pace.note(Push(event=event()), seconds=0.001)
    assert pace.ahead > 0

    pace.note(failed(), seconds=0.001)

    assert pace.ahead == 0


def test_a_push_that_was_not_made_tells_nothing() -> None:
    """It took no time because nobody was called."""
    pace = Pace(threads=4)

    pace.note(Push(event=event(), begun=False), seconds=0.0)

    assert pace.ahead == 0


def test_tasks_that_nobody_has_taken_come_back_in_their_order() -> None:
    """Each once."""
    tasks = TaskQueue()
    laid = [Task(event=event(n), lease=Lease(claimed_at=0.0, seconds=300)) for n in range(3)]
    for task in laid:
        tasks.put(task)

    assert tasks.take_back() == laid
    assert tasks.take_back() == []


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_portal_that_dies_in_full_flight_gets_few_calls_more(
    connection: Connection, facts: Facts, concurrency: int
) -> None:
    """After forty good answers everything fails at once; what lay ready goes back, uncounted."""
    organisation = facts.organisation()
    for _ in range(120):
        facts.mentor(organisation)
    connection.execute("INSERT INTO portal_sync_events (mentor_id, visible) SELECT id, false FROM mentors")

    def answer(request: PortalRequest) -> Behaviour:
        return ok() if request.number <= 40 else error(503, "dynamics_unavailable")

    service = PortalSyncService(connection, run_id=uuid4())
    with PortalServer(answer) as portal:
        made = delivery(portal=portal).make_target
        assert made is not None
        stage = PortalStage(
            service,
            make_target=made,
            policy=quick_policy(),
            concurrency=concurrency,
            calls_per_second=0,
            stop=StopFlag(),
        )
        stopped = stage.run(deadline_seconds=60)
        calls = len(portal.requests)

    assert stopped is not None
    assert stopped.code == "breaker"
    assert stage.counts.delivered == 40
    assert calls <= 40 + 100
    assert facts.rows("SELECT count(*) FROM portal_sync_events WHERE status = 'pending' AND attempts = 0") == [
        (80 - stage.counts.failed,)
    ]
    assert facts.rows("SELECT count(*) FROM portal_sync_events WHERE claim_token IS NOT NULL") == [(0,)]


class Counting(PortalSyncService):
    """Counts how often it settles, and for how long."""

    settles = 0
    seconds = 0.0

    def settle(self, pushes: Sequence[Push], counts: PortalCounts) -> dict[int, Answer]:
        began = time.monotonic()
        answers = super().settle(pushes, counts)
        self.settles += 1
        self.seconds += time.monotonic() - began
        return answers


class QuickTarget:
    """A portal that answers after a millisecond."""

    def update_portal_visibility(self, contact_id: UUID, *, visible: bool, idempotency_key: str) -> None:
        time.sleep(0.001)


@contextmanager
def quick_target() -> Iterator[QuickTarget]:
    yield QuickTarget()


def test_answers_that_come_fast_are_settled_together(connection: Connection, facts: Facts) -> None:
    """A settle each would take more from the thread that calls than its calls do."""
    organisation = facts.organisation()
    for _ in range(300):
        facts.mentor(organisation)
    connection.execute("INSERT INTO portal_sync_events (mentor_id, visible) SELECT id, false FROM mentors")
    service = Counting(connection, run_id=uuid4())
    stage = PortalStage(
        service, make_target=quick_target, policy=quick_policy(), concurrency=1, calls_per_second=0, stop=StopFlag()
    )
    began = time.monotonic()

    assert stage.run(deadline_seconds=60) is None

    between_settles = time.monotonic() - began - service.seconds
    first_and_last_ones = 10  # settled as they come: little lies ready for the thread
    assert stage.counts.delivered == 300
    assert service.settles <= first_and_last_ones + 300 / 10 + between_settles / 0.02, "each takes ten or waits 20 ms"
