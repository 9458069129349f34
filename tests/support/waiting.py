"""Wait for a condition, never for a fixed time."""

import time
from collections.abc import Callable
from typing import Any

import psycopg


def until(condition: Callable[[], object], *, seconds: float = 20.0) -> None:
    """Return as soon as the condition holds; fail after this time."""
    give_up_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up_at, "the condition did not become true"
        time.sleep(0.01)


def waits_for_a_lock(observer: psycopg.Connection[Any], waiting: psycopg.Connection[Any]) -> bool:
    """Return whether a session waits for a lock."""
    row = observer.execute(
        "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s", (waiting.info.backend_pid,)
    ).fetchone()
    return bool(row and row[0])


def until_sessions(observer: psycopg.Connection[Any], condition: str, *, count: int = 1) -> None:
    """Wait until a condition on ``pg_stat_activity`` holds for so many other sessions of certjob."""
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        f" AND application_name = 'certjob' AND pid <> pg_backend_pid() AND {condition}"
    )
    until(lambda: observer.execute(query.encode()).fetchone() == (count,), seconds=60)
