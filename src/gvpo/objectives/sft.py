"""Supervised fine-tuning: the likelihood of given completions."""

from torch import Tensor

from gvpo.errors import ObjectiveError
from gvpo.objectives.base import ObjectiveOutput, named_metrics, scored_positions, token_values
from gvpo.objectives.reduce import reduce_tokens, row_sums, token_mean


def sft(logprobs: Tensor, *, mask: Tensor, reduction: str = "token_mean") -> ObjectiveOutput:
    """Make the given completions likely.

        loss = - mean over scored tokens of logprobs

    Args:
        logprobs: [B, T] log-probs of the policy, nats.
        mask: [B, T], 1 on scored tokens. Values elsewhere are never read.
        reduction: "token_mean": over all tokens at once, long completions weigh more; "sequence_mean": tokens, then
            rows, each completion weighs the same.

    Returns:
        The loss and these metrics: `sft/nll` nats per token, `sft/sequence_nll` nats per completion.

    Raises:
        ShapeError: a tensor of the wrong shape or dtype.
        ObjectiveError: an unknown reduction, or a mask of other values than 0 and 1.

    Example:
        >>> sft(torch.tensor([[-1.0, -3.0]]), mask=torch.ones(1, 2)).loss
        tensor(2.)

    Reference:
        Maximum likelihood; as the first stage of Ouyang et al., arXiv 2203.02155.
    """
    if reduction not in ("token_mean", "sequence_mean"):
        raise ObjectiveError(f"reduction={reduction!r} is not one of sft's; choose token_mean or sequence_mean")
    scored = scored_positions(logprobs, mask)
    nll = -token_values("logprobs", logprobs, scored, logprobs)
    metrics = named_metrics("sft", nll=token_mean(nll, scored), sequence_nll=row_sums(nll, scored).mean())
    return ObjectiveOutput(reduce_tokens(nll, scored, reduction), metrics)
