"""Attention over trees on the CPU.

A part is one call: rows of queries, each with its row of keys.

    short    rows of a few tokens, of all trees, in one batch (`short_rows`); if prompt and completion together are
             short, each with its prompt
    own      longer rows with themselves, causal, by PyTorch's flash kernel
    cross    other completions of a tree with its prompt; and for a long row that is split in two, recursively while
             it pays, the second half with the first; by products where they are faster (`products`)

                 ■                       own: the triangles of the last pieces
                 ■ ■                     cross: the squares
                 □ □ ■
                 □ □ ■ ■

Short and own parts contain each position once. A cross part is merged into their results.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from gvpo.model.cpu import operators
from gvpo.model.cpu.matmul import has_fast
from gvpo.update.attention.cpu import products
from gvpo.update.attention.cpu.rows import LaneRow, Strip, rows_of
from gvpo.update.attention.cpu.short_rows import Behind, ShortRows
from gvpo.update.layouts.forest import Forest, Tree

SHORT = 128
"""Maximum number of tokens of gathered rows. The kernel is not faster for them, and one call processes all of them."""

PIECE = 256
"""Minimum number of tokens of half a row. For shorter ones, products are not faster than the kernel."""


def on_cpu(query: Tensor, key: Tensor, value: Tensor, forest: Forest, scale: float, window: int | None) -> Tensor:
    """Attend over trees, in float32 or better: on CPUs the kernel's bfloat16 is slower, especially in backward passes.

    Args:
        query: [1, heads, L, D].
        key: [1, key heads, L, D]; each key head serves heads / key heads query heads.
        value: [1, key heads, L, D].
        forest: Trees of the lane.
        scale: Factor of the scores.
        window: Number of tokens that a query attends to, including itself; None for all.

    Returns:
        [1, L, heads, D], float32 or better.
    """
    wide = torch.promote_types(value.dtype, torch.float32)
    given = [values.to(wide) for values in (query, key, value)]
    if operators.flash_attention() is None:
        return _dense(given, forest, scale, window)
    found: Tensor = _Attention.apply(*given, forest, scale, window)  # type: ignore[no-untyped-call]
    return found


def _flash() -> operators.FlashAttention:
    flash = operators.flash_attention()
    assert flash is not None
    return flash


def _dense(given: Sequence[Tensor], forest: Forest, scale: float, window: int | None) -> Tensor:
    """Compute the same with PyTorch's public attention and a mask [L, L] of the whole lane, which is slow."""
    query, key, value = given
    if ("dense", window) not in forest.made:
        places = torch.arange(query.shape[2])
        forest.made["dense", window] = forest.visible(window, query.device)(None, None, places[:, None], places)
    mask = forest.made["dense", window]
    with torch.autocast(query.device.type, enabled=False):
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=True)
    return found.transpose(1, 2)


@dataclass(frozen=True, eq=False)
class _Part:
    """One call on long rows, each a row of queries with its row of keys.

    Args:
        queries: Rows of queries.
        keys: Rows of keys.
        causal: The rows are the same, and a query attends to the keys up to itself; otherwise to all of them.
        mask: [1, 1, queries, keys] added to the scores, including causality, if a window restricts them.
    """

    queries: Strip
    keys: Strip
    causal: bool
    mask: Tensor | None

    def write(self, out: Tensor, lse: Tensor, *given: Any) -> None:
        """Write its result for query, key, value and scale to output [heads, L, E] and log-sum-exp [heads, L]."""
        for lane, found in zip((out, lse), self._run(*given), strict=True):
            self.queries.of(lane).copy_(found)

    def join(self, out: Tensor, lse: Tensor, *given: Any) -> None:
        """Merge its result with the other part of the softmax that is already written."""
        _merge(self.queries.of(out), self.queries.of(lse), *self._run(*given))

    def add_gradients(self, found: Sequence[Tensor], *given: Any) -> None:
        """Add its share to the gradients of query, key and value [heads, L, ...]; see `_run_back`."""
        for lane, share in zip(self._places(found), self._run_back(*given), strict=True):
            lane += share

    def _run(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Return output [count, heads, length, E] and log-sum-exp [count, heads, length] of this part only."""
        q, k, v = self._places((query, key, value))
        if self._by_products(q, k):
            found, logs = products.attend(q[0], k[0], v[0], scale)
            return found[None], logs[None]
        found, logs = _flash().forward(
            q, k, v, 0.0, self.causal and self.mask is None, attn_mask=self.mask, scale=scale
        )
        return found, logs

    def _run_back(
        self, gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, scale: float
    ) -> Sequence[Tensor]:
        """Return gradients of the rows of query, key and value, given output and log-sum-exp of the whole softmax."""
        q, k, v = self._places((query, key, value))
        g, o, logs = (self.queries.of(each) for each in (gradient, out, lse))
        if self._by_products(q, k):
            by_products = products.attend_back(g[0], q[0], k[0], v[0], o[0], logs[0], scale)
            return [each[None] for each in by_products]
        causal = self.causal and self.mask is None
        back = _flash().backward
        found: Sequence[Tensor] = back(g, q, k, v, o, logs, 0.0, causal, attn_mask=self.mask, scale=scale)
        return found

    def _places(self, values: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return its rows of query, key and value."""
        query, key, value = values
        return self.queries.of(query), self.keys.of(key), self.keys.of(value)

    def _by_products(self, query: Tensor, key: Tensor) -> bool:
        hides = self.causal or self.mask is not None
        return not hides and len(query) == 1 and products.gains(query[0], key[0])


@dataclass(frozen=True, eq=False)
class _Parts:
    """All calls of a layer: first the calls that contain each position once, then the calls merged into them."""

    first: list[ShortRows | _Part]
    cross: list[_Part]

    @classmethod
    def of(cls, forest: Forest, window: int | None, query: Tensor) -> "_Parts":
        """Return the parts of a lane, which identical layers share."""
        halve = has_fast(query)
        key = "parts", window, query.dtype, halve
        if key not in forest.made:
            forest.made[key] = cls._made(forest, window, query.dtype, halve=halve)
        parts: _Parts = forest.made[key]
        return parts

    @classmethod
    def _made(cls, forest: Forest, window: int | None, dtype: torch.dtype, *, halve: bool) -> "_Parts":
        short, long, cross = list[Behind](), list[LaneRow](), list[_Part]()
        for tree in forest.trees:
            prompt, *completions = rows_of(tree)
            alone = LaneRow(prompt.start, 0)
            whole = tree.prompt + max(tree.rows, default=0) <= SHORT
            for row in (prompt, *completions):
                if row.length <= SHORT:
                    short.append(Behind(row, prompt if whole and row is not prompt else alone))
                elif halve and (window is None or row.length <= window):
                    long += row.pieces(PIECE)
                    cross += [_square(*halves) for halves in row.cuts(PIECE)]
                else:
                    long.append(row)
            if not whole:
                cross += _behind_prompt(tree, window, dtype)
        own = [_Part(at, at, causal=True, mask=_band(at.length, window, dtype)) for at in Strip.of_rows(long)]
        return cls([*ShortRows.of_rows(short, window, dtype), *own], cross)


def _square(seen: LaneRow, looking: LaneRow) -> _Part:
    return _Part(Strip(looking.start, 1, looking.length), Strip(seen.start, 1, seen.length), causal=False, mask=None)


def _behind_prompt(tree: Tree, window: int | None, dtype: torch.dtype) -> Iterator[_Part]:
    """Yield the part of all completions of a tree with the part of its prompt that any of them attends to."""
    seen = tree.prompt if window is None else min(tree.prompt, window - 1)
    queries = Strip(tree.start + tree.prompt, 1, sum(tree.rows))
    if queries.length > 0 and seen > 0:
        keys = Strip(queries.start - seen, 1, seen)
        yield _Part(queries, keys, causal=False, mask=_reach(tree, seen, window, dtype))


def _band(length: int, window: int | None, dtype: torch.dtype) -> Tensor | None:
    """Return the mask of a row if a window restricts it to the last `window` tokens, including the query's own."""
    if window is None or length <= window:
        return None
    places = torch.arange(length)
    behind = places[:, None] - places
    return _additive((behind >= 0) & (behind < window), dtype)


def _reach(tree: Tree, seen: int, window: int | None, dtype: torch.dtype) -> Tensor | None:
    """Return the mask of the last `seen` tokens of the prompt for the completions, if a window restricts them."""
    if window is None or tree.prompt + max(tree.rows) <= window:
        return None
    ahead = torch.cat([torch.arange(length) for length in tree.rows])
    return _additive(ahead[:, None] + seen - torch.arange(seen) < window, dtype)


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask with finite values, so that a query without visible keys gets weight 0 instead of NaN."""
    return torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)[None, None]


class _Attention(Function):
    """One layer's attention on the CPU. It keeps its inputs, the output and the log-sum-exp for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, forest: Forest, scale: float, window: int | None
    ) -> Tensor:
        _, heads, length, _ = query.shape
        out = torch.empty(length, heads, value.shape[-1], dtype=query.dtype).transpose(0, 1)
        lse = torch.empty(length, heads, dtype=torch.promote_types(query.dtype, torch.float32)).transpose(0, 1)
        parts, given = _Parts.of(forest, window, query), (query[0], key[0], value[0], scale)
        for part in parts.first:
            part.write(out, lse, *given)
        for part in parts.cross:
            part.join(out, lse, *given)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.settings = forest, scale, window
        return out.transpose(0, 1)[None]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        forest, scale, window = ctx.settings
        given = (gradient[0].transpose(0, 1), query[0], key[0], value[0], out, lse, scale)
        found = [_zeros(each[0]) for each in (query, key, value)]
        parts = _Parts.of(forest, window, query)
        for part in (*parts.first, *parts.cross):
            part.add_gradients(found, *given)
        return (*(each[None] for each in found), None, None, None)


def _zeros(values: Tensor) -> Tensor:
    """Return zeros [heads, L, D] with memory layout [L, heads, D], as the outputs of the projections."""
    return torch.zeros_like(values.transpose(0, 1), memory_format=torch.contiguous_format).transpose(0, 1)


def _merge(out: Tensor, lse: Tensor, found: Tensor, logs: Tensor) -> None:
    """Merge another part of the same softmax into `out` and its log-sum-exp, in place."""
    total = torch.logaddexp(lse, logs)
    out.copy_(out * (lse - total).exp_()[..., None] + found * (logs - total).exp_()[..., None])
    lse.copy_(total)
