"""Routing of a batch's tokens to experts: recorded under one policy, compared or forced under the next.

    record   score of the old policy    positions of a layout ──▶ Experts of each completion
    replay   its later updates          Experts of each completion ──▶ positions of a layout

A router processes positions of a layout, and a layout depends on the token budget, so experts are stored by completion
and token, and converted. Completions that share a prompt also share its routing.

The router's load is counted in the same forward passes (`load_balance`), over scored tokens, each at the position that
predicts it.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from gvpo.errors import ConfigError, MissingInput
from gvpo.types import Group
from gvpo.update.experts.load_balance import Load, load_of
from gvpo.update.experts.routers import Choice, Taps, routers_of
from gvpo.update.head import TokenScores
from gvpo.update.layouts.base import Call, Run

RoutingMode = Literal["free", "watch", "replay"]
"""free: the routers choose. watch: choices are also recorded, and compared with recorded ones. replay: forced."""
MODES = ("free", "watch", "replay")


@dataclass(frozen=True, eq=False)
class Experts:
    """The experts that processed a completion's tokens and its prompt's tokens, int16 on the CPU.

    Args:
        prompt: [layers, P, k]; completions that shared their prompt share this tensor.
        own: [layers, C - 1, k]; the last token of a completion is only a target.
    """

    prompt: Tensor
    own: Tensor


class Routing:
    """The experts of the passes over a batch.

    Args:
        model: The transformers model itself, without a wrapper.
        groups: The batch; with several ranks, only this rank's part.
        mode: "watch" or "replay"; "free" only counts the load.
        on_policy: Whether "replay" records completions without experts, because the current policy sampled them.

    Attributes:
        load: Load counted so far in the current pass, on this rank only.
        watched: Whether experts are also recorded and compared.

    Raises:
        ModelError: If the model has no supported routers.
        MissingInput: If there are no experts to replay.
    """

    def __init__(self, model: nn.Module, groups: Sequence[Group], mode: RoutingMode, *, on_policy: bool) -> None:
        rows = [(group, row) for group in groups for row in group.completions]
        self._taps, self._device = Taps(routers_of(model)), next(model.parameters()).device
        self._prompts = [len(group.prompt) for group, _ in rows]
        self.watched, self._forced = mode != "free", mode == "replay"
        self._kept: list[Experts | None] = [row.experts if self.watched else None for _, row in rows]
        if self._forced:
            _require_experts(groups, on_policy=on_policy)
        masks = [torch.ones(len(r.tokens)) if r.mask is None else torch.as_tensor(r.mask).float() for _, r in rows]
        self._scored = pad_sequence(masks, batch_first=True) if masks else torch.zeros(0, 0)
        self._recorded: tuple[dict[int, Tensor], dict[int, Tensor]] = {}, {}
        self._last: list[tuple[list[Choice], Tensor]] = []
        self._settled = False
        self._coefficients: Tensor | None = None
        self.start_pass()

    def installed(self) -> AbstractContextManager[None]:
        """Return the context for forward passes, and for backward passes that recompute layers."""
        return self._taps.installed()

    def start_pass(self) -> None:
        """Reset the counts for a new pass, unless they are settled."""
        if not self._settled:
            first: Any = self._taps.routers[0]
            self.load = Load.empty(len(self._taps.routers), first.num_experts, first.top_k, self._device)

    def settle(self, coefficients: Tensor | None) -> None:
        """Finish the counting pass. With coefficients [layers, E], `term` returns a value to push from now on."""
        self._settled, self._coefficients = True, coefficients

    def experts(self) -> list[Experts | None]:
        """Return the recorded experts of each row of the batch, or None for rows without tokens."""
        prompts, own = self._recorded
        return [
            Experts(prompts[row], own.get(row, prompts[row][:, :0])) if row in prompts else None
            for row in range(len(self._prompts))
        ]

    def term(self) -> Tensor | None:
        """Return the last layout's term of the router loss's push, or None if there is no such loss, or not yet.

        It is the sum over its scored tokens of the settled coefficients times the routers' probabilities.
        """
        if self._coefficients is None:
            return None
        parts = [
            choice.weighted(places, weights)
            for choices, places in self._last
            for choice, weights in zip(choices, self._coefficients, strict=True)
        ]
        return torch.stack(parts).sum()

    def around(self, run: Run) -> Run:
        """Wrap forward passes so that their experts are recorded, compared or forced."""
        self._last = []

        def routed(call: Call, coefficients: Tensor | None) -> tuple[TokenScores, Any]:
            kept = self._laid_out(call)
            self._taps.begin(kept if self._forced else None)
            result = run(call, coefficients)
            self._note(call, kept)
            return result

        return routed

    def _laid_out(self, call: Call) -> Tensor | None:
        """Return [layers, N, k] the stored experts of each position, -1 if there are none, or None if all lack them."""
        if all(experts is None for experts in self._kept):
            return None
        shape = next(experts.prompt.shape for experts in self._kept if experts is not None)
        kept = torch.full((shape[0], call.input_ids.numel(), shape[2]), -1, dtype=torch.int64)
        prompts = set[int]()
        for span in self._spans(call):
            experts = self._kept[span.row]
            if experts is None:
                continue
            if span.prompt is not None and span.prompt.stop not in prompts:
                prompts.add(span.prompt.stop)
                kept[:, span.prompt] = experts.prompt.long()
            if len(span.own) > 0:
                kept[:, span.own] = experts.own.long()
        return kept.to(call.input_ids.device)

    def _note(self, call: Call, kept: Tensor | None) -> None:
        choices = [self._taps.choices[layer] for layer in range(len(self._taps.routers))]
        scored = self._scored.to(call.row.device)[call.row, call.token] != 0
        predicting = call.source[scored]
        self._last.append((choices, predicting))
        if self._settled:
            return
        self.load = self.load + load_of(choices, predicting, kept)
        if self.watched:
            self._record(call, torch.stack([choice.used for choice in choices]).to("cpu", torch.int16))

    def _record(self, call: Call, used: Tensor) -> None:
        prompts = dict[int, Tensor]()
        for span in self._spans(call):
            if span.prompt is not None:
                shared = prompts.setdefault(span.prompt.stop, used[:, span.prompt].clone())
                self._recorded[0][span.row] = shared
            if len(span.own) > 0:
                self._recorded[1][span.row] = used[:, span.own]

    def _spans(self, call: Call) -> Iterator["_Span"]:
        """Yield the contiguous positions of each row's tokens. The prompt's last position predicts the first."""
        rows, sources, tokens = call.row.cpu(), call.source.cpu(), call.token.cpu()
        starts = [0, *(rows.diff().nonzero()[:, 0] + 1).tolist()]
        for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
            row, end = int(rows[start]), int(sources[start]) + 1
            if int(tokens[start]) == 0:
                yield _Span(row, slice(end - self._prompts[row], end), sources[start + 1 : stop])
            else:
                yield _Span(row, None, sources[start:stop])


@dataclass(frozen=True)
class _Span:
    """Positions of a row in a call: its prompt's, if the call contains it, and its own tokens' except the last."""

    row: int
    prompt: slice | None
    own: Tensor


def check_mode(mode: str) -> None:
    """Raise an error for an unknown mode.

    Raises:
        ConfigError: If the mode is unknown. The message names the known modes.
    """
    if mode not in MODES:
        raise ConfigError(f"routing is {mode!r}; use 'free', 'watch' or 'replay'")


def _require_experts(groups: Sequence[Group], *, on_policy: bool) -> None:
    rows = [row for group in groups for row in group.completions if len(row.tokens) > 0]
    missing = sum(row.experts is None for row in rows)
    if 0 < missing < len(rows) or (missing and not on_policy):
        raise MissingInput(
            f"routing='replay' and {missing} of {len(rows)} completions have no experts to replay: set "
            "Completion.experts from gvpo.score(..., routing='watch') by the policy of the rollout"
        )
