"""Cache of a judge's answers by request, in one SQLite file that threads and processes share."""

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gvpo.errors import RewardError

WAIT = 30.0
"""Seconds that a process waits while another one is writing."""


class RequestCache:
    """Answers by request.

    Args:
        path: Path of the file, which is created together with its directory; None caches nothing.

    Raises:
        RewardError: If the file cannot be created, or is not such a cache.
    """

    def __init__(self, path: str | Path | None) -> None:
        self._path = None if path is None else Path(path).expanduser()
        if self._path is not None:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise RewardError(f"cannot create {self._path.parent} for the cache: {error.strerror}") from error
            with self._open() as database:
                database.execute("CREATE TABLE IF NOT EXISTS answers (request TEXT PRIMARY KEY, text TEXT NOT NULL)")

    def get(self, key: str) -> str | None:
        """Return the text for a key of `request_key`; None if the cache does not contain it."""
        if self._path is None:
            return None
        with self._open() as database:
            row = database.execute("SELECT text FROM answers WHERE request = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def put(self, key: str, text: str) -> None:
        """Store a text; it is on disk on return."""
        if self._path is not None:
            with self._open() as database:
                whole = text.encode("utf-8", "replace").decode()  # SQLite accepts no lone surrogates
                database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, whole))

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """Open a connection for one statement: connections cannot be shared by threads, nor survive a fork."""
        try:
            with contextlib.closing(sqlite3.connect(str(self._path), timeout=WAIT)) as database, database:
                yield database
        except sqlite3.Error as error:
            raise RewardError(f"cannot use {self._path} as a cache: {error}; remove it or name another file") from error


def request_key(request: Mapping[str, Any]) -> str:
    """Return the cache key of a request: a hash of its JSON, regardless of the order of its keys."""
    text = json.dumps(request, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
