"""What was asked before: answers by request, in one SQLite file that threads and processes share."""

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gvpo.errors import RewardError

WAIT = 30.0
"""Seconds that a process waits for another one that is writing."""


class RequestCache:
    """Texts by request.

    Args:
        path: of the file, made with its directory; None keeps nothing.

    Raises:
        RewardError: the file cannot be made, or is something else.
    """

    def __init__(self, path: str | Path | None) -> None:
        self._path = None if path is None else Path(path).expanduser()
        if self._path is not None:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise RewardError(f"cannot make {self._path.parent} for the cache: {error.strerror}") from error
            with self._open() as database:
                database.execute("CREATE TABLE IF NOT EXISTS answers (request TEXT PRIMARY KEY, text TEXT NOT NULL)")

    def get(self, key: str) -> str | None:
        """The text for a key of `request_key`; None if it is not there."""
        if self._path is None:
            return None
        with self._open() as database:
            row = database.execute("SELECT text FROM answers WHERE request = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def put(self, key: str, text: str) -> None:
        """Keep a text; on the disk on return."""
        if self._path is not None:
            with self._open() as database:
                whole = text.encode("utf-8", "replace").decode()  # SQLite takes no lone surrogates
                database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, whole))

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection for one statement: connections may not go from thread to thread, nor survive a fork."""
        try:
            with contextlib.closing(sqlite3.connect(str(self._path), timeout=WAIT)) as database, database:
                yield database
        except sqlite3.Error as error:
            raise RewardError(f"cannot use {self._path} as a cache: {error}; remove it or name another file") from error


def request_key(request: Mapping[str, Any]) -> str:
    """The name of a request: a hash of its JSON, whatever the order of its keys."""
    text = json.dumps(request, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
