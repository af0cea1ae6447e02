"""Answers with roles: chosen, strong negative, weak negative."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from gvpo.rollout.collect import Rollout, distinct
from gvpo.rollout.order import ShuffledOrder
from gvpo.rollout.preferences import Comparison
from gvpo.rollout.sources.base import StatelessSource
from gvpo.sampling.noise import noise_key, uniforms
from gvpo.types import Completion, Group

ROLE = "role"
"""Keyword of the objectives, in a completion's extras."""


class PreferenceSource(StatelessSource):
    """Rows with roles, in shuffled epochs over the comparisons that depend only on seed and step.

    Args:
        compared: Prompts and their rows.
        per_step: Number of prompts per step.
        seed: Random seed of the order and of the choice of positives.
        softmax: Whether to draw the positive by softmax(scores), with all other answers as strong negatives; otherwise
            the best answer is the positive, and answers with lower scores are the strong negatives.
    """

    def __init__(self, compared: Sequence[Comparison], per_step: int, seed: int, *, softmax: bool) -> None:
        self._compared, self._seed, self._softmax = list(compared), seed, softmax
        self._order = ShuffledOrder(range(len(compared)), per_step, seed)

    @property
    def groups(self) -> list[Group]:
        """Return every row that any step can train on: each prompt's answers, then its weak negatives."""
        return [each.group for each in self._compared]

    def replace(self, groups: Sequence[Group]) -> None:
        """Replace the rows by those of `groups`, which are the rows of `self.groups` with log-probs attached."""
        self._compared = [each.with_rows(group) for each, group in zip(self._compared, groups, strict=True)]

    def rollout(self, step: int) -> Rollout:
        """Return the groups of this step. There are no verdicts; scores only determine which answers are compared."""
        items = [self._compared[index] for index in self._order.at(step)]
        names = distinct([item.logged.group.id for item in items])
        groups = [self._with_roles(item, name, step) for item, name in zip(items, names, strict=True)]
        return Rollout(groups, [], [item.logged.problem for item in items])

    def _with_roles(self, item: Comparison, name: str, step: int) -> Group:
        answers = item.logged.group.completions
        scores = [row.reward or 0.0 for row in answers]
        if self._softmax:
            (drawn,) = uniforms([noise_key(self._seed, step, f"positive of {name}", 0)], 0, 1)
            chosen = drawn_by_softmax(scores, float(drawn[0]))
            strong = [place for place in range(len(answers)) if place != chosen]
        else:
            chosen = scores.index(max(scores))
            strong = [place for place, score in enumerate(scores) if score < scores[chosen]]
        rows = [_as(answers[chosen], "chosen"), *(_as(answers[place], "strong") for place in strong)]
        rows += [_as(row, "weak") for row in item.weak]
        return dataclasses.replace(item.logged.group, id=name, completions=rows)


def drawn_by_softmax(scores: Sequence[float], uniform: float) -> int:
    """Return the index that `uniform` in [0, 1) falls on if the indices share that interval by softmax(scores)."""
    weights = np.exp(np.asarray(scores) - max(scores))
    shares = np.cumsum(weights) / weights.sum()
    return min(int(np.searchsorted(shares, uniform, side="right")), len(scores) - 1)


def _as(row: Completion, role: str) -> Completion:
    return dataclasses.replace(row, extras={**row.extras, ROLE: role})
