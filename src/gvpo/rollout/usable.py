"""Selection of the rows of a rollout that can be trained on."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gvpo.types import Completion, Group

Overlong = Literal["keep", "mask", "drop"]
"""Treatments of completions that reached the maximum length (`train.overlong_completions`)."""

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
    """Return whether a row can be trained on: it has tokens, no engine aborted it, and it has a reward if rows do."""
    is_whole = row.finish_reason != "abort" and len(row.tokens) > 0  # an episode that did not begin has no tokens
    return is_whole and (row.reward is not None or not rewarded)


def is_overlong(row: Completion) -> bool:
    """Return whether a row reached the maximum length, in the policy's turn or before the environment's next text."""
    return row.finish_reason in ("length", "context")


def usable(
    groups: Sequence[Group], *, rewarded: bool, at_least: int, overlong: Overlong = "keep"
) -> list[TrainingGroup]:
    """Drop the rows that cannot be used (k shrinks, means are recomputed later), then the groups left too small.

    Args:
        groups: Groups with every row.
        rewarded: Whether rows need a reward.
        at_least: Minimum number of rows per group.
        overlong: Treatment of overlong rows: "drop" removes them as well; "mask" keeps them and their rewards, which
            count in the means of the group, with a mask of zeros, so that no token of theirs is trained on.
    """
    kept = []
    for index, group in enumerate(groups):
        found = [(i, row) for i, row in enumerate(group.completions) if is_usable(row, rewarded=rewarded)]
        ended = [(i, row) for i, row in found if not is_overlong(row)]
        found = ended if overlong == "drop" else found
        if len(found) >= at_least and (ended or overlong == "keep"):
            rows = [_masked(row) if overlong == "mask" and is_overlong(row) else row for _, row in found]
            kept.append(TrainingGroup(dataclasses.replace(group, completions=rows), index, tuple(i for i, _ in found)))
    return kept


def _masked(row: Completion) -> Completion:
    return dataclasses.replace(row, mask=[0.0] * len(row.tokens))
