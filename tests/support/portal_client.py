"""The portal's client for tests that are not asynchronous themselves."""

import asyncio
from typing import Self
from uuid import UUID

from certjob.outbox.loop import NameLookups
from certjob.outbox.retry import RetryPolicy
from certjob.portal.hlf_dynamics import HLFDynamicsSyncService
from certjob.portal.push import portal_policy


class PortalClient:
    """HLFDynamicsSyncService in one event loop, from the first call to the last; a context manager."""

    def __init__(self, url: str, key: str, *, deadline_seconds: float = 30) -> None:
        self._service = HLFDynamicsSyncService(url, key, deadline_seconds=deadline_seconds)
        self._runner = asyncio.Runner()

    def update_portal_visibility(self, contact_id: UUID, *, visible: bool, idempotency_key: str) -> None:
        self._runner.run(
            self._service.update_portal_visibility(contact_id, visible=visible, idempotency_key=idempotency_key)
        )

    def read_visible_contacts(self, *, policy: RetryPolicy | None = None) -> list[list[UUID]]:
        """All pages; without a policy each is asked for once."""

        async def read() -> list[list[UUID]]:
            tries = policy or portal_policy(max_attempts=1)
            return [page async for page in self._service.read_visible_contacts(policy=tries)]

        return self._runner.run(read())

    def __enter__(self) -> Self:
        self._runner.get_loop().set_default_executor(NameLookups())
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._service.close())
        self._runner.close()
