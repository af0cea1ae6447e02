"""Dead groups, whose completions have no difference to learn from (dynamic sampling, DAPO, arXiv 2503.14476)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gvpo.rollout.collect import Rollout
from gvpo.types import Group, Verdict, is_right

By = Literal["reward", "accuracy"]
"""Definitions of a dead group (`rollout.dead_by`)."""


@dataclass(frozen=True)
class DeadGroups:
    """A definition of dead groups.

    Args:
        criterion: "reward": all rewards are equal; "accuracy": all completions are correct, or all are wrong,
            whatever else their rewards contain (a penalty for length, for example).
        judge: Name of the reward function that decides whether a completion is correct.
    """

    criterion: By
    judge: str | None

    def is_dead(self, group: Group, verdicts: Sequence[Verdict]) -> bool:
        """Return whether a group has no difference; rows without a reward do not count."""
        scored = [
            (row, verdict) for row, verdict in zip(group.completions, verdicts, strict=True) if row.reward is not None
        ]
        if self.criterion == "reward" or self.judge is None:
            return len({row.reward for row, _ in scored}) < 2
        return len({is_right(verdict.parts.get(self.judge)) for _, verdict in scored}) < 2

    def of(self, rollout: Rollout) -> set[int]:
        """Return the positions of the dead groups of a rollout; there are none without rewards."""
        judged = zip(rollout.groups, rollout.verdicts, strict=False)
        return {place for place, (group, verdicts) in enumerate(judged) if self.is_dead(group, verdicts)}

    def alive(self, rollout: Rollout) -> int:
        """Return the number of groups of a rollout that are not dead."""
        return len(rollout.groups) - len(self.of(rollout))


@dataclass(frozen=True)
class Replacement:
    """Replacement of dead groups by groups of other prompts.

    Args:
        dead: Definition of dead groups.
        rounds: Maximum number of times per step that the missing groups are sampled.
    """

    dead: DeadGroups
    rounds: int
