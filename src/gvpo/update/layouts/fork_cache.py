"""Shared prompts for models with a state: the prompt of a group runs once, and its cache is forked.

A recurrent layer takes one token after the other, so no mask can hide a sibling from it. Completions are rows, then,
and each goes on from what the prompt left: keys and values of attention, states of convolutions and recurrences.

    first call       │ P P P P │─┬─▶ a a a a        second call: rows of similar length, padded on the right
                                 ├─▶ b b b .
                                 └─▶ c              third call

    position           0 1 2 3       4 5 6 7
    predicts               a,b,c                    the prompt's last position, the first token of every row

All calls of a micro-batch are one graph: the gradient of a row flows through the fork into the prompt's call, where the
rows' gradients are summed. So one backward serves, and memory ends with the token budget: a group over it is cut into
micro-batches, each with the prompt again. Prompts of one length share a micro-batch; others would need padding before
their states.

transformers' own caches write states in place, which the backward of the call before would miss; a forked one does not.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin, LinearAttentionCacheLayerMixin

from gvpo.errors import ModelError
from gvpo.update.head import TokenScores
from gvpo.update.layouts.forked import Call, ForkedLayout
from gvpo.update.layouts.packed import Layout

_CACHES = ("past_key_values", "cache_params")
"""Names under which models return their cache and take it back."""

Run = Callable[[dict[str, Any], Layout | Call, Tensor | None], tuple[TokenScores, Any]]
"""A call of the model: its inputs, the tokens to score, their coefficients; gives scores and the model's output."""


def why_not_forked(model: Any) -> str:
    """What forbids forked prompts before anything is tried; "" if nothing does."""
    if model.training and getattr(model, "is_gradient_checkpointing", False):
        return "its layers keep no cache under gradient checkpointing"
    return ""


def forked_scores(run: Run, layout: ForkedLayout, coefficients: Tensor | None) -> TokenScores:
    """Run the calls of a micro-batch, the rows behind forks of the prompts' cache.

    Args:
        run: calls the model.
        layout: from `lay_out_forked`.
        coefficients: [S] c = d loss / d logprobs when known.

    Returns:
        Scores of the layout's S tokens, in its order; gradients flow through the forks.

    Raises:
        ModelError: the model returns no cache that can be forked.
    """
    sizes = [len(call.target) for call in layout.calls]
    shares = [None] * len(sizes) if coefficients is None else list(torch.split(coefficients, sizes))
    scores, output = run({"input_ids": layout.prompts.input_ids, "use_cache": True}, layout.prompts, shares[0])
    name, cache = _cache_of(output)
    every = [scores]
    for call, share in zip(layout.rows, shares[1:], strict=True):
        every.append(run(_continued(layout.prompts, call, name, cache), call, share)[0])
    return _joined(every)


def prompt_gradient(embedding: nn.Module, prompt: int, logprobs: Callable[[], Tensor], chosen: Tensor) -> Tensor:
    """The gradient of a sum of log-probs by the embedded tokens of the one prompt that they belong to.

    A state that loses its gradient gives the right log-probs all the same; here it shows. Parameters are not asked, so
    no hook that synchronises their gradients fires.

    Args:
        embedding: the module that embeds tokens, [n, L] to [n, L, H].
        prompt: P, the prompt's tokens.
        logprobs: runs the model, each row of the first call starting with the prompt, and gives [S].
        chosen: [S] bool, those that count.

    Returns:
        [P, H], summed over the rows that repeat the prompt.
    """
    with _recorded(embedding) as embedded, torch.enable_grad():
        values = logprobs()[chosen]
        weights = torch.linspace(-1.0, 2.0, len(values), dtype=values.dtype, device=values.device)
        (gradient,) = torch.autograd.grad((weights * values).sum(), embedded[:1])
    return gradient[:, :prompt].sum(0)


@contextmanager
def _recorded(embedding: nn.Module) -> Iterator[list[Tensor]]:
    """What a module gives, as leaves that have a gradient."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        seen.append(output.detach().requires_grad_())
        return seen[-1]

    hook = embedding.register_forward_hook(keep)
    try:
        yield seen
    finally:
        hook.remove()


def _cache_of(output: Any) -> tuple[str, Cache]:
    """The cache that a model returned, and the name of the input that takes it."""
    for name in _CACHES:
        cache = output.get(name)
        if isinstance(cache, Cache):
            return name, cache
    raise ModelError("the model returns no cache of transformers")


def _continued(prompts: Call, call: Call, name: str, cache: Cache) -> dict[str, Any]:
    """Inputs of rows that go on from the prompts' cache."""
    start, width = prompts.input_ids.shape[1], call.input_ids.shape[1]
    positions = torch.arange(start, start + width, device=call.input_ids.device)
    fork = partial(_expand, count=len(prompts.parent), parent=call.parent)
    return {
        "input_ids": call.input_ids,
        "position_ids": positions.expand_as(call.input_ids),
        "use_cache": True,
        name: _forked(cache, fork),
    }


def _expand(state: Tensor, count: int, parent: Tensor) -> Tensor:
    """The state [m, ...] of m prompts as that of n rows; what has no batch dimension stays."""
    if state.ndim < 2 or state.shape[0] != count:
        return state
    return state.expand(len(parent), *state.shape[1:]) if count == 1 else state.index_select(0, parent)


def _forked(value: Any, fork: Callable[[Tensor], Tensor]) -> Any:
    """A copy of a cache, or of a part of one, whose tensors went through `fork` and that writes nothing in place."""
    if isinstance(value, Tensor):
        return fork(value)
    if isinstance(value, dict):
        return {key: _forked(each, fork) for key, each in value.items()}
    if isinstance(value, list):
        return [_forked(each, fork) for each in value]
    if not isinstance(value, Cache | CacheLayerMixin | LinearAttentionCacheLayerMixin):
        return value
    copied: Any = copy.copy(value)
    vars(copied).update({name: _forked(each, fork) for name, each in vars(value).items()})
    if isinstance(value, LinearAttentionCacheLayerMixin):
        copied.update_conv_state = partial(_convolved, copied.conv_states)
        copied.update_recurrent_state = _passed
    return copied


def _convolved(states: dict[int, Tensor], inputs: Tensor, state_idx: int = 0, **_: Any) -> Tensor:
    """What a convolution over new inputs [n, D, L] sees: the state before them, then they. Nothing is kept."""
    return torch.cat([states[state_idx], inputs], dim=-1)


def _passed(state: Tensor, state_idx: int = 0, **_: Any) -> Tensor:
    """A recurrence's state after the rows, which nothing goes on from."""
    return state


def _joined(scores: Sequence[TokenScores]) -> TokenScores:
    sums = [each.weighted for each in scores if each.weighted is not None]
    return TokenScores(
        torch.cat([each.logprobs for each in scores]),
        torch.cat([each.entropy for each in scores]),
        torch.stack(sums).sum() if sums else None,
    )
