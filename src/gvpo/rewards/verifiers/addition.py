"""Column addition: how much of the chain is right, and whether all of it is."""

from collections.abc import Sequence
from typing import Any

from gvpo.rewards.base import Answer, completion_text


def addition_steps(completions: Sequence[Answer], steps: Sequence[Sequence[str]], **columns: Any) -> list[float | None]:
    """The share of `steps` that stand in the completion at their place; lines after them do not count.

    Args:
        completions: k completions, a step a line.
        steps: k lists of the right lines, `["9+6+0=15", "8+3+1=12", ...]`; None or none abstains.
        columns: not used.

    Returns:
        k values in [0, 1], or None.
    """
    return [
        _share(completion_text(completion).splitlines(), right) if right else None
        for completion, right in zip(completions, steps, strict=True)
    ]


def addition_slip(completions: Sequence[Answer], steps: Sequence[Sequence[str]], **columns: Any) -> list[float | None]:
    """1 where a step is wrong or missing, else 0: a cost, for `constrained_grpo`. Arguments as `addition_steps`."""
    shares = addition_steps(completions, steps)
    return [None if share is None else float(share < 1) for share in shares]


def _share(written: Sequence[str], right: Sequence[str]) -> float:
    return sum(a.strip() == b for a, b in zip(written, right, strict=False)) / len(right)
