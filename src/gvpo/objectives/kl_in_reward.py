"""A KL penalty taken off the rewards, before an objective sees them."""

import torch
from torch import Tensor

from gvpo.objectives.base import check_at_least, row_values, scored_positions, token_values
from gvpo.objectives.reduce import row_sums


@torch.no_grad()
def kl_in_reward(rewards: Tensor, *, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, beta: float) -> Tensor:
    """Subtract beta times the completion's log-ratio to the reference from the rewards.

        R'_i = R_i - beta * sum_t mask * (logprobs - ref_logprobs)

    With the current policy's log-probs and no ratio, `rloo` on R' has GVPO's gradient over beta, where all groups have
    one size. With log-probs of the policy that sampled, it is the usual KL penalty of RLHF.

    Args:
        rewards: [B].
        logprobs: [B, T] log-probs of the current or of the sampling policy, nats.
        ref_logprobs: [B, T] log-probs of the reference, nats.
        mask: [B, T], 1 on scored tokens. Values elsewhere are never read.
        beta: reward per nat, at least 0.

    Returns:
        [B], detached, float64 (float32 on Apple's GPUs): a large offset costs no digits.

    Raises:
        ShapeError: a tensor of the wrong shape or dtype.
        ObjectiveError: a negative beta, or a mask of other values than 0 and 1.

    Example:
        >>> one = torch.ones(1, 2)
        >>> kl_in_reward(torch.tensor([1.0]), logprobs=-1 * one, ref_logprobs=-2 * one, mask=one, beta=0.25)
        tensor([0.5000], dtype=torch.float64)

    Reference:
        Ziegler et al., Fine-Tuning Language Models from Human Preferences, arXiv 1909.08593, eq. 2.
    """
    check_at_least("beta", beta, 0.0)
    scored = scored_positions(logprobs, mask)
    policy = token_values("logprobs", logprobs, scored, logprobs)
    reference = token_values("ref_logprobs", ref_logprobs, scored, logprobs)
    return row_values("rewards", rewards, logprobs) - beta * row_sums(policy - reference, scored)
