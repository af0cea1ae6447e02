"""Energy Preference Alignment: the positive answer against all negatives at once, those of other prompts included."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gvpo.errors import ShapeError
from gvpo.objectives.base import ObjectiveOutput, check_at_least, named_metrics, sequence_sums
from gvpo.objectives.dpo import ranked_right
from gvpo.objectives.roles import RowSums


def epa(
    positive_logprobs: Tensor,
    negative_logprobs: Tensor,
    *,
    ref_positive_logprobs: Tensor,
    ref_negative_logprobs: Tensor,
    negative_mask: Tensor | None = None,
    weak_mask: Tensor | None = None,
    weak_weight: float = 1.0,
    beta: float = 0.1,
) -> ObjectiveOutput:
    """Make the positive the most likely of itself and its negatives, by implicit rewards.

        r    = beta * (logprobs - ref_logprobs)
        loss = mean over prompts of  log(1 + sum_j v_j exp(r_j - r_positive)),    v_j = weak_weight if weak else 1

    What differs from the paper: its printed loss was not available to us. This is the form that follows from its
    description; `weak_weight` is ours, and 1 is no weighting. With one strong negative it is `dpo`.

    Args:
        positive_logprobs: [B] log-probs of the positives: sums over their scored tokens, nats.
        negative_logprobs: [B, N] of their negatives.
        ref_positive_logprobs: [B] the same under the reference; detached here.
        ref_negative_logprobs: [B, N].
        negative_mask: [B, N], 1 where there is a negative; None: everywhere. Values elsewhere are never read.
        weak_mask: [B, N], 1 where the negative answers another prompt; None: nowhere.
        weak_weight: how much a weak negative counts, 0 or more.
        beta: reward per nat, above 0.

    Returns:
        The loss and these metrics: `epa/accuracy` share of strong negatives whose positive has the higher implicit
        reward (a tie is half), `epa/margin` mean of r_positive - r_j over them, `epa/weak_accuracy` and
        `epa/weak_margin` the same over weak ones (0 without any), `epa/chosen_logratio`, `epa/rejected_logratio`
        (strong) and `epa/weak_logratio` nats.

    Raises:
        ShapeError: a tensor of the wrong shape or dtype.
        ObjectiveError: beta is not above 0, or weak_weight is below 0.

    Example:
        >>> epa(torch.zeros(1), torch.zeros(1, 3), ref_positive_logprobs=torch.zeros(1),
        ...     ref_negative_logprobs=torch.zeros(1, 3)).loss
        tensor(1.3863)

    Reference:
        arXiv 2412.13862, from its description.
    """
    check_at_least("beta", beta, 0.0, strictly=True)
    check_at_least("weak_weight", weak_weight, 0.0)
    present = _flags("negative_mask", negative_mask, negative_logprobs, default=True)
    weak = _flags("weak_mask", weak_mask, negative_logprobs, default=False) & present
    positive = sequence_sums("positive_logprobs", positive_logprobs, positive_logprobs)
    positive = positive - sequence_sums("ref_positive_logprobs", ref_positive_logprobs, positive_logprobs).detach()
    negative = _kept("negative_logprobs", negative_logprobs, negative_logprobs, present)
    negative = negative - _kept("ref_negative_logprobs", ref_negative_logprobs, negative_logprobs, present).detach()
    margin = beta * (_column(positive, negative) - negative)
    weight = math.log(weak_weight) if weak_weight > 0 else -math.inf
    exponent = torch.where(weak, weight - margin, -margin).masked_fill(~present, -torch.inf)
    loss = torch.cat([exponent.new_zeros(len(exponent), 1), exponent], dim=1).logsumexp(dim=1).mean()
    return ObjectiveOutput(loss, _metrics(positive, negative, margin, present & ~weak, weak))


def epa_rows(
    logprobs: Tensor,
    *,
    ref_logprobs: Tensor,
    role: Sequence[str],
    group: Tensor,
    mask: Tensor,
    weak_weight: float = 1.0,
    beta: float = 0.1,
) -> ObjectiveOutput:
    """`epa` on rows: the chosen row of each group is its positive, the other rows its negatives.

        loss = mean over groups of  log(1 + sum_j v_j exp(r_j - r_chosen)),    v_j = weak_weight if weak else 1

    What differs from the paper: as `epa`.

    Args:
        logprobs: [B, T] log-probs of the policy, nats.
        ref_logprobs: [B, T] the same under the reference.
        role: B names, "chosen", "strong" (a worse answer) or "weak" (an answer to another prompt, scored under this
            one); one chosen row per group.
        group: [B] int64, which rows belong to the same prompt; groups may have different sizes.
        mask: [B, T], 1 on scored tokens. Values elsewhere are never read.
        weak_weight: how much a weak negative counts, 0 or more.
        beta: reward per nat, above 0.

    Returns:
        As `epa`.

    Raises:
        ShapeError: a tensor of the wrong shape or dtype, or not one role per row.
        GroupTooSmall: a group without a negative.
        ObjectiveError: an unknown role, or a group without exactly one chosen row.

    Example:
        >>> rows = torch.zeros(3, 2)
        >>> same = torch.tensor([0, 0, 0])
        >>> epa_rows(rows, ref_logprobs=rows, role=("chosen", "strong", "weak"), group=same, mask=torch.ones(3, 2)).loss
        tensor(1.0986)

    Reference:
        arXiv 2412.13862, from its description.
    """
    rows = RowSums.of("epa", logprobs, ref_logprobs, role, group, mask)
    places, present = _table(rows)
    return epa(
        rows.policy[rows.chosen],
        rows.policy[places],
        ref_positive_logprobs=rows.reference[rows.chosen],
        ref_negative_logprobs=rows.reference[places],
        negative_mask=present,
        weak_mask=torch.isin(places, rows.weak),
        weak_weight=weak_weight,
        beta=beta,
    )


def _table(rows: RowSums) -> tuple[Tensor, Tensor]:
    """[G, N] the rows that are negatives of each group, and where there is one."""
    negatives = torch.cat([rows.strong, rows.weak])
    members = [negatives[rows.group[negatives] == index] for index in range(len(rows.chosen))]
    places = torch.nn.utils.rnn.pad_sequence(members, batch_first=True, padding_value=-1)
    return places.clamp(min=0), places >= 0


def _flags(name: str, mask: Tensor | None, like: Tensor, *, default: bool) -> Tensor:
    """Return a mask as booleans, [B, N]."""
    if like.ndim != 2:
        raise ShapeError(f"negative_logprobs has shape {tuple(like.shape)}; expected [B, N], N negatives per positive")
    if mask is None:
        return torch.full(like.shape, default, device=like.device)
    if mask.shape != like.shape:
        raise ShapeError(f"{name} has shape {tuple(mask.shape)}; expected {tuple(like.shape)}, as negative_logprobs")
    return mask != 0


def _column(positive: Tensor, negative: Tensor) -> Tensor:
    """Reshape [B] to [B, 1], the shape of a column next to the negatives [B, N]."""
    if positive.shape != negative.shape[:1]:
        raise ShapeError(
            f"negative_logprobs has shape {tuple(negative.shape)}; expected [B, N] with B = {len(positive)} positives"
        )
    return positive[:, None]


def _kept(name: str, values: Tensor, like: Tensor, present: Tensor) -> Tensor:
    """Return [B, N], with 0 in place of any value where there is no negative."""
    return torch.where(present, sequence_sums(name, values, like), 0.0)


def _metrics(positive: Tensor, negative: Tensor, margin: Tensor, strong: Tensor, weak: Tensor) -> dict[str, Tensor]:
    def mean(values: Tensor, kept: Tensor) -> Tensor:
        return torch.where(kept, values, 0.0).sum() / kept.sum().clamp(min=1)

    return named_metrics(
        "epa",
        accuracy=mean(ranked_right(margin), strong),
        margin=mean(margin, strong),
        weak_accuracy=mean(ranked_right(margin), weak),
        weak_margin=mean(margin, weak),
        chosen_logratio=positive.mean(),
        rejected_logratio=mean(negative, strong),
        weak_logratio=mean(negative, weak),
    )
