"""Rewards for the length of a completion, in tokens."""

from collections.abc import Sequence
from typing import Any

from gvpo.errors import RewardError
from gvpo.rewards.base import RewardFunc


def token_cost(completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[float | None]:
    """Return minus 0.001 per token, including the stop token: a weight of 0.5 charges 0.5 for 1000 tokens.

    Args:
        completion_ids: k lists of token ids.
        columns: Not used.

    Returns:
        k values, at most 0.
    """
    return [-len(ids) / 1000 for ids in completion_ids]


def length_penalty(limit: int, margin: int, *, name: str = "length_penalty") -> RewardFunc:
    """Create a reward that falls from 0 to -1 over the last `margin` tokens before `limit`.

        0                              if C <= limit - margin
        (limit - margin - C) / margin  between
        -1                             if C >= limit

    >>> short = length_penalty(limit=10, margin=4)
    >>> short(completion_ids=[[0] * 6, [0] * 7, [0] * 12])
    [0.0, -0.25, -1.0]

    Args:
        limit: Number of tokens from which the full penalty applies, for example sampling's max_tokens.
        margin: Number of tokens over which the penalty grows.
        name: Name of the reward in metrics.

    Returns:
        The reward function.

    Raises:
        RewardError: Unless 0 < margin <= limit.

    Reference: the soft overlong punishment of DAPO (arXiv:2503.14476), eq. 13.
    """
    if not 0 < margin <= limit:
        raise RewardError(f"length_penalty: margin must be between 1 and limit, not {margin} with a limit of {limit}")

    def penalty(completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[float | None]:
        return [-min(max((len(ids) - limit + margin) / margin, 0.0), 1.0) + 0.0 for ids in completion_ids]

    penalty.__name__ = name
    return penalty
