"""Prompts through the model once: what decoding starts from."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gvpo.errors import ModelError


@dataclass
class Prefilled:
    """n prompts, computed.

    Args:
        prompts: their token ids.
        pad: id of the padding.
        logits: [n, V] of each prompt's last token.
        cache: transformers' cache, n rows.
        lengths: [n] tokens of each prompt.
        mask: [n, P] 1 on tokens and 0 on the padding before them; None where no prompt is padded.
    """

    prompts: Sequence[Sequence[int]]
    pad: int
    logits: Tensor
    cache: Any
    lengths: Tensor
    mask: Tensor | None

    @property
    def width(self) -> int:
        """Tokens in the cache, padding counted."""
        return max(map(len, self.prompts))


def prefill(model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad: int) -> Prefilled:
    """Compute prompts of any lengths in one forward, padded on the left so that all end together.

    Raises:
        ModelError: the model gives no cache.
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
        raise ModelError(f"{type(model).__name__} gives no key-value cache to sample with; use a model that has one")
    return Prefilled(prompts, pad, output.logits[:, -1], cache, lengths, mask)


def spread(model: PreTrainedModel, prefilled: Prefilled, owners: Sequence[int]) -> tuple[Prefilled, bool]:
    """Repeat prefilled prompts, one copy a row; the argument's own cache is used up.

    Args:
        model: for caches that cannot be repeated: then the repeated prompts are computed anew.
        prefilled: n prompts.
        owners: R prompts, by position.

    Returns:
        R prompts, and whether their cache's rows can be chosen from later (`reorder_cache`).
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


def forward(model: PreTrainedModel, ids: Tensor, positions: Tensor, mask: Tensor | None, cache: Any) -> Any:
    """One cached forward; logits are wanted of the last token alone.

    Args:
        model: the model.
        ids: [R, L] new tokens.
        positions: [R, L] their positions.
        mask: [R, cached + L], or None where nothing is padded.
        cache: of what came before; None starts one.
    """
    optional: dict[str, Any] = {"position_ids": positions, "logits_to_keep": 1}
    if getattr(model.config, "output_router_logits", False):
        optional["output_router_logits"] = False  # its router loss wants a mask as long as the new tokens
    accepted = _keywords(type(model).forward)
    optional = {name: value for name, value in optional.items() if accepted is None or name in accepted}
    return model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **optional)


@cache
def _keywords(function: Callable[..., Any]) -> frozenset[str] | None:
    """The keywords that a function takes; None: any. Asked once, not for each token."""
    parameters = inspect.signature(function).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return None if takes_all else frozenset(parameters)
