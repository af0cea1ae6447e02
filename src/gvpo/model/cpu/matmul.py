"""Matrix products in float32 on a CPU, by the faster of torch's two libraries.

torch.mm calls MKL, which uses only a part of the instructions of processors from makers other than Intel. oneDNN, which
torch calls for narrower dtypes, uses all of them: on an AMD EPYC with AVX-512 most products took half the time, at the
same precision.

    forward    x @ weight.T              [T, in] @ [in, out]
    backward   change @ weight           [T, out] @ [out, in]
               change.T @ x              [out, T] @ [T, in]; the smaller of its sides comes first, which is faster

On other devices, for other dtypes and for small products, the functions compute torch.nn.functional.linear.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable

from gvpo.model.cpu import operators

LEAST = 2**22
"""Minimum number of multiplications for oneDNN, which has more overhead than torch.mm, most for a new shape."""


def is_fast(left: Tensor, right: Tensor) -> bool:
    """Return whether oneDNN is used for the product of [M, K] and [K, N]."""
    large = left.numel() * right.shape[-1] >= LEAST
    return large and _is_dense(left) and _is_dense(right) and has_fast(left, right)


def has_fast(*values: Tensor) -> bool:
    """Return whether oneDNN is available and supports these values' dtype and device."""
    return (
        all(each.dtype == torch.float32 and each.device.type == "cpu" for each in values)
        and bool(torch.backends.mkldnn.enabled)
        and operators.linear_pointwise() is not None
    )


def _is_dense(matrix: Tensor) -> bool:
    """Return whether a matrix or its transpose is contiguous. oneDNN has no fast code for other strides."""
    return matrix.is_contiguous() or matrix.T.is_contiguous()


def product(left: Tensor, right: Tensor, bias: Tensor | None = None, *, times: Tensor | None = None) -> Tensor:
    """Return (left @ right + bias) * times, without a gradient.

    Args:
        left: [M, K].
        right: [K, N], often a transposed view.
        bias: [N].
        times: [M, N].

    Returns:
        [M, N], contiguous.
    """
    if is_fast(left, right):
        return _multiply(left, right.T, bias, times)
    found = left @ right if bias is None else torch.addmm(bias, left, right)
    return found if times is None else found.mul_(times)


def gradient_of_weight(change: Tensor, x: Tensor) -> Tensor:
    """Return change.T @ x: the gradient of a linear layer's weight.

    Args:
        change: [T, out], the gradient of the layer's output.
        x: [T, in], its input.

    Returns:
        [out, in]; may be a transposed view.
    """
    if not is_fast(change.T, x):
        return change.T @ x
    if change.shape[1] > x.shape[1]:
        return _multiply(x.T, change.T).T
    return _multiply(change.T, x.T)


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None, times: Tensor | None = None) -> Tensor:
    onednn = operators.linear_pointwise()
    assert onednn is not None
    found: Tensor
    if times is None:
        found = onednn.alone(x, weight, bias, "none", [], "")
    else:
        found = onednn.binary(x, times, weight, bias, "mul")
    return found


class _Linear(Function):
    """A linear layer on [T, in], with its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight.T, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, change: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needed = ctx.needs_input_grad
        return (
            product(change, weight) if needed[0] else None,
            gradient_of_weight(change, x) if needed[1] else None,
            change.sum(0) if needed[2] else None,
        )


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Compute a linear layer, differentiably.

    Args:
        layer: Layer with weight [out, in].
        x: [..., in].

    Returns:
        [..., out].
    """
    flat = x.reshape(-1, x.shape[-1])
    if torch.is_autocast_enabled(x.device.type) or not is_fast(flat, layer.weight.T):
        return F.linear(x, layer.weight, layer.bias)
    found: Tensor = _Linear.apply(flat, layer.weight, layer.bias)  # type: ignore[no-untyped-call]
    return found.view(*x.shape[:-1], len(layer.weight))


@contextmanager
def fast_linears(model: nn.Module, head: nn.Module | None = None) -> Iterator[None]:
    """Compute the model's linear layers with `linear` in this context. Run backward in it only if it recomputes.

    Args:
        model: Policy.
        head: Layer to leave unchanged.
    """
    layers = [
        layer
        for layer in model.modules()
        if type(layer) is nn.Linear
        and layer is not head
        and layer.weight.device.type == "cpu"
        and "forward" not in vars(layer)
    ]
    for layer in layers:
        layer.forward = partial(linear, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
