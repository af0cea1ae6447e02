"""Attention of many queries to the same keys by matrix products, without a mask.

PyTorch's flash kernel multiplies with MKL. If `products` has a faster implementation, one block of queries at a time is
faster:

    forward    scores = query @ key.T             softmax along the keys; out = weights @ value
    backward   weights.T = 2^(key @ query.T - lse)
               change.T = (value @ gradient.T - delta) * weights.T

               key's = change.T @ query           query's = change @ key           value's = weights.T @ gradient

with delta = sum(gradient * out) of each query (as in FlashAttention, Dao et al. 2022). In the backward pass a query is
a column, so that the log-sum-exp and delta are biases of the products. Exponentials use base 2, because on a CPU torch
computes them in a quarter of the time of base e. Query heads that share a key head are processed together.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from gvpo.model.cpu.matmul import has_fast, product
from gvpo.model.matmul import slices

BLOCK_ELEMENTS = 2**20
"""Maximum number of scores in memory: enough for the products, and about the size of a cache."""

FEWEST_KEYS, FEWEST_SCORES = 128, 2**17
"""Sizes of a product below which the flash kernel is about as fast or faster."""


def gains(query: Tensor, key: Tensor) -> bool:
    """Return whether products are faster for query [heads, L, D] and key [key heads, S, D]."""
    shared, keys = len(query) // len(key), key.shape[1]
    return keys >= FEWEST_KEYS and shared * query.shape[1] * keys >= FEWEST_SCORES and has_fast(query, key)


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attend with every query to every key.

    Args:
        query: [heads, L, D].
        key: [key heads, S, D].
        value: [key heads, S, E].
        scale: factor of the scores.

    Returns:
        Output [heads, L, E] and the log-sum-exp [heads, L] of the scores.
    """
    heads, length, _ = query.shape
    out = query.new_empty(len(key), heads // len(key) * length, value.shape[-1])
    logs = query.new_empty(out.shape[:2])
    for head, (queries, keys, values) in enumerate(zip(_shared(query, key), _powers(key, scale), value, strict=True)):
        values = values.contiguous()
        for block in _blocks(queries, keys):
            weights = product(queries[block], keys.T)
            total, log = powers_(weights)
            out[head, block] = product(weights, values).div_(total)
            logs[head, block] = log[:, 0]
    return out.view(heads, length, -1), logs.view(heads, length).mul_(math.log(2))


def powers_(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Replace scores by 2^(scores - the largest), in place.

    Args:
        scores: [..., S], exponents of 2.

    Returns:
        The sums of the results, and log2 of the sums of 2^scores, both [..., 1].
    """
    largest = scores.amax(-1, keepdim=True)
    total = scores.sub_(largest).exp2_().sum(-1, keepdim=True)
    return total, total.log2().add_(largest)


def attend_back(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of `attend`, even if it is a part of a larger softmax.

    Args:
        gradient: [heads, L, E] gradient of the output.
        query: [heads, L, D].
        key: [key heads, S, D].
        value: [key heads, S, E].
        out: [heads, L, E] output of the whole softmax.
        lse: [heads, L] log-sum-exp of the whole softmax.
        scale: Factor of the scores.

    Returns:
        The gradients of query, key and value.
    """
    minus_logs = _shared(lse, key) / -math.log(2)
    minus_delta = _shared((gradient * out).sum(-1), key).neg_()
    gradients, queries = _shared(gradient, key), _shared(query, key)
    to_query = torch.empty_like(queries)
    to_key, to_value = (torch.zeros_like(each, memory_format=torch.contiguous_format) for each in (key, value))
    for head, (keys, values) in enumerate(zip(_powers(key, scale), value, strict=True)):
        values = values.contiguous()
        for block in _blocks(queries[head], keys):
            looking, pull = queries[head, block], gradients[head, block]
            weights = product(keys, looking.T, minus_logs[head, block]).exp2_()
            to_value[head] += product(weights, pull)
            change = product(values, pull.T, minus_delta[head, block], times=weights)
            to_key[head] += product(change, looking)
            to_query[head, block] = product(keys.T, change).T
    return to_query.mul_(math.log(2)).view_as(query), to_key.mul_(scale), to_value


def _shared(values: Tensor, key: Tensor) -> Tensor:
    """Reshape [heads, L, ...] to [key heads, heads / key heads * L, ...], which groups the rows that share keys."""
    return values.reshape(len(key), -1, *values.shape[2:]).contiguous()


def _powers(key: Tensor, scale: float) -> Tensor:
    """Scale the keys so that their scores are exponents of 2."""
    return key.contiguous() * (scale / math.log(2))


def _blocks(queries: Tensor, keys: Tensor) -> Iterator[slice]:
    return slices(len(queries), max(1, BLOCK_ELEMENTS // len(keys)))
