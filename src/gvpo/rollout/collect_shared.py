"""`collect` on all ranks together."""

from collections.abc import Sequence
from typing import Any

from gvpo.rewards import RewardBatch, RewardPool
from gvpo.rollout.collect import EncodedProblem, Rollout, collect, distinct, rescored
from gvpo.rollout.pipeline import collect_streamed
from gvpo.sampling import Sampler, SamplingParams, is_concurrent, shares_model
from gvpo.types import Verdict
from gvpo.update.distributed import ranks


def collect_shared(
    items: Sequence[EncodedProblem],
    sampler: Sampler,
    params: SamplingParams,
    rewards: RewardPool,
    *,
    seed: int,
    step: int,
    names: Sequence[str] | None = None,
) -> Rollout:
    """Collect each rank's share of the problems, and return the whole rollout on every rank; see `collect`.

    The noise of a row depends on its group's name, not on the rank that samples it. Rewards that ask for whole batches
    or keep a state score the rows of all ranks on the first rank. If the sampler has its own weights, the first rank
    samples and scores all rows. If it does not compute in this process, groups are scored while others are sampled.
    """
    if is_concurrent(sampler) or (ranks.count() > 1 and not shares_model(sampler)):
        gather = collect_streamed if is_concurrent(sampler) else collect
        return ranks.on_first(lambda: gather(items, sampler, params, rewards, seed=seed, step=step, names=names))
    together = ranks.count() > 1 and rewards.scores_batches
    pool: Any = _Later() if together else rewards
    names = distinct([item.problem.id for item in items]) if names is None else names
    mine = slice(ranks.rank(), None, ranks.count())
    part = Rollout([], [], [])
    with ranks.together():
        if items[mine]:
            part = collect(items[mine], sampler, params, pool, seed=seed, step=step, names=names[mine])
    merged = _merged(ranks.gather(part), len(items))
    return ranks.on_first(lambda: rescored(merged, rewards)) if together else merged


class _Later:
    """A pool that gives no rewards yet."""

    first_failure = None

    def score(self, batches: Sequence[RewardBatch]) -> list[list[Verdict]]:
        return [[Verdict(None)] * len(batch) for batch in batches]


def _merged(parts: Sequence[Rollout], count: int) -> Rollout:
    """Merge the ranks' rollouts in the order of the problems; each phase has the duration of the slowest rank."""
    if len(parts) == 1:
        return parts[0]
    places = [(parts[index % len(parts)], index // len(parts)) for index in range(count)]
    return Rollout(
        [part.groups[place] for part, place in places],
        [part.verdicts[place] for part, place in places if part.verdicts],
        [part.problems[place] for part, place in places],
        {phase: max(part.seconds.get(phase, 0.0) for part in parts) for phase in parts[0].seconds},
        next((part.traceback for part in parts if part.traceback), ""),
    )
