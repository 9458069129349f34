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
    """One fault at the n-th place of its kind; each method wraps what asyncio has there."""

    def __init__(self, *, number: int, action: str, steps: int, mark: str) -> None:
        """The file ``mark`` is made when it has struck."""
        self._number, self._action, self._steps, self._mark = number, action, steps, Path(mark)
        self._places = itertools.count(1)

    def _is_here(self) -> bool:
        """Count one more place, in whatever thread; whether it is the fault's."""
        return next(self._places) == self._number

    def turn(self, run: Callable[[asyncio.Handle], None]) -> Callable[..., None]:
        """Before a callback is run: end the process, or let the loop stand still."""

        def strike(handle: asyncio.Handle) -> None:
            if self._is_here():
                self._mark.touch()
                if self._action == "late":
                    time.sleep(LATE_SECONDS)
                else:
                    for number in (signal.SIGTERM, signal.SIGINT) if self._action == "stop" else (signal.SIGKILL,):
                        os.kill(os.getpid(), number)
            run(handle)

        return strike

    def result(self, hand_over: Callable[..., asyncio.Handle]) -> Callable[..., asyncio.Handle]:
        """What a thread hands to the loop, such as the result of a statement, comes late."""

        def hand_over_late(*arguments: Any, **named: Any) -> None:
            with suppress(RuntimeError):  # the loop has ended meanwhile
                hand_over(*arguments, **named)

        def strike(
            loop: asyncio.BaseEventLoop, callback: Callable[..., Any], *more: Any, **named: Any
        ) -> asyncio.Handle:
            if not self._is_here():
                return hand_over(loop, callback, *more, **named)
            self._mark.touch()
            timer = threading.Timer(LATE_SECONDS, hand_over_late, (loop, callback, *more), named)
            timer.daemon = True
            timer.start()
            return asyncio.Handle(callback, more, loop)

        return strike

    def push(self, create_task: Callable[..., Any]) -> Callable[..., Any]:
        """The task of a push is cancelled, some turns of the loop after it was made."""

        def strike(loop: asyncio.BaseEventLoop, work: Coroutine[Any, Any, Any], **named: Any) -> Any:
            task = create_task(loop, work, **named)

            def step(left: int) -> None:
                if left:
                    loop.call_soon(step, left - 1)
                elif task.cancel():
                    self._mark.touch()

            if getattr(work, "__qualname__", "") == "push_once" and self._is_here():
                step(self._steps)
            return task

        return strike


def plant(*, loop_fault: Mapping[str, Any] | None = None, patience: float = 0) -> None:
    """Prepare this process: one fault, and its patience: time-outs of a minute and more come after so many seconds."""
    if loop_fault:
        owner, name = {
            "turn": (asyncio.Handle, "_run"),
            "result": (asyncio.BaseEventLoop, "call_soon_threadsafe"),
            "push": (asyncio.BaseEventLoop, "create_task"),
        }[loop_fault["spot"]]
        fault = LoopFault(**{key: value for key, value in loop_fault.items() if key != "spot"})
        setattr(owner, name, getattr(fault, loop_fault["spot"])(getattr(owner, name)))
    if patience:  # (libraries import their own name)
        timeout = asyncio.timeout
        asyncio.timeout = lambda delay: timeout(patience if delay is not None and delay >= _LONG_SECONDS else delay)
