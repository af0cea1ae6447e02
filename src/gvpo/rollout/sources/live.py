"""Groups that the live policy samples."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gvpo.rewards import RewardPool
from gvpo.rollout.collect import EncodedProblem, Rollout, distinct, joined, stamped
from gvpo.rollout.collect_shared import collect_shared
from gvpo.rollout.dynamic.curriculum import Curriculum
from gvpo.rollout.dynamic.dead import Replacement
from gvpo.rollout.given.mixture import Mixture
from gvpo.rollout.order import ShuffledOrder
from gvpo.rollout.sources.base import StatelessSource
from gvpo.rollout.sources.sampler_reference import Score, with_reference
from gvpo.sampling import Sampler, SamplingParams


class LiveSource(StatelessSource):
    """Groups sampled from the live policy and scored by the reward pool.

    It takes problems from a stream, and its position in the stream is part of its state. Without a stored position (a
    new run, or a checkpoint of an earlier version) it starts where a run is that takes `order.per_step` problems per
    step.

    Args:
        order: Problems in shuffled epochs.
        sampler: Sampler of the policy.
        params: Sampling parameters.
        rewards: Pool of reward workers.
        seed: Random seed of the run.
        mixture: Sources of the given rows of each group; None if all are live.
        score: Function whose log-probs become the reference of the rows, if later steps train on them.
        curriculum: Stream of problems that is used instead of the order.
        replacement: Replacement of dead groups by groups of the next problems; None if they are not replaced.
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
        curriculum: Curriculum | None = None,
        replacement: Replacement | None = None,
    ) -> None:
        self._order, self._sampler, self._params, self._rewards, self._seed = order, sampler, params, rewards, seed
        self._mixture, self._score, self._curriculum, self._replacement = mixture, score, curriculum, replacement
        self._position: int | None = None
        self._next: int | None = None  # the position after the latest rollout
        self._latest: Rollout | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the stream of problems, history, curriculum, and states of the stateful rewards."""
        states = self._rewards.state_dict()
        position = {} if self._position is None else {"position": self._position}
        return {**position, **self._kept(), **({"rewards": states} if states else {})}

    def _kept(self) -> dict[str, Any]:
        history = {} if self._mixture is None else self._mixture.state_dict()
        curriculum = {} if self._curriculum is None else {"curriculum": self._curriculum.state_dict()}
        return {**history, **curriculum}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the position, the history and the curriculum, and give stateful rewards their states back.

        Raises:
            CheckpointError: If the checkpoint was made with another source.
        """
        own = ("position", "rewards", *self._kept())
        super().load_state_dict({key: value for key, value in state.items() if key not in own})
        if self._mixture is not None:
            self._mixture.load_state_dict(state)
        if self._curriculum is not None and "curriculum" in state:
            self._curriculum.load_state_dict(state["curriculum"])
        self._position = state.get("position")
        self._rewards.load_state_dict(state.get("rewards", {}))

    def rollout(self, step: int, groups: int | None = None, *, version: int | None = None) -> Rollout:
        """Sample and score the next problems.

        Args:
            step: Number of the step, from 1, which determines the sampling noise.
            groups: Number of groups; by default `order.per_step`.
            version: Number of completed training steps of the policy; by default `step - 1`.
        """
        wanted = self._order.per_step if groups is None else groups
        first = self._order.position(step) if self._position is None else self._position
        parts: list[Rollout] = []
        drawn = 0
        for missing in self._missing(wanted, parts):
            parts.append(self._collect(first, drawn, missing, step))
            drawn += missing
        self._next = first + drawn
        found = stamped(joined(parts), step - 1 if version is None else version)
        self._latest = dataclasses.replace(found, metrics={**found.metrics, **self._metrics(drawn - wanted)})
        return self._latest if self._score is None else with_reference(self._latest, self._score)

    def _missing(self, wanted: int, parts: Sequence[Rollout]) -> Iterator[int]:
        """Yield how many groups to collect, and after each round how many dead ones to replace."""
        yield wanted
        if self._replacement is None:
            return
        for _ in range(self._replacement.rounds):
            missing = wanted - sum(map(self._replacement.dead.alive, parts))
            if missing == 0:
                return
            yield missing

    def _collect(self, first: int, drawn: int, count: int, step: int) -> Rollout:
        """Collect groups of `count` problems, after the `drawn` ones of the step's earlier rounds."""
        stream = self._order if self._curriculum is None else self._curriculum
        items = stream.draw(first, drawn + count)
        names = distinct([item.problem.id for item in items])
        collect = collect_shared if self._mixture is None else self._mixture.collect
        return collect(
            items[drawn:], self._sampler, self._params, self._rewards, seed=self._seed, step=step, names=names[drawn:]
        )

    def _metrics(self, replaced: int) -> dict[str, float]:
        accuracy = {} if self._curriculum is None else self._curriculum.metrics()
        return {**({} if self._replacement is None else {"groups/replaced": replaced}), **accuracy}

    def commit(self, step: int) -> None:
        """Move past the problems of the latest rollout, whose rows become history and whose accuracies are noted."""
        self._position = self._next
        if self._mixture is not None and self._latest is not None:
            self._mixture.note(self._latest, step)
        if self._curriculum is not None and self._latest is not None:
            self._curriculum.note(self._latest)
        self._latest = None
