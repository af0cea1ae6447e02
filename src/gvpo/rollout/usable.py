"""Which rows of a rollout can be trained on."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from gvpo.types import Group

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


def usable(groups: Sequence[Group], *, rewarded: bool, at_least: int) -> list[TrainingGroup]:
    """Drop the rows without a reward (k shrinks, means are recomputed later), then the groups left too small."""
    kept = []
    for index, group in enumerate(groups):
        rows = tuple(i for i, row in enumerate(group.completions) if row.reward is not None or not rewarded)
        if len(rows) >= at_least:
            smaller = dataclasses.replace(group, completions=[group.completions[i] for i in rows])
            kept.append(TrainingGroup(smaller, index, rows))
    return kept
