"""Exact match: the completion is the answer, white space aside."""

from collections.abc import Sequence
from typing import Any

from gvpo.rewards.base import Answer, completion_text


def exact_match(completions: Sequence[Answer], answer: Sequence[Any], **columns: Any) -> list[float | None]:
    """1 where the whole completion equals `answer`, else 0.

    Both are stripped, and each run of white space counts as one space. Case and punctuation count.

    Args:
        completions: k completions.
        answer: k answers, compared as text; None abstains.
        columns: not used.

    Returns:
        k values: 1.0, 0.0, or None.
    """
    return [
        None if gold is None else float(normal_space(completion_text(completion)) == normal_space(str(gold)))
        for completion, gold in zip(completions, answer, strict=True)
    ]


def normal_space(text: str) -> str:
    """`text` stripped, each run of white space a single space."""
    return " ".join(text.split())
