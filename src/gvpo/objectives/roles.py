"""Rows with roles: in each group a chosen answer, strong negatives (worse answers) and weak ones (to other prompts)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from gvpo.errors import ObjectiveError, ShapeError
from gvpo.objectives.base import scored_positions, token_values
from gvpo.objectives.groups import Groups
from gvpo.objectives.reduce import row_sums

Role = Literal["chosen", "strong", "weak"]
"""Role of a row in its group."""


@dataclass(frozen=True)
class RowSums:
    """Sequence log-probs of rows, and who is compared with whom.

    Args:
        policy: [B] sums of `logprobs` over scored tokens.
        reference: [B] sums of `ref_logprobs`, detached.
        group: [B] int64, each row's group from 0 to G - 1.
        chosen: [G] int64, the chosen row of each group.
        strong: [S] int64, the rows that are strong negatives.
        weak: [W] int64, the rows that are weak negatives.
    """

    policy: Tensor
    reference: Tensor
    group: Tensor
    chosen: Tensor
    strong: Tensor
    weak: Tensor

    @classmethod
    def of(
        cls, objective: str, logprobs: Tensor, ref_logprobs: Tensor, role: Sequence[str], group: Tensor, mask: Tensor
    ) -> "RowSums":
        """Create the sums from rows.

        Args:
            objective: its name, for errors.
            logprobs: [B, T], nats.
            ref_logprobs: [B, T], nats.
            role: B roles.
            group: [B] int64.
            mask: [B, T].

        Raises:
            ShapeError: a tensor of the wrong shape or dtype, or not one role per row.
            GroupTooSmall: a group without a negative.
            ObjectiveError: an unknown role, or a group without exactly one chosen row.
        """
        scored = scored_positions(logprobs, mask)
        policy = row_sums(token_values("logprobs", logprobs, scored, logprobs), scored)
        reference = row_sums(token_values("ref_logprobs", ref_logprobs, scored, logprobs), scored).detach()
        groups = Groups.of(group, logprobs.shape[0])
        rows = {name: _rows(role, name, groups.index) for name in get_args(Role)}
        _require_comparisons(objective, groups, rows)
        chosen = torch.empty_like(groups.first)
        chosen[groups.index[rows["chosen"]]] = rows["chosen"]
        return cls(policy, reference, groups.index, chosen, rows["strong"], rows["weak"])

    def refuse_weak(self, objective: str) -> None:
        """Refuse weak negatives.

        Raises:
            ObjectiveError: there is one.
        """
        if len(self.weak):
            raise ObjectiveError(f"{objective} has no weak negatives (row {int(self.weak[0])} is one); use epa")


def _rows(role: Sequence[str], name: str, index: Tensor) -> Tensor:
    """Return the rows of a role, after checking all roles."""
    if isinstance(role, str) or len(role) != len(index):
        have = "one text" if isinstance(role, str) else f"{len(role)} values"
        raise ShapeError(f"role has {have} for {len(index)} rows; give one name per row")
    unknown = [value for value in role if value not in get_args(Role)]
    if unknown:
        raise ObjectiveError(f"role {unknown[0]!r} does not exist; choose one of {', '.join(get_args(Role))}")
    return torch.tensor([i for i, value in enumerate(role) if value == name], dtype=torch.int64, device=index.device)


def _require_comparisons(objective: str, groups: Groups, rows: dict[str, Tensor]) -> None:
    """Raise an error unless each group has one chosen row and at least one negative."""
    counts = torch.bincount(groups.index[rows["chosen"]], minlength=len(groups.ids))
    wrong = counts != 1
    if wrong.any():
        which = int(wrong.nonzero()[0, 0])
        raise ObjectiveError(
            f"group {int(groups.ids[which])} has {int(counts[which])} chosen rows; {objective} needs exactly one"
        )
    groups.require_pairs(objective)
