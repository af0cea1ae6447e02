"""Log-probs and entropies of chosen tokens, without the logits of all of them.

The logits of a batch (tokens x vocabulary) are by far its largest tensor. Here they exist a chunk of tokens at a time:

    hidden [S, H] ──chunk──▶ logits [C, V] ──▶ log-prob and entropy of each token ──▶ forgotten

The gradient of a log-prob with respect to its logits is (onehot - p) / temperature, so it needs the same chunk again:

- coefficients c = d loss / d logprobs known beforehand: the gradients of sum(c * logprobs) are formed at once, in the
  forward, while the chunk is there; the backward only scales them. Three matmuls a token.
- not known: the backward computes the chunk's logits a second time. Four matmuls a token.

Log-probs are those of softmax(logits / temperature), in float32 or better whatever the matmuls are in.
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
    return max(1, CHUNK_ELEMENTS.get(weight.device.type, DEFAULT_CHUNK_ELEMENTS) // weight.shape[0])


def _slices(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _log_softmax(hidden: Tensor, weight: Tensor, bias: Tensor | None, settings: _Settings) -> Tensor:
    """[C, V] log-probs of every token, for a chunk of hidden states; weight and bias are in the matmuls' dtype."""
    logits = F.linear(hidden.to(settings.dtype), weight, bias).to(settings.wide)
    if settings.temperature != 1.0:
        logits /= settings.temperature
    return F.log_softmax(logits, dim=-1)


def _entropy(logprobs: Tensor, probs: Tensor) -> Tensor:
    negative: Tensor = torch.linalg.vecdot(probs, logprobs)
    return -negative


def _logits_gradient(probs: Tensor, target: Tensor, coefficients: Tensor, temperature: float) -> Tensor:
    """The gradient of sum(c * logprobs) by the logits, c * (onehot - p) / temperature, written over `probs`."""
    scale = (coefficients / temperature)[:, None]
    return probs.mul_(-scale).scatter_add_(1, target[:, None], scale)


def _narrow(weight: Tensor, bias: Tensor | None, settings: _Settings) -> tuple[Tensor, Tensor | None]:
    return weight.to(settings.dtype), None if bias is None else bias.to(settings.dtype)


class _Gradients:
    """The gradients of the head's inputs, summed chunk by chunk; those nobody needs stay None."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, needed: tuple[bool, ...], wide: torch.dtype
    ) -> None:
        self.hidden = torch.empty_like(hidden) if needed[0] else None
        self.weight = torch.zeros_like(weight, dtype=wide) if needed[1] else None
        self.bias = torch.zeros_like(bias, dtype=wide) if bias is not None and needed[2] else None

    def add(self, part: slice, gradient: Tensor, hidden: Tensor, weight: Tensor) -> None:
        """Add a chunk: `gradient` [C, V] of its logits, `hidden` [C, H] and `weight` in the matmuls' dtype."""
        if self.bias is not None:
            self.bias += gradient.sum(0)
        gradient = gradient.to(weight.dtype)
        if self.hidden is not None:
            self.hidden[part] = gradient @ weight
        if self.weight is None:
            return
        if self.weight.dtype == gradient.dtype:
            self.weight.addmm_(gradient.T, hidden)
        else:
            self.weight += gradient.T @ hidden

    def scaled(self, scale: Tensor, dtypes: tuple[torch.dtype, ...]) -> tuple[Tensor | None, ...]:
        """The gradients of hidden, weight and bias times `scale`, in the dtypes of those, written over the sums."""
        parts = (self.hidden, self.weight, self.bias)
        return tuple(
            None if part is None else part.mul_(scale).to(dtype) for part, dtype in zip(parts, dtypes, strict=False)
        )


def _dtypes(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[torch.dtype, ...]:
    return hidden.dtype, weight.dtype, weight.dtype if bias is None else bias.dtype


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
        narrow, narrow_bias = _narrow(weight, bias, settings)
        for part in _slices(len(target), settings.chunk):
            every = _log_softmax(hidden[part], narrow, narrow_bias, settings)
            logprobs[part] = every.gather(1, target[part, None])[:, 0]
            entropy[part] = _entropy(every, every.exp())
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, coefficients: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, target = ctx.saved_tensors
        settings: _Settings = ctx.settings
        gradients = _Gradients(hidden, weight, bias, ctx.needs_input_grad, settings.wide)
        with torch.autocast(hidden.device.type, enabled=False):
            narrow, narrow_bias = _narrow(weight, bias, settings)
            for part in _slices(len(target), settings.chunk):
                chunk = hidden[part].to(settings.dtype)
                probs = _log_softmax(chunk, narrow, narrow_bias, settings).exp_()
                change = _logits_gradient(probs, target[part], coefficients[part], settings.temperature)
                gradients.add(part, change, chunk, narrow)
        one = torch.ones((), dtype=settings.wide, device=hidden.device)
        return (*gradients.scaled(one, _dtypes(hidden, weight, bias)), None, None)


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
        narrow, narrow_bias = _narrow(weight, bias, settings)
        for part in _slices(len(target), settings.chunk):
            chunk = hidden[part].to(settings.dtype)
            every = _log_softmax(chunk, narrow, narrow_bias, settings)
            probs = every.exp()
            logprobs[part] = every.gather(1, target[part, None])[:, 0]
            entropy[part] = _entropy(every, probs)
            change = _logits_gradient(probs, target[part], coefficients[part], settings.temperature)
            gradients.add(part, change, chunk, narrow)
        ctx.gradients, ctx.dtypes = gradients, _dtypes(hidden, weight, bias)
        ctx.mark_non_differentiable(logprobs, entropy)
        return logprobs, entropy, weighted_sum(logprobs, coefficients)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor, __: Tensor, scale: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None  # scaled in place: good for one backward
        return (*gradients.scaled(scale, ctx.dtypes), None, None, None)
