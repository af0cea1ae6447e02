"""Groups that an older policy sampled: a queue of rollouts that are sampled a fixed number of steps ahead.

    step t:   policy after step t - 1 ──samples──▶ rollout of step t + n ──▶ queue ──▶ rollout of step t

A rollout has the problems and the noise of the step that trains on it, so that only the policy differs from a live run.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from gvpo.errors import CheckpointError
from gvpo.rollout.collect import Rollout
from gvpo.rollout.packed import Problems, pack_rollout, unpack_rollout
from gvpo.rollout.sources.base import Source
from gvpo.rollout.sources.live import LiveSource


class StaleSource(Source):
    """Groups that the policy sampled `staleness` steps before; in the first steps, the starting policy did.

    Rollouts are sampled ahead up to the end of the run and beyond it, so that a run that is extended has the same
    groups as one that was planned longer.

    Args:
        live: Source that samples.
        staleness: Number of steps between the policy that samples and the one that is trained.
        problems: Problems of the run, which stored rollouts refer to.
    """

    def __init__(self, live: LiveSource, staleness: int, problems: Problems) -> None:
        self._live, self._staleness, self._problems = live, staleness, problems
        self._ahead: dict[int, Rollout] = {}

    def rollout(self, step: int) -> Rollout:
        """Return the groups of this step, after the policy has sampled those of step `step + staleness`.

        The durations are those of the sampling that this step did.
        """
        missing = [later for later in range(step, step + self._staleness + 1) if later not in self._ahead]
        sampled = [self._sample(later, step - 1) for later in missing]
        self._ahead |= dict(zip(missing, sampled, strict=True))
        phases = {phase for each in sampled for phase in each.seconds}
        seconds = {phase: sum(each.seconds.get(phase, 0.0) for each in sampled) for phase in sorted(phases)}
        return dataclasses.replace(self._ahead[step], seconds=seconds)

    def _sample(self, step: int, version: int) -> Rollout:
        rollout = self._live.rollout(step, version=version)
        self._live.commit(step)
        return rollout

    def commit(self, step: int) -> None:
        """Drop the groups of the step."""
        del self._ahead[step]

    def state_dict(self) -> dict[str, Any]:
        """Return the rollouts that were sampled ahead by their step, and the state of the live source."""
        ahead = {str(step): pack_rollout(rollout) for step, rollout in self._ahead.items()}
        return {**self._live.state_dict(), "ahead": ahead}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with the rollouts that were sampled ahead.

        Raises:
            CheckpointError: If there are none, or the data does not contain their problems.
        """
        if "ahead" not in state:
            raise CheckpointError(
                "the checkpoint has no groups that were sampled ahead; resume the run with the rollout.staleness that "
                "it was started with"
            )
        self._ahead = {int(step): unpack_rollout(each, self._problems) for step, each in state["ahead"].items()}
        self._live.load_state_dict({key: value for key, value in state.items() if key != "ahead"})

    def close(self) -> None:
        """Close the live source."""
        self._live.close()
