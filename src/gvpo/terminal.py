"""Standard streams, which may go away while a command works: `| head`, a closed terminal, a full disk."""

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator
from typing import TextIO, cast


class Lasting:
    """A stream of text that may stop taking any. What it does not take is dropped.

    Args:
        stream: What is written to.
        is_product: Somebody waits for the text, so a file that cannot take it is an error; a reader that has gone away
            is none.
    """

    def __init__(self, stream: TextIO, *, is_product: bool = False) -> None:
        self._stream, self._is_product = stream, is_product

    def write(self, text: str) -> int:
        """Write text, or drop it."""
        self._tried(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Write what is buffered, or drop it."""
        self._tried(self._stream.flush)

    def end(self) -> None:
        """Write what is buffered; where that fails, the interpreter does not try again when it ends."""
        try:
            self._stream.flush()
        except OSError:
            _silence(self._stream)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def _tried(self, call: Callable[[], object]) -> None:
        try:
            call()
        except OSError as error:
            if _has_no_reader(error, self._stream):
                _silence(self._stream)
            elif self._is_product:
                raise


def lasting_error() -> TextIO | None:
    """Return standard error as it is now, such that printing to it never fails."""
    return cast("TextIO | None", sys.stderr and Lasting(sys.stderr))


@contextlib.contextmanager
def lasting_streams() -> Iterator[None]:
    """Keep what is printed inside from failing: a run is worth more than what it says of itself.

    Standard output still fails if it is a file that cannot take more, since its text is then what a user waits for.
    """
    _open_closed()
    before = sys.stdout, sys.stderr
    streams = sys.stdout and Lasting(sys.stdout, is_product=True), sys.stderr and Lasting(sys.stderr)
    sys.stdout, sys.stderr = cast("tuple[TextIO, TextIO]", streams)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in filter(None, streams):
            stream.end()


def silence(descriptor: int) -> None:
    """Point an open descriptor at nothing, which takes and gives whatever it is asked to."""
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, descriptor)
    os.close(nothing)


def _silence(stream: TextIO) -> None:
    with contextlib.suppress(OSError):
        silence(stream.fileno())
        stream.flush()


def _has_no_reader(error: OSError, stream: TextIO) -> bool:
    """Return whether the pipe's other end or the terminal of a stream is gone."""
    if error.errno == errno.EPIPE:
        return True
    return error.errno in (errno.EIO, errno.ENXIO) and stat.S_ISCHR(os.fstat(stream.fileno()).st_mode)


def _open_closed() -> None:
    """Open the standard descriptors that are closed (`>&-`), or a file would get their number and what others print."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is this one
