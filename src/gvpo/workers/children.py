"""The children of a process that watches over others: which there are, when one ends, and how it ended.

The supervisor of a jail and that of a worker both use it. Knows nothing of jails or rewards. Imports the standard
library only.
"""

import contextlib
import os
import signal
from pathlib import Path
from typing import Any


def notice_ends() -> tuple[int, int]:
    """Open a pipe that can be read when a child has ended, which any kernel and any filter allows.

    Returns:
        The end to read, and the one that the signal handler writes.
    """
    ended, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, _note)
    return ended, woken


def forget_ends(pipe: tuple[int, int]) -> None:
    """Close the pipe of `notice_ends` in a child, which is told nothing."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for descriptor in pipe:
        os.close(descriptor)


def reap() -> dict[int, int]:
    """Return the wait statuses of the children that have ended, adopted ones included, by process."""
    ended = {}
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            ended[found[0]] = found[1]
    return ended


def living() -> list[int]:
    """Return the children of this process.

    Raises:
        OSError: the system has no /proc that says so.
    """
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def _note(number: int, frame: Any) -> None:
    """Let a signal reach the pipe; without a handler of Python's own it would not."""
