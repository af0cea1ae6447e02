"""Printed output of workers: a file of limited size that several processes append to."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

LIMIT = 64 << 20
"""Maximum number of bytes of a log and its older part together."""
OLDER = ".1"
"""Suffix that is appended to the name of the older part."""


class OutputLog:
    """A file that keeps the latest output: when it reaches half of `limit`, it becomes the older part.

    Args:
        path: Path of the file.
        limit: Maximum number of bytes of both parts.
    """

    def __init__(self, path: Path, limit: int = LIMIT) -> None:
        self._path, self._half = path, limit // 2
        self._older = path.with_name(path.name + OLDER)

    def write(self, data: bytes) -> None:
        """Append printed output; a full disk loses it."""
        with contextlib.suppress(OSError), self._locked() as file:
            if file.tell() + len(data) <= self._half:
                file.write(data)
                return
            self._path.replace(self._older)
            with self._path.open("ab") as newer:
                newer.write(f"[gvpo: earlier output is in {self._older.name}, older output is gone]\n".encode())
                newer.write(data[-self._half // 2 :])

    @contextlib.contextmanager
    def _locked(self) -> Iterator[BinaryIO]:
        """Open the newer part for appending, while no other process may write or replace it."""
        while True:
            with self._path.open("ab") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(file.fileno()), self._path.stat()):
                        yield file
                        return
