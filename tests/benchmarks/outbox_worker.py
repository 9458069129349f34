"""Claims and settles all open events: ``outbox_worker.py ours|bare URL``, by hundreds; what a call would be is nothing.

Prints a line when it is connected, begins when it is told a line, and prints how many events it settled.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg

BATCH = 100


def settle_bare(url: str) -> Callable[[], int]:
    """The statements of ``sql/queries`` as they are, rows as tuples."""
    queries = Path(__file__).parent.parent.parent / "sql" / "queries"

    def statement(name: str) -> bytes:
        lines = (queries / f"{name}.sql").read_bytes().splitlines()
        return b"\n".join(line for line in lines if not line.lstrip().startswith(b"--"))

    due, reserve, claim, lock, settle, resolve = map(
        statement,
        (
            "lock_due_portal_events",
            "reserve_contacts",
            "claim_portal_events",
            "lock_portal_events",
            "settle_portal_events",
            "resolve_sync_failures",
        ),
    )
    connection: psycopg.Connection[Any] = psycopg.connect(url, autocommit=True, prepare_threshold=None)

    def batch() -> int:
        with connection.transaction():
            ids = [row[0] for row in connection.execute(due, {"limit": BATCH}).fetchall()]
            if not ids:
                return 0
            ids = [row[0] for row in connection.execute(reserve, {"ids": ids}).fetchall()]
            parameters = {"ids": ids, "token": uuid4(), "lease_seconds": 300.0}
            events = connection.execute(claim, parameters).fetchall()
        number = len(events)
        with connection.transaction():
            ids = [event[0] for event in events]
            connection.execute(lock, {"ids": ids}).fetchall()
            connection.execute(
                settle,
                {
                    "ids": ids,
                    "tokens": [event[6] for event in events],
                    "versions": [event[4] for event in events],
                    "statuses": ["delivered"] * number,
                    "delays": [0.0] * number,
                    "uncounts": [False] * number,
                    "errors": [None] * number,
                },
            ).fetchall()
            connection.execute(resolve, {"mentor_ids": [event[1] for event in events]})
        return number

    return batch


def settle_ours(url: str) -> Callable[[], int]:
    """What a portal stage does, without its threads and its calls."""
    from certjob import database
    from certjob.portal_push import Push
    from certjob.portal_sync import PortalCounts, PortalSyncService

    service = PortalSyncService(database.connect(url), run_id=uuid4())
    counts = PortalCounts()

    def batch() -> int:
        events, _lease = service.claim(limit=BATCH)
        service.settle([Push(event=event) for event in events], counts)
        return len(events)

    return batch


def main() -> None:
    """Work until nothing is due."""
    kind, url = sys.argv[1:]
    batch = settle_ours(url) if kind == "ours" else settle_bare(url)
    print("ready", flush=True)
    sys.stdin.readline()
    done = 0
    while number := batch():
        done += number
    print(done, flush=True)


if __name__ == "__main__":
    main()
