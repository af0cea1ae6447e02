"""The clipped surrogate of PPO (arXiv 1707.06347, eq. 7) that GRPO and GSPO share."""

import torch
from torch import Tensor

from gvpo.objectives.base import check_at_least

LARGEST_LOG_RATIO = 30.0
"""Nats at which a ratio stops growing. From 88 nats on a ratio would overflow float32, and from 44 on its square would,
which the gradient's norm contains; the rest is room for sums over tokens and weights."""


def bounded(log_ratio: Tensor) -> Tensor:
    """Return log-ratios of at most LARGEST_LOG_RATIO, with the gradient of the unbounded ones.

    So the exponential of a larger one has the value and the slope that it has at the bound: a completion that became
    far too likely is still pushed down.
    """
    return log_ratio - (log_ratio.detach() - LARGEST_LOG_RATIO).clamp(min=0.0)


def clipped_surrogate(ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A), elementwise; infinite bounds do not clip.

    Raises:
        ObjectiveError: a negative bound.
    """
    check_at_least("clip_low", clip_low, 0.0)
    check_at_least("clip_high", clip_high, 0.0)
    return torch.minimum(ratio * advantages, ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * advantages)


def clipped_share(ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> tuple[Tensor, Tensor]:
    """Return 1 where the lower (upper) bound stops the gradient, elsewhere 0, in the ratio's dtype.

    A bound acts on one sign only: a falling ratio is stopped for a negative advantage, a rising one for a positive.
    """
    low = (ratio < 1.0 - clip_low) & (advantages < 0)
    high = (ratio > 1.0 + clip_high) & (advantages > 0)
    return low.to(ratio.dtype), high.to(ratio.dtype)
