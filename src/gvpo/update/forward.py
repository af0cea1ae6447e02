"""One forward pass of a micro-batch through a model, on a given path.

Two optimizations make the update cheap, and each has a plain counterpart:

    shared prompts   the prompt of a group is computed once (`layouts.packed.Trees`; for recurrent models, `Forked`)
                                                        plain: each completion after its own prompt (`Rows`)
    fused head       no logits tensor (`head`)          plain: the model's own logits

`choose_path` determines which of them are correct for a model.

Only `model(...)` is called, including the head, so the hooks of DDP, FSDP2 and gradient checkpointing are called as
usual.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gvpo.errors import ModelError
from gvpo.model.known_tokens import Missing, missing_tokens
from gvpo.model.matmul import wide_head
from gvpo.model.runtime import compute_dtype
from gvpo.update.experts.routing import Routing
from gvpo.update.head import TokenScores, head_logprobs, logits_logprobs, weighted_sum
from gvpo.update.layouts.base import Call, Calls, Layout, Run
from gvpo.update.layouts.packed import ROWS


@dataclass(frozen=True)
class Path:
    """The way of micro-batches through a model.

    Args:
        layout: Layout that converts groups to calls of the model.
        fused: Whether the head returns log-probs instead of logits.
    """

    layout: Layout
    fused: bool

    @property
    def unshared(self) -> "Path":
        """The same path with a prompt for each row."""
        return replace(self, layout=ROWS)


def token_scores(
    model: nn.Module,
    calls: Calls,
    path: Path,
    *,
    temperature: float = 1.0,
    coefficients: Tensor | None = None,
    routing: Routing | None = None,
) -> TokenScores:
    """Run one micro-batch.

    Args:
        model: Policy, within `path.layout.attention`.
        calls: The micro-batch, on the model's device, from `path.layout.lay_out`.
        path: Path from `choose_path`.
        temperature: Divisor of the logits.
        coefficients: [S] c = d loss / d logprobs, if known; then call `backward` on `weighted`.
        routing: Records or forces the experts of a mixture, within its `installed`.

    Returns:
        Scores of the micro-batch's S tokens, in the order of `calls`.
    """
    run: Run = partial(_fused_scores if path.fused else _plain_scores, model, temperature)
    return calls.scores(run if routing is None else routing.around(run), coefficients)


def unwrap(model: nn.Module) -> Any:
    """Return the transformers model inside DDP's wrapper. Only read its attributes, because calls would skip hooks."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def embedding_weight(model: nn.Module) -> Tensor:
    """Return the weight that embeds tokens. Its device and dtype are those of the model."""
    weight: Tensor = unwrap(model).get_input_embeddings().weight
    return weight


def _output(model: nn.Module, call: Call) -> Any:
    inputs = call.inputs
    if getattr(unwrap(model).config, "output_router_logits", False):
        inputs = {**inputs, "output_router_logits": False}  # the router loss would count padding and needs a 2D mask
    return model(**inputs)


def _plain_scores(
    model: nn.Module, temperature: float, call: Call, coefficients: Tensor | None
) -> tuple[TokenScores, Any]:
    """Call the model and score the tokens from its logits."""
    with wide_head(unwrap(model)):
        output = _output(model, call)
    chosen = output.logits.reshape(-1, output.logits.shape[-1])[call.source]
    with torch.autocast(chosen.device.type, enabled=False):
        missing = missing_tokens(unwrap(model))
        chosen = chosen if missing is None else missing.known(chosen)
        logprobs, entropy = logits_logprobs(chosen, call.target, temperature=temperature)
        weighted = None if coefficients is None else weighted_sum(logprobs, coefficients)
    return TokenScores(logprobs, entropy, weighted), output


def _fused_scores(
    model: nn.Module, temperature: float, call: Call, coefficients: Tensor | None
) -> tuple[TokenScores, Any]:
    """Call the model with a head that scores the call."""
    count = len(call.target)
    inner = unwrap(model)
    with _scoring_head(inner.get_output_embeddings(), call, temperature, coefficients, missing_tokens(inner)):
        output = _output(model, call)
    packed = output.logits
    if packed.shape != (2 * count + (coefficients is not None),):
        raise ModelError(f"the model reshaped the output of its head, to {tuple(packed.shape)}; report this model")
    weighted = None if coefficients is None else packed[-1]
    return TokenScores(packed[:count], packed[count : 2 * count], weighted), output


@contextmanager
def _scoring_head(
    head: nn.Linear,
    call: Call,
    temperature: float,
    coefficients: Tensor | None,
    missing: Missing | None,
) -> Iterator[None]:
    """Make the head return [logprobs | entropy | weighted] of the call's tokens instead of logits.

    The model still calls the head's own `forward`, because its weight may be sharded until a hook gathers it.
    """

    def forward(hidden: Tensor) -> Tensor:
        bias = head.bias if missing is None else missing.bias(head.weight, head.bias)
        scores = head_logprobs(
            hidden.reshape(-1, hidden.shape[-1])[call.source],
            head.weight,
            bias,
            call.target,
            temperature=temperature,
            coefficients=coefficients,
            dtype=compute_dtype(head.weight),
            vocabulary=None if missing is None else missing.end,
        )
        weighted = () if scores.weighted is None else (scores.weighted[None],)
        return torch.cat([scores.logprobs, scores.entropy, *weighted])

    head.forward = forward  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del head.forward
