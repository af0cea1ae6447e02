"""The children of a supervising process: list them, notice when one ends, and read its exit status.

Used by the supervisor of a sandbox and by the supervisor of a worker. Does not import what they run, only the
standard library.
"""

import contextlib
import os
import signal
from pathlib import Path


def notice_ends() -> tuple[int, int]:
    """Open a pipe that becomes readable when a child has ended. This works on any kernel and under any filter.

    Returns:
        The end to read from, and the end that the signal handler writes to.
    """
    ended, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    # A signal reaches the pipe only if Python has a handler for it.
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return ended, woken


def forget_ends(pipe: tuple[int, int]) -> None:
    """Close the pipe of `notice_ends` in a child, which needs no notices."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for descriptor in pipe:
        os.close(descriptor)


def reap() -> dict[int, int]:
    """Return the wait statuses of the children that have ended, including adopted ones, by process ID."""
    ended = {}
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            ended[found[0]] = found[1]
    return ended


def living() -> list[int]:
    """Return the children of this process.

    Raises:
        OSError: If the system has no /proc that lists them.
    """
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
