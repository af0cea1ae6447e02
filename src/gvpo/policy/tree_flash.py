"""Attention over trees on the CPU: by PyTorch's flash kernel, and by products where those are faster.

A part is one call: rows of queries, each with its row of keys.

    own      prompts with themselves and completions with themselves, causal; each place is in one of them
    cross    the completions of a tree with its prompt; and of a long row that was cut in two, again and again where
             products pay, the second half with the first:

                 ■                         own: the triangles of the shortest pieces
                 ■ ■                       cross: the squares
                 □ □ ■
                 □ □ ■ ■

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

from gvpo.policy import product_attention
from gvpo.policy.products import has_fast
from gvpo.policy.tree_rows import Gathered, Strip
from gvpo.policy.trees import Tree, Trees

SHORT = 128
"""Tokens up to which a call of its own costs a row more than being copied."""

PADDED = 1.25
"""How much longer than itself, and 4 tokens more, a short row may be padded."""

PIECE = 256
"""Least tokens of half a row: of less, products are not faster than the kernel."""

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


@dataclass(frozen=True, eq=False)
class _Part:
    """One call: each row of queries with its row of keys.

    Args:
        queries: what looks.
        keys: what is seen.
        causal: the rows are the same, and a query sees the keys up to itself; else all of them.
        mask: [1, 1, queries, keys] added to the scores, causality included, where a window cuts.
    """

    queries: Strip | Gathered
    keys: Strip | Gathered
    causal: bool
    mask: Tensor | None

    def run(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Output [count, heads, length, D] and log-sum-exp [count, heads, length] of this part alone."""
        q, k, v = self.places((query, key, value))
        if self._by_products(q, k):
            found, logs = product_attention.attend(q[0], k[0], v[0], scale)
            return found[None], logs[None]
        found, logs = _flash(q, k, v, 0.0, self.causal and self.mask is None, attn_mask=self.mask, scale=scale)
        return found, logs

    def places(self, values: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Its rows of query, key and value."""
        query, key, value = values
        return self.queries.of(query), self.keys.of(key), self.keys.of(value)

    def run_back(
        self, gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, scale: float
    ) -> tuple[Tensor, ...]:
        """Gradients of the rows of query, key and value, given output and log-sum-exp of the whole softmax."""
        q, k, v = self.places((query, key, value))
        g, o, logs = self.queries.gradient_of(gradient), self.queries.of(out), self.queries.of(lse)
        if self._by_products(q, k):
            by_products = product_attention.attend_back(g[0], q[0], k[0], v[0], o[0], logs[0], scale)
            return tuple(each[None] for each in by_products)
        causal = self.causal and self.mask is None
        found: tuple[Tensor, ...] = _flash_backward(g, q, k, v, o, logs, 0.0, causal, attn_mask=self.mask, scale=scale)
        return found

    def _by_products(self, query: Tensor, key: Tensor) -> bool:
        hides = self.causal or self.mask is not None
        return not hides and len(query) == 1 and product_attention.gains(query[0], key[0])


@dataclass(frozen=True)
class _Row:
    """A prompt, a completion, or a piece of one."""

    start: int
    length: int

    def pieces(self) -> list["_Row"]:
        """What is left of it when nothing more is worth cutting."""
        return [piece for half in self._halves() for piece in half.pieces()] or [self]

    def cuts(self) -> Iterator[tuple["_Row", "_Row"]]:
        """All first and second halves: of the row, of its halves, and so on."""
        if halves := self._halves():
            yield halves[0], halves[1]
        for half in halves:
            yield from half.cuts()

    def _halves(self) -> list["_Row"]:
        if self.length < 2 * PIECE:
            return []
        half = self.length // 2
        return [_Row(self.start, half), _Row(self.start + half, self.length - half)]


@dataclass(frozen=True, eq=False)
class _Parts:
    """All calls of a layer: `own` of which each place is in one, then `cross`."""

    own: list[_Part]
    cross: list[_Part]

    @classmethod
    def of(cls, trees: Trees, window: int | None, query: Tensor) -> "_Parts":
        """Those of a lane; layers that are alike share them."""
        key = "parts", window, query.dtype, has_fast(query)
        if key not in trees.made:
            trees.made[key] = cls._made(trees, window, query.dtype, halve=has_fast(query))
        parts: _Parts = trees.made[key]
        return parts

    @classmethod
    def _made(cls, trees: Trees, window: int | None, dtype: torch.dtype, *, halve: bool) -> "_Parts":
        rows = list(_rows(trees))
        halved = {row for row in rows if halve and (window is None or row.length <= window)}
        pieces = [piece for row in rows for piece in (row.pieces() if row in halved else [row])]
        own = [_Part(at, at, causal=True, mask=_band(at.length, window, dtype)) for at in _own(pieces)]
        cross = [part for tree in trees.trees for part in _cross(tree, window, dtype)]
        return cls(own, cross + [_half_part(*halves) for row in rows if row in halved for halves in row.cuts()])


def _rows(trees: Trees) -> Iterator[_Row]:
    for tree in trees.trees:
        start = tree.start
        for length in (tree.prompt, *tree.rows):
            yield _Row(start, length)
            start += length


def _own(rows: list[_Row]) -> Iterator[Strip | Gathered]:
    """Rows that one call takes."""
    short: list[tuple[int, int]] = []
    for length, run in groupby(rows, lambda row: row.length):
        alike = list(run)
        if length > SHORT:
            yield Strip(alike[0].start, len(alike), length)
        elif length > 0:
            short += [(row.start, length) for row in alike]
    short.sort(key=lambda row: -row[1])
    while short:
        fitting = [row for row in short if PADDED * row[1] + 4 >= short[0][1]]
        yield Gathered.of_rows(fitting)
        short = short[len(fitting) :]


def _half_part(first: _Row, second: _Row) -> _Part:
    return _Part(Strip(second.start, 1, second.length), Strip(first.start, 1, first.length), causal=False, mask=None)


def _cross(tree: Tree, window: int | None, dtype: torch.dtype) -> Iterator[_Part]:
    """All completions of a tree with as much of its prompt as any of them sees."""
    seen = tree.prompt if window is None else min(tree.prompt, window - 1)
    queries = Strip(tree.start + tree.prompt, 1, sum(tree.rows))
    if queries.length > 0 and seen > 0:
        keys = Strip(queries.start - seen, 1, seen)
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
        parts = _Parts.of(trees, window, query)
        for part in parts.own:
            found, logs = part.run(query[0], key[0], value[0], scale)
            part.queries.put(out, found)
            part.queries.put(lse, logs)
        for part in parts.cross:
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
        parts = _Parts.of(trees, window, query)
        for part in parts.own:
            for rows, whole, each in zip(
                (part.queries, part.keys, part.keys), found, part.run_back(*given), strict=True
            ):
                rows.put(whole, each)
        for part in parts.cross:
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
