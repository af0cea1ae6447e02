"""Held-out evaluation: the fraction of the policy's answers that are correct, sampled and greedy."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from gvpo import activity
from gvpo.rewards import RewardPool
from gvpo.rollout.collect import Collect, EncodedProblem, Rollout, collect
from gvpo.rollout.usable import is_overlong
from gvpo.sampling import Sampler, SamplingParams
from gvpo.types import Problem, is_right

"""An answer is correct if the deciding reward is above this."""


@dataclass(frozen=True)
class Evaluation:
    """Means over problems and samples; a completion whose reward failed counts as incorrect.

    Args:
        accuracy: Fraction of correct answers.
        reward: Mean weighted reward of the rows that have one.
        length: Mean number of tokens per completion.
        truncated: Fraction of completions truncated at the maximum length.
        rollout: The groups, for inspection.
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
    """Sample `params.group_size` completions per problem and score them.

    The noise depends only on the seed and the problem, so two evaluations of a run are paired. Rewards with a state
    have the same state afterwards.

    Args:
        problems: Held-out problems with their prompts.
        sampler: Sampler of the policy to evaluate.
        params: Sampling parameters; temperature 0 evaluates greedily.
        rewards: The reward pool; its reward `judge` decides which answers are correct.
        judge: Name of a reward function; an answer is correct if this reward is above 0.5.
        seed: Random seed of the sampling noise.
        collect: Function that samples and scores; several processes can share that work.
    """
    held_out = [dataclasses.replace(item, problem=_renamed(item)) for item in problems]
    with activity.phase("held-out evaluation"), rewards.unchanged():
        rollout = collect(held_out, sampler, params, rewards, seed=seed, step=0)
    rows = [row for group in rollout.groups for row in group.completions]
    verdicts = [verdict for group in rollout.verdicts for verdict in group]
    return Evaluation(
        accuracy=fmean(is_right(verdict.parts.get(judge)) for verdict in verdicts),
        reward=fmean([row.reward for row in rows if row.reward is not None] or [0.0]),
        length=fmean(len(row.tokens) for row in rows),
        truncated=fmean(is_overlong(row) for row in rows),
        rollout=rollout,
    )


def _renamed(item: EncodedProblem) -> Problem:
    return dataclasses.replace(item.problem, id=f"eval/{item.problem.id}")
