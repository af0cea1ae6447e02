"""Groups that the live policy samples."""

from gvpo.rewards import RewardPool
from gvpo.rollout.collect import EncodedProblem, Rollout
from gvpo.rollout.collect_shared import collect_shared
from gvpo.rollout.order import ShuffledOrder
from gvpo.rollout.sources.base import StatelessSource
from gvpo.sampling import Sampler, SamplingParams


class LiveSource(StatelessSource):
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
