"""The last line of a calculator dialogue, `=14.` after "4-2;2|2*7;14|"."""

from collections.abc import Sequence
from typing import Any

from gvpo.rewards.base import Answer, grade


def calculator(completions: Sequence[Answer], answer: Sequence[Any], **columns: Any) -> list[float | None]:
    """Return 1 if the dialogue with the calculator ends with the right answer, else 0.

    Args:
        completions: k dialogues.
        answer: k numbers or their text; None abstains.
        columns: Not used.

    Returns:
        k values: 1.0, 0.0, or None.
    """
    return grade(completions, answer, lambda text, gold: last_line(text) == f"={gold}")


def last_line(text: str) -> str:
    """Return what the policy says after the last result of the tool, without the end mark."""
    return text.rpartition("|")[2].strip().rstrip(";.")
