"""Group Relative Policy Optimization (arXiv 2402.03300) and its presets Dr.GRPO, DAPO and RLOO."""

import functools
import math
from typing import Any

import torch
from torch import Tensor

from gvpo.errors import MissingLogprobs, ObjectiveError
from gvpo.objectives.base import (
    ObjectiveOutput,
    check_at_least,
    named_metrics,
    row_values,
    scored_positions,
    token_values,
    working_dtype,
)
from gvpo.objectives.clip import TruncatedWeights, bounded, clipped_share, clipped_surrogate
from gvpo.objectives.groups import Groups
from gvpo.objectives.reduce import reduce_tokens, row_means, token_mean

STD_EPSILON = 1e-4
"""Added to the standard deviation of a group's rewards before dividing by it."""


def grpo(
    logprobs: Tensor,
    *,
    old_logprobs: Tensor,
    rewards: Tensor,
    group: Tensor,
    mask: Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    scale_rewards: bool = True,
    baseline: str = "mean",
    reduction: str = "sequence_mean",
    max_length: float | None = None,
    advantages: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    kl_coef: float = 0.0,
    is_cap: float | None = None,
    sampler_logprobs: Tensor | None = None,
) -> ObjectiveOutput:
    """Push completions up or down by how much better than their group they are, within a clipped ratio.

        r_it = exp(logprobs - old_logprobs)
        A_i  = (R_i - Rbar) / (std + 1e-4)
        loss = - mean_i mean_t { w min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) - kl_coef * k3 }
        k3   = e^d - d - 1,  d = ref_logprobs - logprobs
        w_it = min(exp(old_logprobs - sampler_logprobs), is_cap), detached; 1 without `is_cap`

    The rows were sampled by the sampler. There are two ways to say so. With old_logprobs the sampler's, r alone is the
    importance ratio, and the clip stops tokens that the policy and the sampler disagree about. With old_logprobs those
    of the policy at the start of the step and an `is_cap`, r only limits how far the step's updates go, and w corrects
    for the sampler (truncated importance sampling): in the first update r is 1, and a token's gradient is
    min(pi / sampler, is_cap) A grad log pi.

    Differs from the paper:
        - `kl_coef` is 0 by default (the paper: 0.04); then no reference is needed.
        - std has k - 1 in its denominator and 1e-4 added.
        - e^x stops growing at x = 30 nats, in r and in k3, so that neither overflows.

    Args:
        logprobs: [B, T] log-probs of the policy, nats.
        old_logprobs: [B, T] log-probs under the policy that the ratio compares with, nats.
        rewards: [B].
        group: [B] int64 group ids; sizes may differ, each at least 2.
        mask: [B, T], 1 on scored tokens. Values elsewhere are never read.
        clip_low: lower half-width of the clip range; infinite for none.
        clip_high: upper half-width.
        scale_rewards: divide by the group's standard deviation.
        baseline: "mean" of the group, or "leave_one_out": of the group's other rows.
        reduction: "sequence_mean": tokens, then rows; "token_mean": all tokens at once; "constant": sum over tokens
            divided by `max_length`, then the mean over rows.
        max_length: tokens, for "constant" only.
        advantages: [B, T], replaces the computed ones; rewards are then not read, and groups of one are fine.
        ref_logprobs: [B, T] log-probs of the reference, nats; for the KL term and its metric.
        kl_coef: weight of the KL term.
        is_cap: largest truncated importance weight w, above 0; None for no weights.
        sampler_logprobs: [B, T] log-probs under the policy that sampled, nats; with `is_cap` only.

    Returns:
        The loss and these metrics: `grpo/ratio_mean` mean r over tokens, `grpo/clip_fraction` share of tokens whose
        gradient the clip stops, `grpo/clip_fraction_low` and `grpo/clip_fraction_high` its two sides,
        `grpo/advantage_abs_mean` mean |A| over rows, `grpo/kl` mean k3 over tokens (nats; with `kl_coef` above 0).
        With `is_cap`: `grpo/is_weight_mean` mean w over tokens, `grpo/is_capped_fraction` share of tokens with w at the
        cap.

    Raises:
        ShapeError: a tensor of the wrong shape or dtype.
        GroupTooSmall: a group of one and no `advantages`.
        MissingLogprobs: kl_coef above 0 without `ref_logprobs`, or `is_cap` without `sampler_logprobs`.
        ObjectiveError: a keyword out of its range, or a mask of other values than 0 and 1.

    Example:
        >>> tokens = torch.zeros(2, 1)
        >>> rewards, group = torch.tensor([1.0, 0.0]), torch.tensor([0, 0])
        >>> float(grpo(tokens, old_logprobs=tokens, rewards=rewards, group=group, mask=torch.ones(2, 1)).loss)
        0.0

    Reference:
        Shao et al., DeepSeekMath, arXiv 2402.03300, eq. 3 (objective) and eq. 4 (k3). Truncated importance sampling:
        Ionides, Truncated Importance Sampling, JCGS 2008.
    """
    scored = scored_positions(logprobs, mask)
    policy = token_values("logprobs", logprobs, scored, logprobs)
    old = token_values("old_logprobs", old_logprobs, scored, logprobs).detach()
    advantage = token_advantages(
        logprobs, scored, rewards, group, advantages, name="grpo", baseline=baseline, scale_rewards=scale_rewards
    )
    ratio = bounded(policy - old).exp()
    weights = TruncatedWeights.of(old, sampler_logprobs, is_cap, scored, logprobs)
    per_token = -weights.times(clipped_surrogate(ratio, advantage, clip_low, clip_high))
    divergence = _k3(logprobs, policy, scored, ref_logprobs, kl_coef)
    if divergence is not None:
        per_token = per_token + kl_coef * divergence
    loss = reduce_tokens(per_token, scored, reduction, max_length)
    metrics = _metrics(ratio, advantage, divergence, scored, clip_low, clip_high)
    return ObjectiveOutput(loss, metrics | weights.metrics("grpo", scored))


def group_advantages(rewards: Tensor, groups: Groups, *, baseline: str = "mean", scale_rewards: bool = True) -> Tensor:
    """Return how much better each row is than its group.

        A_i = (R_i - Rbar) / (std + 1e-4)

    Args:
        rewards: [B] float.
        groups: groups of at least two rows each.
        baseline: "mean" (Rbar) or "leave_one_out" (the mean of the group's other rows).
        scale_rewards: divide by the standard deviation (k - 1).

    Returns:
        [B]; exactly 0 in a group of equal rewards.

    Raises:
        ObjectiveError: an unknown baseline.
    """
    if baseline not in ("mean", "leave_one_out"):
        raise ObjectiveError(f"baseline={baseline!r} does not exist; choose mean or leave_one_out")
    centred = groups.centre(rewards) if baseline == "mean" else groups.leave_one_out(rewards)
    return centred / (groups.spread(groups.std(rewards)) + STD_EPSILON) if scale_rewards else centred


def token_advantages(
    logprobs: Tensor,
    scored: Tensor,
    rewards: Tensor,
    group: Tensor,
    advantages: Tensor | None,
    *,
    name: str,
    baseline: str = "mean",
    scale_rewards: bool = True,
) -> Tensor:
    """Return the given per-token advantages, or a row's computed one on each of its tokens.

    Args:
        logprobs: [B, T], for shape and precision.
        scored: [B, T] bool.
        rewards: [B].
        group: [B] int64.
        advantages: [B, T] or None.
        name: name of the objective, for errors.
        baseline: see `group_advantages`.
        scale_rewards: see `group_advantages`.

    Returns:
        [B, T], detached, 0 where nothing is scored.

    Raises:
        ShapeError, GroupTooSmall, ObjectiveError: as `grpo`.
    """
    returns, groups = row_values("rewards", rewards, logprobs), Groups.of(group, len(logprobs))
    if advantages is not None:
        return token_values("advantages", advantages, scored, logprobs).detach()
    groups.require_pairs(name)
    rows = group_advantages(returns, groups, baseline=baseline, scale_rewards=scale_rewards)
    return torch.where(scored, rows.to(working_dtype(logprobs))[:, None], 0.0)


def _k3(logprobs: Tensor, policy: Tensor, scored: Tensor, ref_logprobs: Tensor | None, kl_coef: float) -> Tensor | None:
    check_at_least("kl_coef", kl_coef, 0.0)
    if ref_logprobs is None:
        if kl_coef > 0:
            raise MissingLogprobs(f"kl_coef is {kl_coef} and ref_logprobs is missing; pass them, or set kl_coef to 0")
        return None
    gap = token_values("ref_logprobs", ref_logprobs, scored, logprobs).detach() - policy
    return bounded(gap).expm1() - gap if kl_coef > 0 else None  # eq. 4


@torch.no_grad()
def _metrics(
    ratio: Tensor, advantage: Tensor, divergence: Tensor | None, scored: Tensor, clip_low: float, clip_high: float
) -> dict[str, Tensor]:
    low, high = (token_mean(share, scored) for share in clipped_share(ratio, advantage, clip_low, clip_high))
    kl = {} if divergence is None else {"kl": token_mean(divergence, scored)}
    return named_metrics(
        "grpo",
        ratio_mean=token_mean(ratio, scored),
        clip_fraction=low + high,
        clip_fraction_low=low,
        clip_fraction_high=high,
        advantage_abs_mean=row_means(advantage.abs(), scored).mean(),
        **kl,
    )


def _preset(name: str, doc: str, **defaults: Any) -> "functools.partial[ObjectiveOutput]":
    """`grpo` with other defaults: `inspect.signature` shows them, and each keyword can still be given."""
    preset = functools.partial(grpo, **defaults)
    vars(preset).update(__name__=name, __doc__=doc)
    return preset


dr_grpo = _preset(
    "dr_grpo",
    """GRPO done right: no division by a group's std, and none by a completion's own length.

        A_i  = R_i - Rbar
        loss = - mean_i  1/max_length  sum_t min(r A, clip(r) A)

    `grpo` with scale_rewards=False and reduction="constant"; `max_length` (tokens) has to be given. Arguments, metrics
    and errors as `grpo`.

    Reference:
        Liu et al., Understanding R1-Zero-Like Training: A Critical Perspective, arXiv 2503.20783.
    """,
    scale_rewards=False,
    reduction="constant",
)

dapo = _preset(
    "dapo",
    """DAPO's loss: GRPO with a higher upper clip and a mean over all tokens of the batch.

        loss = - 1/(all tokens) sum_it min(r A, clip(r, 1 - 0.2, 1 + 0.28) A)

    `grpo` with clip_high=0.28 and reduction="token_mean". Arguments, metrics and errors as `grpo`.

    Differs from the paper:
        - Dynamic sampling and the overlong penalty act on data and rewards, so they are not part of the objective.

    Reference:
        Yu et al., DAPO, arXiv 2503.14476.
    """,
    clip_low=0.2,
    clip_high=0.28,
    reduction="token_mean",
)

rloo = _preset(
    "rloo",
    """REINFORCE with a leave-one-out baseline, on whole completions.

        A_i  = R_i - mean of the group's other rewards = k/(k-1) (R_i - Rbar)
        loss = - mean_i sum_t r_it A_i

    `grpo` with baseline="leave_one_out", no std, no clip, and sums over tokens. With old_logprobs the policy's own,
    detached, every ratio is 1 and the gradient is that of  - mean_i A_i log pi(y_i). Arguments, metrics and errors as
    `grpo`.

    Differs from the paper:
        - Off-policy it carries per-token ratios; the paper's is on-policy.
        - The KL penalty that the paper puts in the reward is `kl_in_reward`.

    Reference:
        Ahmadian et al., Back to Basics, arXiv 2402.14740.
    """,
    scale_rewards=False,
    baseline="leave_one_out",
    clip_low=math.inf,
    clip_high=math.inf,
    reduction="constant",
    max_length=1,
)
