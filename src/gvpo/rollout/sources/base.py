"""The protocol of sources: where the groups of each step come from, and what a checkpoint keeps of a source.

    rollout(t) ──▶ updates of step t ──▶ commit(t) ──▶ rollout(t + 1) ...
                                             └─▶ state_dict(), where a checkpoint of step t is due

A resumed run gives the newest checkpoint's state to `load_state_dict`, and calls `rollout` with the step after it.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from gvpo.errors import CheckpointError
from gvpo.rollout.collect import Rollout


class Source(Protocol):
    """Gives the groups of each step.

    On several ranks each rank has a source of its own. All of them get the same calls in the same order, return the
    same groups, and have the same state; the first rank's state is stored.
    """

    def rollout(self, step: int) -> Rollout:
        """Return the groups of step `step`, counted from 1.

        The weights are those after step `step - 1`. Until `commit(step)`, the same call gives the same groups: nothing
        is consumed here.

        Raises:
            GvpoError: there are no groups to give; the run ends, and can be resumed.
        """
        ...

    def commit(self, step: int) -> None:
        """Take note that the updates of step `step` are done: what its rollout consumed may be dropped.

        It is called once per step, also where no group of the step could be trained on.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return all that `rollout` needs besides settings, data and weights to continue after the last `commit`.

        Returns:
            Numbers, strings, None and tensors, in lists and dictionaries, so that `torch.load(weights_only=True)` reads
            it back. An empty one is not stored.
        """
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was called. It comes before the first `rollout` of a resumed run.

        Args:
            state: what `state_dict` returned; {} where the checkpoint has none.

        Raises:
            CheckpointError: the state is not one of this source.
        """
        ...

    def close(self) -> None:
        """Release files, threads and connections. It is called once, after the last step or an error."""
        ...


class StatelessSource(Source):
    """Base of the sources whose groups are a function of the step and the weights, and which own nothing to release."""

    def commit(self, step: int) -> None:
        """Do nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Return {}: the step says it all."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Accept {} only.

        Raises:
            CheckpointError: the checkpoint was made with a source that has a state.
        """
        if state:
            raise CheckpointError(
                f"the checkpoint has the state of another source of groups than {type(self).__name__}; resume the run "
                "with the version and the settings that it was started with"
            )

    def close(self) -> None:
        """Do nothing."""
