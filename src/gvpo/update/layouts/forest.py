"""The attention structure of a lane of `Trees`: prompts, and the completions that continue them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tree:
    """The positions of a prompt and its completions in a lane.

    Args:
        start: First position of the prompt.
        prompt: Number of tokens of the prompt.
        rows: Number of tokens of each completion. Completions follow the prompt, and each other, without a gap.
    """

    start: int
    prompt: int
    rows: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Forest:
    """The trees of a lane, in order, without a gap, and data that a kernel derives from them, cached for all layers."""

    trees: tuple[Tree, ...]
    made: dict[Any, Any] = field(default_factory=dict, repr=False)

    def places(self) -> tuple[list[int], list[int], list[int]]:
        """Return three values for each position: its tree, its owner (0 for the prompt), and its position id."""
        tree, owner, position = list[int](), list[int](), list[int]()
        for number, each in enumerate(self.trees):
            for whose, length in enumerate((each.prompt, *each.rows)):
                first = 0 if whose == 0 else each.prompt
                tree += [number] * length
                owner += [whose] * length
                position += range(first, first + length)
        return tree, owner, position

    def visible(self, window: int | None, device: torch.device) -> Callable[..., Tensor]:
        """Return the function of (batch, head, query, key) that decides which keys a query attends to.

        Args:
            window: Number of tokens that a query attends to, including itself; None for all.
            device: Device of the positions.
        """
        tree, owner, position = (torch.tensor(values, device=device) for values in self.places())

        def visible(batch: Any, head: Any, q: Tensor, k: Tensor) -> Tensor:
            ancestor = (tree[q] == tree[k]) & ((owner[k] == 0) | (owner[q] == owner[k])) & (q >= k)
            return ancestor if window is None else ancestor & (position[q] - position[k] < window)

        return visible
