"""Shared parts of all objectives: their output, and the checks that come before any arithmetic.

Knows nothing of models, groups or formulas. B is the number of rows (completions), T the longest of them in tokens.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gvpo.errors import ObjectiveError, ShapeError


@dataclass(frozen=True)
class ObjectiveOutput:
    """Result of an objective.

    Args:
        loss: scalar; differentiable through `logprobs` and nothing else.
        metrics: detached scalars by name ("gvpo/residual_ratio"); each is explained on the objective's page.
    """

    loss: Tensor
    metrics: dict[str, Tensor]


Objective = Callable[..., ObjectiveOutput]
"""Any callable `objective(logprobs, *, mask, ...)`; its keywords name what it is given."""


def scored_positions(logprobs: Tensor, mask: Tensor) -> Tensor:
    """Return the mask as booleans, after checking both tensors.

    Args:
        logprobs: [B, T] floating point, B >= 1.
        mask: [B, T] of any dtype, 1 on scored tokens and 0 elsewhere.

    Returns:
        [B, T] bool.

    Raises:
        ShapeError: one of them has another shape, or log-probs are not floating point.
        ObjectiveError: the mask has other values than 0 and 1.
    """
    if logprobs.ndim != 2 or logprobs.shape[0] == 0:
        raise ShapeError(f"logprobs has shape {tuple(logprobs.shape)}; expected [B, T], a row per completion, B >= 1")
    _check_floating("logprobs", logprobs)
    _check_shape("mask", mask, logprobs.shape)
    scored = mask.detach() != 0
    if not torch.equal(scored.to(mask.dtype), mask.detach()):
        raise ObjectiveError("mask has values other than 0 and 1; set 1 on scored tokens and 0 on all others")
    return scored


def token_values(name: str, values: Tensor, scored: Tensor, like: Tensor) -> Tensor:
    """Return per-token values, ready for arithmetic: checked, in float32 or better, and 0 where nothing is scored.

    The zeros keep the values of padding, including NaN, out of the loss and its gradient.

    Args:
        name: name of the tensor, for the error.
        values: [B, T] floating point.
        scored: [B, T] bool.
        like: `logprobs`, whose precision decides: float64 stays, all others become float32.

    Returns:
        [B, T] float32 or float64; gradients pass.

    Raises:
        ShapeError: wrong shape, or not floating point.
    """
    _check_shape(name, values, scored.shape)
    _check_floating(name, values)
    return torch.where(scored, values.to(working_dtype(like)), 0.0)


def row_values(name: str, values: Tensor, like: Tensor) -> Tensor:
    """Return per-row values checked, detached and in float64.

    Rewards are compared within a group. In float32 those of 2^24 and 2^24 + 1 would be equal before they are centred.
    So callers centre first, and cast to the precision of the log-probs afterwards.

    Args:
        name: name of the tensor, for the error.
        values: [B] real numbers of any dtype.
        like: `logprobs`, [B, T].

    Returns:
        [B] of `row_dtype`, detached.

    Raises:
        ShapeError: not [B].
    """
    _check_shape(name, values, like.shape[:1])
    return values.detach().to(row_dtype(values.device))


def sequence_sums(name: str, values: Tensor, like: Tensor) -> Tensor:
    """Sequence log-probs, checked, in the precision of the arithmetic.

    Args:
        name: name of the tensor, for the error.
        values: floating point, of the shape of `like`.
        like: [B] or [B, N], B >= 1: gives shape and precision.

    Returns:
        The same in float32 or float64; gradients pass.

    Raises:
        ShapeError: wrong shape, or not floating point.
    """
    if values.ndim == 0 or values.shape[0] == 0 or values.shape != like.shape:
        raise ShapeError(
            f"{name} has shape {tuple(values.shape)}; expected {tuple(like.shape)}, one sum per sequence, B >= 1"
        )
    _check_floating(name, values)
    return values.to(working_dtype(like))


def check_at_least(name: str, value: float, least: float, *, strictly: bool = False) -> None:
    """Refuse a number below its range.

    Raises:
        ObjectiveError: below `least`, equal to it where `strictly`, or NaN.
    """
    if math.isnan(value) or value < least or (strictly and value == least):
        raise ObjectiveError(f"{name} is {value}; set it {'above' if strictly else 'to at least'} {least:g}")


def named_metrics(prefix: str, **values: Tensor) -> dict[str, Tensor]:
    """Return detached scalars under `prefix/name`."""
    return {f"{prefix}/{name}": value.detach() for name, value in values.items()}


def working_dtype(logprobs: Tensor) -> torch.dtype:
    """float64 for float64 log-probs, float32 for all others: sums over bf16 tokens would be noise."""
    return torch.promote_types(logprobs.dtype, torch.float32)


def row_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of rewards and costs before they are centred: float64, which only Apple's GPUs do not have."""
    return torch.float32 if device.type == "mps" else torch.float64


def _check_shape(name: str, values: Tensor, expected: torch.Size) -> None:
    if values.shape != expected:
        axes = "[B, T], the shape of logprobs" if len(expected) == 2 else "[B], one value per row of logprobs"
        raise ShapeError(f"{name} has shape {tuple(values.shape)}; expected {tuple(expected)}, {axes}")


def _check_floating(name: str, values: Tensor) -> None:
    if not values.is_floating_point():
        raise ShapeError(f"{name} has dtype {values.dtype}; expected a floating-point tensor")
