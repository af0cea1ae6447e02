"""Rewards for the format of a completion, regardless of its content."""

import re
from collections.abc import Sequence
from typing import Any

from gvpo.errors import RewardError
from gvpo.rewards.base import Answer, RewardFunc, blames_text, completion_text
from gvpo.rewards.verifiers.boxed import last_boxed_span


def boxed_format(completions: Sequence[Answer], **columns: Any) -> list[float | None]:
    r"""Return 1 if the completion ends with a \boxed{...} that is not empty, else 0.

    White space, $ and a full stop may follow it.

    Args:
        completions: k completions.
        columns: Not used.

    Returns:
        k values, 1.0 or 0.0.
    """
    return [float(_ends_boxed(completion_text(completion))) for completion in completions]


def _ends_boxed(text: str) -> bool:
    span = last_boxed_span(text)
    return (
        span is not None
        and bool(text[slice(*span)].strip())
        and not text[span[1] :].removeprefix("}").strip(" \t\r\n$.")
    )


def regex_format(pattern: str, *, name: str = "regex_format") -> RewardFunc:
    r"""Create a reward that is 1 if the whole completion, stripped, matches a regular expression, else 0.

    >>> thinks = regex_format(r"<think>.*</think>\s*<answer>.*</answer>")
    >>> thinks(completions=["<think>2+2</think><answer>4</answer>", "4"])
    [1.0, 0.0]

    Args:
        pattern: Regular expression; the dot also matches line breaks.
        name: Name of the reward in metrics.

    Returns:
        The reward function.

    Raises:
        RewardError: If the pattern is not a regular expression.
    """
    try:
        compiled = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise RewardError(f"regex_format: {pattern!r} is not a regular expression: {error}") from None

    def matches(completions: Sequence[Answer], **columns: Any) -> list[float | None]:
        return [float(compiled.fullmatch(completion_text(each).strip()) is not None) for each in completions]

    matches.__name__ = name
    return blames_text(matches)
