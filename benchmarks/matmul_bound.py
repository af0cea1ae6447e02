"""The least time that an update can need: its matrix products, timed at the shapes of the model.

The work is counted with shared prompts and with siblings that do not attend to each other: P + sum(C) tokens of a group
through the layers, S = sum(C) through the head:

    layers      forward 2 N FLOPs per token, N weights outside embeddings and head; backward 4 N
    attention   4 D per pair of query and allowed key in each layer, D = heads x head width; backward 8 D
    head        2 S V H; backward 4 S V H, and 2 S V H more if its coefficients are known too late, so that logits are
                computed twice

Times are those of torch.mm and torch.bmm into allocated memory, or of `gvpo.model.matmul` if that is faster. Attention
is timed with rectangles that have as many pairs as the triangles allow.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from measure import now
from torch import Tensor

from gvpo import Group
from gvpo.model.matmul import is_fast, product

HEAD_ROWS = 512
"""Tokens per product with the head; all of them at once would time page faults."""


@dataclass(frozen=True)
class Passes:
    """Number of times that each part of an update runs.

    Args:
        forward: Number of passes through the layers without a backward, heads included.
        head_again: Number of times that logits are recomputed for the backward, 0 or 1.
        backward: Number of forward and backward passes.
    """

    forward: float = 0
    head_again: int = 0
    backward: int = 1


@dataclass(frozen=True)
class Work:
    """Multiplications in one forward over some groups.

    Args:
        tokens: Number of tokens through the layers, each prompt once.
        scored: Number of tokens through the head.
        pairs: Number of pairs of a query and an allowed key.
    """

    tokens: int
    scored: int
    pairs: int

    @classmethod
    def of(cls, groups: Sequence[Group]) -> "Work":
        """Return the work of groups with shared prompts."""
        scored = sum(len(row.tokens) for group in groups for row in group.completions)
        pairs = sum(_triangle(len(group.prompt)) for group in groups)
        pairs += sum(_triangle(len(r.tokens)) + len(r.tokens) * len(g.prompt) for g in groups for r in g.completions)
        return cls(scored + sum(len(group.prompt) for group in groups), scored, pairs)


def flops(model: Any, work: Work, passes: Passes) -> float:
    """Return the floating-point operations of an update."""
    weights = sum(rows * columns for rows, columns in _linears(model))
    layers, width = model.config.num_hidden_layers, model.config.num_attention_heads * _head_width(model)
    once = 2 * weights * work.tokens + 4 * layers * width * work.pairs
    head = 2 * work.scored * model.config.vocab_size * model.config.hidden_size
    return (passes.forward + 3 * passes.backward) * (once + head) + passes.head_again * head


def bound_seconds(model: Any, work: Work, passes: Passes, dtype: torch.dtype) -> float:
    """Return the seconds of the update's matrix products, timed now on the device of the model."""
    with torch.device(model.device):
        return _bound_seconds(model, work, passes, dtype)


def _bound_seconds(model: Any, work: Work, passes: Passes, dtype: torch.dtype) -> float:
    shapes = [(key, len(list(same))) for key, same in groupby(sorted(_linears(model)))]
    forward = backward = 0.0
    for (out, inner), count in shapes:
        forward += count * _product(work.tokens, inner, out, dtype)
        backward += count * (_product(work.tokens, out, inner, dtype) + _product(out, work.tokens, inner, dtype))
    attention = model.config.num_hidden_layers * _attention(model, work, dtype)
    head, head_backward = _head(model, work, dtype)
    once = forward + attention + head
    both = once + backward + 2 * attention + head_backward
    return passes.forward * once + passes.backward * both + passes.head_again * head


def _linears(model: Any) -> list[tuple[int, int]]:
    """Return [out, in] of every linear layer except the head."""
    head = model.get_output_embeddings()
    return [tuple(m.weight.shape) for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]


def _head_width(model: Any) -> int:
    return getattr(model.config, "head_dim", None) or model.config.hidden_size // model.config.num_attention_heads


def _triangle(length: int) -> int:
    return length * (length + 1) // 2


def _head(model: Any, work: Work, dtype: torch.dtype) -> tuple[float, float]:
    """Return the seconds of the head's forward and of its two backward products."""
    rows, vocabulary, hidden = min(HEAD_ROWS, work.scored), model.config.vocab_size, model.config.hidden_size
    times = work.scored / rows
    back = _product(rows, vocabulary, hidden, dtype) + _product(vocabulary, rows, hidden, dtype)
    return times * _product(rows, hidden, vocabulary, dtype), times * back


def _attention(model: Any, work: Work, dtype: torch.dtype) -> float:
    """Return the seconds of a layer's two products of the forward, with as many heads as the queries have."""
    heads, width, keys = model.config.num_attention_heads, _head_width(model), max(1, work.pairs // work.tokens)
    query, key = torch.randn(heads, work.tokens, width).to(dtype), torch.randn(heads, width, keys).to(dtype)
    weights = torch.empty(heads, work.tokens, keys, dtype=dtype)
    mixed = torch.empty_like(query)
    return _seconds(torch.bmm, query, key, weights) + _seconds(torch.bmm, weights, key.transpose(1, 2), mixed)


def _product(rows: int, inner: int, columns: int, dtype: torch.dtype) -> float:
    left, right = torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype).T
    out = torch.empty(rows, columns, dtype=dtype)
    found = _seconds(torch.mm, left, right, out)
    if not is_fast(left, right):
        return found
    return min(found, _seconds(lambda a, b, out: product(a, b), left, right, out))


def _seconds(multiply: Any, left: Tensor, right: Tensor, out: Tensor) -> float:
    """Return the median of three calls, after one that touches the memory."""
    found = []
    for _ in range(4):
        _wait(out)
        started = now()
        multiply(left, right, out=out)
        _wait(out)
        found.append(now() - started)
    return sorted(found[1:])[1]


def _wait(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize()
