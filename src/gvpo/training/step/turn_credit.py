"""Inputs of objectives from the turns of episodes: the segment that each token belongs to, and its advantage."""

import dataclasses
from collections.abc import Callable, Sequence

import torch

from gvpo.config import ObjectiveSpec, TrainConfig
from gvpo.objectives.turns import turn_advantages
from gvpo.rollout.usable import TrainingGroup
from gvpo.types import Completion


def with_turns(groups: Sequence[TrainingGroup], spec: ObjectiveSpec, config: TrainConfig) -> list[TrainingGroup]:
    """Return the groups with what the objective reads of turns in the completions' extras.

    - `segments`, if it needs them and `objective.segment_at` is not set: each turn is a segment.
    - `advantages`, if `environment.turn_credit` is "to_go" and rows are episodes: see `turn_advantages`.

    Args:
        groups: Groups without the rows that have no reward: these must not be in the baselines of others.
        spec: Entry of the objective.
        config: Settings of the run.
    """
    changes: list[Callable[[TrainingGroup], TrainingGroup]] = []
    if "segments" in spec.needs and config.segment_at is None:
        changes.append(_with_segments)
    if config.environment_turn_credit == "to_go" and any(row.turns for row in _rows(groups)):
        scale = bool(spec.bound(config).get("scale_rewards"))
        changes.append(lambda entry: _with_advantages(entry, scale_rewards=scale))
    found = list(groups)
    for change in changes:
        found = [change(entry) for entry in found]
    return found


def _rows(groups: Sequence[TrainingGroup]) -> list[Completion]:
    return [row for entry in groups for row in entry.group.completions]


def _with_segments(entry: TrainingGroup) -> TrainingGroup:
    rows = entry.group.completions
    return _with_extra(entry, "segments", [spread(row, range(len(row.turns))) for row in rows])


def _with_advantages(entry: TrainingGroup, *, scale_rewards: bool) -> TrainingGroup:
    rows = entry.group.completions
    paid = [[turn.reward or 0.0 for turn in row.turns] or [0.0] for row in rows]
    most = max(map(len, paid))
    advantages = turn_advantages(
        torch.tensor([float(row.reward or 0.0) for row in rows], dtype=torch.float64),
        torch.tensor([[*each, *[0.0] * (most - len(each))] for each in paid], dtype=torch.float64),
        turns=torch.tensor([len(each) for each in paid]),
        group=torch.zeros(len(rows), dtype=torch.int64),
        scale_rewards=scale_rewards,
    )
    return _with_extra(entry, "advantages", [spread(*pair) for pair in zip(rows, advantages.tolist(), strict=True)])


def spread(row: Completion, values: Sequence[float]) -> list[float]:
    """Return the value of its turn for each token; that of turn 0 if the row has no turns, or 0 without a value."""
    if not row.turns:
        return [next(iter(values), 0)] * len(row.tokens)
    return [value for turn, value in zip(row.turns, values, strict=False) for _ in range(turn.start, turn.end)]


def _with_extra(entry: TrainingGroup, name: str, values: Sequence[Sequence[float]]) -> TrainingGroup:
    rows = [
        dataclasses.replace(row, extras={**row.extras, name: list(value)})
        for row, value in zip(entry.group.completions, values, strict=True)
    ]
    return dataclasses.replace(entry, group=dataclasses.replace(entry.group, completions=rows))
