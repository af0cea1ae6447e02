"""Attaching the results of passes to the rows of a batch."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from gvpo.errors import DataError
from gvpo.objectives import kl_in_reward
from gvpo.rollout.usable import TrainingGroup
from gvpo.types import Completion
from gvpo.update.group_backward import TokenLogprobs, UpdateOutput

Batch = Sequence[TrainingGroup]


def attach(
    batch: Batch, names: Sequence[str], scores: Sequence[TokenLogprobs], *, experts: bool = False
) -> list[TrainingGroup]:
    """Set fields of each completion to its log-probs, in order, and with `experts` also the experts of their pass."""
    remaining = iter(scores)

    def found() -> dict[str, Any]:
        one = next(remaining)
        return {**dict.fromkeys(names, one.logprobs), **({"experts": one.experts} if experts else {})}

    return [_replaced(entry, [found() for _ in entry.group.completions]) for entry in batch]


def recorded(batch: Batch) -> list[TrainingGroup]:
    """Set the old log-probs of each completion to those that were recorded when it was sampled.

    Raises:
        DataError: If a completion has none.
    """
    for entry in batch:
        if any(row.sampler_logprobs is None for row in entry.group.completions):
            raise DataError(
                f"group {entry.group.id!r} has completions without recorded log-probs, but rollout.old_logprobs="
                "'sampler' reads them; use a sampler that reports log-probs, or an objective without ratios (gvpo)"
            )
    return [
        _replaced(entry, [{"old_logprobs": row.sampler_logprobs} for row in entry.group.completions]) for entry in batch
    ]


def attach_extra(batch: Batch, name: str, scores: Sequence[TokenLogprobs]) -> list[TrainingGroup]:
    """Put log-probs into the extras of each completion, in order, as the input `name` of the objective."""
    remaining = iter(scores)
    return [
        _replaced(
            entry, [{"extras": {**row.extras, name: next(remaining).logprobs}} for row in entry.group.completions]
        )
        for entry in batch
    ]


def detach(batch: Batch, names: Sequence[str]) -> list[TrainingGroup]:
    """Remove log-probs, so that an update recognizes that it is on-policy."""
    return [_replaced(entry, [dict.fromkeys(names)] * len(entry.group.completions)) for entry in batch]


def own_scores(output: UpdateOutput) -> list[TokenLogprobs]:
    """Return an update's own log-probs as scores; they come from the policy just before the update changed it."""
    return [TokenLogprobs(row.logprobs, row.entropy, experts=row.experts) for row in output.rows]


def penalise(batch: Batch, beta: float) -> list[TrainingGroup]:
    """Subtract beta times the log-ratio of old log-probs and reference from the rewards."""
    return [_replaced(entry, [{"reward": _penalised(row, beta)} for row in entry.group.completions]) for entry in batch]


def _penalised(row: Completion, beta: float) -> float:
    old, ref = torch.as_tensor(row.old_logprobs), torch.as_tensor(row.ref_logprobs)
    mask = torch.ones_like(old) if row.mask is None else torch.as_tensor(row.mask)
    reward = torch.tensor([row.reward], dtype=torch.float64)
    return kl_in_reward(reward, logprobs=old[None], ref_logprobs=ref[None], mask=mask[None], beta=beta).item()


def _replaced(entry: TrainingGroup, changes: Sequence[dict[str, Any]]) -> TrainingGroup:
    rows = [dataclasses.replace(row, **change) for row, change in zip(entry.group.completions, changes, strict=True)]
    return dataclasses.replace(entry, group=dataclasses.replace(entry.group, completions=rows))
