"""Reasons why a reward gives a row no value. They travel separately from the values, which stay TRL's plain list."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

UNSCORABLE = "unscorable"
"""Kind of these reasons."""

_heard: ContextVar[dict[int, str] | None] = ContextVar("gvpo_reasons", default=None)


def no_value(row: int, reason: str) -> None:
    """Record why the running call returns None for a row; the row then has no reward, regardless of other rewards.

    Outside a pool the reason is discarded, and the row is only None.

    Args:
        row: Number of the row in the call, from 0.
        reason: One line that states what to do.
    """
    heard = _heard.get()
    if heard is not None:
        heard[row] = reason


@contextlib.contextmanager
def hearing() -> Iterator[dict[int, str]]:
    """Collect the reasons that a reward gives within this context, by row."""
    heard: dict[int, str] = {}
    token = _heard.set(heard)
    try:
        yield heard
    finally:
        _heard.reset(token)
