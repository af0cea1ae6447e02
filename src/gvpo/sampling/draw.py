"""Sampling of one token per row from logits, by temperature, top-k, top-p and inverse-CDF sampling."""

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import TopKLogitsWarper, TopPLogitsWarper

from gvpo.sampling.base import SamplingParams
from gvpo.update.head import picked

BLOCK = 512
"""Number of tokens per block of the vocabulary."""


def draw(logits: Tensor, uniforms: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """Sample one token per row.

        token = min { v : sum_{w <= v} p_w > u sum_w p_w },   p = softmax(logits / temperature), after top-k and top-p

    Args:
        logits: [B, V].
        uniforms: [B] noise in [0, 1).
        params: Sampling parameters. Temperature 0 selects the most likely token.

    Returns:
        Tokens [B], and their log-probs [B] in float32 or better under the distribution that they were drawn from: p
        over the tokens that top-k and top-p keep, renormalized. At temperature 0 they are those at temperature 1, over
        all tokens, because a greedy token has the log-prob 0.
    """
    scores = _scores(logits, params.temperature)
    if params.temperature == 0:
        tokens = scores.argmax(-1)
        return tokens, picked(scores.log_softmax(-1), tokens)
    probabilities = scores.softmax(-1)
    kept = _kept(scores, probabilities, params)
    tokens = inverse_cdf(kept, uniforms)
    logprobs = picked(probabilities, tokens).log_()
    return tokens, logprobs if kept is probabilities else logprobs - kept.sum(-1).log_()


def _scores(logits: Tensor, temperature: float) -> Tensor:
    """Return logits / temperature in float32 or better. Temperature 0 leaves the logits unscaled."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return wide if temperature in (0, 1) else wide / temperature


def inverse_cdf(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Return the first index whose cumulative probability exceeds the noise. Its probability is never 0.

    Sums over blocks, and within the selected block, use float64, because float32 would lose the tail of a large
    vocabulary. No [B, V] float64 tensor is created: the search finds a block first, then the index within it.

    Args:
        probabilities: [B, V], not necessarily normalized.
        uniforms: [B] noise in [0, 1).

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
    return index.clamp(max=probabilities.shape[-1] - 1)  # only NaN reaches it, and the sampler reports NaN


def _first_above(ends: Tensor, point: Tensor) -> Tensor:
    """Return the first index with ends > point. A point that rounding put at the very end counts as just before it."""
    point = torch.minimum(point, ends[:, -1] * (1 - torch.finfo(ends.dtype).eps))
    return torch.searchsorted(ends, point[:, None], right=True)[:, 0].clamp(max=ends.shape[-1] - 1)


def _kept(scores: Tensor, probabilities: Tensor, params: SamplingParams) -> Tensor:
    """Return the probabilities, with 0 for tokens that top-k and top-p filter out, not renormalized."""
    kept = scores
    ids = torch.empty(0, device=scores.device)  # transformers' warpers expect previous tokens but ignore them
    if params.top_k > 0:
        kept = TopKLogitsWarper(params.top_k)(ids, kept)
    if params.top_p < 1:
        kept = TopPLogitsWarper(params.top_p)(ids, kept)
    return probabilities if kept is scores else probabilities.masked_fill(kept.isneginf(), 0)
