"""The four losses of a Q-Probe, on blocks of completions, as pure functions of tensors.

A block contains the completions that are compared: [n, w] values of n blocks, where `present` [n, w] marks real ones.

    mse, bce          w = 1    single completions
    policy_gradient   w = s    s completions of one prompt
    preferences       w = 2    two completions of one prompt with different rewards

Reference: Li et al., Q-Probe (arXiv:2402.14688), section 4.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def mse(q: Tensor, rewards: Tensor, present: Tensor, *, beta: float = 1.0) -> Tensor:
    """Return the mean (Q - r)^2.

    Args:
        q: [n, 1] values.
        rewards: [n, 1].
        present: [n, 1] bool.
        beta: Not used.

    Returns:
        A scalar.
    """
    return F.mse_loss(q[present], rewards[present])


def bce(q: Tensor, rewards: Tensor, present: Tensor, *, beta: float = 1.0) -> Tensor:
    """Return the mean of -r log sigma(Q) - (1 - r) log sigma(-Q), where Q is the log-odds of a correct answer.

    Args:
        q: [n, 1] values.
        rewards: [n, 1] in [0, 1].
        present: [n, 1] bool.
        beta: Not used.

    Returns:
        A scalar.
    """
    return F.binary_cross_entropy_with_logits(q[present], rewards[present])


def policy_gradient(q: Tensor, rewards: Tensor, present: Tensor, *, beta: float = 1.0) -> Tensor:
    """Return the mean over blocks of - sum_i rho_i (r_i - b), rho = softmax(Q / beta) among the block's completions.

    It is minus the reward that the probe's choice gains over a random choice, since b is the block's mean reward. The
    rho of a block add up to 1, so b changes the loss and not its gradient, and the probe's bias has no gradient.

    Args:
        q: [n, s] values.
        rewards: [n, s].
        present: [n, s] bool, at least one in each block.
        beta: Temperature of the choice during training.

    Returns:
        A scalar.
    """
    rho = (q / beta).masked_fill(~present, -torch.inf).softmax(dim=1)
    known = rewards.masked_fill(~present, 0.0)
    mean = known.sum(dim=1, keepdim=True) / present.sum(dim=1, keepdim=True)
    return -(rho * (known - mean)).sum(dim=1).mean()


def preferences(q: Tensor, rewards: Tensor, present: Tensor, *, beta: float = 1.0) -> Tensor:
    """Return the mean of -log sigma(Q_w - Q_l), w the completion with the higher reward. The bias has no gradient.

    Args:
        q: [n, 2] values.
        rewards: [n, 2], unequal in each block.
        present: [n, 2] bool, all true.
        beta: Not used.

    Returns:
        A scalar.
    """
    sign = torch.sign(rewards[:, 0] - rewards[:, 1])
    return -F.logsigmoid(sign * (q[:, 0] - q[:, 1])).mean()


@dataclass(frozen=True)
class Loss:
    """A loss and the form of its blocks.

    Args:
        value: The function.
        width: Number of completions per block; None uses the settings.
        unequal: Whether only blocks with different rewards count.
        unit: Whether rewards must be in [0, 1].
    """

    value: Callable[..., Tensor]
    width: int | None = 1
    unequal: bool = False
    unit: bool = False


LOSSES = {
    "mse": Loss(mse),
    "bce": Loss(bce, unit=True),
    "policy_gradient": Loss(policy_gradient, width=None),
    "preferences": Loss(preferences, width=2, unequal=True),
}
