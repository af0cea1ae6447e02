"""Groups that were logged."""

from gvpo.rollout.collect import Rollout, distinct
from gvpo.rollout.logged_groups import LoggedGroup
from gvpo.rollout.order import ShuffledOrder
from gvpo.rollout.sources.base import StatelessSource


class OfflineSource(StatelessSource):
    """Groups that were logged, in shuffled epochs that depend only on seed and step."""

    def __init__(self, order: ShuffledOrder[LoggedGroup]) -> None:
        self._order = order

    def rollout(self, step: int) -> Rollout:
        """Return the logged groups of this step, with their rewards."""
        items = self._order.at(step)
        names = distinct([item.group.id for item in items])
        groups = [item.named(name).group for item, name in zip(items, names, strict=True)]
        return Rollout(groups, [item.verdicts for item in items], [item.problem for item in items])
