"""Turns of threads at one model: some sample, and one replaces the weights.

sampling ──┐                    ┌──▶ sampling with the new weights
sampling ──┴──▶ update ─────────┘    an update waits for the sampling in progress, and what is asked for later waits
                                     for the update
"""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """Turns of samplers and updates. Samplers take turns in the order in which they ask, and updates precede them.

    A thread must not ask for a turn while it has one.

    Args:
        at_once: Maximum number of threads that sample at the same time.
    """

    def __init__(self, at_once: int = 1) -> None:
        self._at_once, self._sampling, self._updating = at_once, 0, False
        self._samplers: deque[object] = deque()  # the waiting ones
        self._updates = 0  # the number of waiting ones
        self._changed = threading.Condition()

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Wait until this thread may sample, and let no update begin in this context."""
        me = object()
        with self._changed:
            self._samplers.append(me)
            try:
                self._changed.wait_for(lambda: self._may_sample(me))
                self._sampling += 1
            finally:
                self._samplers.remove(me)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._sampling -= 1
                self._changed.notify_all()

    @contextmanager
    def updating(self) -> Iterator[None]:
        """Wait for the sampling in progress, and let none begin until the end of this context."""
        with self._changed:
            self._updates += 1
            try:
                self._changed.wait_for(lambda: not self._updating and self._sampling == 0)
                self._updating = True
            finally:
                self._updates -= 1
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._updating = False
                self._changed.notify_all()

    def _may_sample(self, sampler: object) -> bool:
        is_free = not self._updating and self._updates == 0 and self._sampling < self._at_once
        return is_free and self._samplers[0] is sampler
