"""Selection of the rows of a rollout that can be trained on."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from gvpo.types import Completion, Group

MAX_FAILED_SHARE = 0.5
"""Fraction of failed rewards in a rollout above which the run stops."""


@dataclass(frozen=True)
class TrainingGroup:
    """A group's usable rows, and their positions in the rollout.

    Args:
        group: Rows to train on.
        index: Position of the group in the rollout.
        rows: Position of each row in its group of the rollout.
    """

    group: Group
    index: int
    rows: tuple[int, ...]


def is_usable(row: Completion, *, rewarded: bool = True) -> bool:
    """Return whether a row can be trained on: no engine aborted it, and it has a reward if rows have rewards."""
    return row.finish_reason != "abort" and (row.reward is not None or not rewarded)


def usable(groups: Sequence[Group], *, rewarded: bool, at_least: int) -> list[TrainingGroup]:
    """Drop the rows that cannot be used (k shrinks, means are recomputed later), then the groups left too small."""
    kept = []
    for index, group in enumerate(groups):
        rows = tuple(i for i, row in enumerate(group.completions) if is_usable(row, rewarded=rewarded))
        if len(rows) >= at_least:
            smaller = dataclasses.replace(group, completions=[group.completions[i] for i in rows])
            kept.append(TrainingGroup(smaller, index, rows))
    return kept
