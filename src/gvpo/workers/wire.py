"""Frames between the pool and its workers: a length and that many bytes, over two dedicated pipes.

Requests are pickles, because they carry functions and data. Replies are JSON, because nothing that a worker writes into
the pipe may run in the trainer.
"""

import io
import pickle
import struct
from typing import Any

import cloudpickle

_HEADER = struct.Struct(">Q")
MAX_FRAME = 1 << 30
"""Maximum number of bytes of a reply; a longer one was written by something else."""


def frame(payload: bytes) -> bytes:
    """Return `payload` prefixed with its length."""
    return _HEADER.pack(len(payload)) + payload


class _NotPlain(Exception):
    """The data contains something other than Python's own containers, numbers and strings."""


class _PlainPickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        """Reject objects that might not mean the same in another process."""
        raise _NotPlain


def packed(data: Any) -> bytes:
    """Return `data` as a pickle, with the fast pickler if all of it is plain, otherwise with cloudpickle."""
    buffer = io.BytesIO()
    try:
        _PlainPickler(buffer, pickle.HIGHEST_PROTOCOL).dump(data)
        return buffer.getvalue()
    except _NotPlain:
        return bytes(cloudpickle.dumps(data))


class Inbox:
    """Collects the bytes of a pipe and returns them as complete frames."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> None:
        """Add bytes that were read."""
        self._bytes += data

    def take(self) -> bytes | None:
        """Return the payload of the next complete frame, or None while parts of it are missing.

        Raises:
            ValueError: If the bytes are not a frame.
        """
        if len(self._bytes) < _HEADER.size:
            return None
        (length,) = _HEADER.unpack_from(self._bytes)
        if length > MAX_FRAME:
            raise ValueError("the pipe contains something that is not a frame")
        end = _HEADER.size + length
        if len(self._bytes) < end:
            return None
        payload = bytes(self._bytes[_HEADER.size : end])
        del self._bytes[:end]
        return payload
