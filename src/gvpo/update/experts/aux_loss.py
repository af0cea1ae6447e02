"""The router loss of a mixture of experts: a second channel beside the objective, exact under any split as it is.

    loss = coefficient * mean over layers of  E sum_e f_e p_e        (`gvpo.update.experts.load_balance`)

f, the share of tokens that an expert gets, has no gradient and belongs to the whole batch; given f the loss is linear
in the probabilities. So the pass that scores counts f, over all micro-batches and ranks, and each push adds its part.
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
    """What watches the routers of a model during the passes over a batch; None where nothing is asked of them.

    Raises:
        ConfigError: a mode that does not exist, or a negative coefficient.
        ModelError: the model has no routers that are known here.
        MissingInput: there is nothing to replay.
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
        routing: of its passes; None: there is no such loss and nothing to count.
        coefficient: the loss's weight.
    """

    def __init__(self, routing: Routing | None, coefficient: float) -> None:
        self._routing, self._coefficient = routing, coefficient
        self._load: Load | None = None

    @property
    def pushes(self) -> bool:
        """Whether pushes have a part of it, so that a whole pass has to come before the first of them."""
        return self._coefficient > 0

    def settle(self) -> None:
        """The pass that counts is over, on every rank; from now on the forwards give their part."""
        if self._routing is None:
            return
        flat = self._routing.load.flat()
        ranks.sum_(flat)
        self._load = self._routing.load.of(flat)
        self._routing.settle(self._coefficient * self._load.balance_gradient() if self.pushes else None)

    def added_to(self, weighed: ObjectiveGradient) -> ObjectiveGradient:
        """What the objective gave, with this loss and the metrics of routing added."""
        if self._load is None:
            self.settle()
        if self._load is None or self._routing is None:
            return weighed
        metrics = self._load.metrics(compared=self._routing.watched)
        loss = weighed.loss + (self._coefficient * self._load.balance_loss()).to(weighed.loss)
        return replace(weighed, loss=loss, metrics={**weighed.metrics, **metrics})
