"""Exact match: the completion equals the answer, except for white space."""

from collections.abc import Sequence
from typing import Any

from gvpo.rewards.base import Answer, grade


def exact_match(completions: Sequence[Answer], answer: Sequence[Any], **columns: Any) -> list[float | None]:
    """Return 1 if the whole completion equals `answer`, else 0.

    Both are stripped, and each run of white space counts as one space. Case and punctuation count.

    Args:
        completions: k completions.
        answer: k answers, compared as text; None abstains.
        columns: Not used.

    Returns:
        k values: 1.0, 0.0, or None.
    """
    return grade(completions, answer, lambda text, gold: normal_space(text) == normal_space(str(gold)))


def normal_space(text: str) -> str:
    """Return `text` stripped, with each run of white space replaced by a single space."""
    return " ".join(text.split())
