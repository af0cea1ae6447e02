"""A user's reward that cannot be sent to a worker, such as a method of an object with a lock. It runs here."""

import asyncio
import contextlib
import inspect
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from gvpo.rewards.base import BATCH, RewardFunc
from gvpo.types import Verdict
from gvpo.workers.functions import checked
from gvpo.workers.reasons import hearing
from gvpo.workers.state import STATEFUL, Keeper, keeps_state


class InProcessReward:
    """A function that is called in the trainer's process, once per scoring on the rows of all groups.

    Nothing ends a call that hangs, and memory that it uses is the trainer's.

    Args:
        name: Name of the reward.
        function: Any callable with the signature of a reward.

    Attributes:
        state: State after the last call that succeeded, as text, if the function keeps one.
    """

    def __init__(self, name: str, function: RewardFunc) -> None:
        self.__name__, self._function = name, function
        with contextlib.suppress(TypeError, ValueError):  # some callables of extensions have no signature
            self.__signature__ = inspect.signature(function)
        vars(self).update({each: getattr(function, each, False) for each in (BATCH, STATEFUL)})
        self.required_columns = tuple(getattr(function, "required_columns", ()))
        self.state: str | None = None
        self._keeper: Keeper | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._runner = asyncio.Runner()  # it creates its loop on the first call

    def identity(self) -> Any:
        """Return what determines its rewards: the function."""
        return self._function

    def check_ready(self) -> None:
        """Call the function's own check."""
        getattr(self._function, "check_ready", lambda: None)()

    def __call__(self, **arguments: Any) -> list[float | None]:
        """Return one value per row."""
        return [verdict.reward for verdict in self.verdicts(**arguments)]

    def verdicts(self, **arguments: Any) -> list[Verdict]:
        """Return one verdict per row."""
        rows = len(next(iter(arguments.values()), ()))
        if keeps_state(self._function):
            self._keeper = self._keeper or Keeper(self._function)
            self._keeper.begin(self.state)
        with hearing() as heard:
            reply = checked(self._result(self._function(**arguments)), rows, heard)
        if self._keeper is not None:
            self.state = self._keeper.end()
        if "failed" in reply:
            reply = {"values": [None] * rows, "reasons": [reply["failed"]] * rows}
        reasons = ["" if reason is None else ": ".join(reason) for reason in reply["reasons"]]
        return [Verdict(value, reason=reason) for value, reason in zip(reply["values"], reasons, strict=True)]

    def _result(self, returned: Any) -> Any:
        """Wait for the result of an `async def`, in a thread, because a notebook already has a running event loop."""
        if not inspect.isawaitable(returned):
            return returned
        if self._thread is None:
            self._thread, self._runner = ThreadPoolExecutor(1), asyncio.Runner()
        return self._thread.submit(self._runner.run, _awaited(returned)).result()

    def close(self) -> None:
        """End the event loop; a later call starts a new one."""
        if self._thread is not None:
            self._thread.submit(self._runner.close).result()
            self._thread.shutdown()
            self._thread = None


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
