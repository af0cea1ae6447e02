"""Choice of the path for a model, by its configuration and a comparison.

Neither shared prompts nor the fused head is correct for every model. Chunked attention, recurrent layers and logits
that are scaled after the head are recognized by the configuration. In addition, each fast path is compared once with
the plain one on a few synthetic rows. If they disagree, it is dropped with a `FastPathWarning`. Copies of a model share
what is known about it.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gvpo import activity, model_config, notices
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
    """Warning that a fast path disagrees with the plain one on this model and is not used."""


_PLAIN = Path(ROWS, fused=False)
_SHARING: Sequence[tuple[Layout, Layout]] = ((Trees(), Trees()), (Forked(call_tokens=0), Forked()))
"""Pairs of layouts that share prompts, fastest first.

The first of a pair is checked, with as many calls as possible, and the second is used.
"""
_NOTE = "_gvpo_paths"
"""Attribute of a model with its `_Known`; it is not saved."""


class _Known(dict[Path, str]):
    """How the paths of a model differ from the plain one, "" if they do not. Copies of the model share it."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Known":
        return self


def known_paths(model: nn.Module) -> dict[Path, str]:
    """Return what is known about the paths of a model. Copies that are made after this call share it."""
    known: _Known = vars(unwrap(model)).setdefault(_NOTE, _Known())
    return known


def choose_path(model: nn.Module, prefix_sharing: PrefixSharing = "auto") -> Path:
    """Return the fastest correct path for a model. At first use it is checked against the plain one.

    Args:
        model: Causal language model of transformers, wrapped (DDP, FSDP2) or not, without dropout.
        prefix_sharing: "auto" shares prompts if that is correct, "off" never; "on" raises an error if it is not
            correct.

    Raises:
        ModelError: If prefix_sharing is "on" and the model cannot share prompts.
        ConfigError: If prefix_sharing has another value.
    """
    if prefix_sharing not in ("auto", "on", "off"):
        raise ConfigError(f"prefix_sharing is {prefix_sharing!r}; use 'auto', 'on' or 'off'")
    comparison, path = _Comparison(model), replace(_PLAIN, fused=_fusable(unwrap(model)))
    if path.fused and prefix_sharing != "off":
        comparison.try_together(path, _SHARING[0][0])
    if path.fused and comparison.disagreement(path, "the head without logits"):
        path = _PLAIN
    if prefix_sharing == "off":
        return path
    reasons = []
    for checked, used in _SHARING:
        reason = checked.why_not(unwrap(model)) or comparison.disagreement(replace(path, layout=checked), checked.name)
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
    """Return the row length up to which positions do not depend on other rows of the forward, or None if unlimited.

    Two kinds of rotary embedding stretch with the longest row of a forward pass. Rows beyond this limit are computed
    individually, so that their positions do not depend on the micro-batch.
    """
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {rope.get("rope_type"), *(part.get("rope_type") for part in rope.values() if isinstance(part, dict))}
    if not kinds & set(_STRETCHED):
        return None
    original = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
    return int(original or config.max_position_embeddings)


def _fusable(model: Any) -> bool:
    """Return whether logits are just a linear layer of hidden states, as far as the configuration shows."""
    head = model.get_output_embeddings()
    linear = isinstance(head, nn.Linear) and type(head).forward is nn.Linear.forward and "forward" not in vars(head)
    return linear and model_config.logits_are_linear(model.config.get_text_config())


class _Comparison:
    """Comparison of a model's paths with the plain one on synthetic rows.

    Args:
        model: Policy, wrapped or not.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model, self.known = model, known_paths(model)
        self.groups = _synthetic_groups(unwrap(model))

    @cached_property
    @torch.no_grad()
    def alone(self) -> Tensor:
        """Log-probs of rows computed individually, the plain way."""
        return _logprobs(self.model, self.groups, _PLAIN, budget=1)

    @cached_property
    @torch.no_grad()
    def noise(self) -> float:
        """The float noise: the largest difference of a plain batch."""
        return (_logprobs(self.model, self.groups, _PLAIN, budget=4096) - self.alone).abs().max().item()

    def try_together(self, path: Path, layout: Layout) -> None:
        """Compare a path in another layout, once. If it agrees, so does the path by itself; otherwise say nothing."""
        both = replace(path, layout=layout)
        if path not in self.known and not layout.why_not(unwrap(self.model)) and self._error(both) == "":
            self.known[path] = self.known[both] = ""

    def disagreement(self, path: Path, what: str) -> str:
        """Return how a path differs from the plain one, compared once per model, or "" if it does not.

        Args:
            path: Path to check.
            what: Part of the path that a warning names.
        """
        if path not in self.known:
            found = self._error(path)
            if found is None:
                return ""
            self.known[path] = found
            if found:
                notices.warn(f"{what} not used: {found}", FastPathWarning)
        return self.known[path]

    def _error(self, path: Path) -> str | None:
        """Return the error of a path, or "" if there is none.

        Return None if the model's own log-probs are not finite: a comparison is impossible, and the update reports it.
        """
        device = embedding_weight(self.model).device.type
        with activity.phase("comparing fast paths"), torch.autocast(device, enabled=False):
            if not self.alone.isfinite().all():
                return None
            try:
                found = self._error_of_logprobs(path)
                return found or ("" if path.layout.one_call else _compare_gradients(self.model, self.groups[0], path))
            except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, ModelError) as error:
                if is_out_of_memory(error):
                    raise
                return f"the model fails with it ({error})"

    @torch.no_grad()
    def _error_of_logprobs(self, path: Path) -> str:
        """Compare with log-probs of rows computed individually. Noise is measured only if it decides."""
        with path.layout.attention(unwrap(self.model)):
            difference = (_logprobs(self.model, self.groups, path, budget=4096) - self.alone).abs().max().item()
        floor = _floor(self.model, path)
        if difference <= floor or difference <= floor + 4 * min(self.noise, _NOISE_CAP):
            return ""
        return f"log-probs differ by up to {difference:.2g} from the plain path's"


def _compare_gradients(model: nn.Module, group: Group, path: Path) -> str:
    """Compare the gradient that reaches the prompt, which a state may lose without changing a log-prob.

    First tokens are excluded: the prompt predicts them itself, and their gradient could hide that of the states.
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
    """Return the allowed error of log-probs. Layers with states compute in float32 for all weight dtypes."""
    floor = _FLOOR.get(embedding_weight(model).dtype, _HALF_FLOOR)
    return floor if path.layout.one_call else max(floor, _FLOOR[torch.float32])


def _synthetic_groups(model: Any) -> Sequence[Group]:
    """Return a few groups of unequal rows of low token ids, since special ids tend to be high. torch's RNG is not used.

    The last prompt is longer than the CPU attention's limit for short rows. It is omitted for a model with fewer
    positions.
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
