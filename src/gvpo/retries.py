"""Shared rules of HTTP clients: which failures are temporary, how long to wait, how to quote a response."""

from typing import Any

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds before the second attempt, which double for each further attempt, and their maximum."""

AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
"""HTTP statuses of temporary failures."""


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
