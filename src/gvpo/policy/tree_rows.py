"""Rows of a lane, as an attention kernel takes them: [count, heads, length, ...] of values [heads, L, ...]."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Strip:
    """`count` rows of `length` places, one behind the other from `start` on."""

    start: int
    count: int
    length: int

    def of(self, values: Tensor) -> Tensor:
        """A view [count, heads, length, ...] of [heads, L, ...]."""
        end = self.start + self.count * self.length
        heads, _, *size = values.shape
        return values[:, self.start : end].view(heads, self.count, self.length, *size).transpose(0, 1)

    def gradient_of(self, values: Tensor) -> Tensor:
        """The same of the output's gradient."""
        return self.of(values)

    def put(self, values: Tensor, found: Tensor) -> None:
        """Write `found` over these rows of [heads, L, ...]."""
        self.of(values).copy_(found)


@dataclass(frozen=True, eq=False)
class Gathered:
    """Rows from anywhere in the lane, padded on the right with their last place.

    Args:
        places: [count, length] int64.
        real: [count, length], False on padding.
    """

    places: Tensor
    real: Tensor

    @classmethod
    def of_rows(cls, rows: Sequence[tuple[int, int]]) -> "Gathered":
        """Of (start, length), the longest first."""
        starts, lengths = (torch.tensor(values)[:, None] for values in zip(*rows, strict=True))
        steps = torch.arange(rows[0][1])
        return cls(starts + torch.minimum(steps, lengths - 1), steps < lengths)

    @property
    def length(self) -> int:
        """Places of a row, padding included."""
        return self.places.shape[1]

    def of(self, values: Tensor) -> Tensor:
        """A copy [count, heads, length, ...] of [heads, L, ...]."""
        return values.transpose(0, 1)[self.places].transpose(1, 2)

    def gradient_of(self, values: Tensor) -> Tensor:
        """The same of the output's gradient, 0 on padding."""
        found = values.transpose(0, 1)[self.places] * self.real[..., None, None]
        return found.transpose(1, 2)

    def put(self, values: Tensor, found: Tensor) -> None:
        """Write `found` over these rows of [heads, L, ...]."""
        values.transpose(0, 1)[self.places[self.real]] = found.transpose(1, 2)[self.real]
