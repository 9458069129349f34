"""Asynchronous code for tests, which have no event loop."""

import asyncio
import inspect
from collections.abc import Callable
from typing import Any, Self

from certjob.outbox.calls import NameLookups


class Blocking:
    """Runs the asynchronous methods of an object in one event loop, each to its end."""

    def __init__(self, target: Any) -> None:
        self._target = target
        self._runner = asyncio.Runner()
        self._runner.get_loop().set_default_executor(NameLookups())

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._target, name)
        return lambda *arguments, **named: self._runner.run(_whole(method(*arguments, **named)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._runner.close()


async def _whole(asked: Any) -> Any:
    return [each async for each in asked] if inspect.isasyncgen(asked) else await asked
