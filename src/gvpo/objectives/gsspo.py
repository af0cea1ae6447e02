"""Group Sub-sequence Policy Optimization (arXiv 2602.01202): the ratio, and the clip, belong to segments."""

import torch
from torch import Tensor

from gvpo.errors import ShapeError
from gvpo.objectives.base import ObjectiveOutput, named_metrics, row_values, scored_positions, token_values
from gvpo.objectives.clip import bounded, clipped_share, clipped_surrogate
from gvpo.objectives.groups import Groups
from gvpo.objectives.grpo import group_advantages


def gsspo(
    logprobs: Tensor,
    *,
    old_logprobs: Tensor,
    rewards: Tensor,
    segments: Tensor,
    group: Tensor,
    mask: Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    scale_rewards: bool = True,
    advantages: Tensor | None = None,
) -> ObjectiveOutput:
    """GRPO with one ratio per segment, the geometric mean of its token ratios: everything between GRPO and GSPO.

        s_ij = exp(mean over the tokens t of segment j of (logprobs - old_logprobs))
        A_i  = (R_i - Rbar) / (std + 1e-4)
        loss = - mean_i mean_j min(s A, clip(s, 1 - clip_low, 1 + clip_high) A)

    With one segment per completion it is `gspo`, with one token per segment `grpo`, at the same clip range.

    Differs from the paper:
        - The caller chooses the segments; the paper's are cycles of a thought and an action.
        - std has k - 1 in its denominator and 1e-4 added.
        - The clip range is GRPO's by default. The longer the segments, the narrower a range that still clips.

    Args:
        logprobs: [B, T] log-probs of the policy, nats.
        old_logprobs: [B, T] log-probs under the policy that sampled, nats; see `gspo`.
        rewards: [B].
        segments: [B, T] int64; tokens of a row with the same id are one segment, even with gaps. Values
            where nothing is scored are never read.
        group: [B] int64 group ids; sizes may differ, each at least 2.
        mask: [B, T], 1 on scored tokens. Values elsewhere are never read.
        clip_low: lower half-width of the clip range.
        clip_high: upper half-width.
        scale_rewards: divide by the group's standard deviation.
        advantages: [B, T], replaces the computed ones; a segment gets the mean over its tokens. Rewards are then not
            read, and groups of one are fine.

    Returns:
        The loss and these metrics, means over a row's segments, then over rows: `gsspo/ratio_mean` mean s,
        `gsspo/clip_fraction` share of segments whose gradient the clip stops, `gsspo/clip_fraction_low` and
        `gsspo/clip_fraction_high` its two sides, `gsspo/advantage_abs_mean` mean |A|. `gsspo/segments` is the mean
        number of segments of a row. Rows without a scored token count as 0 in them.

    Raises:
        ShapeError: a tensor of the wrong shape or dtype.
        GroupTooSmall: a group of one and no `advantages`.
        ObjectiveError: a keyword out of its range, or a mask of other values than 0 and 1.

    Example:
        >>> tokens, segments = torch.zeros(2, 3), torch.tensor([[0, 0, 1], [0, 1, 1]])
        >>> rest = {"rewards": torch.tensor([1.0, 0.0]), "group": torch.tensor([0, 0]), "mask": torch.ones(2, 3)}
        >>> gsspo(tokens, old_logprobs=tokens, segments=segments, **rest).metrics["gsspo/segments"]
        tensor(2.)

    Reference:
        Kong et al., Workflow-R1: Group Sub-sequence Policy Optimization, arXiv 2602.01202.
    """
    scored = scored_positions(logprobs, mask)
    policy = token_values("logprobs", logprobs, scored, logprobs)
    old = token_values("old_logprobs", old_logprobs, scored, logprobs).detach()
    groups = Groups.of(group, len(logprobs))
    returns = row_values("rewards", rewards, logprobs)
    parts = _Segments(segments, scored)
    if advantages is None:
        groups.require_pairs("gsspo")
        advantage = group_advantages(returns, groups, scale_rewards=scale_rewards).to(policy.dtype)[parts.row]
    else:
        advantage = parts.means(token_values("advantages", advantages, scored, logprobs).detach()[scored])
    ratio = bounded(parts.means((policy - old)[scored])).exp()
    loss = -parts.row_means(clipped_surrogate(ratio, advantage, clip_low, clip_high)).mean()
    low, high = (parts.row_means(share).mean() for share in clipped_share(ratio, advantage, clip_low, clip_high))
    metrics = named_metrics(
        "gsspo",
        ratio_mean=parts.row_means(ratio).mean(),
        clip_fraction=low + high,
        clip_fraction_low=low,
        clip_fraction_high=high,
        advantage_abs_mean=parts.row_means(advantage.abs()).mean(),
        segments=parts.counts.to(ratio.dtype).mean(),
    )
    return ObjectiveOutput(loss, metrics)


class _Segments:
    """Assignment of the N scored tokens to G segments, rows in order.

    Attributes:
        row: [G] int64, the row of each segment.
        counts: [B] int64, the segments of each row.
    """

    def __init__(self, ids: Tensor, scored: Tensor) -> None:
        if ids.shape != scored.shape or ids.dtype != torch.int64:
            raise ShapeError(
                f"segments has shape {tuple(ids.shape)} and dtype {ids.dtype}; expected {tuple(scored.shape)}, [B, T], "
                "the shape of logprobs, and torch.int64"
            )
        pairs = torch.stack([scored.nonzero()[:, 0], ids[scored]])
        found, self._index, self._sizes = torch.unique(pairs, dim=1, return_inverse=True, return_counts=True)
        self.row = found[0]
        self.counts = torch.bincount(self.row, minlength=len(scored))

    def means(self, values: Tensor) -> Tensor:
        """[N] -> [G]: the mean over each segment's tokens."""
        means: Tensor = values.new_zeros(self._sizes.shape).index_add(0, self._index, values) / self._sizes
        return means

    def row_means(self, values: Tensor) -> Tensor:
        """[G] -> [B]: the mean over each row's segments, 0 for a row without any."""
        return values.new_zeros(self.counts.shape).index_add(0, self.row, values) / self.counts.clamp(min=1)
