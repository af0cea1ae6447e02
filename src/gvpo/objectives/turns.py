"""Credit to turns: an advantage per turn of an episode, from the rewards that follow it."""

import torch
from torch import Tensor

from gvpo.errors import ShapeError
from gvpo.objectives.base import row_dtype
from gvpo.objectives.groups import Groups
from gvpo.objectives.grpo import STD_EPSILON


def turn_advantages(
    rewards: Tensor, paid: Tensor, *, turns: Tensor, group: Tensor, scale_rewards: bool = False
) -> Tensor:
    """Return how much better than that of the other rows the rest of an episode is, from each turn on.

        G_it = R_i - sum of paid_is over the turns s before t,   and 0 from the row's end on
        A_it = G_it - mean of G_jt over the other rows j of the group
        A_it = A_it / (std of R in the group + 1e-4)             with `scale_rewards`

    The baseline of a row depends on the other rows only, not on what the row does, so that with ratios of 1, sums over
    tokens and no scale the expected gradient is that of the expected reward, also if the policy decides when an episode
    ends. An average over the rows that have turn t would include the row itself, and be biased.

    Args:
        rewards: [B] reward of each episode: all of its turns' rewards, and what is added at its end.
        paid: [B, M] reward of each turn; values from a row's end on are not read.
        turns: [B] int64 number of turns of each row, at most M.
        group: [B] int64 group ids, each of at least two rows.
        scale_rewards: divide by the standard deviation (k - 1) of the group's rewards, which is one number for all
            turns. It depends on all rows, so that the result is not unbiased.

    Returns:
        [B, M], detached, 0 from a row's end on.

    Raises:
        ShapeError: a tensor of the wrong shape.
        GroupTooSmall: a group of one.

    Example:
        >>> paid = torch.tensor([[0.5, 1.0], [0.0, 0.0]])
        >>> rows = {"turns": torch.tensor([2, 1]), "group": torch.tensor([0, 0])}
        >>> turn_advantages(torch.tensor([1.5, 0.0]), paid, **rows).tolist()
        [[1.5, 1.0], [-1.5, 0.0]]

    Reference:
        Leave-one-out baselines: Kool et al., Buy 4 REINFORCE Samples, Get a Baseline for Free!, 2019.
    """
    if rewards.ndim != 1 or paid.shape[:1] != rewards.shape or paid.ndim != 2 or turns.shape != rewards.shape:
        raise ShapeError(
            f"rewards, paid and turns have shapes {tuple(rewards.shape)}, {tuple(paid.shape)} and "
            f"{tuple(turns.shape)}; expected [B], [B, M] and [B]"
        )
    groups = Groups.of(group, len(rewards))
    groups.require_pairs("turn_advantages")
    total = rewards.detach().to(row_dtype(rewards.device))
    is_turn = torch.arange(paid.shape[1], device=paid.device) < turns[:, None]
    given = torch.where(is_turn, paid.detach().to(total.dtype), 0.0)
    to_go = torch.where(is_turn, total[:, None] - (given.cumsum(dim=1) - given), 0.0)
    advantages = torch.stack([groups.leave_one_out(column) for column in to_go.T], dim=1)
    if scale_rewards:
        advantages = advantages / (groups.spread(groups.std(total)) + STD_EPSILON)[:, None]
    return torch.where(is_turn, advantages, 0.0)
