"""Attention of the shared layout, only over the pairs that may attend to each other.

A lane contains trees, one after the other. A tree is a prompt and the completions that continue it.

             P P P P a a a b b
        P    ■                      prompt x itself          causal
        P    ■ ■                    completion x itself      causal
        P    ■ ■ ■                  completions x prompt     all of it, all completions in one call
        P    ■ ■ ■ ■
        a    ■ ■ ■ ■ ■              The last two are two parts of one softmax. Each returns its own output and
        a    ■ ■ ■ ■ ■ ■            log-sum-exp, from which the whole follows. Given the results of the whole, the
        a    ■ ■ ■ ■ ■ ■ ■          backward pass of each part is exact (as in ring attention, Liu et al. 2023).
        b    ■ ■ ■ ■       ■
        b    ■ ■ ■ ■       ■ ■      Pairs of siblings are not computed, and no mask has the size of the picture.

On a CPU each part uses the fastest implementation (`cpu.attention`, imported only on CPUs). On other devices it is one
call of FlexAttention.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from transformers import AttentionInterface

from gvpo.errors import ModelError
from gvpo.model.runtime import compute_dtype
from gvpo.update.layouts.forest import Forest

TREES = "gvpo_trees"
"""Name of this attention in transformers, and of the keyword that passes the trees to it."""

_NOT_DONE = ("softcap", "s_aux", "position_bias")
"""Attention keywords of some architectures that are not supported here."""
_IMPLEMENTATION = "_attn_implementation_internal"


@contextmanager
def tree_attention(model: nn.Module) -> Iterator[None]:
    """Make `model(..., gvpo_trees=Forest)` attend over trees in this context. Run its backward pass in the context too.

    Args:
        model: A transformers model whose attention uses `AttentionInterface`.
    """
    configs = {id(config): config for module in model.modules() if (config := getattr(module, "config", None))}
    before = [
        (config, getattr(config, _IMPLEMENTATION)) for config in configs.values() if hasattr(config, _IMPLEMENTATION)
    ]
    for config, _ in before:
        setattr(config, _IMPLEMENTATION, TREES)
    try:
        yield
    finally:
        for config, name in before:
            setattr(config, _IMPLEMENTATION, name)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Compute the attention of one layer, as called by transformers.

    Args:
        module: Attention layer.
        query: [1, heads, L, D].
        key: [1, key heads, L, D]; each key head serves heads / key heads query heads.
        value: [1, key heads, L, D].
        attention_mask: Ignored; the trees define the mask.
        dropout: Must be 0.
        scaling: Factor of the scores; None for 1 / sqrt(D).
        sliding_window: Number of tokens that a query attends to, including itself; None for all.
        others: Must contain the `Forest`.

    Returns:
        [1, L, heads, D], and None in place of the attention weights.

    Raises:
        ModelError: If the layer needs an unsupported feature.
    """
    forest: Forest | None = others.get(TREES)
    if forest is None:
        raise ModelError("the model does not pass keywords on to its attention")
    unknown = ["dropout"] * bool(dropout) + [name for name in _NOT_DONE if others.get(name) is not None]
    if unknown:
        raise ModelError(f"its attention has {unknown[0]}")
    _check_window(module, sliding_window)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    dtype = compute_dtype(value)
    if query.device.type == "cpu":
        from gvpo.update.attention.cpu.attention import on_cpu

        return on_cpu(query, key, value, forest, scale, sliding_window).to(dtype), None
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)  # under autocast rotary positions are float32
    return flex(query, key, value, forest, scale, sliding_window), None


AttentionInterface.register(TREES, attend)


def _check_window(module: nn.Module, window: int | None) -> None:
    """Raise an error for a layer whose window is only in its mask. Rows shorter than the window would not show it."""
    config: Any = getattr(module, "config", None)
    expected = getattr(config, "sliding_window", None)
    if kinds := getattr(config, "layer_types", None):
        kind = kinds[module.layer_idx]
        expected = expected if kind == "sliding_attention" else None
    if window != expected:
        raise ModelError(f"a layer with a sliding window of {expected} tokens passed {window} to its attention")


def flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    forest: Forest,
    scale: float,
    window: int | None,
    *,
    compiled: bool = True,
) -> Tensor:
    """Compute the same with FlexAttention: one kernel over the nonempty blocks of the picture.

    Args:
        query: [1, heads, L, D].
        key: [1, key heads, L, D].
        value: [1, key heads, L, D].
        forest: Trees of the lane.
        scale: Factor of the scores.
        window: Number of tokens that a query attends to.
        compiled: False computes every score, slowly, for tests without a GPU.

    Returns:
        [1, L, heads, D].
    """
    if ("blocks", window) not in forest.made:
        length = query.shape[2]
        visible = forest.visible(window, query.device)
        forest.made["blocks", window] = create_block_mask(visible, None, None, length, length, str(query.device))
    run = _compiled_flex() if compiled else flex_attention
    grouped = query.shape[1] != key.shape[1]
    out: Tensor = run(query, key, value, block_mask=forest.made["blocks", window], scale=scale, enable_gqa=grouped)
    return out.transpose(1, 2)


@cache
def _compiled_flex() -> Any:
    return torch.compile(flex_attention, dynamic=True)
