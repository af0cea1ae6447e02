"""The routers of a mixture of experts: recording and replacing their choices.

A router scores every expert for every token and selects the best few:

    tokens [N, H] ──▶ logits [N, E] ──▶ torch.topk ──▶ experts [N, k] ──▶ their weights [N, k]

The choice is recorded and replaced where it is made: inside the router's forward pass, `torch.topk` returns the
requested experts and the router's scores of them. The architecture still computes weights from scores (softmax,
normalized or not), bit by bit, and the gradient through them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gvpo.errors import ModelError, type_of

_TOP_K = (torch.topk, Tensor.topk)


@dataclass(frozen=True)
class Choice:
    """Choice of one router for N tokens.

    Args:
        logits: [N, E] scores of the experts, before any softmax, with gradient.
        wanted: [N, k] int64, the experts that the router would choose.
        used: [N, k] int64, the experts that processed the tokens.
    """

    logits: Tensor
    wanted: Tensor
    used: Tensor

    def probabilities(self, places: Tensor) -> Tensor:
        """Return [S, E] the router's softmax at some positions, in float32 or better, with gradient."""
        chosen = self.logits[places]
        with torch.autocast(chosen.device.type, enabled=False):
            return torch.softmax(chosen.to(torch.promote_types(chosen.dtype, torch.float32)), dim=-1)

    def weighted(self, places: Tensor, weights: Tensor) -> Tensor:
        """Return the scalar sum of the probabilities at some positions times weights [E], with gradient."""
        probabilities = self.probabilities(places)
        return (probabilities * weights.to(probabilities)).sum()


def routers_of(model: nn.Module) -> list[nn.Module]:
    """Return the routers of a model, in the order of its layers.

    Raises:
        ModelError: If it has no router, or none of a supported kind.
    """
    found = [module for module in model.modules() if _is_router(module)]
    if not found:
        raise ModelError(
            f"{type(model).__name__} has no supported router of a mixture of experts (Qwen2-MoE, Qwen3-MoE, "
            "Mixtral and others with a TopKRouter of transformers); leave train.routing at free and "
            "train.router_aux_coef at 0"
        )
    return found


def _is_router(module: nn.Module) -> bool:
    return "Router" in type(module).__name__ and hasattr(module, "top_k") and hasattr(module, "num_experts")


class Taps:
    """Requests to the routers for the next forward pass, and their choices in the last one.

    Args:
        routers: Routers from `routers_of`.

    Attributes:
        asked: [layers, N, k] int64, the experts that tokens must go to, -1 where the router is free; None: free
            everywhere.
        choices: Choices of the last forward pass by layer.
    """

    def __init__(self, routers: Sequence[nn.Module]) -> None:
        self.routers = routers
        self.asked: Tensor | None = None
        self.choices: dict[int, Choice] = {}

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Connect the routers in this context. A backward pass that recomputes layers must run in it too."""
        with ExitStack() as stack:
            for layer, router in enumerate(self.routers):
                stack.enter_context(_replaced_forward(router, partial(self._route, layer, router, router.forward)))
            try:
                yield
            finally:
                self.begin(None)

    def begin(self, asked: Tensor | None) -> None:
        """Prepare a forward pass."""
        self.asked, self.choices = asked, {}

    def _route(self, layer: int, router: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with _TopK(None if self.asked is None else self.asked[layer]) as choice:
            output = forward(*args, **kwargs)
        logits = output[0] if isinstance(output, tuple) else None
        if choice.calls != 1 or logits is None or logits.shape != (len(choice.wanted), router.num_experts):
            raise ModelError(
                f"{type_of(router)} does not choose by one top-k over all experts, so its choice can be "
                "neither recorded nor replayed; leave train.routing at free and train.router_aux_coef at 0"
            )
        self.choices[layer] = Choice(logits, choice.wanted, choice.used)
        return output


@contextmanager
def _replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace the module's own `forward` in this context. Its hooks are called as usual."""
    module.forward = forward
    try:
        yield
    finally:
        del module.forward


class _TopK(TorchFunctionMode):
    """Makes top-k return the requested experts [N, k], and records the experts that it would have returned."""

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
