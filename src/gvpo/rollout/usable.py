"""Which rows of a rollout can be trained on."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from gvpo.types import Completion, Group

MAX_FAILED_SHARE = 0.5
"""More failed rewards than this in a rollout stop the run."""


@dataclass(frozen=True)
class TrainingGroup:
    """A group's usable rows, and where they stood in the rollout.

    Args:
        group: the rows that are trained on.
        index: the group's position in the rollout.
        rows: each row's position in its group of the rollout.
    """

    group: Group
    index: int
    rows: tuple[int, ...]


def is_usable(row: Completion, *, rewarded: bool = True) -> bool:
    """Return whether a row can be trained on: no engine aborted it, and it has a reward where rows have rewards."""
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
