"""The parent of one worker: it copies the worker's output to the log, and ends all descendants of the worker.

    pool ──lifeline──▶ supervisor ──fork──▶ worker ──▶ processes that it starts
                            ▲                                   │
                            └── adopts orphaned processes ──────┘

The supervisor ends when the worker does, or when the pool closes the lifeline, which also happens when the pool's
program is killed. It kills all descendants first. On Linux no descendant escapes: a daemon that left its session
becomes a child of the supervisor as soon as its own parent ends.
"""

import contextlib
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from gvpo.workers import children, kernel, worker
from gvpo.workers.output_log import OutputLog

_ROUNDS, _PAUSE = 1000, 0.005
"""Maximum number of searches for descendants, and seconds between two: a killed process takes a moment to end."""
_CHUNK = 1 << 16


def main(argument: str) -> NoReturn:
    """Start a worker, watch it, and end with its exit status.

    Args:
        argument: JSON with the descriptors `requests`, `replies`, `progress` and `lifeline`, and `log`, a path or null.
    """
    settings = json.loads(argument)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _on_linux(kernel.adopt_orphans)
    output, printed = os.pipe()
    ended = children.notice_ends()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        children.forget_ends(ended)
        for descriptor in (output, settings["lifeline"]):
            os.close(descriptor)
        _become_worker(settings, printed, parent)
    for descriptor in (printed, settings["requests"], settings["replies"], settings["progress"]):
        os.close(descriptor)
    log = OutputLog(Path(settings["log"])) if settings["log"] else None
    status = _watch(child, settings["lifeline"], ended[0], output, log)
    status = _end_descendants(child, status)
    _copy_rest(output, log)
    _end_like(status)


def _on_linux(ask_kernel: Callable[[], None]) -> None:
    """Request a feature that only Linux has; if it is denied, the other ways to end descendants must suffice."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            ask_kernel()


def _become_worker(settings: Mapping[str, Any], printed: int, parent: int) -> NoReturn:
    """Serve calls in a separate session, so that signals to its group do not reach the supervisor."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setsid()
    _on_linux(kernel.end_with_parent)
    if os.getppid() != parent:
        os._exit(1)
    if settings["log"]:
        os.dup2(printed, 1)
        os.dup2(printed, 2)
    os.close(printed)
    worker.main(settings["requests"], settings["replies"], settings["progress"])


def _watch(child: int, lifeline: int, wake: int, output: int, log: OutputLog | None) -> int | None:
    """Copy output until the worker ends or the pool closes the lifeline; return its status, None if it still runs."""
    poll = select.poll()
    for descriptor in (lifeline, wake, output):
        poll.register(descriptor, select.POLLIN)
    while True:
        ready = {descriptor for descriptor, _ in poll.poll()}
        if lifeline in ready:
            return None
        if output in ready and not _copy(output, log):
            poll.unregister(output)
        if wake in ready:
            os.read(wake, _CHUNK)
            status = children.reap().get(child)
            if status is not None:
                return status


def _copy(output: int, log: OutputLog | None) -> bool:
    """Copy printed output; return False once no process can print any more."""
    data = os.read(output, _CHUNK)
    if data and log is not None:
        log.write(data)
    return bool(data)


def _copy_rest(output: int, log: OutputLog | None) -> None:
    os.set_blocking(output, False)
    with contextlib.suppress(BlockingIOError):
        while _copy(output, log):
            pass


def _end_descendants(child: int, status: int | None) -> int | None:
    """Kill children until there are none, orphans included; return the worker's status."""
    if status is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)
    for _ in range(_ROUNDS):
        status = children.reap().get(child, status)
        running = _running(child if status is None else None)
        if not running:
            break
        for each in running:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(each, signal.SIGKILL)
        time.sleep(_PAUSE)
    return status


def _running(known: int | None) -> list[int]:
    """Return the children of this process; without Linux's /proc, only the known one."""
    try:
        return children.living()
    except OSError:
        return [] if known is None else [known]


def _end_like(status: int | None) -> NoReturn:
    """End with the exit code or the signal of the worker, which the pool reads."""
    code = 1 if status is None else os.waitstatus_to_exitcode(status)
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(OSError):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(abs(code))
