"""Direct Preference Optimization: of two answers to a prompt the better one gains on the worse."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from gvpo.objectives.base import ObjectiveOutput, check_at_least, named_metrics, sequence_sums
from gvpo.objectives.roles import RowSums


def dpo(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    *,
    ref_chosen_logprobs: Tensor,
    ref_rejected_logprobs: Tensor,
    beta: float = 0.1,
) -> ObjectiveOutput:
    """Classify each pair by its implicit rewards.

        r_chosen = beta * (chosen_logprobs - ref_chosen_logprobs)    r_rejected likewise
        loss     = mean over pairs of  -log sigmoid(r_chosen - r_rejected)

    What differs from the paper: nothing. At the reference the loss is ln 2.

    Args:
        chosen_logprobs: [B] log-probs of the better answers: sums over their scored tokens, nats.
        rejected_logprobs: [B] of the worse ones.
        ref_chosen_logprobs: [B] the same under the reference; detached here.
        ref_rejected_logprobs: [B].
        beta: reward per nat, above 0.

    Returns:
        The loss and these metrics: `dpo/accuracy` share of pairs that the implicit rewards rank right (a tie is half),
        `dpo/margin` mean of r_chosen - r_rejected, `dpo/chosen_logratio` and `dpo/rejected_logratio` nats.

    Raises:
        ShapeError: a tensor of the wrong shape or dtype.
        ObjectiveError: beta is not above 0.

    Example:
        >>> zero = torch.zeros(2)
        >>> dpo(zero, zero, ref_chosen_logprobs=zero, ref_rejected_logprobs=zero).loss
        tensor(0.6931)

    Reference:
        Rafailov et al., arXiv 2305.18290, eq. 7.
    """
    check_at_least("beta", beta, 0.0, strictly=True)
    like = chosen_logprobs
    policy = [
        sequence_sums("chosen_logprobs", chosen_logprobs, like),
        sequence_sums("rejected_logprobs", rejected_logprobs, like),
    ]
    reference = [
        sequence_sums("ref_chosen_logprobs", ref_chosen_logprobs, like).detach(),
        sequence_sums("ref_rejected_logprobs", ref_rejected_logprobs, like).detach(),
    ]
    chosen, rejected = (now - then for now, then in zip(policy, reference, strict=True))
    margin = beta * (chosen - rejected)
    loss = -F.logsigmoid(margin).mean()  # eq. 7
    metrics = named_metrics(
        "dpo",
        accuracy=ranked_right(margin).mean(),
        margin=margin.mean(),
        chosen_logratio=chosen.mean(),
        rejected_logratio=rejected.mean(),
    )
    return ObjectiveOutput(loss, metrics)


def dpo_rows(
    logprobs: Tensor,
    *,
    ref_logprobs: Tensor,
    role: Sequence[str],
    group: Tensor,
    mask: Tensor,
    beta: float = 0.1,
) -> ObjectiveOutput:
    """`dpo` on rows: a pair of each strong negative with the chosen row of its group.

        loss = mean over strong negatives j of  -log sigmoid(r_chosen(group of j) - r_j)

    What differs from the paper: a group may have several worse answers, which are as many pairs.

    Args:
        logprobs: [B, T] log-probs of the policy, nats.
        ref_logprobs: [B, T] the same under the reference.
        role: B names, "chosen" or "strong"; one chosen row per group.
        group: [B] int64, which rows answer the same prompt.
        mask: [B, T], 1 on scored tokens. Values elsewhere are never read.
        beta: reward per nat, above 0.

    Returns:
        As `dpo`.

    Raises:
        ShapeError: a tensor of the wrong shape or dtype, or not one role per row.
        GroupTooSmall: a group without a strong negative.
        ObjectiveError: an unknown role, a weak negative, or a group without exactly one chosen row.

    Example:
        >>> rows = torch.tensor([[-1.0, -1.0], [-3.0, -2.0]])
        >>> same = torch.tensor([0, 0])
        >>> dpo_rows(rows, ref_logprobs=rows, role=("chosen", "strong"), group=same, mask=torch.ones(2, 2)).loss
        tensor(0.6931)

    Reference:
        Rafailov et al., arXiv 2305.18290, eq. 7.
    """
    rows = RowSums.of("dpo", logprobs, ref_logprobs, role, group, mask)
    rows.refuse_weak("dpo")
    chosen = rows.chosen[rows.group[rows.strong]]  # [S]: of each negative's group
    return dpo(
        rows.policy[chosen],
        rows.policy[rows.strong],
        ref_chosen_logprobs=rows.reference[chosen],
        ref_rejected_logprobs=rows.reference[rows.strong],
        beta=beta,
    )


def ranked_right(margin: Tensor) -> Tensor:
    """Return 1 where a margin is positive, 0 where it is negative, 1/2 at a tie."""
    return (margin.sign() + 1) / 2
