"""Log-probs and entropies of chosen tokens, without the logits of all of them.

The logits of a batch (tokens x vocabulary) are by far its largest tensor. Here one chunk of tokens exists at
a time, in a buffer that all chunks share, and one block of a chunk at a time in the width of log-probs:

    hidden [S, H] ──chunk──▶ logits [C, V] ──block──▶ probabilities [B, V] ──▶ log-prob and entropy of each token
                                  ▲                         │
                                  └──── p - onehot ◀────────┘   if a gradient is needed

The gradient of a log-prob with respect to its logits is (onehot - p) / temperature, so it needs the same chunk again:

- coefficients c = d loss / d logprobs known in advance: the gradients of sum(c * logprobs) are formed at once, in the
  forward, while the chunk is there; the backward only scales them. Three matmuls per token.
- not known: the backward computes the chunk's logits a second time. Four matmuls per token.

A chunk is large, for the matmuls: each reads and writes the gradient of the head's weight once. A block is small, so
that the passes over it (copy, largest logit, softmax, its largest value, two for the entropy) stay in a CPU's cache.
c and the temperature scale [C, H] tensors, never [C, V] ones. Log-probs are those of softmax(logits / temperature).
Logits are float32 or better: in bfloat16 they would be rounded to eighths, and log-probs would be off by .07 nats per
token on average. In half precision only the products of the gradient are computed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from gvpo.model.matmul import factor_dtype, gradient_of_weight, is_fast, product, slices, wide_product

CHUNK_BYTES = {"cpu": 2**26}
"""Bytes of a chunk's logits by device type: enough rows to keep a matmul busy, and small compared with the model."""

DEFAULT_CHUNK_BYTES = 2**28

BLOCK_ELEMENTS = {"cpu": 2**20}
"""Elements of a block by device type: what fits a cache; elsewhere a block is a chunk, for few kernels."""

PRODUCT_ELEMENTS = 2**20
"""Elements, on a CPU, of a product that is added to a sum of another dtype or order: what fits a cache."""

FEWEST_ROWS = 128
"""Rows of a chunk: with fewer, most time goes to reading and writing the gradient of the head's weight."""


@dataclass(frozen=True)
class TokenScores:
    """The head's scores of S tokens.

    Args:
        logprobs: [S] float32 or float64.
        entropy: [S] entropy of the distribution of each token, in nats, without gradient.
        weighted: Scalar sum(c * logprobs) if c was given; call `backward` on it. Then `logprobs` has no gradient.
    """

    logprobs: Tensor
    entropy: Tensor
    weighted: Tensor | None = None


@dataclass(frozen=True)
class _Settings:
    """Settings of the head: temperature, tokens per chunk and per block, the products' dtype, and how many ids it has.

    Rows of the weight past the vocabulary are padding: they are not multiplied, and their gradient is 0.
    """

    temperature: float
    chunk: int
    block: int
    dtype: torch.dtype
    vocabulary: int

    @classmethod
    def of(cls, weight: Tensor, temperature: float, dtype: torch.dtype, vocabulary: int) -> "_Settings":
        """Return settings that are a function of the head alone, so that every pass cuts alike."""
        device = weight.device.type
        size = CHUNK_BYTES.get(device, DEFAULT_CHUNK_BYTES)
        per_logit = dtype.itemsize + (4 if dtype.itemsize < 4 else 0)  # p - onehot has its own memory if it is half
        chunk = max(FEWEST_ROWS, size // (per_logit * vocabulary))
        block = max(1, BLOCK_ELEMENTS[device] // vocabulary) if device in BLOCK_ELEMENTS else chunk
        return cls(temperature, chunk, min(block, chunk), dtype, vocabulary)

    @property
    def wide(self) -> torch.dtype:
        """The dtype of log-probs and of sums: float32 or better."""
        return torch.promote_types(self.dtype, torch.float32)


def head_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    *,
    temperature: float = 1.0,
    coefficients: Tensor | None = None,
    dtype: torch.dtype | None = None,
    vocabulary: int | None = None,
) -> TokenScores:
    """Return log-probs of `target` under softmax((hidden @ weight.T + bias) / temperature).

    Args:
        hidden: [S, H] input of the head.
        weight: [V, H] weight of the head.
        bias: [V] bias of the head, or None.
        target: [S] int64 token ids.
        temperature: Divisor of the logits.
        coefficients: [S] c of sum(c * logprobs), if known and a gradient is needed.
        dtype: Dtype of the products of the gradient; None for the weight's dtype. Logits are float32 or better.
        vocabulary: Number of ids, from 0; later rows of the weight are ignored. None for all rows.

    Returns:
        The scores, differentiable with respect to hidden, weight and bias through `logprobs`, or through `weighted` if
        coefficients are given.
    """
    settings = _Settings.of(weight, temperature, dtype or weight.dtype, vocabulary or len(weight))
    with torch.autocast(hidden.device.type, enabled=False):
        if coefficients is None:
            logprobs, entropy = _Recompute.apply(hidden, weight, bias, target, settings)  # type: ignore[no-untyped-call]
            return TokenScores(logprobs, entropy)
        return TokenScores(*_Weighted.apply(hidden, weight, bias, target, coefficients, settings))  # type: ignore[no-untyped-call]


def logits_logprobs(logits: Tensor, target: Tensor, *, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return log-probs of `target` and entropies from existing logits, the plain way, differentiable by autograd.

    Args:
        logits: [S, V], any float dtype; minus infinity is a token that cannot be sampled.
        target: [S] int64.
        temperature: Divisor of the logits.

    Returns:
        Log-probs [S] and detached entropies [S], float32 or better.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    logprobs = F.log_softmax(wide.clamp_min(torch.finfo(wide.dtype).min), dim=-1)
    entropy = -torch.linalg.vecdot(logprobs.detach().exp(), logprobs.detach())
    return picked(logprobs, target), entropy


def weighted_sum(logprobs: Tensor, coefficients: Tensor) -> Tensor:
    """Return sum(c * logprobs) over [S]; a token with c = 0 does not count even if its log-prob is minus infinity."""
    return (coefficients * logprobs.masked_fill(coefficients == 0, 0.0)).sum()


class _Head:
    """The head's matmuls and the buffers of a chunk and a block.

    Args:
        weight: [V, H].
        bias: [V] or None.
        tokens: S, the number of tokens of all chunks together.
        settings: Settings of the head.
        gradient: Whether to replace each chunk's logits by p - onehot.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, tokens: int, settings: _Settings, *, gradient: bool
    ) -> None:
        self.settings, self.gradient = settings, gradient
        self.is_half = settings.dtype != settings.wide
        self.weight = weight[: settings.vocabulary].to(factor_dtype(settings.dtype, weight.device.type))
        self.bias = None if bias is None else bias[: settings.vocabulary].to(settings.wide)
        self._size = (min(tokens, settings.chunk), settings.vocabulary)
        self._chunk: Tensor | None = None
        self._logits = weight.new_empty(min(tokens, settings.block), settings.vocabulary, dtype=settings.wide)
        self._half = weight.new_empty(self._size, dtype=settings.dtype) if self.is_half and gradient else None

    @cached_property
    def narrow(self) -> Tensor:
        """The weight [V, H] in the dtype of the gradient's products."""
        return self.weight.to(self.settings.dtype)

    def each_chunk(self, hidden: Tensor, target: Tensor, use: Callable[["_Chunk"], None]) -> None:
        """Score chunk by chunk; a chunk is valid until `use` returns.

        Args:
            hidden: [S, H].
            target: [S].
            use: Called with each chunk. It must not keep chunks, so that only one is in memory.
        """
        for part in slices(len(target), self.settings.chunk):
            use(self._chunk_of(part, hidden[part], target[part]))

    def _chunk_of(self, part: slice, rows: Tensor, target: Tensor) -> "_Chunk":
        chunk = self._multiply(rows)
        change = chunk if self._half is None else self._half[: len(rows)]
        scores = [self._scored(chunk[b], target[b], change[b]) for b in slices(len(rows), self.settings.block)]
        logprobs, entropy = map(torch.cat, zip(*scores, strict=True))
        return _Chunk(part, rows.to(self.settings.dtype), logprobs, entropy, change)

    def _multiply(self, rows: Tensor) -> Tensor:
        """Return [C, V] rows @ weight.T + bias, in memory that all chunks share if the product can write there."""
        rows = rows.to(self.weight.dtype)
        if self.is_half or is_fast(rows, self.weight.T):
            return wide_product(rows, self.weight.T, self.bias)
        if self._chunk is None:
            self._chunk = self.weight.new_empty(self._size)
        chunk = self._chunk[: len(rows)]
        if self.bias is None:
            return torch.mm(rows, self.weight.T, out=chunk)
        return torch.addmm(self.bias, rows, self.weight.T, out=chunk)

    def _scored(self, block: Tensor, target: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probs and entropies of a block [B, V] of a chunk, which is overwritten.

        If a gradient is needed, `change` becomes p - onehot; it may be the block.
        """
        logits = self._logits[: len(block)].copy_(block)
        if self.settings.temperature != 1.0:
            logits /= self.settings.temperature
        largest = logits.amax(-1)
        probs = torch.softmax(logits, -1, out=block)
        log_normaliser = probs.amax(-1).log_()  # minus log sum exp(logits - largest)
        logprobs = (picked(logits, target) - largest).add_(log_normaliser)
        entropy = (largest - logits.mul_(probs).sum(-1)).sub_(log_normaliser)
        if self.gradient:
            probs.scatter_add_(1, target[:, None], probs.new_full((len(target), 1), -1.0))
            if self.is_half:
                change.copy_(probs)
        return logprobs, entropy


@dataclass(frozen=True)
class _Chunk:
    """The head's scores of C tokens.

    Args:
        part: Slice of all tokens.
        rows: [C, H] hidden states of the tokens in the dtype of the gradient's products.
        logprobs: [C].
        entropy: [C].
        change: [C, V] p - onehot in the dtype of the gradient's products, if a gradient is needed.
    """

    part: slice
    rows: Tensor
    logprobs: Tensor
    entropy: Tensor
    change: Tensor


def _add_product(total: Tensor | None, change: Tensor, rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Add change.T @ rows to `total`, in its `dtype`; the first one needs no zeros to be added to."""
    count, width = change.shape[1], rows.shape[1]
    size = max(1, PRODUCT_ELEMENTS // width) if change.device.type == "cpu" else count
    fast = is_fast(change.T, rows)
    if change.dtype == dtype and not fast:
        return change.T @ rows if total is None else total.addmm_(change.T, rows)
    first, total = total is None, rows.new_empty(count, width, dtype=dtype) if total is None else total
    for part in slices(count, size):  # converted or transposed parts stay in the cache
        added = gradient_of_weight(change[:, part].contiguous() if fast else change[:, part], rows)
        total[part].copy_(added) if first else total[part].add_(added)
    return total


def picked(values: Tensor, target: Tensor) -> Tensor:
    """Return the value at target [S] from each row of values [S, V]."""
    return values.gather(1, target[:, None])[:, 0]


class _Gradients:
    """The gradients of the head's inputs, summed chunk by chunk. Gradients that are not needed stay None."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, needed: tuple[bool, ...], settings: _Settings
    ) -> None:
        self.hidden = torch.empty_like(hidden) if needed[0] else None
        padded = needed[1] and settings.vocabulary < len(weight)
        self.weight = torch.zeros_like(weight, dtype=settings.wide) if padded else None
        self.bias = torch.zeros_like(bias, dtype=settings.wide) if bias is not None and needed[2] else None
        self.wide, self.needs_weight, self.vocabulary = settings.wide, needed[1], settings.vocabulary
        self.dtypes = hidden.dtype, weight.dtype, weight.dtype if bias is None else bias.dtype

    def add(self, chunk: _Chunk, coefficients: Tensor, head: _Head) -> None:
        """Add the gradients of sum(c * logprobs) over a chunk.

        Args:
            chunk: Chunk of C tokens.
            coefficients: [C].
            head: Head that computed the chunk, with `gradient` set.
        """
        scale = (-coefficients / head.settings.temperature)[:, None]
        if self.bias is not None:
            self.bias[: self.vocabulary] += (chunk.change.T @ scale.to(chunk.change.dtype))[:, 0]
        if self.hidden is not None:
            self.hidden[chunk.part] = scale * product(chunk.change, head.narrow)
        if self.needs_weight:
            rows = (scale * chunk.rows).to(chunk.change.dtype)
            known = None if self.weight is None else self.weight[: self.vocabulary]
            total = _add_product(known, chunk.change, rows, self.wide)
            self.weight = total if self.weight is None else self.weight

    def take(self, scale: Tensor | None = None) -> tuple[Tensor | None, ...]:
        """Return the gradients of hidden, weight and bias, times `scale` if given, in their dtypes; call it once."""
        parts: tuple[Tensor | None, ...] = (self.hidden, self.weight, self.bias)
        if scale is not None and scale != 1:
            parts = tuple(None if part is None else part.mul_(scale) for part in parts)
        return tuple(None if part is None else part.to(dtype) for part, dtype in zip(parts, self.dtypes, strict=True))


class _Recompute(Function):
    """Coefficients not known: the forward keeps the hidden states only."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, settings: _Settings
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(hidden, weight, bias, target)
        ctx.settings = settings
        logprobs = torch.empty(len(target), dtype=settings.wide, device=hidden.device)
        entropy = torch.empty_like(logprobs)

        def note(chunk: _Chunk) -> None:
            logprobs[chunk.part], entropy[chunk.part] = chunk.logprobs, chunk.entropy

        _Head(weight, bias, len(target), settings, gradient=False).each_chunk(hidden, target, note)
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, coefficients: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, target = ctx.saved_tensors
        with torch.autocast(hidden.device.type, enabled=False):
            gradients = _Gradients(hidden, weight, bias, ctx.needs_input_grad, ctx.settings)
            head = _Head(weight, bias, len(target), ctx.settings, gradient=True)
            head.each_chunk(hidden, target, lambda chunk: gradients.add(chunk, coefficients[chunk.part], head))
        return (*gradients.take(), None, None)


class _Weighted(Function):
    """Coefficients known: the forward forms the gradients, the backward scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        coefficients: Tensor,
        settings: _Settings,
    ) -> tuple[Tensor, Tensor, Tensor]:
        logprobs = torch.empty(len(target), dtype=settings.wide, device=hidden.device)
        entropy = torch.empty_like(logprobs)
        coefficients = coefficients.to(settings.wide)
        gradients = _Gradients(hidden, weight, bias, ctx.needs_input_grad, settings)
        head = _Head(weight, bias, len(target), settings, gradient=True)

        def note(chunk: _Chunk) -> None:
            logprobs[chunk.part], entropy[chunk.part] = chunk.logprobs, chunk.entropy
            gradients.add(chunk, coefficients[chunk.part], head)

        head.each_chunk(hidden, target, note)
        ctx.gradients = gradients
        ctx.mark_non_differentiable(logprobs, entropy)
        return logprobs, entropy, weighted_sum(logprobs, coefficients)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor, __: Tensor, scale: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None  # scaled in place: good for one backward
        return (*gradients.take(scale), None, None, None)
