"""An asyncio event loop in a daemon thread, which several threads use at once."""

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class EventLoop:
    """Runs coroutines in one thread, so that their shared state needs no locks."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gvpo servers", daemon=True)
        self._thread.start()

    @property
    def is_open(self) -> bool:
        """Return whether coroutines can be started."""
        return not self._loop.is_closed()

    def start(self, coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
        """Start a coroutine, and return its future, which can be cancelled."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end. If the wait is interrupted, the coroutine is cancelled."""
        future = self.start(coroutine)
        try:
            return future.result()
        finally:
            future.cancel()

    def close(self, last: Coroutine[Any, Any, None]) -> None:
        """Cancel what is running, run a last coroutine, and end the thread. A second call does nothing."""
        if not self.is_open:
            last.close()
            return
        self.run(_cancel_others())
        self.run(last)
        self.run(asyncio.sleep(0.001))  # closed connections end in the next turn of the loop
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
