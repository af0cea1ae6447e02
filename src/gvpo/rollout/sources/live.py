"""Groups that the live policy samples."""

from collections.abc import Mapping
from typing import Any

from gvpo.rewards import RewardPool
from gvpo.rollout.collect import EncodedProblem, Rollout, stamped
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

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the stateful rewards, which are all that steps leave behind."""
        states = self._rewards.state_dict()
        return {"rewards": states} if states else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Give the stateful rewards their states back.

        Raises:
            CheckpointError: If the checkpoint was made with another source.
        """
        super().load_state_dict({key: value for key, value in state.items() if key != "rewards"})
        self._rewards.load_state_dict(state.get("rewards", {}))

    def rollout(self, step: int) -> Rollout:
        """Sample and score the problems of this step."""
        items = self._order.at(step)
        found = collect_shared(items, self._sampler, self._params, self._rewards, seed=self._seed, step=step)
        return stamped(found, step - 1)
