"""What callers of HTTP services share: which failures pass by themselves, how long to wait, how to quote an answer."""

from typing import Any

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds before the second attempt, doubled for each further one; and at most."""

AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
"""HTTP statuses that may go away by themselves."""


def asked_wait(response: Any) -> float:
    """Seconds that a server asks to wait by its header Retry-After; 0 if it does not say, or says no number."""
    try:
        seconds = float(response.headers.get("retry-after", 0))
    except ValueError:
        return 0.0
    return seconds if seconds > 0 else 0.0  # nan is not


def quoted(text: str, key: str) -> str:
    """The beginning of a server's words on one line, without the key, which some repeat; key "" is none."""
    return " ".join((text.replace(key, "***") if key else text).split())[:200]
