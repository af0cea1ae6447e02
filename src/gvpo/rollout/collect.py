"""From problems to scored groups: the same code for training and evaluation.

problems ──▶ sampler ──▶ rewards ──▶ groups
"""

import dataclasses
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gvpo import activity
from gvpo.messages import with_opening
from gvpo.rewards import RewardBatch, RewardPool
from gvpo.rollout.usable import is_overlong
from gvpo.sampling import Request, Sampler, SamplingParams
from gvpo.types import Completion, Group, Message, Problem, Prompt, Verdict

LIVE = "live"
"""Source of rows that the policy samples in a step."""
WRITTEN = frozenset({"logged", "expert"})
"""Sources of rows that no policy of the run sampled, so that they have no version."""


@dataclass(frozen=True)
class EncodedProblem:
    """A problem with its prompt's token ids."""

    problem: Problem
    prompt: tuple[int, ...]


@dataclass(frozen=True)
class Rollout:
    """The groups of a step before filtering, including failed rows.

    Args:
        groups: Every group with every row.
        verdicts: Results of the rewards for each row; empty without rewards.
        problems: Problem of each group.
        seconds: Duration of each phase, "sampling" and "rewarding", and "environment", which is part of sampling.
        traceback: Traceback of the first reward that failed, if any.
        metrics: Further metrics of the step, from its source.
        fresh: Number of groups, from the first one, that were sampled for this step; None if all were.
    """

    groups: Sequence[Group]
    verdicts: Sequence[Sequence[Verdict]]
    problems: Sequence[Problem]
    seconds: Mapping[str, float] = field(default_factory=dict)
    traceback: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    fresh: int | None = None


class Collect(Protocol):
    """Function that samples a group for each problem and scores it; `seed` and `step` determine the sampling noise."""

    def __call__(
        self,
        items: Sequence[EncodedProblem],
        sampler: Sampler,
        params: SamplingParams,
        rewards: RewardPool,
        *,
        seed: int,
        step: int,
    ) -> Rollout:
        """Collect a rollout; see `gvpo.rollout.collect.collect`."""
        ...


def collect(
    items: Sequence[EncodedProblem],
    sampler: Sampler,
    params: SamplingParams,
    rewards: RewardPool,
    *,
    seed: int,
    step: int,
    names: Sequence[str] | None = None,
) -> Rollout:
    """Sample a group for each problem and score it; `seed` and `step` determine the sampling noise.

    Args:
        items: Problems.
        sampler: Sampler of the policy.
        params: Sampling parameters.
        rewards: Pool of reward workers.
        seed: Random seed of the run.
        step: Number of the rollout.
        names: Distinct names of the groups, one per problem; by default the problems' own, made distinct.
    """
    names = distinct([item.problem.id for item in items]) if names is None else names
    requests = [Request(name, item.prompt, problem=item.problem) for name, item in zip(names, items, strict=True)]
    started, waited = time.perf_counter(), Waiting(sampler)
    with activity.phase("sampling"):
        sampled = sampler.sample(requests, params, seed=seed, step=step)
    seconds = time.perf_counter() - started
    found = scored(items, sampled, rewards, names=names, sampling=seconds)
    return dataclasses.replace(found, seconds={**found.seconds, **waited.seconds()})


class Waiting:
    """The time that a sampler of episodes waits for environments from now on; other samplers do not wait."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler, self._before = sampler, getattr(sampler, "waited", 0.0)

    def seconds(self) -> dict[str, float]:
        """Return the seconds so far as the phase "environment"; {} for other samplers."""
        now = getattr(self._sampler, "waited", None)
        return {} if now is None else {"environment": now - self._before}


def scored(
    items: Sequence[EncodedProblem],
    sampled: Sequence[Sequence[Completion]],
    rewards: RewardPool,
    *,
    names: Sequence[str],
    sampling: float,
) -> Rollout:
    """Score the completions of some problems.

    Args:
        items: Problems.
        sampled: Completions of each problem.
        rewards: Pool of reward workers.
        names: Distinct names of the groups, one per problem.
        sampling: Duration of the sampling, in seconds.
    """
    started = time.perf_counter()
    with activity.phase("rewards"):
        verdicts = rewards.score([reward_batch(i.problem, rows) for i, rows in zip(items, sampled, strict=True)])
    if verdicts:  # there are none without rewards
        sampled = [_rewarded(rows, judged) for rows, judged in zip(sampled, verdicts, strict=True)]
    groups = [
        Group(prompt_of(item, rows), rows, id=name, columns=item.problem.columns)
        for item, name, rows in zip(items, names, sampled, strict=True)
    ]
    seconds = {"sampling": sampling, "rewarding": time.perf_counter() - started}
    failure = rewards.first_failure
    traceback = failure.traceback if failure is not None else ""
    return Rollout(groups, verdicts, [item.problem for item in items], seconds, traceback)


def prompt_of(item: EncodedProblem, rows: Sequence[Completion]) -> Sequence[int]:
    """Return the token ids of a group's prompt, with what an environment added to it."""
    return next((row.prompt for row in rows if row.prompt is not None), item.prompt)


def joined(parts: Sequence[Rollout]) -> Rollout:
    """Return rollouts of the same step as one: groups in order, durations and metrics added up."""
    if len(parts) == 1:
        return parts[0]
    return Rollout(
        [group for part in parts for group in part.groups],
        [verdicts for part in parts for verdicts in part.verdicts],
        [problem for part in parts for problem in part.problems],
        _sums([part.seconds for part in parts]),
        next((part.traceback for part in parts if part.traceback), ""),
        _sums([part.metrics for part in parts]),
    )


def _sums(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {
        key: sum(part.get(key, 0.0) for part in parts) for key in dict.fromkeys(key for part in parts for key in part)
    }


def stamped(rollout: Rollout, version: int) -> Rollout:
    """Return a rollout whose sampled rows have a version; a version that the sampler set stays."""
    groups = [
        dataclasses.replace(group, completions=[_stamped(row, version) for row in group.completions])
        for group in rollout.groups
    ]
    return dataclasses.replace(rollout, groups=groups)


def _stamped(row: Completion, version: int) -> Completion:
    is_known = row.version is not None or row.source in WRITTEN
    return row if is_known else dataclasses.replace(row, version=version)


def rescored(rollout: Rollout, rewards: RewardPool) -> Rollout:
    """Return a rollout with the verdicts of another pool."""
    started = time.perf_counter()
    judged = zip(rollout.problems, rollout.groups, strict=True)
    verdicts = rewards.score([reward_batch(problem, group.completions) for problem, group in judged])
    groups = [
        dataclasses.replace(group, completions=_rewarded(group.completions, row))
        for group, row in zip(rollout.groups, verdicts, strict=True)
    ]
    seconds = {**rollout.seconds, "rewarding": time.perf_counter() - started}
    failure = rewards.first_failure
    return Rollout(groups, verdicts, rollout.problems, seconds, failure.traceback if failure is not None else "")


def reward_batch(problem: Problem, rows: Sequence[Completion]) -> RewardBatch:
    """Return a group as the arguments of reward functions (TRL's signature)."""
    chat = not isinstance(problem.prompt, str)
    return RewardBatch(
        prompt=_opened(problem.prompt, rows),
        completions=[_messages(row) if chat else row.text or "" for row in rows],
        columns=problem.columns,
        completion_ids=[list(row.tokens) for row in rows],
        turns=[row.turns for row in rows] if any(row.turns for row in rows) else (),
    )


def _opened(prompt: Prompt, rows: Sequence[Completion]) -> Prompt:
    """Return a prompt in its readable form, with what an environment added to it."""
    opening = next((row.opening for row in rows if row.opening), "")
    return with_opening(prompt, opening) if opening else prompt


def _messages(row: Completion) -> list[Message]:
    """Return a row as messages: one of the assistant, or those of an episode in order."""
    if not row.turns:
        return [{"role": "assistant", "content": row.text or ""}]
    return [message for turn in row.turns for message in ({"role": "assistant", "content": turn.text}, *turn.heard)]


def _rewarded(rows: Sequence[Completion], verdicts: Sequence[Verdict]) -> list[Completion]:
    return [dataclasses.replace(row, reward=verdict.reward) for row, verdict in zip(rows, verdicts, strict=True)]


def distinct(names: Sequence[str]) -> list[str]:
    """Make names distinct, so that a problem that occurs twice in a step has two groups with different noise."""
    taken = set(names)
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        own = name
        while seen[name] > 1 and own in taken:
            own = f"{name}#{seen[name]}"
            seen[name] += own in taken
        taken.add(own)
        unique.append(own)
    return unique


def failures(rollout: Rollout, overlong: str = "keep") -> str:
    """Return the most frequent reasons why rows cannot be trained on, and the first reason in full, for messages.

    Args:
        rollout: Groups with their verdicts.
        overlong: Treatment of completions without an end, `train.overlong_completions`.
    """
    cut = sum(is_overlong(row) for group in rollout.groups for row in group.completions)
    if overlong != "keep" and cut:
        return f"{cut} rows reached the maximum length, and train.overlong_completions is {overlong!r}"
    failed = [verdict for group in rollout.verdicts for verdict in group if verdict.reward is None]
    reasons = Counter(verdict.reason.partition(":")[0] for verdict in failed)
    kinds = ", ".join(f"{reason} ({count} rows)" for reason, count in reasons.most_common(3))
    return f"{kinds}; the first is {failed[0].reason}" if failed else kinds
