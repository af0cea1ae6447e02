"""Choose the path that is right for a model, by its configuration and a comparison.

Neither shared prompts nor the fused head is right for every model. Chunked attention, recurrent layers and logits that
are scaled after the head are read from the configuration. In addition, each fast path is compared once per model with
the plain one on a few synthetic rows, and dropped with a `FastPathWarning` where it disagrees.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from gvpo import model_config, notices
from gvpo.errors import ConfigError, GvpoWarning, ModelError
from gvpo.model.known_tokens import missing_tokens
from gvpo.system_errors import is_out_of_memory
from gvpo.types import Completion, Group
from gvpo.update.forward import Path, embedding_weight, token_scores, unwrap
from gvpo.update.layouts.base import Layout
from gvpo.update.layouts.fork_cache import prompt_gradient
from gvpo.update.layouts.forked import Forked
from gvpo.update.layouts.packed import ROWS, Trees

PrefixSharing = Literal["auto", "on", "off"]

_STRETCHED = ("dynamic", "longrope")
_FLOOR = {torch.float64: 1e-6, torch.float32: 1e-4}
_HALF_FLOOR = 2e-2
_GRADIENT_FLOOR = {torch.float64: 1e-4, torch.float32: 1e-4}
_HALF_GRADIENT_FLOOR = 0.2
_NOISE_CAP = 0.1


class FastPathWarning(GvpoWarning):
    """A fast path disagrees with the plain one on this model and is not used."""


_PLAIN = Path(ROWS, fused=False)
_SHARING: Sequence[tuple[Layout, Layout]] = ((Trees(), Trees()), (Forked(call_tokens=0), Forked()))
"""Layouts that share prompts, the fastest first: the one that is checked, with as many calls as it can have, and the
one that is used."""
_DISAGREEMENTS: WeakKeyDictionary[nn.Module, dict[Path, str]] = WeakKeyDictionary()


def choose_path(model: nn.Module, prefix_sharing: PrefixSharing = "auto") -> Path:
    """Return the fastest path that is right for a model; at first use it is checked against the plain one.

    Args:
        model: a causal language model of transformers, wrapped (DDP, FSDP2) or not. Its dropout must be off.
        prefix_sharing: "auto" shares prompts where that is right, "off" never; "on" raises an error where it is wrong.

    Raises:
        ModelError: prefix_sharing is "on" and the model cannot share prompts.
        ConfigError: prefix_sharing is something else.
    """
    if prefix_sharing not in ("auto", "on", "off"):
        raise ConfigError(f"prefix_sharing is {prefix_sharing!r}; use 'auto', 'on' or 'off'")
    path = replace(_PLAIN, fused=_fusable(unwrap(model)))
    if path.fused and _disagreement(model, path, "the head without logits"):
        path = _PLAIN
    if prefix_sharing == "off":
        return path
    reasons = []
    for checked, used in _SHARING:
        reason = checked.why_not(unwrap(model)) or _disagreement(model, replace(path, layout=checked), checked.name)
        if not reason:
            return replace(path, layout=used)
        reasons.append(reason)
    if prefix_sharing == "on":
        raise ModelError(
            f"prefix_sharing='on' does not work with this model: {reasons[0]}, and its cache cannot be forked: "
            f"{reasons[1]}; use 'auto' or 'off'"
        )
    return path


def length_limit(model: Any) -> int | None:
    """Return up to how many tokens a row's positions do not depend on the rest of the forward; None if they never do.

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
    """Return whether logits are a linear layer of hidden states and nothing more, as far as can be told in advance."""
    head = model.get_output_embeddings()
    linear = isinstance(head, nn.Linear) and type(head).forward is nn.Linear.forward and "forward" not in vars(head)
    return linear and model_config.logits_are_linear(model.config.get_text_config())


def _disagreement(model: nn.Module, path: Path, what: str) -> str:
    """Return how a path differs from the plain one on synthetic rows, found once per model; "" if it does not.

    Args:
        model: the policy.
        path: the path to check.
        what: the part of the path that a warning names.
    """
    known = _DISAGREEMENTS.setdefault(unwrap(model), {})
    if path not in known:
        found = _compare(model, path)
        if found is None:
            return ""
        known[path] = found
        if found:
            notices.warn(f"{what} not used: {found}", FastPathWarning)
    return known[path]


def _compare(model: nn.Module, path: Path) -> str | None:
    """Return what is wrong with a path on synthetic rows; "" if nothing is.

    Return None where the model's own log-probs are not finite: nothing can be compared, and the update reports it.
    """
    groups = _synthetic_groups(unwrap(model))
    with torch.autocast(embedding_weight(model).device.type, enabled=False):
        with torch.no_grad():
            alone = _logprobs(model, groups, _PLAIN, budget=1)
        if not alone.isfinite().all():
            return None
        try:
            found = _compare_logprobs(model, groups, path, alone)
            return found or ("" if path.layout.one_call else _compare_gradients(model, groups[0], path))
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, ModelError) as error:
            if is_out_of_memory(error):
                raise
            return f"the model fails with it ({error})"


@torch.no_grad()
def _compare_logprobs(model: nn.Module, groups: Sequence[Group], path: Path, alone: Tensor) -> str:
    """Compare with the log-probs of rows that went alone; how far a plain batch is from them is the float noise."""
    noise = (_logprobs(model, groups, _PLAIN, budget=4096) - alone).abs().max().item()
    with path.layout.attention(unwrap(model)):
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
    """Return how far right log-probs may differ. Layers with states compute in float32 whatever their weights are."""
    floor = _FLOOR.get(embedding_weight(model).dtype, _HALF_FLOOR)
    return floor if path.layout.one_call else max(floor, _FLOOR[torch.float32])


def _synthetic_groups(model: Any) -> Sequence[Group]:
    """Return a few groups of unequal rows of low token ids: special ones tend to be high. Leave torch's RNG alone.

    The last prompt is longer than what a CPU's attention takes for short; a model with fewer positions goes without it.
    """
    low, missing = range(min(model.get_input_embeddings().num_embeddings, 1000)), missing_tokens(model)
    unknown = set() if missing is None else set(missing.among(low))
    known = [token for token in low if token not in unknown]
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    generator = torch.Generator().manual_seed(0)

    def tokens(count: int) -> list[int]:
        return [known[place] for place in torch.randint(len(known), (count,), generator=generator).tolist()]

    sizes = [(9, (7, 12, 1)), (3, (5, 4)), (1, (6,)), (140, (3, 5))]
    if positions is not None and positions < 145:
        del sizes[-1]
    return [Group(tokens(prompt), [Completion(tokens(size)) for size in rows]) for prompt, rows in sizes]


def _logprobs(model: nn.Module, groups: Sequence[Group], path: Path, budget: int) -> Tensor:
    """Return log-probs of all tokens of the groups, in order of rows."""
    found, device = [], embedding_weight(model).device
    for microbatch in path.layout.cut(groups, budget):
        calls = path.layout.lay_out(microbatch, device)
        found.append((calls.row * 1000 + calls.token, token_scores(model, calls, path).logprobs))
    order = torch.cat([places for places, _ in found]).argsort()
    return torch.cat([values for _, values in found])[order]
