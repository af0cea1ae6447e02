"""PyTorch's private operators for CPUs, all that gvpo calls.

Each is looked up once. Where it is None, this PyTorch does not have it, and the caller uses public functions.
"""

import platform
from functools import cache
from typing import Any, NamedTuple

import torch

X86 = ("x86_64", "AMD64")
"""Machines on which PyTorch brings both MKL and oneDNN."""

_FLASH = "_scaled_dot_product_flash_attention_for_cpu"


class LinearPointwise(NamedTuple):
    """oneDNN's `x @ weight.T + bias`, as PyTorch's compiler calls it: alone, and followed by another operation."""

    alone: Any
    binary: Any


class FlashAttention(NamedTuple):
    """Attention that also returns the log-sum-exp of the scores, and its backward."""

    forward: Any
    backward: Any


@cache
def linear_pointwise() -> LinearPointwise | None:
    """Return oneDNN's linear layer; None without it, and on machines where it is not the faster library."""
    if platform.machine() not in X86 or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    alone, binary = (_operator("mkldnn", "_linear_pointwise", overload) for overload in ("default", "binary"))
    return None if alone is None or binary is None else LinearPointwise(alone, binary)


@cache
def flash_attention() -> FlashAttention | None:
    """Return the attention with its log-sum-exp; None without it."""
    forward, backward = (_operator("aten", name, "default") for name in (_FLASH, f"{_FLASH}_backward"))
    return None if forward is None or backward is None else FlashAttention(forward, backward)


def _operator(library: str, name: str, overload: str) -> Any:
    """Return an operator of `torch.ops`, or None."""
    return getattr(getattr(getattr(torch.ops, library), name, None), overload, None)
