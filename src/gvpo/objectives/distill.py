"""Distillation by variance: GVPO's loss with a teacher's log-probs in place of a reference and rewards."""

import torch
from torch import Tensor

from gvpo.objectives.base import ObjectiveOutput, named_metrics
from gvpo.objectives.regression import Residuals


def distill(logprobs: Tensor, *, teacher_logprobs: Tensor, group: Tensor, mask: Tensor) -> ObjectiveOutput:
    """Make the log-probs of whole completions differ within a group as the teacher's do.

        l_i  = sum_t mask * (logprobs - teacher_logprobs)                    a sum: no length normalisation
        loss = mean over groups of  1/2 Var(l)                               Var with k - 1

    It is `gvpo` with the rewards beta log(teacher / pi'): beta and the reference cancel. Its unique minimiser is the
    teacher, for any sampling distribution whose support covers the teacher's: rows may come from the policy, from the
    teacher, from an older policy or from a file, without importance weights. On samples of the policy itself the
    expected gradient is that of KL(pi || teacher).

    Differs from the paper:
        - The paper has rewards and a reference; this is the case in which the teacher is the optimum.

    Args:
        logprobs: [B, T] log-probs of the policy, nats.
        teacher_logprobs: [B, T] log-probs of the teacher for the same tokens, nats.
        group: [B] int64 group ids; sizes may differ, each at least 2.
        mask: [B, T], 1 on scored tokens. Values elsewhere are never read.

    Returns:
        The loss and these metrics: `distill/variance` Var(l), a mean over groups, `distill/logratio_mean` mean l (nats;
        it estimates KL(pi || teacher) for rows sampled from pi, and -KL(teacher || pi) for rows of the teacher),
        `distill/logratio_gap_max` largest |l_i - lbar|.

    Raises:
        ShapeError: a tensor of the wrong shape or dtype.
        GroupTooSmall: a group of one.
        ObjectiveError: a mask of other values than 0 and 1.

    Example:
        >>> policy, teacher = torch.tensor([[-1.0], [-2.0]]), torch.tensor([[-2.0], [-1.0]])
        >>> distill(policy, teacher_logprobs=teacher, group=torch.tensor([0, 0]), mask=torch.ones(2, 1)).loss
        tensor(1.)

    Reference:
        The loss of Zhang et al., GVPO, arXiv 2504.19599, with R = beta log(teacher / pi').
    """
    nothing = torch.zeros(logprobs.shape[:1], device=logprobs.device)
    residuals = Residuals.of(logprobs, teacher_logprobs, nothing, group, mask, 1.0, reference="teacher_logprobs")
    residuals.groups.require_pairs("distill")
    losses = residuals.losses(anchor=0.0)
    metrics = named_metrics(
        "distill",
        variance=2 * losses.mean(),
        logratio_mean=residuals.uncentred.mean(),
        logratio_gap_max=residuals.log_ratios.abs().max(),
    )
    return ObjectiveOutput(losses.mean(), metrics)
