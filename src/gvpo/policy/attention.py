"""Attention of the shared layout: over the pairs that may see each other, and no others.

A lane holds trees, one behind the other: a prompt and the completions that continue it.

             P P P P a a a b b
        P    ■                      prompt x itself          causal
        P    ■ ■                    completion x itself      causal
        P    ■ ■ ■                  completions x prompt     all of it, all completions in one call
        P    ■ ■ ■ ■
        a    ■ ■ ■ ■ ■              The last two are two parts of one softmax. Each gives an output of its own and a
        a    ■ ■ ■ ■ ■ ■            log-sum-exp, from which the whole follows; and given the whole's, the backward of
        a    ■ ■ ■ ■ ■ ■ ■          each part is exact by itself (as in ring attention, Liu et al. 2023).
        b    ■ ■ ■ ■       ■
        b    ■ ■ ■ ■       ■ ■      Nothing is computed for two siblings, and no mask is as large as the picture.

On the CPU the parts are calls of PyTorch's flash kernel; elsewhere all is FlexAttention with a block mask.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from transformers import AttentionInterface

from gvpo.errors import ModelError

TREES = "gvpo_trees"
"""The name of this attention among those of transformers, and of the keyword that brings the trees to it."""

_NOT_DONE = ("softcap", "s_aux", "position_bias")
"""What some architectures also want of attention, and this one does not do."""
_IMPLEMENTATION = "_attn_implementation_internal"
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Tree:
    """Where a prompt and its completions lie in a lane.

    Args:
        start: the prompt's first place.
        prompt: how many tokens it has.
        rows: tokens of each completion; they follow the prompt, and each other, without a gap.
    """

    start: int
    prompt: int
    rows: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Trees:
    """The trees of a lane, in order, without a gap; and the masks that were made of them, kept for all layers."""

    trees: tuple[Tree, ...]
    masks: dict[Any, Any] = field(default_factory=dict, repr=False)


@contextmanager
def tree_attention(model: nn.Module) -> Iterator[None]:
    """Within it, `model(..., gvpo_trees=Trees)` attends over trees; its backward, which may recompute, belongs inside.

    Args:
        model: one of transformers whose attention goes through its `AttentionInterface`.
    """
    configs = {id(config): config for module in model.modules() if (config := getattr(module, "config", None))}
    before = [(config, getattr(config, _IMPLEMENTATION)) for config in configs.values() if _chooses(config)]
    for config, _ in before:
        setattr(config, _IMPLEMENTATION, TREES)
    try:
        yield
    finally:
        for config, name in before:
            setattr(config, _IMPLEMENTATION, name)


def _chooses(config: Any) -> bool:
    return hasattr(config, _IMPLEMENTATION)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The attention of one layer, as transformers calls it.

    Args:
        module: the layer.
        query: [1, heads, L, D].
        key: [1, key heads, L, D]; each serves heads / key heads of the query's.
        value: [1, key heads, L, D].
        attention_mask: not looked at; the trees say who sees whom.
        dropout: must be 0.
        scaling: of the scores; None: 1 / sqrt(D).
        sliding_window: tokens that a query sees, itself included; None: all.
        others: must bring the `Trees`.

    Returns:
        [1, L, heads, D], and no weights.

    Raises:
        ModelError: the layer wants something that is not done here.
    """
    trees: Trees | None = others.get(TREES)
    if trees is None:
        raise ModelError("the model does not hand keywords on to its attention")
    unknown = ["dropout"] * bool(dropout) + [name for name in _NOT_DONE if others.get(name) is not None]
    if unknown:
        raise ModelError(f"its attention has {unknown[0]}")
    _check_window(module, sliding_window)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    dtype = _dtype(value)
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)  # under autocast rotary positions are float32
    if query.device.type == "cpu":
        return _Flash.apply(query, key, value, trees, scale, sliding_window), None  # type: ignore[no-untyped-call]
    return flex(query, key, value, trees, scale, sliding_window), None


AttentionInterface.register(TREES, attend)


def _dtype(value: Tensor) -> torch.dtype:
    """What attention is computed in; autocast leaves float64 alone."""
    kind = value.device.type
    cast = torch.is_autocast_enabled(kind) and value.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if cast else value.dtype


def _check_window(module: nn.Module, window: int | None) -> None:
    """Some architectures tell a layer's window by its mask alone; rows shorter than the window would not show it."""
    config: Any = getattr(module, "config", None)
    expected = getattr(config, "sliding_window", None)
    if kinds := getattr(config, "layer_types", None):
        kind = kinds[module.layer_idx]
        expected = expected if kind == "sliding_attention" else None
    if window != expected:
        raise ModelError(f"a layer with a sliding window of {expected} tokens told its attention {window}")


@dataclass(frozen=True)
class _Rows:
    """`count` rows of `length` places, one behind the other from `start` on."""

    start: int
    count: int
    length: int

    def of(self, values: Tensor) -> Tensor:
        """A view [count, heads, length, ...] of [heads, L, ...]."""
        end = self.start + self.count * self.length
        heads, _, *size = values.shape
        return values[:, self.start : end].view(heads, self.count, self.length, *size).transpose(0, 1)


@dataclass(frozen=True)
class _Part:
    """One call of the kernel: each row of queries with its row of keys.

    Args:
        queries: what looks.
        keys: what is seen.
        causal: the rows are the same, and a query sees the keys up to itself; else all of them.
        mask: [1, 1, queries, keys] added to the scores, causality included, where a window cuts.
    """

    queries: _Rows
    keys: _Rows
    causal: bool
    mask: Tensor | None

    def run(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Output [count, heads, length, D] and log-sum-exp [count, heads, length] of this part alone."""
        q, k, v = self.places((query, key, value))
        found, logs = _flash(q, k, v, 0.0, self.causal and self.mask is None, attn_mask=self.mask, scale=scale)
        return found, logs

    def places(self, values: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Its rows of something of query, key and value."""
        query, key, value = values
        return self.queries.of(query), self.keys.of(key), self.keys.of(value)

    def run_back(
        self, gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of the rows of query, key and value, given output and log-sum-exp of the whole softmax."""
        q, k, v = self.places((query, key, value))
        g, o, logs = self.queries.of(gradient), self.queries.of(out), self.queries.of(lse)
        causal = self.causal and self.mask is None
        found: tuple[Tensor, Tensor, Tensor] = _flash_backward(
            g, q, k, v, o, logs, 0.0, causal, attn_mask=self.mask, scale=scale
        )
        return found


def _own_parts(trees: Trees, window: int | None, dtype: torch.dtype) -> Iterator[_Part]:
    """Prompts with themselves and completions with themselves, those of a length together: each place once."""
    for tree in trees.trees:
        start = tree.start
        for length, run in groupby((tree.prompt, *tree.rows)):
            rows = _Rows(start, len(list(run)), length)
            start += rows.count * length
            if length > 0:
                yield _Part(rows, rows, causal=True, mask=_band(trees, length, window, dtype))


def _cross_parts(trees: Trees, window: int | None, dtype: torch.dtype) -> Iterator[_Part]:
    """All completions of a tree with as much of its prompt as any of them sees."""
    for tree in trees.trees:
        seen = tree.prompt if window is None else min(tree.prompt, window - 1)
        queries = _Rows(tree.start + tree.prompt, 1, sum(tree.rows))
        if queries.length > 0 and seen > 0:
            keys = _Rows(queries.start - seen, 1, seen)
            yield _Part(queries, keys, causal=False, mask=_reach(trees, tree, seen, window, dtype))


def _band(trees: Trees, length: int, window: int | None, dtype: torch.dtype) -> Tensor | None:
    """Who sees whom in a row, where a window cuts: the last `window` tokens, itself included."""
    if window is None or length <= window:
        return None
    if (length, window, dtype) not in trees.masks:
        places = torch.arange(length)
        behind = places[:, None] - places
        trees.masks[length, window, dtype] = _additive((behind >= 0) & (behind < window), dtype)
    mask: Tensor = trees.masks[length, window, dtype]
    return mask


def _reach(trees: Trees, tree: Tree, seen: int, window: int | None, dtype: torch.dtype) -> Tensor | None:
    """Which of the last `seen` tokens of the prompt a completion still sees, where a window cuts."""
    if window is None or tree.prompt + max(tree.rows) <= window:
        return None
    if (tree, window, dtype) not in trees.masks:
        ahead = torch.cat([torch.arange(length) for length in tree.rows])
        behind = ahead[:, None] + seen - torch.arange(seen)
        trees.masks[tree, window, dtype] = _additive(behind < window, dtype)
    mask: Tensor = trees.masks[tree, window, dtype]
    return mask


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
            part.queries.of(out).copy_(found)
            part.queries.of(lse).copy_(logs)
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
            for whole, each in zip(part.places(found), part.run_back(*given), strict=True):
                whole.copy_(each)
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


def flex(
    query: Tensor, key: Tensor, value: Tensor, trees: Trees, scale: float, window: int | None, *, compiled: bool = True
) -> Tensor:
    """The same by FlexAttention: one kernel over the blocks of the picture that are not empty.

    Args:
        query: [1, heads, L, D].
        key: [1, key heads, L, D].
        value: [1, key heads, L, D].
        trees: of the lane.
        scale: of the scores.
        window: tokens that a query sees.
        compiled: False computes every score, slowly; for tests without a GPU.

    Returns:
        [1, L, heads, D].
    """
    if ("blocks", window) not in trees.masks:
        trees.masks["blocks", window] = _block_mask(trees, window, query.device)
    run = _compiled_flex() if compiled else flex_attention
    grouped = query.shape[1] != key.shape[1]
    out: Tensor = run(query, key, value, block_mask=trees.masks["blocks", window], scale=scale, enable_gqa=grouped)
    return out.transpose(1, 2)


@cache
def _compiled_flex() -> Any:
    return torch.compile(flex_attention, dynamic=True)


def _block_mask(trees: Trees, window: int | None, device: torch.device) -> Any:
    tree, owner, position = (torch.tensor(values, device=device) for values in _places(trees))

    def visible(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        ancestor = (tree[q] == tree[k]) & ((owner[k] == 0) | (owner[q] == owner[k])) & (q >= k)
        return ancestor if window is None else ancestor & (position[q] - position[k] < window)

    return create_block_mask(visible, None, None, len(tree), len(tree), device=str(device))


def _places(trees: Trees) -> tuple[list[int], list[int], list[int]]:
    """Of each place: its tree, whose it is (0: the prompt's), and its position."""
    tree, owner, position = list[int](), list[int](), list[int]()
    for number, each in enumerate(trees.trees):
        for whose, length in enumerate((each.prompt, *each.rows)):
            first = 0 if whose == 0 else each.prompt
            tree += [number] * length
            owner += [whose] * length
            position += range(first, first + length)
    return tree, owner, position
