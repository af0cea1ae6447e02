"""How the pool and its workers talk: frames of a length and that many bytes, over two pipes of their own.

Requests are pickles, as they carry functions and data; replies are JSON, as nothing that a reward writes into the pipe
should run in the trainer.
"""

import io
import pickle
import struct
from typing import Any

import cloudpickle

_HEADER = struct.Struct(">Q")
MAX_FRAME = 1 << 30
"""A longer reply is not one: something else wrote into the pipe."""


def frame(payload: bytes) -> bytes:
    """`payload` with its length in front."""
    return _HEADER.pack(len(payload)) + payload


class _NotPlain(Exception):
    """The data holds something else than Python's own containers, numbers and texts."""


class _PlainPickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        """Refuse what might not mean the same in another process."""
        raise _NotPlain


def packed(data: Any) -> bytes:
    """Return `data` as a pickle: the fast way where all of it is plain, else by cloudpickle."""
    buffer = io.BytesIO()
    try:
        _PlainPickler(buffer, pickle.HIGHEST_PROTOCOL).dump(data)
        return buffer.getvalue()
    except _NotPlain:
        return bytes(cloudpickle.dumps(data))


class Inbox:
    """Collects the bytes of a pipe and gives them back as whole frames."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> None:
        """Add what was read."""
        self._bytes += data

    def take(self) -> bytes | None:
        """The next whole frame's payload; None while it is not all there.

        Raises:
            ValueError: what was read is no frame.
        """
        if len(self._bytes) < _HEADER.size:
            return None
        (length,) = _HEADER.unpack_from(self._bytes)
        if length > MAX_FRAME:
            raise ValueError("the pipe holds something that is not a frame")
        end = _HEADER.size + length
        if len(self._bytes) < end:
            return None
        payload = bytes(self._bytes[_HEADER.size : end])
        del self._bytes[:end]
        return payload
