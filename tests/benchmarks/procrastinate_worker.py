"""The same pushes as jobs of Procrastinate; told its folder, both URLs, the number of jobs and how many at once.

The bench has installed it into that folder, which comes last on the path: psycopg and httpx are those of certjob.
Prints the seconds as JSON.
"""

import asyncio
import importlib
import json
import sys
import time
import uuid
from typing import Any

import httpx


async def work(database_url: str, portal_url: str, number: int, concurrency: int) -> float:
    """Defer the jobs, then time one worker that does them all."""
    procrastinate: Any = importlib.import_module("procrastinate")
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=database_url))
    async with httpx.AsyncClient(timeout=30, trust_env=False) as client:

        @app.task(name="push")  # type: ignore[untyped-decorator, unused-ignore]
        async def push(*, contact_id: str, visible: bool) -> None:
            headers = {"Authorization": "Bearer key", "Idempotency-Key": contact_id}
            wanted = {"contact_id": contact_id, "visible": visible, "visible_until": None}
            answer = await client.post(portal_url, json=wanted, headers=headers)
            if answer.json() != wanted | {"dates": False}:
                raise ValueError(answer.text)

        async with app.open_async():
            await app.schema_manager.apply_schema_async()
            jobs = [{"contact_id": str(uuid.uuid4()), "visible": False} for _ in range(number)]
            await push.batch_defer_async(*jobs)
            began = time.perf_counter()
            await app.run_worker_async(
                concurrency=concurrency, wait=False, listen_notify=False, install_signal_handlers=False
            )
            return time.perf_counter() - began


if __name__ == "__main__":
    folder, database, portal, jobs, at_once = sys.argv[1:]
    sys.path.append(folder)
    took = asyncio.run(work(database, portal, int(jobs), int(at_once)))
    print(json.dumps({"seconds": took}))
