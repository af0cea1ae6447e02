"""Warnings of the library. A run prints each of them once; outside a run they are Python warnings.

warn(message) ──▶ the handler of the context, if there is one ──▶ `gvpo: warning: message` on standard error
              └─▶ warnings.warn
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from gvpo.errors import GvpoWarning
from gvpo.terminal import lasting_error

Handler = Callable[[str, type[GvpoWarning]], None]
"""Function that receives a message and its category."""

_handler: ContextVar[Handler | None] = ContextVar("handler", default=None)


def warn(message: str, category: type[GvpoWarning] = GvpoWarning) -> None:
    """Pass a message to the handler of the context; without a handler it becomes a Python warning."""
    handler = _handler.get()
    if handler is None:
        warnings.warn(message, category, stacklevel=3)
    else:
        handler(message, category)


@contextmanager
def handled(handler: Handler) -> Iterator[None]:
    """Pass the warnings of this context to `handler`."""
    token = _handler.set(handler)
    try:
        yield
    finally:
        _handler.reset(token)


@contextmanager
def without(category: type[GvpoWarning]) -> Iterator[None]:
    """Drop the warnings of a category in this context, and pass on all others."""
    outer = _handler.get()

    def pass_on(message: str, kind: type[GvpoWarning]) -> None:
        if issubclass(kind, category):
            return
        if outer is None:
            warnings.warn(message, kind, stacklevel=4)
        else:
            outer(message, kind)

    with handled(pass_on):
        yield


class Notices:
    """The notices of a run, without repetition: kept while it is prepared, and printed when it begins and afterwards.

    A run that cannot start prints only its error.

    Args:
        quiet: Print nothing, as on ranks other than the first.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet, self._began = quiet, False
        self._seen: dict[str, None] = {}

    def add(self, message: str, category: type[GvpoWarning] = GvpoWarning) -> None:
        """Keep a notice, or print it if the run has begun; drop it if it is known."""
        if message not in self._seen:
            self._seen[message] = None
            if self._began:
                self._print(message)

    def begin(self) -> None:
        """Print the kept notices."""
        if not self._began:
            self._began = True
            for message in self._seen:
                self._print(message)

    def _print(self, message: str) -> None:
        if not self._quiet:
            show(message)


def show(message: str, category: type[GvpoWarning] = GvpoWarning) -> None:
    """Print a notice immediately, for commands without a preparation."""
    print(f"gvpo: warning: {message}", file=lasting_error(), flush=True)


def begin() -> None:
    """Print the notices that this context has collected, and print later ones immediately."""
    if (collection := _collection()) is not None:
        collection.begin()


def _collection() -> Notices | None:
    owner = getattr(_handler.get(), "__self__", None)
    return owner if isinstance(owner, Notices) else None


@contextmanager
def collected(*, quiet: bool = False) -> Iterator[Notices]:
    """Collect the warnings of this context; an inner context uses the outer collection, so none is printed twice."""
    found = _collection() or Notices(quiet=quiet)
    with handled(found.add):
        yield found
