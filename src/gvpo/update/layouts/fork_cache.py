"""Shared prompts for models with a state: the prompt of a group runs once, and its cache is forked.

A recurrent layer processes one token after the other, so no mask can hide a sibling from it. Therefore completions are
rows, and each continues from the prompt's cache: keys and values of attention, states of convolutions and recurrences.

    first call       │ P P P P │─┬─▶ a a a a        second call: rows of similar length, padded on the right
                                 ├─▶ b b b .
                                 └─▶ c              third call

    position           0 1 2 3       4 5 6 7
    predicts               a,b,c                    the prompt's last position, the first token of every row

All calls of a micro-batch are one graph: the gradient of a row flows through the fork into the prompt's call, where the
rows' gradients are summed. So one backward pass suffices, and memory is bounded by the token budget: a group over it is
split into micro-batches, each with the prompt again. Prompts share a micro-batch if they have the same length. Others
would need padding before their states.

The caches of transformers write states in place, which would break the backward pass of the previous call. A forked
cache does not.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin, LinearAttentionCacheLayerMixin

from gvpo.errors import ModelError
from gvpo.update.head import TokenScores
from gvpo.update.layouts.base import Call, Run

_CACHES = ("past_key_values", "cache_params")
"""Names under which models return and accept their cache."""


@dataclass(frozen=True)
class Continuation:
    """A call for n rows that continue prompts.

    Args:
        call: Call with the rows' own tokens, without a cache in its inputs.
        parent: [n] int64, the prompt that each row continues, among the m prompts of the first call.
    """

    call: Call
    parent: Tensor


@dataclass(frozen=True)
class ForkedCalls:
    """A micro-batch as calls: the prompts [m, P], then rows that continue them.

    `row` and `token` cover all its tokens, call by call.
    """

    prompts: Call
    rows: tuple[Continuation, ...]

    @property
    def calls(self) -> tuple[Call, ...]:
        """All calls, in order."""
        return (self.prompts, *(each.call for each in self.rows))

    @property
    def row(self) -> Tensor:
        """[S] int64, the completion of each scored token."""
        return torch.cat([call.row for call in self.calls])

    @property
    def token(self) -> Tensor:
        """[S] int64, index of each token in its completion."""
        return torch.cat([call.token for call in self.calls])

    def scores(self, run: Run, coefficients: Tensor | None) -> TokenScores:
        """Score the tokens: the prompts first, then each call of rows with a fork of the prompts' cache.

        Gradients flow through the forks.

        Raises:
            ModelError: If the model returns no cache that can be forked.
        """
        sizes = [len(call.target) for call in self.calls]
        shares = [None] * len(sizes) if coefficients is None else list(torch.split(coefficients, sizes))
        first, output = run(self.prompts, shares[0])
        name, cache = _cache_of(output)
        found = [first]
        for rows, share in zip(self.rows, shares[1:], strict=True):
            found.append(run(_continued(self.prompts, rows, name, cache), share)[0])
        return _joined(found)


def prompt_gradient(embedding: nn.Module, prompt: int, logprobs: Callable[[], Tensor], chosen: Tensor) -> Tensor:
    """Return the gradient of a sum of log-probs with respect to the embedded tokens of their common prompt.

    A state that loses its gradient still gives correct log-probs, but this gradient reveals it. Parameters get no
    gradient, so hooks that synchronize gradients are not called.

    Args:
        embedding: Module that embeds tokens, [n, L] to [n, L, H].
        prompt: P, the number of tokens of the prompt.
        logprobs: Runs the model, with the prompt at the start of each row of the first call, and returns [S].
        chosen: [S] bool, the log-probs to include.

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
    """Record the outputs of a module, as leaves that have a gradient."""
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
    """Return the name of the input that accepts the cache that a model returned, and the cache."""
    for name in _CACHES:
        cache = output.get(name)
        if isinstance(cache, Cache):
            return name, cache
    raise ModelError("the model returns no cache of transformers")


def _continued(prompts: Call, rows: Continuation, name: str, cache: Cache) -> Call:
    """Return the call of rows that continue from the prompts' cache, which is passed as the input `name`."""
    ids, (count, start) = rows.call.input_ids, prompts.input_ids.shape
    positions = torch.arange(start, start + ids.shape[1], device=ids.device).expand_as(ids)
    forked = _forked(cache, partial(_expand, count=count, parent=rows.parent))
    return replace(rows.call, inputs={"input_ids": ids, "position_ids": positions, "use_cache": True, name: forked})


def _expand(state: Tensor, count: int, parent: Tensor) -> Tensor:
    """Repeat the state [m, ...] of m prompts for n rows. Tensors without a batch dimension are unchanged."""
    if state.ndim < 2 or state.shape[0] != count:
        return state
    return state.expand(len(parent), *state.shape[1:]) if count == 1 else state.index_select(0, parent)


def _forked(value: Any, fork: Callable[[Tensor], Tensor]) -> Any:
    """Copy a cache, or a part of one, with its tensors passed through `fork`. The copy does not write in place."""
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
    """Return the input of a convolution over new inputs [n, D, L]: the previous state, then they. Store nothing."""
    return torch.cat([states[state_idx], inputs], dim=-1)


def _passed(state: Tensor, state_idx: int = 0, **_: Any) -> Tensor:
    """Return a recurrence's state after the rows unchanged, because no call continues from it."""
    return state


def _joined(scores: Sequence[TokenScores]) -> TokenScores:
    sums = [each.weighted for each in scores if each.weighted is not None]
    return TokenScores(
        torch.cat([each.logprobs for each in scores]),
        torch.cat([each.entropy for each in scores]),
        torch.stack(sums).sum() if sums else None,
    )
