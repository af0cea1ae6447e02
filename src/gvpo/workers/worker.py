"""A worker process: reads calls from one pipe, answers them, and writes the replies to another pipe.

Regardless of what the called functions do, the worker either replies or ends; the pool notices which, and enforces the
deadline. Standard output and error belong to the functions. The worker ends when the pipe of calls closes, which
happens when the pool or its process is gone. What is called is the business of a `Service`: reward functions
(`functions.py`) or environments (`gvpo.environments.serving`).
"""

import contextlib
import json
import os
import pickle
import select
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, Protocol

from gvpo.workers import deadline
from gvpo.workers.replies import raised
from gvpo.workers.wire import Inbox, frame

MOMENT = 0.005
"""Seconds of work after which replies are sent at the latest."""
PROGRESS = struct.Struct(">Q")
"""Format of the number of calls that a worker has begun."""
WITHDRAWN = struct.Struct(">QQ")
"""Format of the range of calls that the pool took back: those after a number, until another. It follows `PROGRESS`."""


class Service(Protocol):
    """Contents of a worker: what it does with messages. It reaches the worker as a pickle."""

    def load(self) -> Mapping[str, Any] | None:
        """Load what is called; return None, or a problem: its name, error, traceback, and whether gvpo `stated` it."""
        ...

    def parts(self, message: Any) -> Iterator[Callable[[], Mapping[str, Any]]]:
        """Return the calls of a message, which return replies as JSON; each has a deadline of its own."""
        ...


def main(requests: int, replies: int, progress: int) -> NoReturn:
    """Serve until the pipe of calls closes.

    Args:
        requests: File descriptor that calls are read from.
        replies: File descriptor that values are written to.
        progress: File descriptor of the number of begun calls, and of those that are withdrawn.
    """
    with contextlib.suppress(EOFError, BrokenPipeError):
        _serve(requests, replies, progress)
    os._exit(0)  # do not wait for threads and exit handlers


def _serve(requests: int, replies: int, progress: int) -> None:
    _keep_from_children(requests, replies, progress)
    _volunteer_to_be_killed()
    link = _Link(requests, replies, progress)
    setup = pickle.loads(link.read())
    _limit_memory(setup["memory_limit"])
    service: Service = setup["service"]
    link.write({"problem": service.load()})
    while True:
        for part in service.parts(pickle.loads(link.read())):
            reply, seconds = _answered(part, setup["timeout"]) if link.begin() else ({"withdrawn": True}, 0.0)
            link.add(reply, seconds)
            if reply.get("spent"):
                link.flush()
                return  # the pool replaces the worker


def _answered(part: Callable[[], Mapping[str, Any]], timeout: float) -> tuple[Mapping[str, Any], float]:
    """Return the reply to a call, and the seconds that it took."""
    process = os.getpid()
    deadline.begin(timeout)
    try:
        reply = part()
    except BaseException as error:
        reply = raised(error)
    if os.getpid() != process:
        os._exit(0)  # the function forked and both returned; the parent replies
    return reply, timeout - deadline.seconds_left()


class _Link:
    """The worker's end of the pipes. Replies of quick calls travel together, those of slow calls immediately."""

    def __init__(self, requests: int, replies: int, progress: int) -> None:
        self._requests, self._replies, self._progress = requests, replies, progress
        self._inbox, self._begun = Inbox(), 0
        self._waiting: list[tuple[Mapping[str, Any], float]] = []
        self._seconds = 0.0

    def begin(self) -> bool:
        """Record that another call begins: if the worker does not survive it, the pool knows which one it was.

        Returns:
            False if the pool has withdrawn the call.
        """
        self._begun += 1
        os.pwrite(self._progress, PROGRESS.pack(self._begun), 0)
        after, until = WITHDRAWN.unpack(os.pread(self._progress, WITHDRAWN.size, PROGRESS.size))
        return not after < self._begun <= until

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
    """Close the pipes in programs and forks that a function starts, so that the pool notices when the worker ends."""
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
