"""Reductions of per-token values to rows and to one scalar. Rows without a scored token have sum 0 and mean 0."""

from typing import Literal, get_args

import torch
from torch import Tensor

from gvpo.errors import ObjectiveError
from gvpo.objectives.base import check_at_least

Reduction = Literal["sequence_mean", "token_mean", "constant"]


def row_sums(values: Tensor, scored: Tensor) -> Tensor:
    """[B, T] -> [B]: sums over scored tokens. `values` are finite also where nothing is scored."""
    return torch.where(scored, values, 0.0).sum(dim=1)


def row_means(values: Tensor, scored: Tensor) -> Tensor:
    """[B, T] -> [B]: means over scored tokens, 0 for a row without any."""
    return row_sums(values, scored) / scored.sum(dim=1).clamp(min=1)


def token_mean(values: Tensor, scored: Tensor) -> Tensor:
    """[B, T] -> scalar: the mean over all scored tokens of the batch, 0 without any."""
    return row_sums(values, scored).sum() / scored.sum().clamp(min=1)


def reduce_tokens(values: Tensor, scored: Tensor, reduction: str, max_length: float | None = None) -> Tensor:
    """Reduce values [B, T] to a scalar.

    Args:
        values: [B, T].
        scored: [B, T] bool, the positions that count.
        reduction: "sequence_mean": means over tokens, then over rows; "token_mean": over all tokens at once;
            "constant": sums over tokens divided by `max_length`, then the mean over rows.
        max_length: Number of tokens; used only by "constant".

    Raises:
        ObjectiveError: If the reduction is unknown, or is "constant" without a positive max_length.
    """
    if reduction == "sequence_mean":
        return row_means(values, scored).mean()
    if reduction == "token_mean":
        return token_mean(values, scored)
    if reduction != "constant":
        raise ObjectiveError(f"reduction={reduction!r} does not exist; choose one of {', '.join(get_args(Reduction))}")
    if max_length is None:
        raise ObjectiveError(
            "reduction='constant' divides by max_length; pass it (the maximum completion length in tokens)"
        )
    check_at_least("max_length", max_length, 0.0, strictly=True)
    return row_sums(values, scored).mean() / max_length
