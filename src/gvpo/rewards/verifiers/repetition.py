"""Repetition: the fraction of a completion that repeats earlier parts of it."""

from collections.abc import Sequence
from typing import Any, Literal

from gvpo.errors import RewardError
from gvpo.rewards.base import Answer, RewardFunc, blames_text, completion_text

Unit = Literal["words", "tokens"]


def repetition_penalty(size: int = 4, *, over: Unit = "words", name: str = "repetition_penalty") -> RewardFunc:
    """Create a reward: minus the fraction of n-grams that occur earlier in the completion.

        -(1 - distinct n-grams / n-grams), in (-1, 0]; 0 for fewer words than one n-gram

    >>> echo = repetition_penalty(2)
    >>> echo(completions=["a b c d", "a b a b a b"])
    [0.0, -0.6]

    Args:
        size: Number n of words (or tokens) per n-gram.
        over: "words" between white space, ignoring case; "tokens" for languages that do not write spaces.
        name: Name of the reward in metrics.

    Returns:
        The reward function; its weight is the maximum loss of a completion that only repeats itself.

    Raises:
        RewardError: If size is below 1, or the unit is unknown.

    Reference: the repetition penalty of arXiv:2502.03373 also counts repeated n-grams, and subtracts for each.
    """
    if not isinstance(size, int) or size < 1:
        raise RewardError(f"repetition_penalty: size must be the number of words per n-gram, at least 1, not {size}")
    if over not in ("words", "tokens"):
        raise RewardError(f"repetition_penalty: over must be words or tokens, not {over!r}")

    def by_words(completions: Sequence[Answer], **columns: Any) -> list[float | None]:
        return [-repeated(completion_text(each).casefold().split(), size) + 0.0 for each in completions]

    def by_tokens(completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[float | None]:
        return [-repeated(ids, size) + 0.0 for ids in completion_ids]

    penalty: RewardFunc = by_words if over == "words" else by_tokens
    penalty.__name__ = name
    return blames_text(penalty, worst=-1.0)


def repeated(units: Sequence[Any], size: int) -> float:
    """Return the fraction of the n-grams of a sequence that occur earlier in it, in [0, 1)."""
    ngrams = [tuple(units[start : start + size]) for start in range(len(units) - size + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0
