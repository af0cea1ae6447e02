"""One forward of a micro-batch through a model, on a given path.

Two things make the update cheap, and each has a plain twin:

    shared prompts   the prompt of a group is computed once (`packing`, `attention`; of recurrent models `forking`)
                                                        plain: each completion behind its own prompt
    fused head       no logits tensor (`logprobs`)      plain: the model's own logits

Which of them is right for a model, `paths` finds out.

Only `model(...)` is called, head included, so the hooks of DDP, FSDP2 and gradient checkpointing fire as always.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gvpo.errors import ModelError
from gvpo.model.known_tokens import Missing, missing_tokens
from gvpo.model.runtime import compute_dtype
from gvpo.types import Group
from gvpo.update.attention.tree_attention import TREES, tree_attention
from gvpo.update.experts.routing import Routing
from gvpo.update.head import TokenScores, head_logprobs, logits_logprobs, weighted_sum
from gvpo.update.layouts.fork_cache import Run, forked_scores
from gvpo.update.layouts.forked import NEVER, Call, Fork, ForkedLayout, lay_out_forked, pays, plan_forked
from gvpo.update.layouts.packed import Layout, MicroBatch, lay_out, plan


@dataclass(frozen=True)
class Path:
    """How micro-batches go through a model.

    Args:
        shared: prompts are shared by the completions of a group.
        fused: the head gives log-probs, not logits.
        fork: how prompts are shared by forking their cache; None shares them by attention, if at all.
    """

    shared: bool
    fused: bool
    fork: Fork | None = None

    @property
    def unshared(self) -> "Path":
        """The same without shared prompts."""
        return replace(self, shared=False, fork=None)


def cut(groups: Sequence[Group], budget: int, path: Path) -> list[MicroBatch]:
    """Cut groups into micro-batches of at most `budget` tokens, for a path."""
    return plan(groups, budget, shared=path.shared) if path.fork is None else plan_forked(groups, budget, path.fork)


def worth_sharing(groups: Sequence[Group], path: Path) -> bool:
    """Whether these groups gain by a path's way to share prompts; the same for every pass over them.

    Attention to trees costs nothing, a fork costs calls. Ranks that gather each other's weights do not decide each for
    itself.
    """
    return path.fork is None or path.fork.call == NEVER or pays(groups)


def attention_of(model: nn.Module, path: Path) -> AbstractContextManager[None]:
    """What a path's forwards and their backwards have to run in."""
    return tree_attention(unwrap(model)) if path.shared and path.fork is None else nullcontext()


def token_scores(
    model: nn.Module,
    layout: Layout | ForkedLayout,
    path: Path,
    *,
    temperature: float = 1.0,
    coefficients: Tensor | None = None,
    routing: Routing | None = None,
) -> TokenScores:
    """Run one micro-batch.

    Args:
        model: the policy; within `attention_of(model, path)`.
        layout: the micro-batch, on the model's device, laid out for `path`.
        path: from `paths.choose_path`.
        temperature: divides the logits.
        coefficients: [S] c = d loss / d logprobs when known: then the backward of `weighted` is what is wanted.
        routing: records or forces the experts of a mixture, within its `installed`.

    Returns:
        Scores of the layout's S tokens, in its order.
    """
    run: Run = partial(_fused_scores if path.fused else _plain_scores, model, temperature)
    if routing is not None:
        run = routing.around(run)
    if isinstance(layout, ForkedLayout):
        return forked_scores(run, layout, coefficients)
    return run(_inputs(layout), layout, coefficients)[0]


def arrange(model: nn.Module, microbatch: MicroBatch, path: Path) -> Layout | ForkedLayout:
    """Lay out a micro-batch on a model's device."""
    device = unwrap(model).get_input_embeddings().weight.device
    if path.fork is not None:
        return lay_out_forked(microbatch, path.fork, device)
    return lay_out(microbatch, shared=path.shared, device=device)


def unwrap(model: nn.Module) -> Any:
    """The transformers model inside DDP's wrapper; hooks are not called on it, so only look at it."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def _inputs(layout: Layout) -> dict[str, Any]:
    inputs: dict[str, Any] = {"input_ids": layout.input_ids, "use_cache": False}
    if layout.trees is None:
        return inputs | {"attention_mask": layout.attention_mask}
    nothing = torch.zeros(1, 1, 1, 1, device=layout.input_ids.device)  # a 4D mask is handed on as it is
    return inputs | {"position_ids": layout.position_ids, "attention_mask": nothing, TREES: layout.trees}


def _call(model: nn.Module, inputs: dict[str, Any]) -> Any:
    if getattr(unwrap(model).config, "output_router_logits", False):
        inputs = {**inputs, "output_router_logits": False}  # its router loss would count padding and needs a 2D mask
    return model(**inputs)


def _plain_scores(
    model: nn.Module, temperature: float, inputs: dict[str, Any], places: Layout | Call, coefficients: Tensor | None
) -> tuple[TokenScores, Any]:
    """Call the model and score the places from its logits."""
    output = _call(model, inputs)
    chosen = output.logits.reshape(-1, output.logits.shape[-1])[places.source]
    with torch.autocast(chosen.device.type, enabled=False):
        missing = missing_tokens(unwrap(model))
        chosen = chosen if missing is None else missing.known(chosen)
        logprobs, entropy = logits_logprobs(chosen, places.target, temperature=temperature)
        weighted = None if coefficients is None else weighted_sum(logprobs, coefficients)
    return TokenScores(logprobs, entropy, weighted), output


def _fused_scores(
    model: nn.Module, temperature: float, inputs: dict[str, Any], places: Layout | Call, coefficients: Tensor | None
) -> tuple[TokenScores, Any]:
    """Call the model with a head that scores the places."""
    count = len(places.target)
    inner = unwrap(model)
    with _scoring_head(inner.get_output_embeddings(), places, temperature, coefficients, missing_tokens(inner)):
        output = _call(model, inputs)
    packed = output.logits
    if packed.shape != (2 * count + (coefficients is not None),):
        raise ModelError(f"the model reshaped what its head gave, to {tuple(packed.shape)}; report this model")
    weighted = None if coefficients is None else packed[-1]
    return TokenScores(packed[:count], packed[count : 2 * count], weighted), output


@contextmanager
def _scoring_head(
    head: nn.Linear,
    layout: Layout | Call,
    temperature: float,
    coefficients: Tensor | None,
    missing: Missing | None,
) -> Iterator[None]:
    """Make the head return what is wanted of the layout's tokens, [logprobs | entropy | weighted], instead of logits.

    It stays the module's own `forward`, called by the model: its weight may be sharded until a hook gathers it.
    """

    def forward(hidden: Tensor) -> Tensor:
        bias = head.bias if missing is None else missing.bias(head.weight, head.bias)
        scores = head_logprobs(
            hidden.reshape(-1, hidden.shape[-1])[layout.source],
            head.weight,
            bias,
            layout.target,
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
