"""Waiting for something that can be observed, never for luck."""

import time
from collections.abc import Callable
from typing import Any

import psycopg


def until(condition: Callable[[], object], *, seconds: float = 20.0) -> None:
    """Return as soon as the condition holds; fail after so long."""
    give_up_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up_at, "what the test waits for did not happen"
        time.sleep(0.01)


def waits_for_a_lock(observer: psycopg.Connection[Any], waiting: psycopg.Connection[Any]) -> bool:
    """Whether another session stands still behind somebody's lock."""
    row = observer.execute(
        "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s", (waiting.info.backend_pid,)
    ).fetchone()
    return bool(row and row[0])
