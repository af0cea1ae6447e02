"""A worker process: reads calls from one pipe, runs reward functions, and writes their values to another pipe.

Regardless of what a reward does, the worker either replies or ends; the pool notices which, and enforces the deadline.
Standard output and error belong to the rewards. The worker ends when the pipe of calls closes, which happens when the
pool or its process is gone. Does not know about groups, weights or verdicts.
"""

import asyncio
import contextlib
import inspect
import json
import math
import numbers
import os
import pickle
import select
import struct
import traceback
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from gvpo.errors import GvpoError, type_of
from gvpo.workers import deadline
from gvpo.workers.reasons import UNSCORABLE, hearing
from gvpo.workers.state import Keeper
from gvpo.workers.wire import Inbox, frame

MOMENT = 0.005
"""Seconds of work after which replies are sent at the latest."""
PROGRESS = struct.Struct(">Q")
"""Format of the number of calls that a worker has begun."""
MAX_DETAIL, MAX_TRACEBACK = 300, 20_000


def main(requests: int, replies: int, progress: int) -> NoReturn:
    """Serve until the pipe of calls closes.

    Args:
        requests: File descriptor that calls are read from.
        replies: File descriptor that values are written to.
        progress: File descriptor that the number of begun calls is written to.
    """
    with contextlib.suppress(EOFError, BrokenPipeError):
        _serve(requests, replies, progress)
    os._exit(0)  # do not wait for a reward's threads and exit handlers


def _serve(requests: int, replies: int, progress: int) -> None:
    _keep_from_children(requests, replies, progress)
    _volunteer_to_be_killed()
    link = _Link(requests, replies, progress)
    setup = pickle.loads(link.read())
    _limit_memory(setup["memory_limit"])
    functions, keepers, problem = _load(setup["functions"], setup["stateful"])
    link.write({"problem": problem})
    calls = _Calls(functions, keepers, setup["timeout"])
    while True:
        function, each, rows, arguments, state = pickle.loads(link.read())
        for count, part in _parts(each, rows, arguments):
            link.begin()
            reply, seconds = calls.answer(function, count, part, state)
            link.add(reply, seconds)
            if reply.get("spent"):
                link.flush()
                return  # the pool replaces the worker


def _parts(each: bool, rows: int, arguments: Mapping[str, Sequence[Any]]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Return the calls of a message with their numbers of rows: one per row if `each`, otherwise one for all rows."""
    if not each:
        return iter([(rows, arguments)])
    return ((1, {name: [values[row]] for name, values in arguments.items()}) for row in range(rows))


class _Link:
    """The worker's end of the pipes. Replies of quick calls travel together, those of slow calls immediately."""

    def __init__(self, requests: int, replies: int, progress: int) -> None:
        self._requests, self._replies, self._progress = requests, replies, progress
        self._inbox, self._begun = Inbox(), 0
        self._waiting: list[tuple[Mapping[str, Any], float]] = []
        self._seconds = 0.0

    def begin(self) -> None:
        """Record that another call begins: if the worker does not survive it, the pool knows which one it was."""
        self._begun += 1
        os.pwrite(self._progress, PROGRESS.pack(self._begun), 0)

    def read(self) -> bytes:
        """Return the next message; send the kept replies before waiting for one."""
        while (message := self._inbox.take()) is None:
            if not select.select([self._requests], [], [], 0)[0]:
                self.flush()
            data = os.read(self._requests, 1 << 20)
            if not data:
                raise EOFError
            self._inbox.feed(data)
        return message

    def add(self, reply: Mapping[str, Any], seconds: float) -> None:
        """Send a reply, or keep it for a moment."""
        self._waiting.append((reply, seconds))
        self._seconds += seconds
        if self._seconds >= MOMENT:
            self.flush()

    def flush(self) -> None:
        """Send the replies that were kept."""
        if not self._waiting:
            return
        replies, seconds = zip(*self._waiting, strict=True)
        self._waiting, self._seconds = [], 0.0
        self.write({"replies": replies, "seconds": seconds})

    def write(self, message: Mapping[str, Any]) -> None:
        """Send a message."""
        rest = memoryview(frame(json.dumps(message).encode()))
        while rest:
            rest = rest[os.write(self._replies, rest) :]


def _keep_from_children(*descriptors: int) -> None:
    """Close the pipes in programs and forks that a reward starts, so that the pool notices when the worker ends."""
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)

    def close() -> None:
        for descriptor in descriptors:
            with contextlib.suppress(OSError):
                os.close(descriptor)

    os.register_at_fork(after_in_child=close)


def _volunteer_to_be_killed() -> None:
    """Make Linux end this process rather than the trainer when memory runs out."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _limit_memory(limit: int | None) -> None:
    """Make allocations beyond the limit fail with MemoryError; address space that is only reserved does not count."""
    if limit is not None:
        with contextlib.suppress(ImportError, OSError, ValueError):
            import resource

            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _load(
    pickled: Mapping[str, bytes], stateful: Collection[str]
) -> tuple[list[Callable[..., Any]], dict[int, Keeper], dict[str, Any] | None]:
    """Return the functions in order, the states that they keep, and the problem of the first that cannot be loaded."""
    functions: list[Callable[..., Any]] = []
    keepers = {}
    for number, (name, data) in enumerate(pickled.items()):
        try:
            functions.append(pickle.loads(data))
            getattr(functions[-1], "prepare", lambda: None)()
            if name in stateful:
                keepers[number] = Keeper(functions[-1])
        except GvpoError as error:
            return [], {}, {"name": name, "error": str(error), "traceback": _traceback(error), "stated": True}
        except BaseException as error:
            return [], {}, {"name": name, "error": _one_line(error), "traceback": _traceback(error)}
    return functions, keepers, None


class _Calls:
    """Runs calls one after the other. All coroutines share one event loop, as clients with connections expect."""

    def __init__(self, functions: Sequence[Callable[..., Any]], keepers: Mapping[int, Keeper], timeout: float) -> None:
        self._functions, self._keepers, self._timeout = functions, keepers, timeout
        self._runner: asyncio.Runner | None = None
        self._pid = os.getpid()

    def answer(
        self, function: int, rows: int, arguments: Mapping[str, Sequence[Any]], state: str | None = None
    ) -> tuple[dict[str, Any], float]:
        """Return the reply to a call (values and the new state, or why there are none) and the seconds that it took."""
        deadline.begin(self._timeout)
        keeper = self._keepers.get(function)
        try:
            if keeper is not None:
                keeper.begin(state)
            with hearing() as heard:
                returned = self._run(self._functions[function], arguments)
            reply = checked(returned, rows, heard)
            if keeper is not None and "failed" not in reply:
                reply["state"] = keeper.end()
        except BaseException as error:
            reply = _raised(error)
        if os.getpid() != self._pid:
            os._exit(0)  # the reward forked and both returned; the parent replies
        return reply, self._timeout - deadline.seconds_left()

    def _run(self, function: Callable[..., Any], arguments: Mapping[str, Sequence[Any]]) -> Any:
        returned = function(**arguments)
        if inspect.isawaitable(returned):
            self._runner = self._runner or asyncio.Runner()
            returned = self._runner.run(_awaited(returned))
        return returned


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def checked(returned: Any, rows: int, heard: Mapping[int, str] | None = None) -> dict[str, Any]:
    """Return the reply for the return value of a reward function.

    Args:
        returned: Anything; valid are `rows` numbers (including numpy's and 0-d tensors) or None.
        rows: Number of completions that the function received.
        heard: Reasons that it gave for rows without a value (`reasons.no_value`).

    Returns:
        `values` and `reasons` ([kind, detail] or None), one each per row; or a failure of all rows.
    """
    try:
        listed = None if isinstance(returned, str | bytes | Mapping) else list(returned)
    except TypeError:
        listed = None
    if listed is None:
        return failure(
            "wrong type", f"returned {type_of(returned)}; return a list of one number or None per completion"
        )
    if len(listed) != rows:
        return failure("wrong length", f"returned {len(listed)} values for {rows} completions")
    pairs = [_value(value, (heard or {}).get(row)) for row, value in enumerate(listed)]
    return {"values": [value for value, _ in pairs], "reasons": [reason for _, reason in pairs]}


def failure(kind: str, detail: str) -> dict[str, Any]:
    """Return the reply for a call that gave no values."""
    return {"failed": [kind, detail]}


def _raised(error: BaseException) -> dict[str, Any]:
    """Return the reply for an exception. Errors of gvpo are about the data or the machine, never about a completion."""
    return {
        "failed": ["exception", f"raised {_one_line(error)}"],
        "traceback": _traceback(error),
        "again": True,
        "spent": isinstance(error, MemoryError),
        "stated": isinstance(error, GvpoError),
    }


def _value(value: Any, told: str | None = None) -> tuple[float | None, tuple[str, str] | None]:
    """Return a row's value, and why it cannot be used; `told` is the reward's own reason for None."""
    if value is None:
        return None, (UNSCORABLE, f"cannot score the row: {told}") if told else None
    with contextlib.suppress(TypeError, ValueError, RuntimeError):
        value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, numbers.Number) or isinstance(value, complex):
        return None, ("wrong type", f"returned {type_of(value)} instead of a number or None")
    try:
        number = float(value)  # type: ignore[arg-type]  # every other registered Number converts
    except OverflowError:
        number = math.inf
    if math.isnan(number):
        return None, ("nan", "returned nan")
    if math.isinf(number):
        return None, ("infinite", f"returned {number}")
    return number, None


def _one_line(error: BaseException) -> str:
    """Return `ValueError: message` on one line of limited length, however badly the exception behaves."""
    text = " ".join("".join(traceback.format_exception_only(error)).split())
    return text if len(text) <= MAX_DETAIL else text[:MAX_DETAIL] + "..."


def _traceback(error: BaseException) -> str:
    """Return the traceback without this module's own frames."""
    inner = error.__traceback__
    while inner is not None and inner.tb_frame.f_code.co_filename == __file__:
        inner = inner.tb_next
    return "".join(traceback.format_exception(type(error), error, inner))[-MAX_TRACEBACK:]
