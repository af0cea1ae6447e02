"""Where a step's groups come from, and which of their rows can be used."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from gvpo.rewards import RewardPool
from gvpo.rollout.collect import EncodedProblem, Rollout, collect, distinct
from gvpo.rollout.order import ShuffledOrder
from gvpo.sampling import Sampler, SamplingParams
from gvpo.types import Completion, Group
from gvpo.update.distributed import ranks

MAX_FAILED_SHARE = 0.5
"""More failed rewards than this in a rollout stop the run."""


class Source(Protocol):
    """Where a step's groups come from."""

    def rollout(self, step: int) -> Rollout:
        """The groups of step `step` (from 1); the same call gives the same groups while the weights are the same."""
        ...


class LiveSource:
    """Groups sampled from the live policy and scored by the reward pool."""

    def __init__(
        self,
        order: ShuffledOrder[EncodedProblem],
        sampler: Sampler,
        params: SamplingParams,
        rewards: RewardPool,
        *,
        seed: int,
    ) -> None:
        self._order, self._sampler, self._params, self._rewards, self._seed = order, sampler, params, rewards, seed

    def rollout(self, step: int) -> Rollout:
        """Sample and score the problems of this step."""
        items = self._order.at(step)
        return collect_shared(items, self._sampler, self._params, self._rewards, seed=self._seed, step=step)


def collect_shared(
    items: Sequence[EncodedProblem],
    sampler: Sampler,
    params: SamplingParams,
    rewards: RewardPool,
    *,
    seed: int,
    step: int,
) -> Rollout:
    """`collect`, each rank for its share of the problems; all of them get the whole.

    The noise of a row depends on its group's name, not on the rank that draws it.
    """
    names = distinct([item.problem.id for item in items])
    mine = slice(ranks.rank(), None, ranks.count())
    part = Rollout([], [], [])
    with ranks.together():
        if items[mine]:
            part = collect(items[mine], sampler, params, rewards, seed=seed, step=step, names=names[mine])
    return _merged(ranks.gather(part), len(items))


def _merged(parts: Sequence[Rollout], count: int) -> Rollout:
    """What the ranks collected, in the order of the problems; each phase took as long as the slowest."""
    if len(parts) == 1:
        return parts[0]
    places = [(parts[index % len(parts)], index // len(parts)) for index in range(count)]
    return Rollout(
        [part.groups[place] for part, place in places],
        [part.verdicts[place] for part, place in places],
        [part.problems[place] for part, place in places],
        {phase: max(part.seconds.get(phase, 0.0) for part in parts) for phase in parts[0].seconds},
        next((part.traceback for part in parts if part.traceback), ""),
    )


class DemonstrationSource:
    """Groups of one written answer each, for supervised training."""

    def __init__(self, order: ShuffledOrder[tuple[EncodedProblem, Completion]]) -> None:
        self._order = order

    def rollout(self, step: int) -> Rollout:
        """The demonstrations of this step."""
        items = self._order.at(step)
        groups = [Group(encoded.prompt, [answer], id=encoded.problem.id) for encoded, answer in items]
        return Rollout(groups, [], [encoded.problem for encoded, _ in items])


@dataclass(frozen=True)
class TrainingGroup:
    """A group's usable rows, and where they stood in the rollout.

    Args:
        group: the rows that are trained on.
        index: the group's position in the rollout.
        rows: each row's position in its group of the rollout.
    """

    group: Group
    index: int
    rows: tuple[int, ...]


def usable(groups: Sequence[Group], *, rewarded: bool, at_least: int) -> list[TrainingGroup]:
    """Drop the rows without a reward (k shrinks, means are recomputed later), then the groups left too small."""
    kept = []
    for index, group in enumerate(groups):
        rows = tuple(i for i, row in enumerate(group.completions) if row.reward is not None or not rewarded)
        if len(rows) >= at_least:
            smaller = dataclasses.replace(group, completions=[group.completions[i] for i in rows])
            kept.append(TrainingGroup(smaller, index, rows))
    return kept
