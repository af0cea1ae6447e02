"""Log-probs and entropies of chosen tokens, without the logits of all of them.

The logits of a batch (tokens x vocabulary) are by far its largest tensor. Here they exist a chunk of tokens at a time,
in two buffers that all chunks share:

    hidden [S, H] ──chunk──▶ logits [C, V] ──▶ probabilities [C, V] ──▶ log-prob and entropy of each token

The gradient of a log-prob with respect to its logits is (onehot - p) / temperature, so it needs the same chunk again:

- coefficients c = d loss / d logprobs known beforehand: the gradients of sum(c * logprobs) are formed at once, in the
  forward, while the chunk is there; the backward only scales them. Three matmuls a token.
- not known: the backward computes the chunk's logits a second time. Four matmuls a token.

A pass over [C, V] costs about what a hundredth of a matmul does, so they are few: the largest logit, the softmax, its
largest value, and two for the entropy. c and the temperature scale [C, H] tensors, never [C, V] ones. Log-probs are
those of softmax(logits / temperature), in float32 or better whatever the matmuls are in.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

CHUNK_ELEMENTS = {"cpu": 2**24}
"""Elements of a chunk's logits by device type: enough rows to keep a matmul busy, small beside the model."""

DEFAULT_CHUNK_ELEMENTS = 2**27

FEWEST_ROWS = 128
"""Each chunk reads and writes the gradient of the head's weight once; below this many rows that is what takes time."""


@dataclass(frozen=True)
class TokenScores:
    """What the head says of S tokens.

    Args:
        logprobs: [S] float32 or float64.
        entropy: [S] of the distribution each token was drawn from, in nats; no gradient.
        weighted: the scalar sum(c * logprobs) when c was given; call `backward` on it. Then `logprobs` has no gradient.
    """

    logprobs: Tensor
    entropy: Tensor
    weighted: Tensor | None = None


@dataclass(frozen=True)
class _Settings:
    """How the head computes: temperature, tokens a chunk, the matmuls' dtype."""

    temperature: float
    chunk: int
    dtype: torch.dtype

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
) -> TokenScores:
    """Log-probs of `target` under softmax((hidden @ weight.T + bias) / temperature).

    Args:
        hidden: [S, H] the model's output before the head.
        weight: [V, H] of the head.
        bias: [V] of the head, or None.
        target: [S] int64 token ids.
        temperature: divides the logits.
        coefficients: [S] c of sum(c * logprobs), when known and a gradient is wanted.
        dtype: of the matmuls; None takes the weight's.

    Returns:
        The scores; differentiable with respect to hidden, weight and bias through `logprobs`, or through `weighted`
        when coefficients are given.
    """
    settings = _Settings(temperature, _chunk(weight), dtype or weight.dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        if coefficients is None:
            logprobs, entropy = _Recompute.apply(hidden, weight, bias, target, settings)  # type: ignore[no-untyped-call]
            return TokenScores(logprobs, entropy)
        return TokenScores(*_Weighted.apply(hidden, weight, bias, target, coefficients, settings))  # type: ignore[no-untyped-call]


def logits_logprobs(logits: Tensor, target: Tensor, *, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probs of `target` and entropies from logits that exist: the plain way, differentiable by autograd.

    Args:
        logits: [S, V], any float dtype; minus infinity is a token that cannot be drawn.
        target: [S] int64.
        temperature: divides the logits.

    Returns:
        Log-probs [S] and detached entropies [S], float32 or better.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    logprobs = F.log_softmax(wide.clamp_min(torch.finfo(wide.dtype).min), dim=-1)
    entropy = _entropy(logprobs.detach(), logprobs.detach().exp())
    return logprobs.gather(1, target[:, None])[:, 0], entropy


def weighted_sum(logprobs: Tensor, coefficients: Tensor) -> Tensor:
    """sum(c * logprobs) over [S], where a token with c = 0 does not count even if its log-prob is minus infinity."""
    return (coefficients * logprobs.masked_fill(coefficients == 0, 0.0)).sum()


def _chunk(weight: Tensor) -> int:
    """Tokens whose logits exist at a time: a function of the head alone, so every pass cuts alike."""
    elements = CHUNK_ELEMENTS.get(weight.device.type, DEFAULT_CHUNK_ELEMENTS)
    return max(FEWEST_ROWS, elements // weight.shape[0])


def _slices(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _entropy(logprobs: Tensor, probs: Tensor) -> Tensor:
    negative: Tensor = torch.linalg.vecdot(probs, logprobs)
    return -negative


class _Head:
    """The head's matmuls and the two buffers of a chunk.

    Args:
        weight: [V, H].
        bias: [V] or None.
        tokens: S, of all chunks together.
        settings: how to compute.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, tokens: int, settings: _Settings) -> None:
        self.settings = settings
        self.weight = weight.to(settings.dtype)
        self.bias = None if bias is None else bias.to(settings.dtype)
        shape = (min(tokens, settings.chunk), weight.shape[0])
        self._logits = torch.empty(shape, dtype=settings.wide, device=weight.device)
        self._probs = torch.empty_like(self._logits)
        self._narrow = self._logits if settings.dtype == settings.wide else self._logits.to(settings.dtype)

    def chunks(self, hidden: Tensor, target: Tensor) -> Iterator["_Chunk"]:
        """Chunk by chunk what the head says; a chunk is good until the next.

        Args:
            hidden: [S, H].
            target: [S].
        """
        for part in _slices(len(target), self.settings.chunk):
            rows = hidden[part].to(self.settings.dtype)
            yield self._scored(part, rows, target[part])

    def _scored(self, part: slice, rows: Tensor, target: Tensor) -> "_Chunk":
        logits, probs = self._logits[: len(rows)], self._probs[: len(rows)]
        self._multiply(rows, logits)
        largest = logits.amax(-1)
        torch.softmax(logits, -1, out=probs)
        log_normaliser = probs.amax(-1).log_()  # minus log sum exp(logits - largest)
        logprobs = (_picked(logits, target) - largest).add_(log_normaliser)
        entropy = (largest - logits.mul_(probs).sum(-1)).sub_(log_normaliser)
        return _Chunk(part, rows, target, logprobs, entropy, probs)

    def _multiply(self, rows: Tensor, logits: Tensor) -> None:
        """Write rows @ weight.T + bias over `logits`, divided by the temperature."""
        narrow = self._narrow[: len(rows)]
        if self.bias is None:
            torch.mm(rows, self.weight.T, out=narrow)
        else:
            torch.addmm(self.bias, rows, self.weight.T, out=narrow)
        if narrow.dtype != logits.dtype:
            logits.copy_(narrow)
        if self.settings.temperature != 1.0:
            logits /= self.settings.temperature

    def narrow(self, probs: Tensor) -> Tensor:
        """A chunk's [C, V] in the dtype of the matmuls."""
        return probs if probs.dtype == self.settings.dtype else self._narrow[: len(probs)].copy_(probs)


@dataclass(frozen=True)
class _Chunk:
    """What the head says of C tokens.

    Args:
        part: where they are among all.
        rows: [C, H] their hidden states in the dtype of the matmuls.
        target: [C].
        logprobs: [C].
        entropy: [C].
        probs: [C, V], to be used up.
    """

    part: slice
    rows: Tensor
    target: Tensor
    logprobs: Tensor
    entropy: Tensor
    probs: Tensor


def _add_product(total: Tensor | None, left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Add left @ right to `total`, in its `dtype`; the first one needs no zeros to be added to."""
    if total is None:
        return (left @ right).to(dtype)
    return total.addmm_(left, right) if left.dtype == dtype else total.add_(left @ right)


def _picked(values: Tensor, target: Tensor) -> Tensor:
    return values.gather(1, target[:, None])[:, 0]


class _Gradients:
    """The gradients of the head's inputs, summed chunk by chunk; those nobody needs stay None."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, needed: tuple[bool, ...], wide: torch.dtype
    ) -> None:
        self.hidden = torch.empty_like(hidden) if needed[0] else None
        self.weight: Tensor | None = None
        self.bias = torch.zeros_like(bias, dtype=wide) if bias is not None and needed[2] else None
        self.wide, self.needs_weight = wide, needed[1]
        self.dtypes = hidden.dtype, weight.dtype, weight.dtype if bias is None else bias.dtype

    def add(self, chunk: _Chunk, coefficients: Tensor, head: _Head) -> None:
        """Add those of sum(c * logprobs) over a chunk, whose probabilities are used up.

        Args:
            chunk: its C tokens.
            coefficients: [C].
            head: its maker.
        """
        scale = (coefficients / head.settings.temperature)[:, None]
        minus_one = chunk.probs.new_full((len(scale), 1), -1.0)
        change = chunk.probs.scatter_add_(1, chunk.target[:, None], minus_one)  # p - onehot
        if self.bias is not None:
            self.bias.addmv_(change.T, scale[:, 0], alpha=-1)
        change = head.narrow(change)
        if self.hidden is not None:
            self.hidden[chunk.part] = -scale * (change @ head.weight)
        if self.needs_weight:
            rows = (-scale * chunk.rows).to(change.dtype)
            self.weight = _add_product(self.weight, change.T, rows, self.wide)

    def take(self, scale: Tensor | None = None) -> tuple[Tensor | None, ...]:
        """The gradients of hidden, weight and bias, times `scale` if given, in the dtypes of those; good for once."""
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
        for chunk in _Head(weight, bias, len(target), settings).chunks(hidden, target):
            logprobs[chunk.part], entropy[chunk.part] = chunk.logprobs, chunk.entropy
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, coefficients: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, target = ctx.saved_tensors
        with torch.autocast(hidden.device.type, enabled=False):
            gradients = _Gradients(hidden, weight, bias, ctx.needs_input_grad, ctx.settings.wide)
            head = _Head(weight, bias, len(target), ctx.settings)
            for chunk in head.chunks(hidden, target):
                gradients.add(chunk, coefficients[chunk.part], head)
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
        gradients = _Gradients(hidden, weight, bias, ctx.needs_input_grad, settings.wide)
        head = _Head(weight, bias, len(target), settings)
        for chunk in head.chunks(hidden, target):
            logprobs[chunk.part], entropy[chunk.part] = chunk.logprobs, chunk.entropy
            gradients.add(chunk, coefficients[chunk.part], head)
        ctx.gradients = gradients
        ctx.mark_non_differentiable(logprobs, entropy)
        return logprobs, entropy, weighted_sum(logprobs, coefficients)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor, __: Tensor, scale: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None  # scaled in place: good for one backward
        return (*gradients.take(scale), None, None, None)
