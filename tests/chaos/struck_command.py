"""Faults inside the command's event loop: certjob has no hook for them, so asyncio is wrapped before it begins."""

import asyncio
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

LATE_SECONDS = 1.2
"""Longer than the portal stage waits before it looks for more work."""
_LONG_SECONDS = 60.0
"""Time-outs from here on are those of the mail server, which no test can wait for."""


class LoopFault:
    """One fault at the n-th place of its kind."""

    def __init__(self, *, spot: str, number: int, action: str, steps: int, mark: str) -> None:
        """The file ``mark`` is made when it has struck."""
        self.spot, self.action, self.steps = spot, action, steps
        self._number, self._mark = number, Path(mark)
        self._places = itertools.count(1)

    def is_here(self) -> bool:
        """Count one more place, in whatever thread; whether it is the fault's."""
        return next(self._places) == self._number

    def note(self) -> None:
        """Tell the harness that it has struck."""
        self._mark.touch()


def strike_turns(fault: LoopFault) -> None:
    """Before a callback is run: end the process, or let the loop stand still."""
    run = asyncio.Handle._run

    def strike(handle: asyncio.Handle) -> None:
        if fault.is_here():
            fault.note()
            if fault.action == "late":
                time.sleep(LATE_SECONDS)
            else:
                for number in (signal.SIGTERM, signal.SIGINT) if fault.action == "stop" else (signal.SIGKILL,):
                    os.kill(os.getpid(), number)
        run(handle)

    asyncio.Handle._run = strike  # type: ignore[assignment, method-assign]


def strike_results(fault: LoopFault) -> None:
    """What a thread hands to the loop, such as the result of a statement, comes late."""
    call_soon_threadsafe = asyncio.BaseEventLoop.call_soon_threadsafe

    def strike(loop: asyncio.BaseEventLoop, callback: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        if not fault.is_here():
            return call_soon_threadsafe(loop, callback, *arguments, **named)
        fault.note()

        def hand_over() -> None:
            with suppress(RuntimeError):  # the loop has ended meanwhile
                call_soon_threadsafe(loop, callback, *arguments, **named)

        timer = threading.Timer(LATE_SECONDS, hand_over)
        timer.daemon = True
        timer.start()
        return asyncio.Handle(callback, arguments, loop)

    asyncio.BaseEventLoop.call_soon_threadsafe = strike  # type: ignore[assignment, method-assign]


def strike_pushes(fault: LoopFault) -> None:
    """The task of a push is cancelled, some turns of the loop after it was made."""
    create_task = asyncio.BaseEventLoop.create_task

    def strike(loop: asyncio.BaseEventLoop, work: Coroutine[Any, Any, Any], **named: Any) -> Any:
        task = create_task(loop, work, **named)

        def step(left: int) -> None:
            if left:
                loop.call_soon(step, left - 1)
            elif task.cancel():
                fault.note()

        if getattr(work, "__qualname__", "") == "Pusher.push" and fault.is_here():
            step(fault.steps)
        return task

    asyncio.BaseEventLoop.create_task = strike  # type: ignore[assignment, method-assign]


def lose_patience(seconds: float) -> None:
    """Let the long time-outs of certjob come soon. (Those of libraries import their own name.)"""
    timeout = asyncio.timeout

    def shortened(delay: float | None) -> asyncio.Timeout:
        return timeout(seconds if delay is not None and delay >= _LONG_SECONDS else delay)

    asyncio.timeout = shortened


def plant(*, loop_fault: Mapping[str, Any] | None = None, patience: float = 0) -> None:
    """Prepare this process: one fault, and its patience: time-outs of a minute and more come after so many seconds."""
    if loop_fault:
        wanted = LoopFault(**loop_fault)
        {"turn": strike_turns, "result": strike_results, "push": strike_pushes}[wanted.spot](wanted)
    if patience:
        lose_patience(patience)
