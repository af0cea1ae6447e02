"""Rows of a lane: positions of its prompts and completions, and how they are split and bundled."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from torch import Tensor

from gvpo.update.layouts.forest import Tree


class LaneRow(NamedTuple):
    """A prompt, a completion, or a piece of one."""

    start: int
    length: int

    def pieces(self, least: int) -> list["LaneRow"]:
        """Return the pieces of the row after halving as long as halves have at least `least` tokens."""
        return [piece for half in self._halves(least) for piece in half.pieces(least)] or [self]

    def cuts(self, least: int) -> Iterator[tuple["LaneRow", "LaneRow"]]:
        """Yield all pairs of first and second halves: of the row, of its halves, and so on."""
        if halves := self._halves(least):
            yield halves[0], halves[1]
        for half in halves:
            yield from half.cuts(least)

    def _halves(self, least: int) -> list["LaneRow"]:
        if self.length < 2 * least:
            return []
        half = self.length // 2
        return [LaneRow(self.start, half), LaneRow(self.start + half, self.length - half)]


def rows_of(tree: Tree) -> Iterator[LaneRow]:
    """Yield the prompt, then each completion, including empty ones."""
    start = tree.start
    for length in (tree.prompt, *tree.rows):
        yield LaneRow(start, length)
        start += length


@dataclass(frozen=True)
class Strip:
    """`count` consecutive rows of `length` positions, from `start` on."""

    start: int
    count: int
    length: int

    @classmethod
    def of_rows(cls, rows: list[LaneRow]) -> Iterator["Strip"]:
        """Yield as few strips as possible that contain all rows: adjacent rows of the same length share a strip."""
        for _, run in groupby(enumerate(rows), lambda each: (each[1].length, each[1].start - each[0] * each[1].length)):
            alike = [row for _, row in run]
            yield cls(alike[0].start, len(alike), alike[0].length)

    def of(self, values: Tensor) -> Tensor:
        """Return a view [count, heads, length, ...] of [heads, L, ...]."""
        end = self.start + self.count * self.length
        heads, _, *size = values.shape
        return values[:, self.start : end].view(heads, self.count, self.length, *size).transpose(0, 1)
