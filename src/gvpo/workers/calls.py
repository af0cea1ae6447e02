"""Calls to workers, and the queue that decides what is called and what follows from a failure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from gvpo.errors import GvpoError
from gvpo.workers.process import WorkerProcess
from gvpo.workers.replies import Reply


@dataclass(frozen=True)
class Call:
    """One call of one function, or one call per row.

    Args:
        function: Index of the function.
        group: Index of the group.
        rows: Rows of the group that are passed to the function.
        each: True if each row is a separate call with its own deadline; the calls travel together.
        control: True if the completion is replaced by one that no policy wrote (see `scoring.py`).
        repeated: True if the same call failed before because memory ran out or the worker ended.
    """

    function: int
    group: int
    rows: tuple[int, ...]
    each: bool = False
    control: bool = False
    repeated: bool = False

    def parts(self) -> "list[Call]":
        """Return the calls that are answered one after the other."""
        return [replace(self, rows=(row,)) for row in self.rows] if self.each else [self]


class Message(Protocol):
    """Calls that travel to a worker together."""

    @property
    def function(self) -> int:
        """Number of what is called; calls of one function take similar times."""
        ...

    def parts(self) -> Sequence[Any]:
        """Return the calls that are answered one after the other, which also have a `function`.

        If they may move to other workers, they have a `name` too, which is the same for those that stay together, and
        the seconds that moving will `cost`.
        """
        ...


class Queue(Protocol):
    """Source of the calls and destination of their replies."""

    def __len__(self) -> int:
        """Return the number of waiting calls."""
        ...

    def take(self, worker: WorkerProcess, new: int) -> Any:
        """Remove and return the next `Message` for a worker; None if it should have none of the waiting calls.

        Args:
            worker: Worker that has little to do.
            new: Number of other workers that have had no message yet, including those that are starting.
        """
        ...

    def payload(self, call: Any) -> bytes:
        """Return a message as bytes."""
        ...

    def done(self, call: Any, reply: Reply) -> None:
        """Record the reply to a call or to a part of one; this may add calls."""
        ...

    def put_back(self, parts: Sequence[Any]) -> None:
        """Take back parts of calls that were sent to a worker and not run, or whose replies were lost with it."""
        ...


@dataclass(frozen=True)
class Purpose:
    """Words for workers in messages.

    Args:
        error: Class of the errors.
        worker: Name of a worker with its article: "a reward worker".
        noun: Name of what can be loaded: "reward".
        called: Name of what the worker imports: "the reward functions".
    """

    error: type[GvpoError]
    worker: str
    noun: str
    called: str
