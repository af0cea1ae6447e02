"""Groups that the live policy samples."""

from collections.abc import Mapping
from typing import Any

from gvpo.rewards import RewardPool
from gvpo.rollout.collect import EncodedProblem, Rollout, stamped
from gvpo.rollout.collect_shared import collect_shared
from gvpo.rollout.given.mixture import Mixture
from gvpo.rollout.order import ShuffledOrder
from gvpo.rollout.sources.base import StatelessSource
from gvpo.rollout.sources.sampler_reference import Score, with_reference
from gvpo.sampling import Sampler, SamplingParams


class LiveSource(StatelessSource):
    """Groups sampled from the live policy and scored by the reward pool; with a mixture, some of their rows are given.

    It takes problems from a stream, and its position in the stream is part of its state. Without a stored position (a
    new run, or a checkpoint of an earlier version) it starts where a run is that takes `order.per_step` problems per
    step.

    Args:
        order: Stream of problems.
        sampler: Sampler of the policy.
        params: Sampling parameters.
        rewards: Pool of reward workers.
        seed: Random seed of the run.
        mixture: Sources of the given rows of each group.
        score: Function whose log-probs become the reference of the rows, if later steps train on them.
    """

    def __init__(
        self,
        order: ShuffledOrder[EncodedProblem],
        sampler: Sampler,
        params: SamplingParams,
        rewards: RewardPool,
        *,
        seed: int,
        mixture: Mixture | None = None,
        score: Score | None = None,
    ) -> None:
        self._order, self._sampler, self._params, self._rewards, self._seed = order, sampler, params, rewards, seed
        self._mixture, self._score = mixture, score
        self._position: int | None = None
        self._next: int | None = None  # the position after the latest rollout
        self._latest: Rollout | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the stream of problems, the history, and the states of the stateful rewards."""
        states = self._rewards.state_dict()
        position = {} if self._position is None else {"position": self._position}
        history = {} if self._mixture is None else self._mixture.state_dict()
        return {**position, **history, **({"rewards": states} if states else {})}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the position and the history, and give the stateful rewards their states back.

        Raises:
            CheckpointError: If the checkpoint was made with another source.
        """
        own = ("position", "rewards", *(() if self._mixture is None else self._mixture.state_dict()))
        super().load_state_dict({key: value for key, value in state.items() if key not in own})
        if self._mixture is not None:
            self._mixture.load_state_dict(state)
        self._position = state.get("position")
        self._rewards.load_state_dict(state.get("rewards", {}))

    def rollout(self, step: int, groups: int | None = None, *, version: int | None = None) -> Rollout:
        """Sample and score the next problems.

        Args:
            step: Number of the step, from 1, which determines the sampling noise.
            groups: Number of groups; by default `order.per_step`.
            version: Number of completed training steps of the policy; by default `step - 1`.
        """
        count = self._order.per_step if groups is None else groups
        first = self._order.position(step) if self._position is None else self._position
        self._next = first + count
        items = self._order.draw(first, count)
        collect = collect_shared if self._mixture is None else self._mixture.collect
        found = collect(items, self._sampler, self._params, self._rewards, seed=self._seed, step=step)
        self._latest = stamped(found, step - 1 if version is None else version)
        return self._latest if self._score is None else with_reference(self._latest, self._score)

    def commit(self, step: int) -> None:
        """Move past the problems of the latest rollout, whose rows become history."""
        self._position = self._next
        if self._mixture is not None and self._latest is not None:
            self._mixture.note(self._latest, step)
        self._latest = None
