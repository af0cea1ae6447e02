"""Shared rules of HTTP clients: which failures are temporary, how long to wait, how to read and to quote a response."""

import os
import random
from typing import Any
from urllib.parse import SplitResult, urlsplit

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds before the second attempt, which double for each further attempt, and their maximum."""

AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
"""HTTP statuses of temporary failures."""


def address(url: str) -> SplitResult:
    """Return the parts of the base URL of an HTTP service; all are empty if it cannot be one."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # such as a port above 65535
        usable = False
    return parts if usable else urlsplit("")


def asked_wait(response: Any) -> float:
    """Return the seconds that a server requests in its header Retry-After, or 0 without a valid number."""
    try:
        seconds = float(response.headers.get("retry-after", 0))
    except ValueError:
        return 0.0
    return seconds if seconds > 0 else 0.0  # nan is not greater than 0


def quoted(text: str, key: str) -> str:
    """Return the beginning of a server's message on one line, without the key, which some repeat; a key may be ""."""
    return " ".join((text.replace(key, "***") if key else text).split())[:200]


def secret(variable: str | None) -> str:
    """Return the value of an environment variable with a key, or "" without a variable or a value."""
    return os.environ.get(variable, "").strip() if variable else ""


class Again(Exception):
    """An attempt failed and should be repeated, after `wait` seconds if the server requests a delay."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class Refused(Exception):
    """The server rejects this request."""


def backoff(attempt: int) -> float:
    """Return the seconds before the next attempt, randomized so that failed requests are not repeated together."""
    longest: float = min(FIRST_WAIT * 2.0 ** min(attempt, 16), LONGEST_WAIT)
    return longest * random.uniform(0.5, 1.0)


async def read_limited(response: Any, most: int) -> bytes:
    """Read a streamed response's bytes as they were sent.

    Args:
        response: Response of an asynchronous client, whose body is not read yet.
        most: Maximum number of bytes.

    Raises:
        Again: If there are more, or they are compressed although compression was not requested.
    """
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise Again("http: answered in a compressed form that was not requested")
    said = bytearray()
    async for part in response.aiter_raw():
        said += part
        if len(said) > most:
            raise Again(f"http: answered with more than {most >> 20} MiB")
    return bytes(said)
