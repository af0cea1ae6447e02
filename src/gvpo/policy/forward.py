"""One forward of a micro-batch through a model, on the fastest path that is right for it.

Two things make the update cheap, and each has a plain twin:

    shared prompts   the prompt of a group is computed once (`packing`, `attention`; of recurrent models `forking`)
                                                        plain: each completion behind its own prompt
    fused head       no logits tensor (`logprobs`)      plain: the model's own logits

Neither is right for every model. What a model's configuration tells (chunked attention, recurrent layers, logits that
are scaled after the head) is read from it; for the rest, each fast path is compared once per model with the plain
one on a few synthetic rows, and dropped with a `FastPathWarning` where it disagrees.

Only `model(...)` is called, head included, so the hooks of DDP, FSDP2 and gradient checkpointing fire as always.
"""

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from gvpo.errors import ConfigError, GvpoWarning, ModelError
from gvpo.policy.attention import TREES, tree_attention
from gvpo.policy.fork_layout import NEVER, Call, Fork, ForkedLayout, lay_out_forked, pays, plan_forked
from gvpo.policy.forking import forked_scores, prompt_gradient, why_not_forked
from gvpo.policy.logprobs import TokenScores, head_logprobs, logits_logprobs, weighted_sum
from gvpo.policy.packing import Layout, MicroBatch, lay_out, plan
from gvpo.types import Completion, Group

PrefixSharing = Literal["auto", "on", "off"]

_POST_PROCESSING = (
    "final_logit_softcapping",
    "logits_scaling",
    "logit_scale",
    "lm_head_multiplier",
    "output_multiplier",
)
_LOCAL = re.compile(r"(window|block|chunk)_size$|^index_|^attention_types$")
"""Settings by which architectures say that a token does not see all before it; `sliding_window` has its own test."""
_STRETCHED = ("dynamic", "longrope")
_FLOOR = {torch.float64: 1e-6, torch.float32: 1e-4}
_HALF_FLOOR = 2e-2
_GRADIENT_FLOOR = {torch.float64: 1e-4, torch.float32: 1e-4}
_HALF_GRADIENT_FLOOR = 0.2
_NOISE_CAP = 0.1


class FastPathWarning(GvpoWarning):
    """A fast path disagrees with the plain one on this model and is not used."""


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


_PLAIN = Path(shared=False, fused=False)
_DISAGREEMENTS: WeakKeyDictionary[nn.Module, dict[Path, str]] = WeakKeyDictionary()


def choose_path(model: nn.Module, prefix_sharing: PrefixSharing = "auto") -> Path:
    """The fastest path that is right for a model; at first use it is checked against the plain one.

    Args:
        model: a causal language model of transformers, wrapped (DDP, FSDP2) or not. Its dropout must be off.
        prefix_sharing: "auto" shares prompts where that is right, "off" never, "on" or an error.

    Raises:
        ModelError: prefix_sharing is "on" and the model cannot share prompts.
        ConfigError: prefix_sharing is something else.
    """
    if prefix_sharing not in ("auto", "on", "off"):
        raise ConfigError(f"prefix_sharing is {prefix_sharing!r}; use 'auto', 'on' or 'off'")
    path = replace(_PLAIN, fused=_fusable(unwrap(model)))
    if path.fused and _disagreement(model, path):
        path = _PLAIN
    if prefix_sharing == "off":
        return path
    packed, forked = replace(path, shared=True), replace(path, shared=True, fork=Fork(call=0))
    reason = why_not_shared(unwrap(model)) or _disagreement(model, packed)
    if not reason:
        return packed
    other = why_not_forked(unwrap(model)) or _disagreement(model, forked)
    if not other:
        return replace(forked, fork=Fork(NEVER) if _sharded(model) else Fork())
    if prefix_sharing == "on":
        raise ModelError(
            f"prefix_sharing='on' does not work with this model: {reason}, and its cache cannot be forked: {other}; "
            "use 'auto' or 'off'"
        )
    return path


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
) -> TokenScores:
    """Run one micro-batch.

    Args:
        model: the policy; within `attention_of(model, path)`.
        layout: the micro-batch, on the model's device, laid out for `path`.
        path: from `choose_path`.
        temperature: divides the logits.
        coefficients: [S] c = d loss / d logprobs when known: then the backward of `weighted` is what is wanted.

    Returns:
        Scores of the layout's S tokens, in its order.
    """
    run = partial(_fused_scores if path.fused else _plain_scores, model, temperature)
    if isinstance(layout, ForkedLayout):
        return forked_scores(run, layout, coefficients)
    return run(_inputs(layout), layout, coefficients)[0]


def arrange(model: nn.Module, microbatch: MicroBatch, path: Path) -> Layout | ForkedLayout:
    """Lay out a micro-batch on a model's device."""
    device = unwrap(model).get_input_embeddings().weight.device
    if path.fork is not None:
        return lay_out_forked(microbatch, path.fork, device)
    return lay_out(microbatch, shared=path.shared, device=device)


def compute_dtype(weight: Tensor) -> torch.dtype:
    """The dtype that a matmul with this weight is computed in, autocast considered."""
    kind = weight.device.type
    if weight.dtype != torch.float64 and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return weight.dtype


def unwrap(model: nn.Module) -> Any:
    """The transformers model inside DDP's wrapper; hooks are not called on it, so only look at it."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def why_not_shared(model: Any) -> str:
    """What in a model's configuration forbids shared prompts; "" if nothing does."""
    config = model.config.get_text_config()
    other = sorted(set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"})
    if other:
        return f"it has layers of type {', '.join(other)}"
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return "its attention caps its scores"
    local = sorted(name for name, value in vars(config).items() if _LOCAL.search(name) and value)
    if local:
        return f"its attention is local ({', '.join(local)})"
    if getattr(model, "_is_stateful", False):
        return "it has recurrent layers"
    return ""


def length_limit(model: Any) -> int | None:
    """Tokens up to which a row's positions do not depend on what else is in the forward; None if they never do.

    Two kinds of rotary embedding stretch with the longest row of a forward. Rows beyond this go alone, so that the
    micro-batch does not decide how they are stretched.
    """
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {rope.get("rope_type"), *(part.get("rope_type") for part in rope.values() if isinstance(part, dict))}
    if not kinds & set(_STRETCHED):
        return None
    original = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
    return int(original or config.max_position_embeddings)


def _fusable(model: Any) -> bool:
    """Whether logits are a linear layer of hidden states and nothing more, as far as the configuration tells."""
    head = model.get_output_embeddings()
    linear = isinstance(head, nn.Linear) and type(head).forward is nn.Linear.forward and "forward" not in vars(head)
    config = model.config.get_text_config()
    return linear and all(getattr(config, name, None) in (None, 1, 1.0) for name in _POST_PROCESSING)


def _sharded(model: nn.Module) -> bool:
    """Whether a forward gathers weights from other ranks."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


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
        logprobs, entropy = logits_logprobs(chosen, places.target, temperature=temperature)
        weighted = None if coefficients is None else weighted_sum(logprobs, coefficients)
    return TokenScores(logprobs, entropy, weighted), output


def _fused_scores(
    model: nn.Module, temperature: float, inputs: dict[str, Any], places: Layout | Call, coefficients: Tensor | None
) -> tuple[TokenScores, Any]:
    """Call the model with a head that scores the places."""
    count = len(places.target)
    with _scoring_head(unwrap(model).get_output_embeddings(), places, temperature, coefficients):
        output = _call(model, inputs)
    packed = output.logits
    if packed.shape != (2 * count + (coefficients is not None),):
        raise ModelError(f"the model reshaped what its head gave, to {tuple(packed.shape)}; report this model")
    weighted = None if coefficients is None else packed[-1]
    return TokenScores(packed[:count], packed[count : 2 * count], weighted), output


@contextmanager
def _scoring_head(
    head: nn.Linear, layout: Layout | Call, temperature: float, coefficients: Tensor | None
) -> Iterator[None]:
    """Make the head return what is wanted of the layout's tokens, [logprobs | entropy | weighted], instead of logits.

    It stays the module's own `forward`, called by the model: its weight may be sharded until a hook gathers it.
    """

    def forward(hidden: Tensor) -> Tensor:
        scores = head_logprobs(
            hidden.reshape(-1, hidden.shape[-1])[layout.source],
            head.weight,
            head.bias,
            layout.target,
            temperature=temperature,
            coefficients=coefficients,
            dtype=compute_dtype(head.weight),
        )
        weighted = () if scores.weighted is None else (scores.weighted[None],)
        return torch.cat([scores.logprobs, scores.entropy, *weighted])

    head.forward = forward  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del head.forward


def _disagreement(model: nn.Module, path: Path) -> str:
    """How a path differs from the plain one on synthetic rows, found once per model; "" if it does not."""
    known = _DISAGREEMENTS.setdefault(unwrap(model), {})
    if path not in known:
        found = _compare(model, path)
        if found is None:
            return ""
        known[path] = found
        if found:
            shared = "shared prompts" if path.fork is None else "forked prompts"
            what = shared if path.shared else "the head without logits"
            warnings.warn(f"{what} not used: {found}", FastPathWarning, stacklevel=4)
    return known[path]


def _compare(model: nn.Module, path: Path) -> str | None:
    """What speaks against a path, as seen on synthetic rows; "" if nothing.

    None where the model's own log-probs are not finite: then nothing can be said, and the update says so.
    """
    groups = _synthetic_groups(unwrap(model).get_input_embeddings().num_embeddings)
    with torch.autocast(unwrap(model).get_input_embeddings().weight.device.type, enabled=False):
        with torch.no_grad():
            alone = _logprobs(model, groups, _PLAIN, budget=1)
        if not alone.isfinite().all():
            return None
        try:
            found = _compare_logprobs(model, groups, path, alone)
            return found or ("" if path.fork is None else _compare_gradients(model, groups[0], path))
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, ModelError) as error:
            return f"the model fails with it ({error})"


@torch.no_grad()
def _compare_logprobs(model: nn.Module, groups: Sequence[Group], path: Path, alone: Tensor) -> str:
    """Compare with the log-probs of rows that went alone; how far a plain batch is from them is the float noise."""
    noise = (_logprobs(model, groups, _PLAIN, budget=4096) - alone).abs().max().item()
    with attention_of(model, path):
        difference = (_logprobs(model, groups, path, budget=4096) - alone).abs().max().item()
    allowed = _floor(model, path) + 4 * min(noise, _NOISE_CAP)
    return "" if difference <= allowed else f"log-probs differ by up to {difference:.2g} from the plain path's"


def _compare_gradients(model: nn.Module, group: Group, path: Path) -> str:
    """Compare the gradient that reaches the prompt, which a state may lose without changing a log-prob.

    First tokens are left out: the prompt predicts them itself, and their gradient could hide that of the states.
    """
    embedding, size = unwrap(model).get_input_embeddings(), len(group.prompt)
    later = torch.tensor([place > 0 for row in group.completions for place in range(len(row.tokens))])
    plain, fast = (
        prompt_gradient(embedding, size, partial(_logprobs, model, [group], each, budget=4096), later)
        for each in (path.unshared, path)
    )
    difference = ((fast - plain).norm() / plain.norm()).item()
    allowed = _GRADIENT_FLOOR.get(embedding.weight.dtype, _HALF_GRADIENT_FLOOR)
    return "" if difference <= allowed else f"the prompt's gradient differs by {difference:.1g} of the plain path's"


def _floor(model: nn.Module, path: Path) -> float:
    """How far right log-probs may differ. Layers with states compute in float32 whatever their weights are in."""
    floor = _FLOOR.get(unwrap(model).get_input_embeddings().weight.dtype, _HALF_FLOOR)
    return floor if path.fork is None else max(floor, _FLOOR[torch.float32])


def _synthetic_groups(vocabulary: int) -> Sequence[Group]:
    """Three small groups of unequal rows, of low token ids: special ones tend to be high. Torch's RNG is left alone."""
    generator = torch.Generator().manual_seed(0)

    def tokens(count: int) -> list[int]:
        drawn: list[int] = torch.randint(min(vocabulary, 1000), (count,), generator=generator).tolist()
        return drawn

    sizes = ((9, (7, 12, 1)), (3, (5, 4)), (1, (6,)))
    return [Group(tokens(prompt), [Completion(tokens(size)) for size in rows]) for prompt, rows in sizes]


def _logprobs(model: nn.Module, groups: Sequence[Group], path: Path, budget: int) -> Tensor:
    """Log-probs of all tokens of the groups, in order of rows."""
    found = []
    for microbatch in cut(groups, budget, path):
        layout = arrange(model, microbatch, path)
        found.append((layout.row * 1000 + layout.token, token_scores(model, layout, path).logprobs))
    order = torch.cat([places for places, _ in found]).argsort()
    return torch.cat([values for _, values in found])[order]
