"""Ctrl-C, SIGTERM and SIGHUP: the first asks a run to stop when its step is done and saved, the second stops it now.

Knows signals; knows nothing of steps or checkpoints. The session asks `requested` between steps.
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
"""What a terminal sends when it is closed; Windows has none."""
SIGNALS = tuple(number for number in (signal.SIGINT, signal.SIGTERM, HANGUP) if number is not None)
"""SIGTERM is what clusters send before they take a machine away."""

NOTICE = b"\nstopping when this step is done and saved; once more stops now\n"
NOW = b"\nstopping now, without this step: closing the workers; once more ends the process at once\n"


class RunStopped(KeyboardInterrupt):
    """A run was asked to stop, and has: the message says after which step, and how to go on."""


class StopRequests:
    """While entered, the first signal sets `requested`, the second raises KeyboardInterrupt, the third ends it all.

    SIGHUP only ever sets `requested`: a closed terminal and the shell in it send one each. Signals stay as they are in
    any thread but the main one, and one that is ignored (a job in the background) stays ignored. Entered within
    another, it is that one: a warm start and the run after it share their requests.

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
        """Take the signals, unless another one that is entered has them."""
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
        """Give the signals back."""
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
    """Point what is read from and written to a terminal that is gone at nothing, so that no later print fails."""
    for descriptor in range(3):
        try:
            os.get_terminal_size(descriptor)
        except OSError as error:
            if error.errno == errno.EIO:
                silence(descriptor)


def _owner(handler: Callable[..., Any] | int | None) -> StopRequests | None:
    """The object whose method a handler is, if it is one of ours."""
    owner = getattr(handler, "__self__", None)
    return owner if isinstance(owner, StopRequests) else None
