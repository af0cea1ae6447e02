"""A curriculum: prompts whose running accuracy is near a target are drawn more often."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gvpo.errors import CheckpointError, DataError
from gvpo.rollout.collect import LIVE, EncodedProblem, Rollout
from gvpo.rollout.order import NOTHING
from gvpo.sampling.noise import noise_key
from gvpo.types import is_right

RATE = 0.5
"""Weight of a prompt's newest group in its running accuracy."""
CERTAIN = 1e-3
"""Smallest distance of a running accuracy from 0 and 1 in the weights, so that every prompt can still be drawn."""


class Curriculum:
    """A stream of prompts that are drawn by their running accuracy, without repetition within a step.

    A prompt with the running accuracy p has the weight exp(-KL(target || p)) of two Bernoulli distributions. It is 1 at
    the target; at a target of 0.5 it is 2 sqrt(p (1 - p)), which is proportional to the standard deviation of a 0/1
    reward. A prompt that was not drawn yet has the weight 1. Prompts with the same value of a column, such as a level
    of difficulty, can share one running accuracy.

    Args:
        items: Prompts to draw from, at least one.
        seed: Random seed of the draws.
        target: Accuracy of the prompts that are drawn most often, between 0 and 1.
        judge: Name of the reward function that decides whether a completion is correct.
        by: Column whose values share a running accuracy; None gives each prompt its own.

    Raises:
        DataError: If there are no prompts, or one has no such column.
    """

    def __init__(
        self, items: Sequence[EncodedProblem], seed: int, *, target: float, judge: str, by: str | None = None
    ) -> None:
        if not items:
            raise DataError(NOTHING)
        self._items, self._seed, self._target, self._judge = items, seed, target, judge
        keys = [item.problem.id if by is None else _value(item, by) for item in items]
        cells = {key: cell for cell, key in enumerate(dict.fromkeys(keys))}
        self._cells = np.array([cells[key] for key in keys])
        self._places = {item.problem.id: cells[key] for item, key in zip(items, keys, strict=True)}
        self._accuracy = np.full(len(cells), np.nan)

    def draw(self, first: int, count: int) -> list[EncodedProblem]:
        """Return `count` prompts, which depend on the accuracies so far, the seed and `first`.

        A longer draw with the same `first` begins with the same prompts. A draw of more prompts than there are repeats
        them in the same order.

        Args:
            first: Number of prompts that were drawn in earlier steps.
            count: Number of prompts.
        """
        key = noise_key(self._seed, first, "curriculum", 0)
        uniform = np.random.Generator(np.random.Philox(key=key)).random(len(self._items))
        order = np.argsort(-np.log1p(-uniform) / self.weights(), kind="stable")  # an exponential race
        return [self._items[int(order[place % len(order)])] for place in range(count)]

    def weights(self) -> NDArray[np.float64]:
        """Return the weight of each prompt in (0, 1]."""
        p = np.clip(np.where(np.isnan(self._accuracy), self._target, self._accuracy), CERTAIN, 1 - CERTAIN)
        t = self._target
        of_cells = np.exp(-(t * np.log(t / p) + (1 - t) * np.log((1 - t) / (1 - p))))
        weights: NDArray[np.float64] = of_cells[self._cells]
        return weights

    def note(self, rollout: Rollout) -> None:
        """Update the running accuracy of each prompt of a finished step.

        Only live rows with a reward count: given rows do not show what the policy can do.
        """
        for problem, group, verdicts in zip(rollout.problems, rollout.groups, rollout.verdicts, strict=True):
            judged = zip(group.completions, verdicts, strict=True)
            live = [verdict for row, verdict in judged if row.source == LIVE and verdict.reward is not None]
            right = [is_right(verdict.parts.get(self._judge)) for verdict in live]
            if right and problem.id in self._places:
                self._note(self._places[problem.id], sum(right) / len(right))

    def _note(self, place: int, measured: float) -> None:
        before = self._accuracy[place]
        self._accuracy[place] = measured if np.isnan(before) else before + RATE * (measured - before)

    def metrics(self) -> dict[str, float]:
        """Return `curriculum/accuracy`, the mean running accuracy of the prompts drawn so far; {} before the first."""
        known = self._accuracy[~np.isnan(self._accuracy)]
        return {"curriculum/accuracy": float(known.mean())} if known.size else {}

    def state_dict(self) -> dict[str, Any]:
        """Return the running accuracies, [N] float64 with NaN for prompts or values that were not drawn yet."""
        return {"accuracy": torch.from_numpy(self._accuracy.copy())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the accuracies that `state_dict` returned.

        Raises:
            CheckpointError: If they belong to another number of prompts.
        """
        found = state["accuracy"].numpy()
        if found.shape != self._accuracy.shape:
            raise CheckpointError(
                f"the checkpoint's curriculum has {len(found)} prompts, and the data has {len(self._accuracy)}; resume "
                "the run with the data that it was started with"
            )
        self._accuracy = found.copy()


def _value(item: EncodedProblem, column: str) -> str:
    if column not in item.problem.columns:
        raise DataError(
            f"rollout.curriculum_by={column!r}: the prompt {item.problem.id!r} has no such column; add it, or unset "
            "the setting for one running accuracy per prompt"
        )
    return str(item.problem.columns[column])
