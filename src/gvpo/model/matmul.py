"""Matrix products and linear layers: PyTorch's own, or on a CPU the faster ones of `gvpo.model.cpu`.

That package is imported here, at the first product on a CPU.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


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


def slices(count: int, size: int) -> Iterator[slice]:
    """Yield blocks of `size` of `count` rows; the last one may be shorter."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _on_cpu() -> Any:
    from gvpo.model.cpu import matmul

    return matmul
