"""Computes prompts once, as the starting point of decoding, and extends what was computed."""

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer

from gvpo.errors import ModelError


@dataclass
class Prefilled:
    """n computed prompts.

    Args:
        prompts: Their token ids.
        pad: Id of the padding token.
        logits: [n, V] logits of each prompt's last token.
        cache: Cache of transformers with n rows.
        lengths: [n] number of tokens of each prompt.
        mask: [n, P] 1 on tokens and 0 on the padding before them, or None if no prompt is padded.
    """

    prompts: Sequence[Sequence[int]]
    pad: int
    logits: Tensor
    cache: Any
    lengths: Tensor
    mask: Tensor | None

    @property
    def width(self) -> int:
        """Number of tokens in the cache, including padding."""
        return max(map(len, self.prompts))


def prefill(model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad: int) -> Prefilled:
    """Compute prompts of any lengths in one forward pass, padded on the left so that all end at the same position.

    Raises:
        ModelError: If the model returns no cache.
    """
    width = max(map(len, prompts))
    ids = [[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
    places = torch.arange(width, device=model.device) - (width - lengths[:, None])
    padded = bool((lengths < width).any())
    mask = (places >= 0).long() if padded else None
    output = forward(model, torch.tensor(ids, device=model.device), places.clamp(min=0), mask, cache=None)
    cache = getattr(output, "past_key_values", None)
    if cache is None:
        raise ModelError(f"{type(model).__name__} returns no key-value cache to sample with; use a model that has one")
    return Prefilled(prompts, pad, output.logits[:, -1], cache, lengths, mask)


def spread(model: PreTrainedModel, prefilled: Prefilled, owners: Sequence[int]) -> tuple[Prefilled, bool]:
    """Repeat prefilled prompts, with one copy per row. The argument's cache must not be used afterwards.

    Args:
        model: Model that recomputes the repeated prompts if the cache cannot be repeated.
        prefilled: n prompts.
        owners: Positions of R prompts.

    Returns:
        R prompts, and whether rows of their cache can be selected later (`reorder_cache`).
    """
    index = torch.tensor(owners, device=prefilled.logits.device)
    prompts = [prefilled.prompts[owner] for owner in owners]
    try:
        prefilled.cache.reorder_cache(index)
    except (AttributeError, NotImplementedError, TypeError):
        return prefill(model, prompts, prefilled.pad), False
    mask = prefilled.mask[index] if prefilled.mask is not None else None
    repeated = Prefilled(
        prompts, prefilled.pad, prefilled.logits[index], prefilled.cache, prefilled.lengths[index], mask
    )
    return repeated, True


def is_extensible(prefilled: Prefilled) -> bool:
    """Return whether `extend` can work: each layer keeps all tokens at their places, without windows or states."""
    layers = getattr(prefilled.cache, "layers", None) or []
    return bool(layers) and all(type(layer) is DynamicLayer and layer.is_initialized for layer in layers)


def shared(prefilled: Prefilled) -> Prefilled:
    """Return prompts whose cache can be decoded while the argument's stays. They share tensors, which never change."""
    cache = copy.copy(prefilled.cache)
    cache.layers = [copy.copy(layer) for layer in cache.layers]
    return replace(prefilled, cache=cache)


def extend(
    model: PreTrainedModel, prefilled: Prefilled, owners: Sequence[int], texts: Sequence[Sequence[int]]
) -> Prefilled:
    """Compute longer texts from prefilled ones, in one forward of their new tokens.

        [padding, prompt] + [padding, new tokens]  ──forward, then move padding to the left──▶  [padding, text]

    Args:
        model: Model of the cache.
        prefilled: n prompts, for which `is_extensible` is true. Their cache must not be used afterwards.
        owners: Position of the prompt that each text begins with.
        texts: Token ids of R texts. Each has at least one token after its prompt.

    Returns:
        R prefilled texts.
    """
    start, _ = spread(model, prefilled, owners)
    added = [list(text[len(prompt) :]) for text, prompt in zip(texts, start.prompts, strict=True)]
    width = max(map(len, added))
    device = start.lengths.device
    ids = torch.tensor([[start.pad] * (width - len(tokens)) + tokens for tokens in added], device=device)
    counts = torch.tensor([len(tokens) for tokens in added], device=device)
    places = torch.arange(width, device=device) - (width - counts[:, None])
    before = start.lengths.new_ones(len(texts), start.width) if start.mask is None else start.mask
    mask = torch.cat([before, (places >= 0).long()], dim=1)
    positions = (start.lengths[:, None] + places).clamp(min=0)
    is_padded = not bool(mask.all())
    output = forward(model, ids, positions, mask if is_padded else None, start.cache)
    lengths = start.lengths + counts
    packed = _packed(start.cache, mask, max(map(len, texts))) if is_padded else None
    return Prefilled(texts, start.pad, output.logits[:, -1], start.cache, lengths, packed)


def _packed(cache: Any, mask: Tensor, width: int) -> Tensor | None:
    """Move the padding of a cache to the left, and remove what no row needs. Return the new mask [R, width]."""
    order = torch.argsort(mask, dim=1, stable=True)[:, -width:]
    index = order[:, None, :, None]
    for layer in cache.layers:
        layer.keys, layer.values = (
            values.gather(2, index.expand(-1, values.shape[1], -1, values.shape[3]))
            for values in (layer.keys, layer.values)
        )
    mask = mask.gather(1, order)
    return None if bool(mask.all()) else mask


def forward(model: PreTrainedModel, ids: Tensor, positions: Tensor, mask: Tensor | None, cache: Any) -> Any:
    """Run one cached forward pass. Only the logits of the last token are computed if the model supports it.

    Args:
        model: Model to run.
        ids: [R, L] new tokens.
        positions: [R, L] their positions.
        mask: [R, cached + L], or None if nothing is padded.
        cache: Cache of the previous tokens; None starts a new one.
    """
    optional: dict[str, Any] = {"position_ids": positions, "logits_to_keep": 1}
    if getattr(model.config, "output_router_logits", False):
        optional["output_router_logits"] = False  # the router loss expects a mask as long as the new tokens
    accepted = _keywords(type(model).forward)
    optional = {name: value for name, value in optional.items() if accepted is None or name in accepted}
    return model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **optional)


@cache
def _keywords(function: Callable[..., Any]) -> frozenset[str] | None:
    """Return the keywords that a function accepts, or None if it accepts any. Cached, since it is called per token."""
    parameters = inspect.signature(function).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return None if takes_all else frozenset(parameters)
