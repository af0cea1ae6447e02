"""Column addition: the fraction of correct steps, and a cost for a wrong or missing step."""

from collections.abc import Sequence
from typing import Any

from gvpo.rewards.base import Answer, completion_text


def addition_steps(completions: Sequence[Answer], steps: Sequence[Sequence[str]], **columns: Any) -> list[float | None]:
    """Return the fraction of `steps` that the completion has on the correct line; later lines do not count.

    Args:
        completions: k completions with one step per line.
        steps: k lists of correct lines, `["9+6+0=15", "8+3+1=12", ...]`; None or an empty list abstains.
        columns: Not used.

    Returns:
        k values in [0, 1], or None.
    """
    return [
        _share(completion_text(completion).splitlines(), right) if right else None
        for completion, right in zip(completions, steps, strict=True)
    ]


def addition_slip(completions: Sequence[Answer], steps: Sequence[Sequence[str]], **columns: Any) -> list[float | None]:
    """Return a cost for `constrained_grpo`: 1 if a step is wrong or missing, else 0. See `addition_steps`."""
    shares = addition_steps(completions, steps)
    return [None if share is None else float(share < 1) for share in shares]


def _share(written: Sequence[str], right: Sequence[str]) -> float:
    return sum(a.strip() == b for a, b in zip(written, right, strict=False)) / len(right)
