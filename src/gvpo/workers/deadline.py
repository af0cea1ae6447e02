"""Time that is left for the current call of a worker, for functions that keep their own deadline."""

import math
import time

_end = math.inf


def begin(seconds: float) -> None:
    """Start the clock of a call."""
    global _end
    _end = time.monotonic() + seconds


def seconds_left() -> float:
    """Return how many seconds remain before the pool abandons the running call; infinity outside a worker."""
    return _end - time.monotonic()
