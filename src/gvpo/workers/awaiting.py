"""Results of functions that may be coroutine functions."""

import asyncio
import inspect
from collections.abc import Awaitable
from typing import Any


class Awaiting:
    """Waits for coroutines. All of them share one event loop, as clients with connections expect."""

    def __init__(self) -> None:
        self._runner: asyncio.Runner | None = None

    def result(self, returned: Any) -> Any:
        """Return what a function returned, after waiting for it if it is awaitable."""
        if not inspect.isawaitable(returned):
            return returned
        self._runner = self._runner or asyncio.Runner()
        return self._runner.run(_awaited(returned))


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
