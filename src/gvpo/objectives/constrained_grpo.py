"""Constrained GRPO (arXiv 2602.05863): rewards under limits on costs, by multipliers on standardised components."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gvpo.errors import ObjectiveError, ShapeError
from gvpo.objectives.base import ObjectiveOutput, check_at_least, row_dtype, row_values, scored_positions, working_dtype
from gvpo.objectives.groups import Groups
from gvpo.objectives.grpo import group_advantages, grpo


def constrained_grpo(
    logprobs: Tensor,
    *,
    old_logprobs: Tensor,
    rewards: Tensor,
    costs: Tensor,
    multipliers: Sequence[float],
    group: Tensor,
    mask: Tensor,
    reward_multiplier: float = 1.0,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    reduction: str = "sequence_mean",
    max_length: float | None = None,
    is_cap: float | None = None,
    sampler_logprobs: Tensor | None = None,
) -> ObjectiveOutput:
    """GRPO whose advantage weighs the reward against costs, each standardised in its group first.

        Z_X  = (X_i - Xbar) / (std + 1e-4)                             of the reward and of each cost by itself
        A_i  = reward_multiplier * Z_R - sum_k multipliers_k * Z_Ck
        loss = `grpo` with these advantages

    So a multiplier weighs its cost against the reward as it says. Were costs subtracted from the reward first, the
    standard deviation of the sum would divide all of them, and what a multiplier weighs would change with the group.

    Differs from the paper:
        - Costs may be any numbers; the paper's are 0 or 1, so that their mean is a rate of violations.
        - std has k - 1 in its denominator and 1e-4 added. There is no KL term.

    Args:
        logprobs: [B, T] log-probs of the policy, nats.
        old_logprobs: [B, T] log-probs under the policy that the ratio compares with, nats.
        rewards: [B].
        costs: [B, K] what each completion costs; higher is worse.
        multipliers: K numbers, at least 0; `updated_multipliers` moves them between updates.
        group: [B] int64 group ids; sizes may differ, each at least 2.
        mask: [B, T], 1 on scored tokens. Values elsewhere are never read.
        reward_multiplier: multiplier of the reward, at least 0.
        clip_low: lower half-width of the clip range; infinite for none.
        clip_high: upper half-width.
        reduction: see `grpo`.
        max_length: see `grpo`.
        is_cap: see `grpo`.
        sampler_logprobs: see `grpo`.

    Returns:
        The loss and `grpo`'s metrics, under the same keys.

    Raises:
        ShapeError: a tensor of the wrong shape or dtype, or another number of multipliers than of costs.
        GroupTooSmall: a group of one.
        MissingLogprobs: `is_cap` without `sampler_logprobs`.
        ObjectiveError: a keyword out of its range, or a mask of other values than 0 and 1.

    Example:
        >>> tokens, costs = torch.zeros(2, 1), torch.tensor([[1.0], [0.0]])
        >>> rest = {"rewards": torch.tensor([1.0, 0.0]), "group": torch.tensor([0, 0]), "mask": torch.ones(2, 1)}
        >>> output = constrained_grpo(tokens, old_logprobs=tokens, costs=costs, multipliers=[1.0], **rest)
        >>> float(output.metrics["grpo/advantage_abs_mean"])  # the reward's and the cost's cancel
        0.0

    Reference:
        Girgis et al., Constrained Group Relative Policy Optimization, arXiv 2602.05863.
    """
    scored = scored_positions(logprobs, mask)
    groups = Groups.of(group, len(logprobs))
    returns = row_values("rewards", rewards, logprobs)
    columns = _cost_columns(costs, multipliers, logprobs)
    groups.require_pairs("constrained_grpo")
    check_at_least("reward_multiplier", reward_multiplier, 0.0)
    advantage = reward_multiplier * group_advantages(returns, groups)
    for multiplier, column in zip(multipliers, columns, strict=True):
        check_at_least("multipliers", multiplier, 0.0)
        advantage = advantage - multiplier * group_advantages(column, groups)
    return grpo(
        logprobs,
        old_logprobs=old_logprobs,
        rewards=rewards,
        group=group,
        mask=mask,
        clip_low=clip_low,
        clip_high=clip_high,
        reduction=reduction,
        max_length=max_length,
        advantages=torch.where(scored, advantage.to(working_dtype(logprobs))[:, None], 0.0),
        is_cap=is_cap,
        sampler_logprobs=sampler_logprobs,
    )


def updated_multipliers(
    multipliers: Sequence[float], *, rates: Sequence[float], limits: Sequence[float], rate: float
) -> list[float]:
    """Take one step of projected ascent on the dual: up while a cost is over its limit, down to 0 while it is under.

        multiplier_k = max(0, multiplier_k + rate * (rates_k - limits_k))

    >>> updated_multipliers([0.5, 0.1], rates=[0.75, 0.0], limits=[0.25, 0.25], rate=1.0)
    [1.0, 0.0]

    Args:
        multipliers: K numbers.
        rates: each cost's mean over the completions: of 0 and 1, how often it was violated.
        limits: what those means may be.
        rate: the step size.

    Raises:
        ObjectiveError: numbers of unlike length.
    """
    if not len(multipliers) == len(rates) == len(limits):
        raise ObjectiveError(
            f"there are {len(multipliers)} multipliers, {len(rates)} rates and {len(limits)} limits; give one a cost"
        )
    triples = zip(multipliers, rates, limits, strict=True)
    return [max(0.0, multiplier + rate * (found - limit)) for multiplier, found, limit in triples]


def _cost_columns(costs: Tensor, multipliers: Sequence[float], logprobs: Tensor) -> list[Tensor]:
    """Return each cost as [B], detached, in the precision of rewards."""
    expected = (len(logprobs), len(multipliers))
    if costs.shape != expected:
        raise ShapeError(
            f"costs has shape {tuple(costs.shape)}; expected {expected}, [B, K], a value per row and multiplier"
        )
    return list(costs.detach().to(row_dtype(costs.device)).unbind(1))
