"""Ctrl-C, SIGTERM and SIGHUP: the first asks a run to stop after its step is saved, the second stops it immediately.

This module handles signals and does not depend on steps or checkpoints. The session reads `requested` between steps.
"""

import contextlib
import errno
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

from gvpo.terminal import silence

HANGUP = getattr(signal, "SIGHUP", None)
"""Signal that a terminal sends when it is closed; None on Windows."""
SIGNALS = tuple(number for number in (signal.SIGINT, signal.SIGTERM, HANGUP) if number is not None)
"""Signals that request a stop; clusters send SIGTERM before they take a machine away."""

NOTICE = b"\nstopping when this step is done and saved; once more stops now\n"
NOW = b"\nstopping now, without this step: closing the workers; once more ends the process at once\n"


class RunStopped(KeyboardInterrupt):
    """A run stopped on request; the message says after which step, and how to resume."""


class StopRequests:
    """While entered, the first signal sets `requested`, the second raises KeyboardInterrupt, the third ends it.

    SIGHUP only sets `requested`, because a closed terminal and its shell send one each. In any thread but the main one,
    signals are left unchanged, and an ignored signal (of a background job) stays ignored. Entering a second object
    within the first returns the first: a warm start and the run after it share their requests.

    >>> with StopRequests() as stop:
    ...     signal.raise_signal(signal.SIGINT)
    ...     stop.requested
    True
    """

    def __init__(self) -> None:
        self.requested = False
        self._urgent = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Self | StopRequests":
        """Install the signal handlers, unless another object that is entered has done so."""
        if threading.current_thread() is not threading.main_thread():
            return self
        outer = next((owner for number in SIGNALS if (owner := _owner(signal.getsignal(number)))), None)
        if outer is not None:
            return outer
        for number in SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Restore the previous signal handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == HANGUP:
            _leave_terminal()
        if self._urgent and number != HANGUP:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if not self.requested:
            self.requested = True
            _tell(NOTICE)
        elif number != HANGUP:
            self._urgent = True
            _tell(NOW)
            raise KeyboardInterrupt


def _tell(notice: bytes) -> None:
    """Write to standard error; not with print, since a handler may run in the middle of another print."""
    with contextlib.suppress(OSError):
        os.write(2, notice)


def _leave_terminal() -> None:
    """Redirect the streams of a closed terminal to the null device, so that no later print fails."""
    for descriptor in range(3):
        try:
            os.get_terminal_size(descriptor)
        except OSError as error:
            if error.errno == errno.EIO:
                silence(descriptor)


def _owner(handler: Callable[..., Any] | int | None) -> StopRequests | None:
    """Return the object whose method a handler is, if it is a `StopRequests`."""
    owner = getattr(handler, "__self__", None)
    return owner if isinstance(owner, StopRequests) else None
