"""Groups of one written answer each, for supervised training."""

from gvpo.rollout.collect import EncodedProblem, Rollout
from gvpo.rollout.order import ShuffledOrder
from gvpo.rollout.sources.base import StatelessSource
from gvpo.types import Completion, Group


class DemonstrationSource(StatelessSource):
    """Groups of one written answer each, for supervised training."""

    def __init__(self, order: ShuffledOrder[tuple[EncodedProblem, Completion]]) -> None:
        self._order = order

    def rollout(self, step: int) -> Rollout:
        """Return the demonstrations of this step."""
        items = self._order.at(step)
        groups = [Group(encoded.prompt, [answer], id=encoded.problem.id) for encoded, answer in items]
        return Rollout(groups, [], [encoded.problem for encoded, _ in items])
