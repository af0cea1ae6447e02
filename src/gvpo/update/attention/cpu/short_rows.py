"""Attention of many short rows by one batch of products, each row with its preceding keys.

PyTorch's flash kernel does little work per call on such rows. Here rows of similar size are gathered and padded on the
right, and a mask hides keys:

                     prefix    itself   padding
        query 0      . . . .   .
        query 1      . . . .   . .                     The results of padded queries are dropped,
        padding      . . . .   . .                     and their gradient is 0.

The formulas and the exponentials of base 2 are the same as in `products`. Query heads that share a key head are
processed together here too.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from gvpo.model.matmul import slices
from gvpo.update.attention.cpu.products import powers_
from gvpo.update.attention.cpu.rows import LaneRow

PADDED = 1.25
"""Maximum padding: a row may be padded to this multiple of its length, plus 4 tokens."""

BLOCK_ELEMENTS = 2**20
"""Maximum number of scores in memory, unless a single row has more."""


class Behind(NamedTuple):
    """A row that attends causally to itself and to a prefix, which may be empty."""

    row: LaneRow
    prefix: LaneRow

    @property
    def keys(self) -> int:
        """Number of keys of the row's last query."""
        return self.prefix.length + self.row.length


@dataclass(frozen=True, eq=False)
class ShortRows:
    """R rows of up to C queries and S keys.

    Args:
        places: [R, C] positions of the queries in the lane.
        real: [R, C], False on padding.
        seen: [R, S] positions of the keys.
        mask: [R, 1, 1, C, S] added to the scores, minus infinity where a key is hidden.
    """

    places: Tensor
    real: Tensor
    seen: Tensor
    mask: Tensor
    _made: dict[tuple[int, int], "_Indices"] = field(default_factory=dict, repr=False)

    @classmethod
    def of_rows(cls, rows: list[Behind], window: int | None, dtype: torch.dtype) -> Iterator["ShortRows"]:
        """Yield all rows that are not empty, in as few batches as the padding limit allows."""
        rows = sorted((each for each in rows if each.row.length > 0), key=lambda each: -each.row.length)
        while rows:
            yield cls._of_alike([each for each in rows if _alike(each, rows[0])], window, dtype)
            rows = [each for each in rows if not _alike(each, rows[0])]

    @classmethod
    def _of_alike(cls, rows: list[Behind], window: int | None, dtype: torch.dtype) -> "ShortRows":
        start, length = (torch.tensor(values)[:, None] for values in zip(*(each.row for each in rows), strict=True))
        before, prefix = (torch.tensor(values)[:, None] for values in zip(*(each.prefix for each in rows), strict=True))
        steps = torch.arange(max(each.row.length for each in rows))
        keys = torch.arange(max(each.keys for each in rows))
        query = torch.minimum(steps, length - 1)  # padding repeats the last
        itself = start + torch.minimum(keys - prefix, length - 1)
        behind = (prefix + query)[..., None] - keys
        visible = (behind >= 0) & (behind < (window or math.inf))
        mask = torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, -math.inf)
        seen = torch.where(keys < prefix, before + keys, itself)
        return cls(start + query, steps < length, seen, mask[:, None, None])

    def write(self, out: Tensor, lse: Tensor, query: Tensor, key: Tensor, value: Tensor, scale: float) -> None:
        """Attend, and write these rows of output and log-sum-exp.

        Args:
            out: [heads, L, E], with the heads of a token adjacent in memory.
            lse: [heads, L], with the same memory layout.
            query: [heads, L, D].
            key: [key heads, L, D].
            value: [key heads, L, E].
            scale: Factor of the scores.
        """
        at = self._indices(len(query), len(key))
        queries, keys, values = _take(query, at.queries), _take(key, at.keys), _take(value, at.keys)
        keys *= scale / math.log(2)
        found = values.new_empty(*queries.shape[:-1], values.shape[-1])
        logs = found.new_empty(*queries.shape[:-1], 1)
        for part in self._blocks(queries):
            weights = _scores(queries[part], keys[part], self.mask[part])
            total, logs[part] = powers_(weights)
            found[part] = (weights.flatten(2, 3) @ values[part]).view_as(found[part]).div_(total)
        at.put(out, found)
        at.put(lse, logs.mul_(math.log(2))[..., 0])

    def add_gradients(
        self,
        found: list[Tensor],
        gradient: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        lse: Tensor,
        scale: float,
    ) -> None:
        """Add the gradients of these rows to `found`, given output and log-sum-exp of the whole softmax.

        Args:
            found: Gradients of query, key and value, with the heads of a token adjacent in memory.
            gradient: [heads, L, E] gradient of the output.
            query: [heads, L, D].
            key: [key heads, L, D].
            value: [key heads, L, E].
            out: [heads, L, E].
            lse: [heads, L].
            scale: Factor of the scores.
        """
        at = self._indices(len(query), len(key))
        queries, keys, values = _take(query, at.queries), _take(key, at.keys), _take(value, at.keys)
        keys *= scale / math.log(2)
        pull = _take(gradient, at.queries).mul_(self.real[:, None, None, :, None])
        delta = (pull * _take(out, at.queries)).sum(-1, keepdim=True)
        logs = _take(lse, at.queries)[..., None] / math.log(2)
        to_query, to_key, to_value = torch.empty_like(queries), torch.empty_like(keys), torch.empty_like(values)
        for part in self._blocks(queries):
            flat_queries, flat_pull = queries[part].flatten(2, 3), pull[part].flatten(2, 3)
            weights = _scores(queries[part], keys[part], self.mask[part]).sub_(logs[part]).exp2_()
            to_value[part] = weights.flatten(2, 3).mT @ flat_pull
            change = (flat_pull @ values[part].mT).view_as(weights).sub_(delta[part]).mul_(weights).flatten(2, 3)
            to_key[part] = change.mT @ flat_queries
            to_query[part] = (change @ keys[part]).view_as(to_query[part])
        at.put(found[0], to_query.mul_(math.log(2)))
        at.add(found[1], to_key.mul_(scale))
        at.add(found[2], to_value)

    def _indices(self, heads: int, key_heads: int) -> "_Indices":
        if (heads, key_heads) not in self._made:
            self._made[heads, key_heads] = _Indices.of(self, heads, key_heads)
        return self._made[heads, key_heads]

    def _blocks(self, queries: Tensor) -> Iterator[slice]:
        return slices(len(queries), max(1, BLOCK_ELEMENTS // (queries[0, ..., 0].numel() * self.seen.shape[1])))


@dataclass(frozen=True, eq=False)
class _Indices:
    """Positions of the rows in [L x heads], for a number of heads.

    Args:
        queries: [R, key heads, heads / key heads, C].
        keys: [R, key heads, S].
        real: Flat indices of the queries that are not padding.
        lane: Positions of these queries.
    """

    queries: Tensor
    keys: Tensor
    real: Tensor
    lane: Tensor

    @classmethod
    def of(cls, rows: ShortRows, heads: int, key_heads: int) -> "_Indices":
        head = torch.arange(heads).view(key_heads, -1, 1)
        queries = rows.places[:, None, None] * heads + head
        keys = rows.seen[:, None] * key_heads + torch.arange(key_heads)[:, None]
        real = rows.real[:, None, None].expand_as(queries).flatten().nonzero()[:, 0]
        return cls(queries, keys, real, queries.flatten()[real])

    def put(self, lane: Tensor, found: Tensor) -> None:
        """Write the queries' `found` [R, key heads, shared, C, ...] to their positions in [heads, L, ...]."""
        _tokens(lane).index_copy_(0, self.lane, found.flatten(0, 3).index_select(0, self.real))

    def add(self, lane: Tensor, found: Tensor) -> None:
        """Add the keys' `found` [R, key heads, S, ...] to their positions in [key heads, L, ...]."""
        _tokens(lane).index_add_(0, self.keys.flatten(), found.flatten(0, 2))


def _alike(one: Behind, other: Behind) -> bool:
    pairs = (one.row.length, other.row.length), (one.keys, other.keys)
    return all(PADDED * min(pair) + 4 >= max(pair) for pair in pairs)


def _tokens(lane: Tensor) -> Tensor:
    """Reshape [heads, L, ...] to [L x heads, ...], as a view if the heads of a token are adjacent in memory."""
    return lane.transpose(0, 1).flatten(0, 1)


def _take(lane: Tensor, index: Tensor) -> Tensor:
    """Copy [*index, ...] from [heads, L, ...]."""
    return _tokens(lane).index_select(0, index.flatten()).view(*index.shape, *lane.shape[2:])


def _scores(queries: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    """Return [R, key heads, shared, C, S] for queries [R, key heads, shared, C, D] and keys [R, key heads, S, D]."""
    return (queries.flatten(2, 3) @ keys.mT).view(*queries.shape[:-1], -1).add_(mask)
