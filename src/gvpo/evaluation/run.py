"""Held-out evaluation: how often the policy is right, sampled and greedy."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from gvpo.rewards import RewardPool
from gvpo.rollout.collect import Collect, EncodedProblem, Rollout, collect
from gvpo.sampling import Sampler, SamplingParams
from gvpo.types import Problem

RIGHT = 0.5
"""An answer is right when the judging reward is above this."""


@dataclass(frozen=True)
class Evaluation:
    """Means over problems and samples; a reward that failed counts as wrong.

    Args:
        accuracy: share of right answers.
        reward: mean weighted reward of the rows that have one.
        length: mean tokens a completion.
        truncated: share of completions cut at the maximum length.
        rollout: the groups, to look at.
    """

    accuracy: float
    reward: float
    length: float
    truncated: float
    rollout: Rollout


def evaluate(
    problems: Sequence[EncodedProblem],
    sampler: Sampler,
    params: SamplingParams,
    rewards: RewardPool,
    *,
    judge: str,
    seed: int,
    collect: Collect = collect,
) -> Evaluation:
    """Sample `params.group_size` completions a problem and judge them.

    The noise depends on the seed and the problem alone, so two evaluations of a run are paired.

    Args:
        problems: held-out problems with their prompts.
        sampler: of the policy to evaluate.
        params: temperature 0 evaluates greedily.
        rewards: the pool; the reward named `judge` says what is right.
        judge: name of a reward function; right is above 0.5.
        seed: of the sampling noise.
        collect: what samples and judges; several processes share that work.
    """
    held_out = [dataclasses.replace(item, problem=_renamed(item)) for item in problems]
    rollout = collect(held_out, sampler, params, rewards, seed=seed, step=0)
    rows = [row for group in rollout.groups for row in group.completions]
    verdicts = [verdict for group in rollout.verdicts for verdict in group]
    return Evaluation(
        accuracy=fmean(is_right(verdict.parts.get(judge)) for verdict in verdicts),
        reward=fmean([row.reward for row in rows if row.reward is not None] or [0.0]),
        length=fmean(len(row.tokens) for row in rows),
        truncated=fmean(row.finish_reason == "length" for row in rows),
        rollout=rollout,
    )


def is_right(part: float | None) -> bool:
    """Whether the judging reward calls a completion right."""
    return part is not None and part > RIGHT


def _renamed(item: EncodedProblem) -> Problem:
    return dataclasses.replace(item.problem, id=f"eval/{item.problem.id}")
