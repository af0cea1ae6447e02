"""How a reward says why it gives a row no value: the reason travels beside the values, which stay TRL's plain list."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

UNSCORABLE = "unscorable"
"""The kind of these reasons."""

_heard: ContextVar[dict[int, str] | None] = ContextVar("gvpo_reasons", default=None)


def no_value(row: int, reason: str) -> None:
    """Say why the running call returns None for a row; the row then has no reward, whatever the other rewards say.

    Outside of a pool nobody hears the reason, and the row is only None.

    Args:
        row: number of the row in the call, from 0.
        reason: one line that says what to do.
    """
    heard = _heard.get()
    if heard is not None:
        heard[row] = reason


@contextlib.contextmanager
def hearing() -> Iterator[dict[int, str]]:
    """Collect the reasons that a reward gives inside of the block, by row."""
    heard: dict[int, str] = {}
    token = _heard.set(heard)
    try:
        yield heard
    finally:
        _heard.reset(token)
