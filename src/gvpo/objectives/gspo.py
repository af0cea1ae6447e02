"""Group Sequence Policy Optimization (arXiv 2507.18071): the ratio, and the clip, belong to whole completions."""

import torch
from torch import Tensor

from gvpo.objectives.base import ObjectiveOutput, named_metrics, row_values, scored_positions, token_values
from gvpo.objectives.clip import bounded, clipped_share, clipped_surrogate
from gvpo.objectives.groups import Groups
from gvpo.objectives.grpo import group_advantages, token_advantages
from gvpo.objectives.reduce import row_means


def gspo(
    logprobs: Tensor,
    *,
    old_logprobs: Tensor,
    rewards: Tensor,
    group: Tensor,
    mask: Tensor,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    scale_rewards: bool = True,
) -> ObjectiveOutput:
    """GRPO with one ratio per completion, the geometric mean of its token ratios.

        s_i  = exp(mean_t(logprobs - old_logprobs))
        A_i  = (R_i - Rbar) / (std + 1e-4)
        loss = - mean_i min(s A, clip(s, 1 - clip_low, 1 + clip_high) A)

    Differs from the paper:
        - std has k - 1 in its denominator and 1e-4 added.
        - A row without a scored token has no ratio and adds 0; its reward still counts in its group.

    Args:
        logprobs: [B, T] log-probs of the policy, nats.
        old_logprobs: [B, T] log-probs under the policy that sampled, nats. The clip range is narrower than the noise of
            bf16 log-probs: both must come from one engine, in float32, from the same layout.
        rewards: [B].
        group: [B] int64 group ids; sizes may differ, each at least 2.
        mask: [B, T], 1 on scored tokens. Values elsewhere are never read.
        clip_low: lower half-width of the clip range.
        clip_high: upper half-width.
        scale_rewards: divide by the group's standard deviation.

    Returns:
        The loss and these metrics, means over rows: `gspo/ratio_mean` mean s, `gspo/clip_fraction` share of rows whose
        gradient the clip stops, `gspo/clip_fraction_low` and `gspo/clip_fraction_high` its two sides,
        `gspo/advantage_abs_mean` mean |A|. Rows without a scored token count as 0 in them.

    Raises:
        ShapeError: a tensor of the wrong shape or dtype.
        GroupTooSmall: a group of one.
        ObjectiveError: a keyword out of its range, or a mask of other values than 0 and 1.

    Example:
        >>> tokens = torch.zeros(2, 1)
        >>> rewards, group = torch.tensor([1.0, 0.0]), torch.tensor([0, 0])
        >>> output = gspo(tokens, old_logprobs=tokens, rewards=rewards, group=group, mask=torch.ones(2, 1))
        >>> output.metrics["gspo/ratio_mean"]
        tensor(1.)

    Reference:
        Zheng et al., Group Sequence Policy Optimization, arXiv 2507.18071, section 4.1.
    """
    scored = scored_positions(logprobs, mask)
    log_ratio = _mean_log_ratio(logprobs, old_logprobs, scored)
    groups = Groups.of(group, len(logprobs))
    returns = row_values("rewards", rewards, logprobs)
    groups.require_pairs("gspo")
    present = scored.any(dim=1).to(log_ratio.dtype)
    advantage = present * group_advantages(returns, groups, scale_rewards=scale_rewards).to(log_ratio.dtype)
    ratio = bounded(log_ratio).exp()
    loss = -clipped_surrogate(ratio, advantage, clip_low, clip_high).mean()
    low, high = clipped_share(ratio, advantage, clip_low, clip_high)
    return ObjectiveOutput(loss, _metrics(ratio * present, advantage, low, high))


def gspo_token(
    logprobs: Tensor,
    *,
    old_logprobs: Tensor,
    rewards: Tensor,
    group: Tensor,
    mask: Tensor,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    scale_rewards: bool = True,
    advantages: Tensor | None = None,
) -> ObjectiveOutput:
    """GSPO whose completions may carry another advantage on each token.

        log s_it = logprobs - logprobs.detach() + mean_t(logprobs - old_logprobs).detach()
        loss     = - mean_i mean_t min(s A, clip(s, 1 - clip_low, 1 + clip_high) A)

    The value of s_it is the row's s_i of `gspo`, its gradient is the token's own. With one advantage per row, value,
    clipping and gradient are `gspo`'s; with per-token ones the minimum picks a branch per token.

    Differs from the paper:
        - As `gspo`.

    Args:
        logprobs: [B, T] log-probs of the policy, nats.
        old_logprobs: [B, T] log-probs under the policy that sampled, nats; see `gspo`.
        rewards: [B].
        group: [B] int64 group ids; sizes may differ, each at least 2.
        mask: [B, T], 1 on scored tokens. Values elsewhere are never read.
        clip_low: lower half-width of the clip range.
        clip_high: upper half-width.
        scale_rewards: divide by the group's standard deviation.
        advantages: [B, T], replaces the computed ones; rewards are then not read, and groups of one are fine.

    Returns:
        The loss and `gspo`'s metrics, under the same keys; each is a mean over tokens, then over rows.

    Raises:
        ShapeError, GroupTooSmall, ObjectiveError: as `gspo`; no GroupTooSmall with `advantages`.

    Example:
        >>> tokens, given = torch.zeros(1, 2), torch.tensor([[1.0, 3.0]])
        >>> one = {"rewards": torch.zeros(1), "group": torch.tensor([0]), "mask": torch.ones(1, 2)}
        >>> gspo_token(tokens, old_logprobs=tokens, advantages=given, **one).loss
        tensor(-2.)

    Reference:
        Zheng et al., Group Sequence Policy Optimization, arXiv 2507.18071, section 4.3.
    """
    scored = scored_positions(logprobs, mask)
    policy = token_values("logprobs", logprobs, scored, logprobs)
    row = _mean_log_ratio(logprobs, old_logprobs, scored).detach()
    advantage = token_advantages(
        logprobs, scored, rewards, group, advantages, name="gspo_token", scale_rewards=scale_rewards
    )
    ratio = (policy - policy.detach() + bounded(row)[:, None]).exp()
    loss = -row_means(clipped_surrogate(ratio, advantage, clip_low, clip_high), scored).mean()
    shares = clipped_share(ratio, advantage, clip_low, clip_high)
    return ObjectiveOutput(loss, _metrics(*(row_means(x, scored) for x in (ratio, advantage.abs(), *shares))))


def _mean_log_ratio(logprobs: Tensor, old_logprobs: Tensor, scored: Tensor) -> Tensor:
    policy = token_values("logprobs", logprobs, scored, logprobs)
    old = token_values("old_logprobs", old_logprobs, scored, logprobs).detach()
    return row_means(policy - old, scored)


@torch.no_grad()
def _metrics(ratio: Tensor, advantage: Tensor, low: Tensor, high: Tensor) -> dict[str, Tensor]:
    """Return the metrics of tensors [B]."""
    return named_metrics(
        "gspo",
        ratio_mean=ratio.mean(),
        clip_fraction=(low + high).mean(),
        clip_fraction_low=low.mean(),
        clip_fraction_high=high.mean(),
        advantage_abs_mean=advantage.abs().mean(),
    )
