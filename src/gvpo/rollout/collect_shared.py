"""`collect` on all ranks together."""

from collections.abc import Sequence

from gvpo.rewards import RewardPool
from gvpo.rollout.collect import EncodedProblem, Rollout, collect, distinct
from gvpo.sampling import Sampler, SamplingParams
from gvpo.update.distributed import ranks


def collect_shared(
    items: Sequence[EncodedProblem],
    sampler: Sampler,
    params: SamplingParams,
    rewards: RewardPool,
    *,
    seed: int,
    step: int,
) -> Rollout:
    """Collect each rank's share of the problems, and return the whole rollout on every rank.

    The noise of a row depends on its group's name, not on the rank that samples it.
    """
    names = distinct([item.problem.id for item in items])
    mine = slice(ranks.rank(), None, ranks.count())
    part = Rollout([], [], [])
    with ranks.together():
        if items[mine]:
            part = collect(items[mine], sampler, params, rewards, seed=seed, step=step, names=names[mine])
    return _merged(ranks.gather(part), len(items))


def _merged(parts: Sequence[Rollout], count: int) -> Rollout:
    """Merge the ranks' rollouts in the order of the problems; each phase has the duration of the slowest rank."""
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
