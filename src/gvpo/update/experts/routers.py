"""The routers of a mixture of experts, watched and told what to choose.

A router scores every expert for every token and takes the best few:

    tokens [N, H] ──▶ logits [N, E] ──▶ torch.topk ──▶ experts [N, k] ──▶ their weights [N, k]

The choice is watched, and replaced, where it is made: inside the router's own forward `torch.topk` answers with the
experts that are asked for and the router's scores of them. How scores become weights (softmax, normalised or not) stays
the architecture's own, to the last bit, and so does the gradient through them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gvpo.errors import ModelError

_TOP_K = (torch.topk, Tensor.topk)


@dataclass(frozen=True)
class Choice:
    """What one router did with N tokens.

    Args:
        logits: [N, E] its scores of the experts, before any softmax; with gradient.
        wanted: [N, k] int64, the experts that it would choose.
        used: [N, k] int64, the experts that the tokens went to.
    """

    logits: Tensor
    wanted: Tensor
    used: Tensor

    def probabilities(self, places: Tensor) -> Tensor:
        """[S, E]: the router's softmax at some places, in float32 or better; with gradient."""
        chosen = self.logits[places]
        with torch.autocast(chosen.device.type, enabled=False):
            return torch.softmax(chosen.to(torch.promote_types(chosen.dtype, torch.float32)), dim=-1)

    def weighted(self, places: Tensor, weights: Tensor) -> Tensor:
        """Scalar: the probabilities at some places times weights [E], summed; with gradient."""
        probabilities = self.probabilities(places)
        return (probabilities * weights.to(probabilities)).sum()


def routers_of(model: nn.Module) -> list[nn.Module]:
    """The routers of a model, in the order of its layers.

    Raises:
        ModelError: it has none, or none of a kind that is known here.
    """
    found = [module for module in model.modules() if _is_router(module)]
    if not found:
        raise ModelError(
            f"{type(model).__name__} has no router of a mixture of experts that is known here (Qwen2-MoE, Qwen3-MoE, "
            "Mixtral and others with a TopKRouter of transformers); leave train.routing at free and "
            "train.router_aux_coef at 0"
        )
    return found


def _is_router(module: nn.Module) -> bool:
    return "Router" in type(module).__name__ and hasattr(module, "top_k") and hasattr(module, "num_experts")


class Taps:
    """What is asked of the routers in the next forward, and what they did in the last.

    Args:
        routers: from `routers_of`.

    Attributes:
        asked: [layers, N, k] int64, the experts that tokens must go to, -1 where the router is free; None: everywhere.
        choices: by layer, of the last forward.
    """

    def __init__(self, routers: Sequence[nn.Module]) -> None:
        self.routers = routers
        self.asked: Tensor | None = None
        self.choices: dict[int, Choice] = {}

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Within it the routers listen; a backward that computes layers again belongs inside."""
        with ExitStack() as stack:
            for layer, router in enumerate(self.routers):
                stack.enter_context(_replaced_forward(router, partial(self._route, layer, router, router.forward)))
            try:
                yield
            finally:
                self.begin(None)

    def begin(self, asked: Tensor | None) -> None:
        """Before a forward."""
        self.asked, self.choices = asked, {}

    def _route(self, layer: int, router: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with _TopK(None if self.asked is None else self.asked[layer]) as choice:
            output = forward(*args, **kwargs)
        logits = output[0] if isinstance(output, tuple) else None
        if choice.calls != 1 or logits is None or logits.shape != (len(choice.wanted), router.num_experts):
            raise ModelError(
                f"a {type(router).__name__} does not choose by one top-k over all experts, so its choice can be "
                "neither recorded nor replayed; leave train.routing at free and train.router_aux_coef at 0"
            )
        self.choices[layer] = Choice(logits, choice.wanted, choice.used)
        return output


@contextmanager
def _replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """The module's own `forward` is another inside; its hooks fire as always."""
    module.forward = forward
    try:
        yield
    finally:
        del module.forward


class _TopK(TorchFunctionMode):
    """Inside it top-k takes the experts that are asked for [N, k], and notes what it would have taken."""

    def __init__(self, asked: Tensor | None) -> None:
        super().__init__()
        self.asked, self.calls = asked, 0
        self.wanted = self.used = torch.empty(0)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func not in _TOP_K:
            return result
        self.calls += 1
        self.wanted = self.used = result.indices
        if self.asked is None or self.asked.shape != self.wanted.shape:
            return result
        self.used = torch.where(self.asked < 0, self.wanted, self.asked)
        return torch.return_types.topk((args[0].gather(-1, self.used), self.used))
