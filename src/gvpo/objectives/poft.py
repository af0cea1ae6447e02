"""Preference-Oriented Fine-Tuning: a written answer should be more likely here than under aligned models."""

import torch
import torch.nn.functional as F
from torch import Tensor

from gvpo.errors import ShapeError
from gvpo.objectives.base import ObjectiveOutput, named_metrics, scored_positions, token_values, working_dtype
from gvpo.objectives.reduce import row_means, token_mean


def poft(logprobs: Tensor, *, mask: Tensor, aligned_mean_logprobs: Tensor) -> ObjectiveOutput:
    """Prefer each answer more than the aligned models do.

        r    = mean over a row's scored tokens of logprobs
        loss = mean over rows of  -log sigmoid(r - mean_j aligned_mean_logprobs_j)

    Its gradient is that of `sft` with reduction "sequence_mean", each row times
    tau = sigmoid(mean_j aligned_mean_logprobs_j - r): about 1/2 where the policy is as good as the aligned models.

    Nothing differs from the paper; only the response is scored, by the policy and by the aligned models.

    Args:
        logprobs: [B, T] log-probs of the policy, nats.
        mask: [B, T], 1 on scored tokens. Values elsewhere are never read.
        aligned_mean_logprobs: [B, M] mean log-prob per token of the same answer under M aligned models, each with its
            own tokens, nats (`gvpo score`).

    Returns:
        The loss and these metrics: `poft/margin` mean of r minus the aligned mean, `poft/tau` mean of tau,
        `poft/tau_std` its standard deviation over rows, `poft/mean_logprob` mean of r, `poft/nll` nats per token.

    Raises:
        ShapeError: a tensor of the wrong shape or dtype.
        ObjectiveError: a mask of other values than 0 and 1.

    Example:
        >>> two_models = torch.tensor([[-1.0, -3.0]])
        >>> poft(torch.tensor([[-2.0, -2.0]]), mask=torch.ones(1, 2), aligned_mean_logprobs=two_models).loss
        tensor(0.6931)

    Reference:
        arXiv 2412.12865.
    """
    scored = scored_positions(logprobs, mask)
    values = token_values("logprobs", logprobs, scored, logprobs)
    mean = row_means(values, scored)
    margin = mean - _aligned(aligned_mean_logprobs, logprobs)
    tau = torch.sigmoid(-margin)
    metrics = named_metrics(
        "poft",
        margin=margin.mean(),
        tau=tau.mean(),
        tau_std=tau.std(correction=0),
        mean_logprob=mean.mean(),
        nll=-token_mean(values, scored),
    )
    return ObjectiveOutput(-F.logsigmoid(margin).mean(), metrics)


def _aligned(values: Tensor, logprobs: Tensor) -> Tensor:
    """[B, M] -> [B]: the mean over the aligned models, detached."""
    rows = logprobs.shape[0]
    if values.ndim != 2 or values.shape[0] != rows or values.shape[1] == 0:
        raise ShapeError(
            f"aligned_mean_logprobs has shape {tuple(values.shape)}; expected [B, M], B = {rows} rows, M >= 1 models"
        )
    if not values.is_floating_point():
        raise ShapeError(f"aligned_mean_logprobs has dtype {values.dtype}; expected a floating-point tensor")
    return values.detach().to(working_dtype(logprobs)).mean(dim=1)
