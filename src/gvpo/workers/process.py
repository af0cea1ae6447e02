"""The pool's side of one worker: start it, read and write without waiting, end it with all its descendants."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cloudpickle

from gvpo.workers.wire import Inbox, frame
from gvpo.workers.worker import PROGRESS, WITHDRAWN

# The path is passed before gvpo is imported; -P keeps the working directory from shadowing the standard library.
_BOOT = """\
import json, sys
sys.path[:] = json.loads(sys.argv[2])
from gvpo.workers.supervisor import main
main(sys.argv[1])
"""
_MARK = "GVPO_WORKER"
"""Environment variable of a worker, which all its descendants inherit."""
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
END_SECONDS = 10.0
"""Maximum number of seconds for a worker's supervisor to end; it needs milliseconds."""


def in_worker() -> bool:
    """Return whether this process is a worker, or was started by one."""
    return _MARK in os.environ


class WorkerDied(Exception):
    """The worker ended, or wrote something that is not a reply."""


class WorkerProcess:
    """One process that runs functions or environments, and its supervisor.

    Args:
        setup: Setup that the worker reads first: what it calls (`worker.Service`), timeout, memory limit.
        log: File that its output is appended to; None discards it.

    Raises:
        OSError: If the system cannot start another process, or the log cannot be written.
    """

    def __init__(self, setup: Mapping[str, Any], log: Path | None) -> None:
        self.pending: deque[Any] = deque()  # the call in progress and those after it; withdrawn ones are None
        self.load = 0.0  # estimated seconds for the pending calls
        self.ready = self.ended = False
        self.deadline = float("inf")
        self._answered = 0
        self._inbox, self._outbox = Inbox(), bytearray()
        with contextlib.ExitStack() as on_error:
            requests, self.requests = _pipe(on_error)
            self.replies, replies = _pipe(on_error)
            lifeline, self._lifeline = _pipe(on_error)
            self._progress = _counter()
            on_error.callback(os.close, self._progress)
            theirs = {"requests": requests, "replies": replies, "lifeline": lifeline, "progress": self._progress}
            self._process = _start(theirs, log)
            on_error.pop_all()
        for descriptor in (requests, replies, lifeline):
            os.close(descriptor)
        os.set_blocking(self.requests, False)
        os.set_blocking(self.replies, False)
        self.send(cloudpickle.dumps(setup))

    @property
    def is_new(self) -> bool:
        """True if the worker has had no call."""
        return not self.pending and self._answered == 0

    @property
    def unsent(self) -> bool:
        """True if a part of a message is still waiting for room in the pipe."""
        return bool(self._outbox)

    def send(self, payload: bytes) -> None:
        """Queue a message and write as much as the pipe accepts now."""
        self._outbox += frame(payload)
        self.flush()

    def flush(self) -> None:
        """Write as much as the pipe accepts now; a worker that is gone is noticed when reading."""
        with contextlib.suppress(BlockingIOError):
            try:
                while self._outbox:
                    del self._outbox[: os.write(self.requests, memoryview(self._outbox)[: 1 << 20])]
            except BrokenPipeError:
                self._outbox.clear()

    def receive(self) -> list[dict[str, Any]]:
        """Return the replies that have arrived.

        Raises:
            WorkerDied: If no more replies will arrive.
        """
        with contextlib.suppress(BlockingIOError):
            data = os.read(self.replies, 1 << 20)
            if not data:
                raise WorkerDied
            self._inbox.feed(data)
        try:
            return [_reply(payload) for payload in iter(self._inbox.take, None)]
        except ValueError as error:
            raise WorkerDied from error

    def answered(self) -> Any:
        """Remove and return the first pending call, whose reply has arrived."""
        self._answered += 1
        return self.pending.popleft()

    def at_work(self) -> int:
        """Return the index among the pending calls of the one that the worker has begun and not answered."""
        place = self._begun() - self._answered - 1
        return place if 0 <= place < len(self.pending) else 0

    def withdraw(self, first: int) -> list[Any]:
        """Take back the pending calls from an index on, unless it has begun them; it answers that it skipped them."""
        numbers = self._answered + first, self._answered + len(self.pending)
        os.pwrite(self._progress, WITHDRAWN.pack(*numbers), PROGRESS.size)
        place = max(first, self._begun() - self._answered)  # it may have begun one of them until the line above
        taken = [part for part in list(self.pending)[place:] if part is not None]
        for index in range(place, len(self.pending)):
            self.pending[index] = None
        return taken

    def _begun(self) -> int:
        return int(PROGRESS.unpack(os.pread(self._progress, PROGRESS.size, 0))[0])

    def is_alive(self) -> bool:
        """Return whether the worker still has its pipe open."""
        poll = select.poll()
        poll.register(self.replies, select.POLLIN)
        return not any(event & select.POLLHUP for _, event in poll.poll(0))

    def kill(self) -> str:
        """End the worker and all its descendants, on Linux including those that left its session (daemons).

        Returns:
            How the worker had ended by itself, if it had: "exit code 3", "signal SIGSEGV".
        """
        self.ended = True
        os.close(self._lifeline)
        try:
            code = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()  # the worker ends with its supervisor
            code = self._process.wait()
        for descriptor in (self.requests, self.replies, self._progress):
            with contextlib.suppress(OSError):
                os.close(descriptor)
        return f"exit code {code}" if code >= 0 else f"signal {_signal_name(-code)}"


def _pipe(on_error: contextlib.ExitStack) -> tuple[int, int]:
    ends = os.pipe()
    for end in ends:
        on_error.callback(os.close, end)
    return ends


def _counter() -> int:
    """Open a nameless file, in memory if possible, at an offset where stray writes do not hit the counter."""
    if sys.platform == "linux":
        descriptor = os.memfd_create("gvpo-progress")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.pwrite(descriptor, bytes(PROGRESS.size + WITHDRAWN.size), 0)
    os.lseek(descriptor, 1 << 20, os.SEEK_SET)
    return descriptor


def _start(descriptors: Mapping[str, int], log: Path | None) -> "subprocess.Popen[bytes]":
    settings = json.dumps({**descriptors, "log": None if log is None else str(log.absolute())})
    path = json.dumps([str(entry) for entry in sys.path])
    with contextlib.ExitStack() as stack:
        output = subprocess.DEVNULL if log is None else stack.enter_context(log.open("ab"))
        return subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOT, settings, path],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=tuple(descriptors.values()),
            start_new_session=True,  # Ctrl-C is for the trainer only
            env={**dict.fromkeys(_THREADS, "1"), **os.environ, _MARK: "1"},
        )


def _reply(payload: bytes) -> dict[str, Any]:
    value = json.loads(payload)
    if not isinstance(value, dict):
        raise ValueError("a reply must be a JSON object")
    return value


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
