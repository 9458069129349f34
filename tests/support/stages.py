"""The portal stage in a test: in an event loop of its own, as a delivery runs it."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from uuid import uuid4

from certjob.database import Connection
from certjob.outbox.claims import Lease, StageStop, lease_clock
from certjob.outbox.loop import DatabaseThread, run_loop
from certjob.outbox.retry import RetryPolicy
from certjob.portal.push import PortalEvent, PortalTarget, Push, Pusher
from certjob.portal.rate import RateLimiter
from certjob.portal.stage import PortalStage
from certjob.portal.sync import PortalCounts, PortalSyncService
from certjob.stopping import StopFlag
from tests.support.nights import delivery, quick_policy
from tests.support.portal_server import PortalServer


class RunnableStage:
    """A stage that is run once; its counts can be read at any time."""

    def __init__(
        self,
        connection: Connection,
        portal: PortalServer | PortalTarget,
        *,
        concurrency: int = 4,
        calls_per_second: float = 0.0,
        policy: RetryPolicy | None = None,
        stop: StopFlag | None = None,
        service: PortalSyncService | None = None,
        make_target: Callable[[], AbstractAsyncContextManager[PortalTarget]] | None = None,
    ) -> None:
        self.connection = connection
        self.make_target = make_target or delivery(portal=portal).make_target
        self.concurrency = concurrency
        self.calls_per_second = calls_per_second
        self.policy = policy or quick_policy()
        self.stop = stop or StopFlag()
        self.service = service or PortalSyncService(connection, run_id=uuid4())
        self.counts = PortalCounts()

    def run(self, *, deadline_seconds: float = 60) -> StageStop | None:
        """Run it to its end. Raises StoppedBySignalError once ``stop`` is set."""

        async def main(database: DatabaseThread) -> StageStop | None:
            assert self.make_target is not None
            stage = PortalStage(
                self.service,
                database=database,
                make_target=self.make_target,
                policy=self.policy,
                concurrency=self.concurrency,
                calls_per_second=self.calls_per_second,
                counts=self.counts,
            )
            return await stage.run(deadline_seconds=deadline_seconds)

        ended = run_loop(main, connection=self.connection, stop=self.stop, deadline_seconds=deadline_seconds)
        self.stop.check()
        return ended


def push_once(
    event: PortalEvent, portal: PortalTarget, *, policy: RetryPolicy | None = None, lease: Lease | None = None
) -> Push:
    """Make one round for an event, outside any stage."""

    async def push() -> Push:
        pusher = Pusher(
            target=portal, policy=policy or quick_policy(), rate=RateLimiter(calls_per_second=0), halt=asyncio.Event()
        )
        return await pusher.push(event, lease or Lease(claimed_at=lease_clock(), seconds=300))

    return asyncio.run(push())
