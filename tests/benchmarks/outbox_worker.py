"""Claims and settles all open events, by hundreds: ``outbox_worker.py ours|bare|least URL NUMBER PROCESSES``.

What a call would be is nothing. NUMBER is this process among PROCESSES: ``least`` does not look for its share.

Prints a line when it is connected, begins when it is told a line, and prints how many events it settled.
"""

import sys
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import psycopg

from certjob import database
from certjob.outbox.claims import ANY_ATTEMPTS

BATCH = 100


def settle_bare(url: str) -> Callable[[], int]:
    """The statements of ``sql/queries`` as they are, rows as tuples."""
    due, claim, lock, settle, resolve = map(
        database.query,
        (
            "lock_due_portal_events",
            "claim_portal_events",
            "lock_portal_events",
            "settle_portal_events",
            "resolve_sync_failures",
        ),
    )
    connection: psycopg.Connection[Any] = psycopg.connect(url, autocommit=True, prepare_threshold=None)

    def batch() -> int:
        with connection.transaction():
            locked = connection.execute(due, {"limit": BATCH, "attempts_below": ANY_ATTEMPTS}).fetchall()
            if not locked:
                return 0
            ids, contacts = map(list, zip(*locked, strict=True))
            parameters = {"ids": ids, "contacts": contacts, "token": uuid4(), "lease_seconds": 300.0}
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
                    "codes": [None] * number,
                },
            ).fetchall()
            connection.execute(resolve, {"mentor_ids": [event[1] for event in events]})
        return number

    return batch


_CLAIM = """
    UPDATE portal_sync_events AS e
    SET claim_token = %s, claim_contact_id = m.dynamics_contact_id, attempts = e.attempts + 1,
        next_attempt_at = now() + interval '5 minutes'
    FROM mentors AS m
    WHERE e.id = ANY (%s) AND m.id = e.mentor_id
    RETURNING e.id
"""
_SETTLE = """
    UPDATE portal_sync_events
    SET status = 'delivered', claim_token = NULL, next_attempt_at = now(), delivered_at = now()
    WHERE id = ANY (%s)
"""


def settle_least(url: str, *, number: int, processes: int) -> Callable[[], int]:
    """Write what a claim and a settle write, twice a durable commit a hundred, and ask for nothing.

    Who may have which event is agreed beforehand, no row is locked, no other's call and no newer wish is looked for.
    """
    connection: psycopg.Connection[Any] = psycopg.connect(url, autocommit=True, prepare_threshold=None)
    due = "SELECT id FROM portal_sync_events WHERE status = 'pending' AND id %% %s = %s ORDER BY id DESC"
    left = [row[0] for row in connection.execute(due, (processes, number)).fetchall()]

    def batch() -> int:
        ids = [left.pop() for _ in range(min(BATCH, len(left)))]
        if ids:
            connection.execute(_CLAIM, (uuid4(), ids)).fetchall()
            connection.execute(_SETTLE, (ids,))
        return len(ids)

    return batch


def settle_ours(url: str) -> Callable[[], int]:
    """What a portal stage does, without its threads and its calls."""
    from certjob import database
    from certjob.portal.push import Push
    from certjob.portal.sync import PortalCounts, PortalSyncService

    service = PortalSyncService(database.connect(url), run_id=uuid4())
    counts = PortalCounts()

    def batch() -> int:
        events, _lease = service.claim(limit=BATCH)
        service.settle([Push(event=event) for event in events], counts)
        return len(events)

    return batch


def main() -> None:
    """Work until nothing is due."""
    kind, url, number, processes = sys.argv[1:]
    if kind == "least":
        batch = settle_least(url, number=int(number), processes=int(processes))
    else:
        batch = settle_ours(url) if kind == "ours" else settle_bare(url)
    print("ready", flush=True)
    sys.stdin.readline()
    done = 0
    while settled := batch():
        done += settled
    print(done, flush=True)


if __name__ == "__main__":
    main()
