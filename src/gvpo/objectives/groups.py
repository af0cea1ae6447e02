"""Arithmetic within groups: rows that answer one prompt, in any order, with any ids, of any sizes.

`group` [B] names each row's group. Per-group values are [G], in ascending order of the ids; per-row values are [B].
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gvpo.errors import GroupTooSmall, ShapeError


@dataclass(frozen=True)
class Groups:
    """Assignment of rows to groups.

    Args:
        ids: [G] the group ids, ascending.
        index: [B] int64, each row's position in `ids`.
        sizes: [G] int64, the number k of rows.
        first: [G] int64, the first row of each group.
    """

    ids: Tensor
    index: Tensor
    sizes: Tensor
    first: Tensor

    @classmethod
    def of(cls, group: Tensor, rows: int) -> "Groups":
        """Create groups from ids.

        Args:
            group: [B] int64, any values; rows of a group need not be neighbours.
            rows: B.

        Raises:
            ShapeError: not [B], or not int64.
        """
        if group.shape != (rows,):
            raise ShapeError(
                f"group has shape {tuple(group.shape)}; expected ({rows},), [B], one id per row of logprobs"
            )
        if group.dtype != torch.int64:
            raise ShapeError(f"group has dtype {group.dtype}; expected torch.int64")
        ids, index, sizes = torch.unique(group, return_inverse=True, return_counts=True)
        row = torch.arange(rows, device=group.device)
        first = torch.full_like(ids, rows).scatter_reduce(0, index, row, "amin")
        return cls(ids, index, sizes, first)

    def require_pairs(self, objective: str) -> None:
        """Refuse groups of one: a row has nothing to be compared with.

        Raises:
            GroupTooSmall: a group has fewer than two rows; the message names it.
        """
        small = self.sizes < 2
        if small.any():
            which = self.ids[small][0].item()
            raise GroupTooSmall(
                f"{objective} compares the rows of a group, and group {which} has one; "
                f"drop such groups ({int(small.sum())} here) or sample at least 2 completions per prompt"
            )

    def sum(self, values: Tensor) -> Tensor:
        """[B] -> [G] sums."""
        return values.new_zeros(self.sizes.shape).index_add(0, self.index, values)

    def mean(self, values: Tensor) -> Tensor:
        """[B] -> [G] means."""
        return self.sum(values) / self.sizes

    def spread(self, values: Tensor) -> Tensor:
        """[G] -> [B]: each row gets its group's value."""
        return values[self.index]

    def centre(self, values: Tensor) -> Tensor:
        """[B] -> [B]: values minus their group's mean; exactly 0 where all values of the group are equal."""
        # Relative to the group's first row: equal values leave no rounding, and a large common offset costs no digits.
        offset = values - self.spread(values.detach()[self.first])
        return offset - self.spread(self.mean(offset))

    def covariance(self, left: Tensor, right: Tensor) -> Tensor:
        """[B], [B] -> [G]: the unbiased covariance (k - 1) of values that are already centred; 0 for a group of one."""
        return self.sum(left * right) / (self.sizes - 1).clamp(min=1)

    def std(self, values: Tensor) -> Tensor:
        """[B] -> [G]: the standard deviation with k - 1 of any values; 0 for a group of one."""
        centred = self.centre(values)
        return self.covariance(centred, centred).sqrt()

    def leave_one_out(self, values: Tensor) -> Tensor:
        """[B] -> [B]: values minus the mean of the group's other rows: k/(k-1) times the centred ones. Needs k >= 2."""
        sizes = self.spread(self.sizes.to(values.dtype))
        return self.centre(values) * sizes / (sizes - 1)

    def log_mean_exp(self, values: Tensor) -> Tensor:
        """[B] -> [G]: log of the group's mean of e^values, safe for values of any size."""
        top = values.new_full(self.sizes.shape, -torch.inf).scatter_reduce(0, self.index, values, "amax")
        return top + self.mean((values - self.spread(top)).exp()).log()
