"""All of PyTorch's private CPU operators that gvpo calls.

Each one is looked up once. If it is None, this PyTorch version does not have it, and the caller uses public functions.
"""

import platform
from functools import cache
from typing import Any, NamedTuple

import torch

X86 = ("x86_64", "AMD64")
"""Machines on which PyTorch includes both MKL and oneDNN."""

_FLASH = "_scaled_dot_product_flash_attention_for_cpu"


class LinearPointwise(NamedTuple):
    """oneDNN's `x @ weight.T + bias` as called by PyTorch's compiler: by itself, and followed by another operation."""

    alone: Any
    binary: Any


class FlashAttention(NamedTuple):
    """Attention that also returns the log-sum-exp of the scores, and its backward."""

    forward: Any
    backward: Any


@cache
def linear_pointwise() -> LinearPointwise | None:
    """Return oneDNN's linear layer, or None if it is missing or not the faster library on this machine."""
    if platform.machine() not in X86 or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    alone, binary = (_operator("mkldnn", "_linear_pointwise", overload) for overload in ("default", "binary"))
    return None if alone is None or binary is None else LinearPointwise(alone, binary)


@cache
def flash_attention() -> FlashAttention | None:
    """Return the attention with its log-sum-exp, or None if it is missing."""
    forward, backward = (_operator("aten", name, "default") for name in (_FLASH, f"{_FLASH}_backward"))
    return None if forward is None or backward is None else FlashAttention(forward, backward)


def _operator(library: str, name: str, overload: str) -> Any:
    """Return an operator of `torch.ops`, or None."""
    return getattr(getattr(getattr(torch.ops, library), name, None), overload, None)
