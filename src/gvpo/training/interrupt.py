"""Ctrl-C and SIGTERM: the first asks a run to stop when its step is done and saved, the second stops it now.

Knows signals; knows nothing of steps or checkpoints. The session asks `requested` between steps.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""SIGTERM is what clusters send before they take a machine away."""

NOTICE = b"\nstopping when this step is done and saved; once more stops now\n"


class Stopped(KeyboardInterrupt):
    """A run was asked to stop, and has: the message says after which step, and how to go on."""


class StopRequests:
    """While entered, SIGINT and SIGTERM set `requested`; the second of them raises KeyboardInterrupt.

    Signals stay as they are in any thread but the main one, and one that is ignored (a job in the background) stays
    ignored. Entered within another, it is that one: a warm start and the run after it share their requests.

    >>> with StopRequests() as stop:
    ...     signal.raise_signal(signal.SIGINT)
    ...     stop.requested
    True
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Self | StopRequests":
        """Take the signals, unless another one that is entered has them."""
        if threading.current_thread() is not threading.main_thread():
            return self
        outer = _owner(signal.getsignal(signal.SIGINT)) or _owner(signal.getsignal(signal.SIGTERM))
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
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        with contextlib.suppress(OSError):  # not print: a handler may run in the middle of another print
            os.write(2, NOTICE)


def _owner(handler: Callable[..., Any] | int | None) -> StopRequests | None:
    """The object whose method a handler is, if it is one of ours."""
    owner = getattr(handler, "__self__", None)
    return owner if isinstance(owner, StopRequests) else None
