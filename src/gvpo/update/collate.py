"""From groups to an objective's keywords: exactly the keywords of its signature, as tensors.

mask, group         always available
rewards             from Completion.reward
ref_, old_logprobs  from the completions; if all lack them and the update is on-policy, the policy's own, detached
sampler_logprobs    from the completions; absent if some lack them and the objective has a default
anything else       from Completion.extras
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gvpo.errors import MissingInput, MissingLogprobs, ShapeError
from gvpo.objectives.base import row_dtype
from gvpo.types import Completion, Group

LOGPROBS = ("ref_logprobs", "old_logprobs")
SAMPLER = "sampler_logprobs"
FIELDS = ("mask", "rewards", *LOGPROBS, SAMPLER)
"""Floating-point fields of a completion. Extras that are whole numbers stay whole numbers."""


@dataclass(frozen=True)
class Batch:
    """Inputs of an objective for a batch of B rows of at most T tokens, except for the log-probs themselves.

    Args:
        inputs: Keywords of the objective.
        own: Keywords to fill with the policy's own log-probs, detached.
        mask: [B, T], 1 on scored tokens, 0 on other tokens and on padding.
        lengths: Number of tokens of each row.
    """

    inputs: Mapping[str, Any]
    own: tuple[str, ...]
    mask: Tensor
    lengths: tuple[int, ...]


def collate(
    groups: Sequence[Group],
    objective: Callable[..., Any],
    *,
    dtype: torch.dtype,
    device: torch.device,
    on_policy: bool = False,
) -> Batch:
    """Collect the keywords of an objective's signature.

    Args:
        groups: Optimizer batch.
        objective: Function of log-probs and keywords; `**kwargs` receive everything that all rows have, except for
            `sampler_logprobs`, which has to be named.
        dtype: Dtype of floating-point tensors with one value per token; tensors with one value per row are float64.
        device: Device of all tensors.
        on_policy: Whether missing reference and old log-probs are taken from the current policy.

    Raises:
        MissingLogprobs: If reference or old log-probs are missing from all rows off-policy, or from some rows, or if
            the sampler's are missing and have no default.
        MissingInput: If another keyword without a default is missing, or is present on some rows only.
        ShapeError: If values of an extra match neither the tokens nor each other in length.
    """
    rows = [row for group in groups for row in group.completions]
    lengths = tuple(len(row.tokens) for row in rows)
    stack = _Stacker(lengths, dtype, device)
    mask = stack("mask", [np.ones(len(row.tokens)) if row.mask is None else row.mask for row in rows])
    members = [index for index, group in enumerate(groups) for _ in group.completions]
    inputs: dict[str, Any] = {"mask": mask, "group": torch.tensor(members, dtype=torch.int64, device=device)}
    own = []
    wanted = _keywords(objective, rows)
    for name in wanted.keys() - inputs.keys():
        values = [_value(row, name) for row in rows]
        if all(value is None for value in values):
            if name in LOGPROBS and on_policy:
                own.append(name)
            elif wanted[name]:
                raise _missing_everywhere(name)
        elif any(value is None for value in values):
            if name == SAMPLER and not wanted[name]:
                continue  # of rows that no sampler reported; the objective says whether it can do without
            raise _missing_somewhere(name, values)
        else:
            inputs[name] = stack(name, values)
    return Batch({name: inputs[name] for name in inputs.keys() & wanted.keys()}, tuple(own), mask, lengths)


def _keywords(objective: Callable[..., Any], rows: Sequence[Completion]) -> dict[str, bool]:
    """Return the keywords that an objective accepts from the batch, and whether each is required."""
    parameters = list(inspect.signature(objective).parameters.values())
    fixed = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY)
    named = {p.name: p.default is p.empty for p in parameters[1:] if p.kind not in fixed}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        present = {"rewards", *LOGPROBS, *(name for row in rows for name in row.extras)}
        shared = {name: False for name in present if all(_value(row, name) is not None for row in rows)}
        named = {"mask": False, "group": False} | shared | named
    return named


def _value(row: Completion, name: str) -> Any:
    """Return a completion's value for a keyword, or None if it has none."""
    if name == "rewards":
        return row.reward
    return getattr(row, name) if name in (*LOGPROBS, SAMPLER) else row.extras.get(name)


def _missing_everywhere(name: str) -> MissingInput:
    if name in LOGPROBS:
        return MissingLogprobs(
            f"the objective needs {name} and no completion has them: set Completion.{name}, for example from "
            "gvpo.score, or pass on_policy=True if they are those of the current policy"
        )
    if name == SAMPLER:
        return MissingLogprobs(
            f"the objective needs {name} and no completion has them: use rows that a sampler reported"
        )
    if name == "rewards":
        return MissingInput("the objective needs rewards and no completion has one: set Completion.reward")
    return MissingInput(f"the objective needs {name!r} and no completion has it: put it into Completion.extras")


def _missing_somewhere(name: str, values: Sequence[Any]) -> MissingInput:
    absent = [index for index, value in enumerate(values) if value is None]
    what = f"{name} is missing from {len(absent)} of {len(values)} completions (the first is row {absent[0]})"
    if name in (*LOGPROBS, SAMPLER):
        return MissingLogprobs(f"{what}: set it on all of them or on none")
    if name == "rewards":
        return MissingInput(f"{what}: remove rows without a reward from their group")
    return MissingInput(f"{what}: put it into the extras of all of them")


class _Stacker:
    """Stacks one value per row: scalars to [B], lists as long as the tokens to [B, T], other vectors to [B, M].

    Values per token get the dtype of the log-probs. Values per row keep float64, because the objective centers rewards,
    and float32 would lose their differences under a large offset.
    """

    def __init__(self, lengths: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self.lengths, self.dtype, self.device = lengths, dtype, device

    def __call__(self, name: str, values: Sequence[Any]) -> Any:
        if all(isinstance(value, str) for value in values):
            return tuple(values)
        parts = _tensors(values, floating=name in FIELDS)
        sizes = tuple(part.numel() for part in parts)
        if any(part.ndim > 1 for part in parts) or len({part.ndim for part in parts}) > 1:
            raise ShapeError(f"{name} must be a scalar on every row or a list on every row")
        per_token = parts[0].ndim > 0 and sizes == self.lengths
        if not per_token and len(set(sizes)) > 1:
            raise ShapeError(f"{name} must be as long as the tokens of its row, or of one length on all rows")
        stacked = self._pad(parts) if per_token else torch.stack(parts)
        if not stacked.is_floating_point():
            return stacked.to(self.device)
        return stacked.to(self.device, self.dtype if per_token else row_dtype(self.device))

    def _pad(self, parts: Sequence[Tensor]) -> Tensor:
        """Return [B, T], zero-padded on the right. T is at least 1, so that empty rows have a column."""
        padded = pad_sequence(list(parts), batch_first=True)
        return padded if padded.shape[1] else F.pad(padded, (0, 1))


def _tensors(values: Sequence[Any], *, floating: bool) -> list[Tensor]:
    """Return one tensor per row on the CPU, all of one dtype: float64 if requested or if any is a float, else int64."""
    parts = [value.detach().cpu() if isinstance(value, Tensor) else torch.tensor(np.asarray(value)) for value in values]
    floating = floating or any(part.is_floating_point() for part in parts)
    return [part.to(torch.float64 if floating else torch.int64) for part in parts]
