"""Ratios: the clipped surrogate of PPO (arXiv 1707.06347, eq. 7) that GRPO and GSPO share, and truncated weights."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gvpo.errors import MissingLogprobs
from gvpo.objectives.base import check_at_least, named_metrics, token_values
from gvpo.objectives.reduce import token_mean

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


@dataclass(frozen=True)
class TruncatedWeights:
    """Truncated importance weights of tokens, or none.

    Args:
        values: [B, T] min(exp(old_logprobs - sampler_logprobs), cap), detached; None without a cap.
        capped: [B, T] bool, where the cap acts; None without a cap.
    """

    values: Tensor | None = None
    capped: Tensor | None = None

    @classmethod
    def of(
        cls, old: Tensor, sampler_logprobs: Tensor | None, cap: float | None, scored: Tensor, logprobs: Tensor
    ) -> "TruncatedWeights":
        """Compute the weights.

        Args:
            old: [B, T] old log-probs, 0 where nothing is scored.
            sampler_logprobs: [B, T] log-probs under the policy that sampled, nats.
            cap: largest weight; None for no weights, and the sampler's log-probs are then not read.
            scored: [B, T] bool.
            logprobs: [B, T], for shape and precision.

        Raises:
            ObjectiveError: a cap that is not above 0.
            MissingLogprobs: a cap without the sampler's log-probs.
        """
        if cap is None:
            return cls()
        check_at_least("is_cap", cap, 0.0, strictly=True)
        if sampler_logprobs is None:
            raise MissingLogprobs(
                f"is_cap is {cap} and sampler_logprobs are missing: set Completion.sampler_logprobs on every row (a "
                "sampler reports them; written answers have none), or leave is_cap unset"
            )
        sampler = token_values("sampler_logprobs", sampler_logprobs, scored, logprobs)
        full = bounded((old - sampler).detach()).exp()
        return cls(full.clamp(max=cap), full > cap)

    def times(self, terms: Tensor) -> Tensor:
        """Return [B, T] terms of tokens multiplied by their weights; the terms themselves without a cap."""
        return terms if self.values is None else self.values * terms

    def metrics(self, prefix: str, scored: Tensor) -> dict[str, Tensor]:
        """Return `PREFIX/is_weight_mean` and `PREFIX/is_capped_fraction`, means over tokens; {} without a cap."""
        if self.values is None or self.capped is None:
            return {}
        share = token_mean(self.capped.to(self.values.dtype), scored)
        return named_metrics(prefix, is_weight_mean=token_mean(self.values, scored), is_capped_fraction=share)
