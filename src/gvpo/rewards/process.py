"""The pool's side of one worker: start it, write and read without ever waiting, kill it with all its children."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cloudpickle

from gvpo.rewards.wire import Inbox, frame

# The path goes over before gvpo is imported; -P keeps the working directory from shadowing the standard library.
_BOOT = """\
import json, sys
sys.path[:] = json.loads(sys.argv[3])
from gvpo.rewards.worker import main
main(int(sys.argv[1]), int(sys.argv[2]))
"""
_TAG = "GVPO_REWARD_WORKER"
"""In the environment of a worker, and so of all that it starts: by it they are found, whatever session they are in."""
_SCANS = 10
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def in_worker() -> bool:
    """Whether this process is a worker, or was started by one."""
    return _TAG in os.environ


class WorkerDied(Exception):
    """The worker ended, or wrote what is not a reply."""


class WorkerProcess:
    """One process that runs reward functions.

    Args:
        setup: what the worker reads first: pickled functions, timeout, memory limit.
        log: a file that the rewards' output is appended to; None drops it.

    Raises:
        OSError: the system starts no more processes, or the log cannot be written.
    """

    def __init__(self, setup: Mapping[str, Any], log: Path | None) -> None:
        self.call: Any = None  # what it works on
        self.ready = False
        self.deadline = float("inf")
        self._inbox, self._outbox = Inbox(), bytearray()
        self._tag = f"{_TAG}={uuid.uuid4().hex}"
        with contextlib.ExitStack() as on_error:
            requests, self.requests = _pipe(on_error)
            self.replies, replies = _pipe(on_error)
            self._process = _start(requests, replies, log, self._tag)
            on_error.pop_all()
        os.close(requests)
        os.close(replies)
        os.set_blocking(self.requests, False)
        os.set_blocking(self.replies, False)
        self.send(cloudpickle.dumps(setup))

    @property
    def unsent(self) -> bool:
        """Whether a part of a message still waits for room in the pipe."""
        return bool(self._outbox)

    def send(self, payload: bytes) -> None:
        """Queue a message and write what the pipe takes now."""
        self._outbox += frame(payload)
        self.flush()

    def flush(self) -> None:
        """Write what the pipe takes now; a worker that is gone is noticed when reading."""
        with contextlib.suppress(BlockingIOError):
            try:
                while self._outbox:
                    del self._outbox[: os.write(self.requests, memoryview(self._outbox)[: 1 << 20])]
            except BrokenPipeError:
                self._outbox.clear()

    def receive(self) -> list[dict[str, Any]]:
        """The replies that have arrived.

        Raises:
            WorkerDied: no more will come.
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

    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def kill(self) -> str:
        """End the worker and all that it started; on Linux also what left its session (daemons).

        Returns:
            How it had ended by itself, if it had: "exit code 3", "signal SIGSEGV".
        """
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        code = self._process.wait()
        _kill_tagged(self._tag.encode())
        for descriptor in (self.requests, self.replies):
            with contextlib.suppress(OSError):
                os.close(descriptor)
        return f"exit code {code}" if code >= 0 else f"signal {_signal_name(-code)}"


def _pipe(on_error: contextlib.ExitStack) -> tuple[int, int]:
    ends = os.pipe()
    for end in ends:
        on_error.callback(os.close, end)
    return ends


def _kill_tagged(tag: bytes) -> None:
    """End all processes with `tag` in their environment, again until a look finds none: they may be starting others."""
    for _ in range(_SCANS):
        found = [int(entry.name) for entry in Path("/proc").glob("[0-9]*") if _has_tag(entry, tag)]
        if not found:
            return
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


def _has_tag(process: Path, tag: bytes) -> bool:
    try:
        return tag in (process / "environ").read_bytes().split(b"\0")
    except OSError:  # it is another user's, or gone
        return False


def _start(requests: int, replies: int, log: Path | None, tag: str) -> "subprocess.Popen[bytes]":
    path = json.dumps([str(entry) for entry in sys.path])
    name, _, value = tag.partition("=")
    environment = {**dict.fromkeys(_THREADS, "1"), **os.environ, name: value}
    with contextlib.ExitStack() as stack:
        output = subprocess.DEVNULL if log is None else stack.enter_context(log.open("ab"))
        return subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOT, str(requests), str(replies), path],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=(requests, replies),
            start_new_session=True,  # Ctrl-C is the trainer's, and killing the session kills a reward's children
            env=environment,
        )


def _reply(payload: bytes) -> dict[str, Any]:
    value = json.loads(payload)
    if not isinstance(value, dict):
        raise ValueError("a reply is an object")
    return value


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
