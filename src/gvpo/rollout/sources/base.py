"""The protocol of sources."""

from typing import Protocol

from gvpo.rollout.collect import Rollout


class Source(Protocol):
    """Where a step's groups come from."""

    def rollout(self, step: int) -> Rollout:
        """The groups of step `step` (from 1); the same call gives the same groups while the weights are the same."""
        ...
