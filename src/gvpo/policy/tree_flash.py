"""Attention over trees on the CPU, by calls of PyTorch's flash kernel.

A part is one call: rows of queries, each with its row of keys.

    own      prompts with themselves and completions with themselves, causal; each place is in one of them
    cross    the completions of a tree with its prompt

Long rows are views of the lane. Short ones of about a length, of all trees, are gathered into one call, padded on the
right: a key of the padding is seen by queries of the padding alone, whose gradient is 0.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from gvpo.policy.trees import Tree, Trees

SHORT = 128
"""Tokens up to which a call of its own costs a row more than being copied."""

PADDED = 1.25
"""How much longer than itself, and 4 tokens more, a short row may be padded."""

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def flash(query: Tensor, key: Tensor, value: Tensor, trees: Trees, scale: float, window: int | None) -> Tensor:
    """Attention over trees, in float32 or better: on CPUs the kernel's bfloat16 is slower, above all its backward.

    Args:
        query: [1, heads, L, D].
        key: [1, key heads, L, D]; each serves heads / key heads of the query's.
        value: [1, key heads, L, D].
        trees: of the lane.
        scale: of the scores.
        window: tokens that a query sees, itself included; None: all.

    Returns:
        [1, L, heads, D], float32 or better.
    """
    wide = torch.promote_types(value.dtype, torch.float32)
    given = [values.to(wide) for values in (query, key, value)]
    found: Tensor = _Flash.apply(*given, trees, scale, window)  # type: ignore[no-untyped-call]
    return found


@dataclass(frozen=True)
class _Strip:
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
class _Gathered:
    """Rows from anywhere in the lane, padded on the right with their last place.

    Args:
        places: [count, length] int64.
        real: [count, length], False on padding.
    """

    places: Tensor
    real: Tensor

    @classmethod
    def of_rows(cls, rows: Sequence[tuple[int, int]]) -> "_Gathered":
        """Of (start, length), the longest first."""
        starts, lengths = (torch.tensor(values)[:, None] for values in zip(*rows, strict=True))
        steps = torch.arange(rows[0][1])
        return cls(starts + torch.minimum(steps, lengths - 1), steps < lengths)

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


@dataclass(frozen=True, eq=False)
class _Part:
    """One call of the kernel: each row of queries with its row of keys.

    Args:
        queries: what looks.
        keys: what is seen.
        causal: the rows are the same, and a query sees the keys up to itself; else all of them.
        mask: [1, 1, queries, keys] added to the scores, causality included, where a window cuts.
    """

    queries: _Strip | _Gathered
    keys: _Strip | _Gathered
    causal: bool
    mask: Tensor | None

    def run(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Output [count, heads, length, D] and log-sum-exp [count, heads, length] of this part alone."""
        q, k, v = self.places((query, key, value))
        found, logs = _flash(q, k, v, 0.0, self.causal and self.mask is None, attn_mask=self.mask, scale=scale)
        return found, logs

    def places(self, values: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Its rows of query, key and value."""
        query, key, value = values
        return self.queries.of(query), self.keys.of(key), self.keys.of(value)

    def run_back(
        self, gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of the rows of query, key and value, given output and log-sum-exp of the whole softmax."""
        q, k, v = self.places((query, key, value))
        g, o, logs = self.queries.gradient_of(gradient), self.queries.of(out), self.queries.of(lse)
        causal = self.causal and self.mask is None
        found: tuple[Tensor, Tensor, Tensor] = _flash_backward(
            g, q, k, v, o, logs, 0.0, causal, attn_mask=self.mask, scale=scale
        )
        return found


def _own_parts(trees: Trees, window: int | None, dtype: torch.dtype) -> list[_Part]:
    """Each place in one of them."""
    key = "own", window, dtype
    if key not in trees.made:
        trees.made[key] = [
            _Part(rows, rows, causal=True, mask=_band(length, window, dtype)) for rows, length in _own_rows(trees)
        ]
    parts: list[_Part] = trees.made[key]
    return parts


def _own_rows(trees: Trees) -> Iterator[tuple[_Strip | _Gathered, int]]:
    """Rows that one call takes, and their length."""
    short: list[tuple[int, int]] = []
    for tree in trees.trees:
        start = tree.start
        for length, run in groupby((tree.prompt, *tree.rows)):
            count = len(list(run))
            if length > SHORT:
                yield _Strip(start, count, length), length
            elif length > 0:
                short += [(start + number * length, length) for number in range(count)]
            start += count * length
    short.sort(key=lambda row: -row[1])
    while short:
        longest = short[0][1]
        alike = [row for row in short if PADDED * row[1] + 4 >= longest]
        yield _Gathered.of_rows(alike), longest
        short = short[len(alike) :]


def _cross_parts(trees: Trees, window: int | None, dtype: torch.dtype) -> list[_Part]:
    """All completions of a tree with as much of its prompt as any of them sees."""
    key = "cross", window, dtype
    if key not in trees.made:
        trees.made[key] = [part for tree in trees.trees for part in _cross_part(tree, window, dtype)]
    parts: list[_Part] = trees.made[key]
    return parts


def _cross_part(tree: Tree, window: int | None, dtype: torch.dtype) -> Iterator[_Part]:
    seen = tree.prompt if window is None else min(tree.prompt, window - 1)
    queries = _Strip(tree.start + tree.prompt, 1, sum(tree.rows))
    if queries.length > 0 and seen > 0:
        keys = _Strip(queries.start - seen, 1, seen)
        yield _Part(queries, keys, causal=False, mask=_reach(tree, seen, window, dtype))


def _band(length: int, window: int | None, dtype: torch.dtype) -> Tensor | None:
    """Who sees whom in a row, where a window cuts: the last `window` tokens, itself included."""
    if window is None or length <= window:
        return None
    places = torch.arange(length)
    behind = places[:, None] - places
    return _additive((behind >= 0) & (behind < window), dtype)


def _reach(tree: Tree, seen: int, window: int | None, dtype: torch.dtype) -> Tensor | None:
    """Which of the last `seen` tokens of the prompt a completion still sees, where a window cuts."""
    if window is None or tree.prompt + max(tree.rows) <= window:
        return None
    ahead = torch.cat([torch.arange(length) for length in tree.rows])
    return _additive(ahead[:, None] + seen - torch.arange(seen) < window, dtype)


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Finite where hidden, so that a query that sees nothing gets a part of weight 0, not NaN."""
    return torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)[None, None]


class _Flash(Function):
    """One layer's attention on the CPU; keeps its inputs, the output and the log-sum-exp."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, trees: Trees, scale: float, window: int | None
    ) -> Tensor:
        _, heads, length, _ = query.shape
        out = torch.empty(length, heads, value.shape[-1], dtype=query.dtype).transpose(0, 1)
        lse = torch.empty(length, heads, dtype=torch.promote_types(query.dtype, torch.float32)).transpose(0, 1)
        for part in _own_parts(trees, window, query.dtype):
            found, logs = part.run(query[0], key[0], value[0], scale)
            part.queries.put(out, found)
            part.queries.put(lse, logs)
        for part in _cross_parts(trees, window, query.dtype):
            _merge(part.queries.of(out), part.queries.of(lse), *part.run(query[0], key[0], value[0], scale))
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.settings = trees, scale, window
        return out.transpose(0, 1)[None]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        trees, scale, window = ctx.settings
        given = (gradient[0].transpose(0, 1), query[0], key[0], value[0], out, lse, scale)
        found = [_like(each[0]) for each in (query, key, value)]
        for part in _own_parts(trees, window, query.dtype):
            for rows, whole, each in zip(
                (part.queries, part.keys, part.keys), found, part.run_back(*given), strict=True
            ):
                rows.put(whole, each)
        for part in _cross_parts(trees, window, query.dtype):
            for whole, each in zip(part.places(found), part.run_back(*given), strict=True):
                whole += each
        return (*(each[None] for each in found), None, None, None)


def _like(values: Tensor) -> Tensor:
    """Room for [heads, L, D] that lies in memory as [L, heads, D], as what the projections give."""
    return torch.empty_like(values.transpose(0, 1), memory_format=torch.contiguous_format).transpose(0, 1)


def _merge(out: Tensor, lse: Tensor, found: Tensor, logs: Tensor) -> None:
    """Join another part of the same softmax into `out` and its log-sum-exp, in place."""
    total = torch.logaddexp(lse, logs)
    out.copy_(out * (lse - total).exp_()[..., None] + found * (logs - total).exp_()[..., None])
    lse.copy_(total)
