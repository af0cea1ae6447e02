"""Repetition: how much of a completion it has said before."""

from collections.abc import Sequence
from typing import Any, Literal

from gvpo.errors import RewardError
from gvpo.rewards.base import Answer, RewardFunc, blames_text, completion_text

Unit = Literal["words", "tokens"]


def repetition_penalty(size: int = 4, *, over: Unit = "words", name: str = "repetition_penalty") -> RewardFunc:
    """Make a reward: minus the share of n-grams that occur in the completion before.

        -(1 - distinct n-grams / n-grams), in (-1, 0]; 0 for fewer words than one n-gram

    >>> echo = repetition_penalty(2)
    >>> echo(completions=["a b c d", "a b a b a b"])
    [0.0, -0.6]

    Args:
        size: words (or tokens) of an n-gram, n.
        over: "words" between white space, case aside; "tokens" for languages that do not write spaces.
        name: what the reward is called in metrics.

    Returns:
        The reward function; its weight says how much a completion that only repeats loses at most.

    Raises:
        RewardError: size below 1, or another unit.

    Reference: the repetition penalty of arXiv:2502.03373 counts repeated n-grams, too, and subtracts for each.
    """
    if not isinstance(size, int) or size < 1:
        raise RewardError(f"repetition_penalty: size is the number of words of an n-gram, at least 1, not {size}")
    if over not in ("words", "tokens"):
        raise RewardError(f"repetition_penalty: over is words or tokens, not {over!r}")

    def by_words(completions: Sequence[Answer], **columns: Any) -> list[float | None]:
        return [-repeated(completion_text(each).casefold().split(), size) + 0.0 for each in completions]

    def by_tokens(completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[float | None]:
        return [-repeated(ids, size) + 0.0 for ids in completion_ids]

    penalty: RewardFunc = by_words if over == "words" else by_tokens
    penalty.__name__ = name
    return blames_text(penalty, worst=-1.0)


def repeated(units: Sequence[Any], size: int) -> float:
    """The share of the n-grams of a sequence that are not the first of their kind, in [0, 1)."""
    ngrams = [tuple(units[start : start + size]) for start in range(len(units) - size + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0
