"""The protocol of sources, which provide the groups of each step, and their state in checkpoints.

    rollout(t) ──▶ updates of step t ──▶ commit(t) ──▶ rollout(t + 1) ...
                                             └─▶ state_dict(), if a checkpoint of step t is due

A resumed run passes the latest checkpoint's state to `load_state_dict`, and calls `rollout` with the step after it.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from gvpo.errors import CheckpointError
from gvpo.rollout.collect import Rollout


class Source(Protocol):
    """A source of the groups of each step.

    On several ranks each rank has its own source. All of them receive the same calls in the same order, return the same
    groups, and have the same state; the first rank's state is stored.
    """

    def rollout(self, step: int) -> Rollout:
        """Return the groups of step `step`, counted from 1.

        The weights are those after step `step - 1`. Until `commit(step)`, the same call returns the same groups, so
        nothing is consumed here.

        Raises:
            GvpoError: If there are no groups to return; the run ends, and can be resumed.
        """
        ...

    def commit(self, step: int) -> None:
        """Record that the updates of step `step` are done, so that its consumed data may be dropped.

        It is called once per step, even if no group of the step could be trained on.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the state, besides settings, data and weights, that `rollout` needs after the last `commit`.

        Returns:
            Numbers, strings, None and tensors, in lists and dictionaries, so that `torch.load(weights_only=True)` can
            read them. An empty dictionary is not stored.
        """
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state that `state_dict` returned. It is called before the first `rollout` of a resumed run.

        Args:
            state: Result of `state_dict`; {} if the checkpoint has none.

        Raises:
            CheckpointError: If the state does not belong to this source.
        """
        ...

    def close(self) -> None:
        """Release files, threads and connections. It is called once, after the last step or an error."""
        ...


class StatelessSource(Source):
    """Base of the sources whose groups depend only on the step and the weights, and which have nothing to release."""

    def commit(self, step: int) -> None:
        """Do nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Return {}, because the step determines the groups."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Accept only {}.

        Raises:
            CheckpointError: If the checkpoint was made with a source that has a state.
        """
        if state:
            raise CheckpointError(
                f"the checkpoint has the state of another source of groups than {type(self).__name__}; resume the run "
                "with the version and the settings that it was started with"
            )

    def close(self) -> None:
        """Do nothing."""
