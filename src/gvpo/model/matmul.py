"""Matrix products and linear layers: PyTorch's own, or on a CPU the faster ones of `gvpo.model.cpu`.

That package is imported here, at the first product on a CPU.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gvpo.model.runtime import compute_dtype


def is_fast(left: Tensor, right: Tensor) -> bool:
    """Return whether `product` of [M, K] and [K, N] is faster than torch.mm."""
    return left.device.type == "cpu" and bool(_on_cpu().is_fast(left, right))


def product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return left @ right + bias, without a gradient.

    Args:
        left: [M, K].
        right: [K, N], often a transposed view.
        bias: [N].

    Returns:
        [M, N], contiguous.
    """
    if left.device.type == "cpu":
        found: Tensor = _on_cpu().product(left, right, bias)
        return found
    return left @ right if bias is None else torch.addmm(bias, left, right)


def factor_dtype(dtype: torch.dtype, device: str) -> torch.dtype:
    """Return the dtype of factors whose `wide_product` is as accurate as one of float32.

    A GPU multiplies half-precision factors with float32 sums and results. A CPU would round the results, so factors are
    float32 there. Wider dtypes stay as they are.
    """
    return dtype if device == "cuda" else torch.promote_types(dtype, torch.float32)


def wide_product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return left @ right + bias in float32 or better, without a gradient.

    Args:
        left: [M, K] of `factor_dtype`.
        right: [K, N] of `factor_dtype`, often a transposed view.
        bias: [N] float32 or better.
    """
    if left.dtype.itemsize >= torch.float32.itemsize:
        return product(left, right, bias)
    found = torch.mm(left, right, out_dtype=torch.float32)
    return found if bias is None else found.add_(bias)


def gradient_of_weight(change: Tensor, x: Tensor) -> Tensor:
    """Return change.T @ x: the gradient of a linear layer's weight.

    Args:
        change: [T, out], the gradient of the layer's output.
        x: [T, in], its input.

    Returns:
        [out, in]; on a CPU it may be a transposed view.
    """
    if change.device.type == "cpu":
        found: Tensor = _on_cpu().gradient_of_weight(change, x)
        return found
    return change.T @ x


def fast_linears(model: nn.Module, head: nn.Module | None = None) -> AbstractContextManager[None]:
    """Return a context in which a model's linear layers on a CPU are faster.

    Args:
        model: Policy. Run backward in the context only for passes that recompute.
        head: Layer to leave unchanged.
    """
    if all(parameter.device.type != "cpu" for parameter in model.parameters()):
        return nullcontext()
    layers: AbstractContextManager[None] = _on_cpu().fast_linears(model, head)
    return layers


def wide_head(model: Any, *, fixed: bool = False) -> AbstractContextManager[None]:
    """Return a context in which a model's logits are float32 or better, whatever it computes in.

    Args:
        model: Causal language model of transformers, in the autocast in which it will run.
        fixed: Whether the weights do not change in this context and need no gradient, which is faster.
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or "forward" in vars(head) or compute_dtype(head.weight).itemsize >= 4:
        return nullcontext()
    return _replaced(head, _fixed_logits(head) if fixed else partial(_logits, head))


@contextmanager
def _replaced(head: nn.Linear, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    def without_autocast(hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return forward(hidden)

    head.forward = without_autocast  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del head.forward


def _logits(head: nn.Linear, hidden: Tensor) -> Tensor:
    """Read the weight in each call, because it may be sharded until a hook gathers it."""
    return F.linear(hidden.float(), head.weight.float(), None if head.bias is None else head.bias.float())


def _fixed_logits(head: nn.Linear) -> Callable[[Tensor], Tensor]:
    weight = head.weight.to(factor_dtype(compute_dtype(head.weight), head.weight.device.type))
    bias = None if head.bias is None else head.bias.float()

    def forward(hidden: Tensor) -> Tensor:
        found = wide_product(hidden.reshape(-1, hidden.shape[-1]).to(weight.dtype), weight.T, bias)
        return found.view(*hidden.shape[:-1], found.shape[-1])

    return forward


def slices(count: int, size: int) -> Iterator[slice]:
    """Yield blocks of `size` of `count` rows; the last one may be shorter."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _on_cpu() -> Any:
    from gvpo.model.cpu import matmul

    return matmul
