"""The router loss of a mixture of experts: a second channel next to the objective, exact under any split.

    loss = coefficient * mean over layers of  E sum_e f_e p_e        (`gvpo.update.experts.load_balance`)

f, the fraction of tokens per expert, has no gradient and is computed over the whole batch. Given f, the loss is linear
in the probabilities. The score pass therefore counts f, over all micro-batches and ranks, and each push adds its part.
"""

from dataclasses import replace

from torch import nn

from gvpo.errors import ConfigError
from gvpo.update.coefficients import ObjectiveGradient
from gvpo.update.distributed import ranks
from gvpo.update.distributed.ranks import RankBatch
from gvpo.update.experts.load_balance import Load
from gvpo.update.experts.routing import Routing, RoutingMode, check_mode
from gvpo.update.forward import unwrap


def routing_of(
    model: nn.Module, batch: RankBatch, mode: RoutingMode, coefficient: float = 0.0, *, on_policy: bool = False
) -> Routing | None:
    """Return the routing recorder for the passes over a batch, or None if it is not needed.

    Raises:
        ConfigError: If the mode does not exist, or the coefficient is negative.
        ModelError: If the model has no supported routers.
        MissingInput: If there are no experts to replay.
    """
    check_mode(mode)
    if not coefficient >= 0:
        raise ConfigError(f"router_aux_coef is {coefficient}; set it to 0 (off) or above")
    if mode == "free" and coefficient == 0:
        return None
    with ranks.together():
        return Routing(unwrap(model), batch.own, mode, on_policy=on_policy)


class RouterLoss:
    """The router loss of one update.

    Args:
        routing: Routing of its passes; None if there is no router loss and nothing to count.
        coefficient: Weight of the loss.
    """

    def __init__(self, routing: Routing | None, coefficient: float) -> None:
        self._routing, self._coefficient = routing, coefficient
        self._load: Load | None = None

    @property
    def pushes(self) -> bool:
        """True if pushes include a part of the loss, so that a complete pass must precede the first push."""
        return self._coefficient > 0

    def settle(self) -> None:
        """Finish the counting pass, on every rank. From now on forward passes return their part of the loss."""
        if self._routing is None:
            return
        flat = self._routing.load.flat()
        ranks.sum_(flat)
        self._load = self._routing.load.of(flat)
        self._routing.settle(self._coefficient * self._load.balance_gradient() if self.pushes else None)

    def added_to(self, weighed: ObjectiveGradient) -> ObjectiveGradient:
        """Return the objective's result with this loss and the metrics of routing added."""
        if self._load is None:
            self.settle()
        if self._load is None or self._routing is None:
            return weighed
        metrics = self._load.metrics(compared=self._routing.watched)
        loss = weighed.loss + (self._coefficient * self._load.balance_loss()).to(weighed.loss)
        return replace(weighed, loss=loss, metrics={**weighed.metrics, **metrics})
