"""One token a row from logits: temperature, top-k and top-p, and inverse-CDF sampling with given noise."""

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import TopKLogitsWarper, TopPLogitsWarper

from gvpo.sampling.base import SamplingParams
from gvpo.update.head import picked

BLOCK = 512
"""Tokens a block of the vocabulary."""


def draw(logits: Tensor, uniforms: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """Draw a token for each row.

        token = min { v : sum_{w <= v} p_w > u sum_w p_w },   p = softmax(logits / temperature), cut by top-k and top-p

    Args:
        logits: [B, V].
        uniforms: [B] noise in [0, 1).
        params: temperature 0 takes the most likely token.

    Returns:
        tokens [B], and their log-probs [B] in float32 or better: of softmax(logits / temperature) over the whole
        vocabulary, whatever top-k and top-p cut off (at temperature 1 where it is 0), as the update computes them.
    """
    scores = _scores(logits, params.temperature)
    if params.temperature == 0:
        tokens = scores.argmax(-1)
        return tokens, picked(scores.log_softmax(-1), tokens)
    probabilities = scores.softmax(-1)
    tokens = inverse_cdf(_kept(scores, probabilities, params), uniforms)
    return tokens, picked(probabilities, tokens).log_()


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    """Log-probs [B] of tokens [B] under softmax(logits [B, V] / temperature), at temperature 1 where it is 0."""
    return picked(_scores(logits, temperature).log_softmax(-1), tokens)


def _scores(logits: Tensor, temperature: float) -> Tensor:
    """Logits / temperature in float32 or better; as they are at temperature 0."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return wide if temperature in (0, 1) else wide / temperature


def inverse_cdf(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """The first index at which the cumulative probability exceeds the noise; one of probability 0 is never drawn.

    Sums over blocks, and within the one that is hit, are float64: in float32 the tail of a large vocabulary would be
    lost. No [B, V] float64 tensor is made: the index is found among blocks first, then within one.

    Args:
        probabilities: [B, V], not necessarily normalised.
        uniforms: [B] in [0, 1).

    Returns:
        [B] indices.
    """
    wide = torch.float32 if probabilities.device.type == "mps" else torch.float64  # MPS has no float64
    size = min(BLOCK, probabilities.shape[-1])
    blocks = F.pad(probabilities, (0, -probabilities.shape[-1] % size)).view(len(probabilities), -1, size)
    ends = blocks.sum(-1).cumsum(-1, dtype=wide)
    point = uniforms.to(wide) * ends[:, -1]
    block = _first_above(ends, point)
    before = F.pad(ends, (1, 0)).gather(-1, block[:, None])[:, 0]
    inside = blocks[torch.arange(len(block), device=block.device), block].to(wide).cumsum(-1)
    index = block * size + _first_above(inside, point - before)
    return index.clamp(max=probabilities.shape[-1] - 1)  # reached by NaN alone, which the sampler reports


def _first_above(ends: Tensor, point: Tensor) -> Tensor:
    """First index with ends > point; a point that rounding put at the very end counts as just before it."""
    point = torch.minimum(point, ends[:, -1] * (1 - torch.finfo(ends.dtype).eps))
    return torch.searchsorted(ends, point[:, None], right=True)[:, 0].clamp(max=ends.shape[-1] - 1)


def _kept(scores: Tensor, probabilities: Tensor, params: SamplingParams) -> Tensor:
    """Probabilities, with 0 for what top-k and top-p cut off; not renormalised."""
    kept = scores
    ids = torch.empty(0, device=scores.device)  # transformers' warpers take the tokens so far and do not look at them
    if params.top_k > 0:
        kept = TopKLogitsWarper(params.top_k)(ids, kept)
    if params.top_p < 1:
        kept = TopPLogitsWarper(params.top_p)(ids, kept)
    return probabilities if kept is scores else probabilities.masked_fill(kept.isneginf(), 0)
