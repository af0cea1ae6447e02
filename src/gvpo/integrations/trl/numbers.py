"""Which optimizer steps have whole groups, and the numbers that fit. This module imports nothing of TRL."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from gvpo.errors import ConfigError


@dataclass(frozen=True)
class Numbers:
    """The numbers that decide which rows meet in an optimizer step.

    Args:
        accumulation: Number of micro-batches per optimizer step.
        per_generation: Number of micro-batches per generation.
        rows: Number of rows per micro-batch on a rank.
        ranks: Number of ranks.
        group: Number of rows per group.
        together: Whether the rows of all ranks can be regrouped (engine "gvpo"), or only those of each (engine "trl").
    """

    accumulation: int
    per_generation: int
    rows: int
    ranks: int
    group: int
    together: bool

    @property
    def windows(self) -> int:
        """Number of optimizer steps that share a generation; 1 if a step has one generation or more."""
        return max(1, self.per_generation // self.accumulation)

    @property
    def whole(self) -> bool:
        """True if each optimizer step has whole groups."""
        if self.rows * self.ranks * self.per_generation % self.group:
            return False  # TRL itself refuses these
        if self.accumulation % self.per_generation == 0:
            return True
        if self.per_generation % self.accumulation:
            return False
        return self.rows * self.accumulation * (self.ranks if self.together else 1) % self.group == 0

    def require_whole(self) -> None:
        """Raise an error with the nearest numbers that fit, unless each optimizer step has whole groups.

        Raises:
            ConfigError: If a group would be split over optimizer steps.
        """
        if self.whole:
            return
        fit = min(self._others(), key=self._distance)
        raise ConfigError(
            f"gradient_accumulation_steps={self.accumulation} and steps_per_generation={self.per_generation} split "
            f"groups of {self.group} over optimizer steps; use gradient_accumulation_steps={fit.accumulation} and "
            f"steps_per_generation={fit.per_generation}"
        )

    def _distance(self, other: "Numbers") -> tuple[int, int]:
        steps = abs(other.accumulation - self.accumulation), abs(other.per_generation - self.per_generation)
        return sum(steps), steps[0]

    def _others(self) -> Iterator["Numbers"]:
        """Yield numbers that fit. One generation per step always does, once it has whole groups."""
        most = self.group * max(self.accumulation, self.per_generation)
        for accumulation in range(1, 2 * most):
            for per_generation in {accumulation, self.per_generation, accumulation * 2}:
                other = replace(self, accumulation=accumulation, per_generation=per_generation)
                if other.whole:
                    yield other
