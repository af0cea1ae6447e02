"""A key-value cache and attention for decoding that do not copy the cached tokens.

The dynamic cache of transformers copies itself for each new token. If several query heads share a key head, its
attention also copies the cache for each of them. Here, new tokens are written into spare room:

    keys    [rows, key heads, room, D]
    query   [rows, heads, 1, D]  ─view─▶  [rows, key heads, heads / key heads, D]

Attention receives the query heads of a key head as a sequence of queries, because all of them may see the same tokens.
On a CPU, plain matrix products are then faster than torch's kernel, which has little work per row and head.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

ROOM = 64
"""Number of tokens by which the cache grows, which is also the number of tokens per copy of the cache."""

_ATTENTION = "sdpa"

_here = threading.local()
"""Marker of the threads that decode; another thread may train at the same time."""
_decoding: list[Any] = []
"""The attention that was registered when each context of `decoding_attention` began, of all threads."""
_turn = threading.Lock()


class RoomyLayer(DynamicLayer):
    """A dynamic cache layer with spare room after its last token. `keys` and `values` are views of the filled part."""

    _buffers: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, layer: DynamicLayer) -> "RoomyLayer":
        """Convert a layer, which must not be used afterwards."""
        found = cls()
        vars(found).update(vars(layer))
        return found

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Add tokens [rows, key heads, L, D]; see transformers."""
        keys, values = self._filled()
        start, end = keys.shape[-2], keys.shape[-2] + key_states.shape[-2]
        if self._buffers is None or end > self._buffers[0].shape[-2]:
            self._buffers = _with_room(keys, end + ROOM), _with_room(values, end + ROOM)
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., start:end, :] = states
        return self._show(self._buffers, end)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep these rows, in this order."""
        keys, values = self._buffers or self._filled()
        self._buffers = keys.index_select(0, beam_idx), values.index_select(0, beam_idx)
        self._show(self._buffers, self._filled()[0].shape[-2])

    def _filled(self) -> tuple[Tensor, Tensor]:
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def _show(self, buffers: tuple[Tensor, Tensor], length: int) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (buffer[..., :length, :] for buffer in buffers)
        return self._filled()


def _with_room(values: Tensor, length: int) -> Tensor:
    found = values.new_empty(*values.shape[:-2], length, values.shape[-1])
    found[..., : values.shape[-2], :] = values
    return found


def make_room(cache: Any) -> None:
    """Make the plain layers of a filled cache grow in place. Layers with windows or states are left unchanged."""
    layers = getattr(cache, "layers", None) or []
    for index, layer in enumerate(layers):
        if type(layer) is DynamicLayer and layer.is_initialized:
            layers[index] = RoomyLayer.of(layer)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Compute transformers' attention without copying the keys if there is one new token.

    Args:
        module: Attention layer.
        query: [rows, heads, L, D].
        key: [rows, key heads, cached, D].
        value: [rows, key heads, cached, D].
        attention_mask: [rows, 1, L, cached] or None.
        dropout: Dropout probability of the attention weights.
        scaling: Factor of the scores.
        others: Further arguments of transformers.

    Returns:
        [rows, L, heads, D], and None in place of the attention weights.
    """
    rows, heads, new, width = query.shape
    same = attention_mask is None or attention_mask.shape[1] == 1
    if new > 1 or not same or others.get("position_bias") is not None or others.get("cache") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **others)
    grouped = query.reshape(rows, key.shape[1], heads // key.shape[1], width)
    if query.device.type == "cpu" and query.dtype == torch.float32 and not dropout:
        found = _weighted(grouped, key, value, attention_mask, width**-0.5 if scaling is None else scaling)
    else:
        found = F.scaled_dot_product_attention(grouped, key, value, attention_mask, dropout, scale=scaling)
    return found.reshape(rows, 1, heads, found.shape[-1]), None


def _weighted(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Compute the result of torch's kernel with two matrix products and a softmax."""
    scores = (query * scale) @ key.mT
    if mask is not None:
        hidden = torch.finfo(scores.dtype).min
        scores = scores.masked_fill_(~mask, hidden) if mask.dtype == torch.bool else scores.add_(mask)
    return torch.softmax(scores, -1) @ value


@contextmanager
def decoding_attention() -> Iterator[None]:
    """Use `attend` within this context for models with SDPA attention, in this thread only."""
    outer = getattr(_here, "decodes", False)
    _here.decodes = True
    with _turn:
        _decoding.append(ALL_ATTENTION_FUNCTIONS[_ATTENTION])
        ALL_ATTENTION_FUNCTIONS[_ATTENTION] = _attend_here
    try:
        yield
    finally:
        _here.decodes = outer
        with _turn:  # the last one to leave restores what the first one has found
            found = _decoding[0]
            _decoding.pop()
            ALL_ATTENTION_FUNCTIONS[_ATTENTION] = _attend_here if _decoding else found


def _attend_here(*words: Any, **named: Any) -> Any:
    """Attend like transformers in the threads that do not decode."""
    return (attend if getattr(_here, "decodes", False) else sdpa_attention_forward)(*words, **named)
