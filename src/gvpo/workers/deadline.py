"""How long the call that a worker makes may still take, for rewards that keep a deadline of their own."""

import math
import time

_end = math.inf


def begin(seconds: float) -> None:
    """Start the time of a call."""
    global _end
    _end = time.monotonic() + seconds


def seconds_left() -> float:
    """Return how many seconds the running call has left before its pool gives it up; infinity outside of a worker."""
    return _end - time.monotonic()
