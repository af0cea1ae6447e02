"""Standard streams that may disappear while a command runs: `| head`, a closed terminal, a full disk."""

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator
from typing import TextIO, cast


class Lasting:
    """A text stream that may stop accepting text, which is then dropped.

    Args:
        stream: Stream to write to.
        is_product: A user needs the text, so a file that cannot accept it is an error; a reader that has closed the
            pipe is not an error.
    """

    def __init__(self, stream: TextIO, *, is_product: bool = False) -> None:
        self._stream, self._is_product = stream, is_product

    def write(self, text: str) -> int:
        """Write text, or drop it."""
        self._tried(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Write the buffer, or drop it."""
        self._tried(self._stream.flush)

    def end(self) -> None:
        """Write the buffer; if that fails, prevent the interpreter from trying again at exit."""
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
    """Return the current standard error as a stream to which printing never fails."""
    return cast("TextIO | None", sys.stderr and Lasting(sys.stderr))


@contextlib.contextmanager
def lasting_streams() -> Iterator[None]:
    """Keep printing within this context from failing, because a run is worth more than its messages.

    Standard output still fails if it is a full file, because its text is then the result that a user needs.
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
    """Redirect an open descriptor to the null device."""
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, descriptor)
    os.close(nothing)


def _silence(stream: TextIO) -> None:
    with contextlib.suppress(OSError):
        silence(stream.fileno())
        stream.flush()


def _has_no_reader(error: OSError, stream: TextIO) -> bool:
    """Return whether the other end of a stream's pipe, or its terminal, is gone."""
    if error.errno == errno.EPIPE:
        return True
    return error.errno in (errno.EIO, errno.ENXIO) and stat.S_ISCHR(os.fstat(stream.fileno()).st_mode)


def _open_closed() -> None:
    """Open closed standard descriptors (`>&-`), or a file would receive their number and their output."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # opens the lowest free number, which is this one
