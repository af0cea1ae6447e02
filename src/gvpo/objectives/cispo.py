"""Clipped IS-weight Policy Optimization (MiniMax-M1, arXiv 2506.13585): REINFORCE with clipped importance ratios."""

import torch
from torch import Tensor

from gvpo.objectives.base import ObjectiveOutput, check_at_least, named_metrics, scored_positions, token_values
from gvpo.objectives.clip import TruncatedWeights, bounded
from gvpo.objectives.grpo import token_advantages
from gvpo.objectives.reduce import reduce_tokens, row_means, token_mean


def cispo(
    logprobs: Tensor,
    *,
    old_logprobs: Tensor,
    rewards: Tensor,
    group: Tensor,
    mask: Tensor,
    clip_low: float = 1.0,
    clip_high: float = 4.0,
    scale_rewards: bool = True,
    reduction: str = "token_mean",
    max_length: float | None = None,
    advantages: Tensor | None = None,
    is_cap: float | None = None,
    sampler_logprobs: Tensor | None = None,
) -> ObjectiveOutput:
    """REINFORCE whose tokens are weighted by clipped importance ratios, so that no token loses its gradient.

        r_it = exp(logprobs - old_logprobs)
        c_it = clip(r, 1 - clip_low, 1 + clip_high), detached
        A_i  = (R_i - Rbar) / (std + 1e-4)
        loss = - 1/(all tokens) sum_it c A logprobs

    GRPO's clip stops the gradient of a token whose ratio has left the range; here the ratio is bounded and the gradient
    remains. With old_logprobs the sampler's, this is truncated importance sampling with the cap 1 + clip_high, at every
    update of a step.

    Differs from the paper:
        - Its bounds are not given as numbers. `clip_high` is 4, so that a weight is at most 5, as in later studies; the
          default of `clip_low`, 1, is no lower bound, as in the paper's experiments.
        - std has k - 1 in its denominator and 1e-4 added. e^x stops growing at x = 30 nats.

    Args:
        logprobs: [B, T] log-probs of the policy, nats.
        old_logprobs: [B, T] log-probs under the policy that the ratio compares with, nats.
        rewards: [B].
        group: [B] int64 group ids; sizes may differ, each at least 2.
        mask: [B, T], 1 on scored tokens. Values elsewhere are never read.
        clip_low: smallest weight is 1 - clip_low; 1 or more for no bound.
        clip_high: largest weight is 1 + clip_high.
        scale_rewards: divide by the group's standard deviation.
        reduction: see `grpo`.
        max_length: see `grpo`.
        advantages: [B, T], replaces the computed ones; rewards are then not read, and groups of one are fine.
        is_cap: see `grpo`.
        sampler_logprobs: see `grpo`.

    Returns:
        The loss and these metrics: `cispo/ratio_mean` mean r over tokens, `cispo/clip_fraction` share of tokens whose
        weight is at a bound, `cispo/clip_fraction_low` and `cispo/clip_fraction_high` its two sides,
        `cispo/advantage_abs_mean` mean |A| over rows. With `is_cap`: `cispo/is_weight_mean` and
        `cispo/is_capped_fraction`, as in `grpo`. The loss is not a measure of progress: its value is a weighted
        log-likelihood.

    Raises:
        ShapeError, GroupTooSmall, MissingLogprobs, ObjectiveError: as `grpo`.

    Example:
        >>> tokens = torch.full((2, 1), -1.0)
        >>> one = {"rewards": torch.tensor([1.0, 0.0]), "group": torch.tensor([0, 0]), "mask": torch.ones(2, 1)}
        >>> cispo(tokens, old_logprobs=tokens - 2.0, **one).metrics["cispo/clip_fraction_high"]
        tensor(1.)

    Reference:
        MiniMax, MiniMax-M1, arXiv 2506.13585, eq. 4 and 5.
    """
    scored = scored_positions(logprobs, mask)
    policy = token_values("logprobs", logprobs, scored, logprobs)
    old = token_values("old_logprobs", old_logprobs, scored, logprobs).detach()
    check_at_least("clip_low", clip_low, 0.0)
    check_at_least("clip_high", clip_high, 0.0)
    advantage = token_advantages(
        logprobs, scored, rewards, group, advantages, name="cispo", scale_rewards=scale_rewards
    )
    ratio = bounded(policy.detach() - old).exp()
    weights = TruncatedWeights.of(old, sampler_logprobs, is_cap, scored, logprobs)
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    loss = reduce_tokens(-weights.times(clipped * advantage * policy), scored, reduction, max_length)
    metrics = _metrics(ratio, advantage, scored, clip_low, clip_high)
    return ObjectiveOutput(loss, metrics | weights.metrics("cispo", scored))


@torch.no_grad()
def _metrics(ratio: Tensor, advantage: Tensor, scored: Tensor, clip_low: float, clip_high: float) -> dict[str, Tensor]:
    low, high = (token_mean(side.to(ratio.dtype), scored) for side in (ratio < 1.0 - clip_low, ratio > 1.0 + clip_high))
    return named_metrics(
        "cispo",
        ratio_mean=token_mean(ratio, scored),
        clip_fraction=low + high,
        clip_fraction_low=low,
        clip_fraction_high=high,
        advantage_abs_mean=row_means(advantage.abs(), scored).mean(),
    )
